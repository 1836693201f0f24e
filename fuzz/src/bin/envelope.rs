//! [`cug_fuzz::targets::envelope`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cug_fuzz::targets::envelope(input));
