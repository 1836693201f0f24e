//! A login that waits for a server: what the PAM module, the daemon and the waiting process say to each other.
//!
//! ```text
//!  pam_cug                cugd                          waiting process (one for each waiting login)
//!     |-- Wait (tag 10) -->|-- makes a socket, starts it ->|
//!     |<-- Waiting --------|-- Task ---------------------->|
//!     |-- HandOver: password and PIN ---------------------->|   (the daemon never has them)
//!     |<-- Reply::Done -------------------------------------|
//!     |                    |<-- Report::Ready -------------|
//!     |                    |-- Order::Try ---------------->|-- Prepare, card, server, Deliver: as at any login
//!     |                    |<-- Report::... ---------------|
//! ```
//! Frames as in [`crate::frame`]. The process ends, and the kernel takes its memory away, when the daemon closes the connection or ends, however it ends.

use crate::{id::UserId, local::CardBinding, secret::SecretBytes};
use minicbor::{Decode, Encode};

/// PAM service name in the `Prepare` of a waiting login.
pub const SERVICE: &str = "waiting-login";

/// What a waiting login needs to know. No secret.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Task {
    /// Who.
    #[n(0)]
    pub user: UserId,
    /// The very card: with another one, or the same inserted again, nothing is tried.
    #[n(1)]
    pub card: CardBinding,
    /// The daemon's socket.
    #[n(2)]
    pub daemon: String,
}

/// What was typed.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct HandOver {
    /// The password.
    #[n(0)]
    pub password: SecretBytes,
    /// PIN or passphrase, if the card asked for it.
    #[n(1)]
    pub pin: Option<SecretBytes>,
}

/// From the daemon.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
#[cbor(index_only)]
pub enum Order {
    /// Log in now, once. A [`Report`] other than `Ready` answers.
    #[n(0)]
    Try,
}

/// To the daemon.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// Password and PIN are here.
    #[n(0)]
    Ready,
    /// Nobody refused anything, so it may be tried again: why, for the log and for `cugctl status`.
    #[n(1)]
    Away(#[n(0)] String),
    /// This login is not going to succeed: a sentence for the person.
    #[n(2)]
    Refused(#[n(0)] String),
    /// The grant is with the daemon, and the server has heard so.
    #[n(3)]
    LoggedIn,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    #[test]
    fn what_is_handed_over_fits_whatever_was_typed() {
        let long = || SecretBytes::copy_from(&[b'x'; SecretBytes::MAX]).unwrap();
        let bytes = frame::encode(&HandOver { password: long(), pin: Some(long()) }, frame::MAX_LOGIN).unwrap();
        let back: HandOver = frame::decode(&bytes[frame::HEADER_LEN..]).unwrap();
        assert_eq!((back.password.expose().len(), back.pin.unwrap().expose().len()), (1024, 1024));
        let none = frame::encode(&HandOver { password: long(), pin: None }, frame::MAX_LOGIN).unwrap();
        assert!(frame::decode::<HandOver>(&none[frame::HEADER_LEN..]).unwrap().pin.is_none());
    }

    #[test]
    fn reports_round_trip() {
        for report in [Report::Ready, Report::Away("x".into()), Report::Refused("y".into()), Report::LoggedIn] {
            assert_eq!(minicbor::decode::<Report>(&minicbor::to_vec(&report).unwrap()).unwrap(), report);
        }
    }
}
