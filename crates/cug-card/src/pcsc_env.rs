//! `PCSCLITE_CSOCK_NAME`, the environment variable that leads libpcsclite to another service (and `LIBPCSCLITE_DELEGATE`, with which libraries
//! since 2.3 are replaced by another one).
//!
//! libpcsclite reads it with `getenv`, also in set-uid programs (where `secure_getenv` would see nothing), and keeps the name that it read first for the
//! life of the process: setting or removing the variable later changes nothing (seen with 1.9.9). A person who calls `su` with that variable set would so
//! choose the reader, and one of the modules before ours in the PAM stack may have made the library read it already. Removing it
//! is therefore no protection, and changing the environment of a process with threads is undefined. So nothing is changed: while such a
//! variable is set, [`find`](crate::find) refuses with [`CardError::Redirected`] and no byte is exchanged with whatever it names.
//!
//! [`watch()`](crate::watch()) and [`personalise`](crate::personalise) do not look: they run in programs whose environment is their owner's.

use crate::CardError;

/// The variable that names another service.
pub const VARIABLE: &str = "PCSCLITE_CSOCK_NAME";
/// The variable that names another library.
pub const DELEGATE: &str = "LIBPCSCLITE_DELEGATE";

/// Refuses a redirected PC/SC service.
///
/// # Errors
/// [`CardError::Redirected`] when one of the variables is set, to whatever value.
pub fn check() -> Result<(), CardError> {
    let redirected = [VARIABLE, DELEGATE].iter().any(|name| std::env::var_os(name).is_some());
    if redirected { Err(CardError::Redirected) } else { Ok(()) }
}
