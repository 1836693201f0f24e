//! Everything that decodes what others made, as functions of bytes that must not panic, and whose results must hold together.
//!
//! `make fuzz` runs each under libFuzzer for a while; the tests replay what is in `corpus/`. `cargo run -p cug-fuzz --bin fuzz-seeds`
//! writes real messages there, to begin with.
#![forbid(unsafe_code)]

pub mod targets;
