//! [`cug_fuzz::targets::import`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cug_fuzz::targets::import(input));
