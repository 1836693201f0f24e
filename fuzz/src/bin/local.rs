//! [`cug_fuzz::targets::local`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cug_fuzz::targets::local(input));
