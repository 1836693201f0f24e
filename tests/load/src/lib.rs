//! Terminals in software by the thousand, a real server in a process of its own, and figures.
//!
//! * [`cards`]: cards in software.
//! * [`terminal`]: the terminal's side of the protocol.
//! * [`fleet`]: thousands of terminals that sit there, and what they hear.
//! * [`host`]: a server with a directory, and what the kernel says of its process.
//! * [`echo`]: the floor under all of it, TLS connections that say nothing.
//! * [`figures`]: distributions, and the report.
//! * [`pace`]: how an operation that is measured alone finds the machine.

pub mod cards;
pub mod echo;
pub mod figures;
pub mod fleet;
pub mod host;
pub mod pace;
pub mod terminal;
