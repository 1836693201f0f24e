//! A member's login as the terminal makes it: keys from the daemon, the card, a management server, and the grant to the daemon. Blocking, without a runtime.
//!
//! There is one way to log in, and this is it: the PAM module goes it while the person sits there, the daemon's waiting login (see `cugd::waiting`) when the
//! server was away at that time.
//!
//! [`offer`] asks the daemon, [`challenge`] has the card open the server's challenge, [`exchange`] sends the password and delivers the grant. [`login`] is the
//! protocol without I/O, [`server`] and [`daemon`] are the connections. Every wait has a deadline. Work that leaves keys on a stack is done in a scoped thread
//! with all signals blocked, whose stack is overwritten.
#![deny(unsafe_code)]

pub mod challenge;
pub mod contain;
pub mod daemon;
#[cfg(feature = "doubles")]
pub mod doubles;
pub mod edge;
pub mod exchange;
pub mod failure;
mod ffi;
pub mod login;
pub mod offer;
mod resolve;
pub mod server;

pub use daemon::DaemonError;
pub use failure::Failure;
pub use server::LinkError;
