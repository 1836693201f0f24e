//! [`cug_fuzz::targets::messages`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cug_fuzz::targets::messages(input));
