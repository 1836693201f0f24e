//! What the terminal and the management server say to each other, and nothing else: no I/O, no clock, no randomness of its own.
//!
//! * [`frame`]: how messages are cut out of a byte stream.
//! * [`message`]: every message of the login and of the session channel, with the state in which it may come.
//! * [`login`]: the key schedule of one login (challenge, proof, sealed outcome, acknowledgement).
//! * [`envelope`]: user ID and password, encrypted to the server's public key from the card (COSE).
//! * [`session`]: the key schedule of the session channel, and the preshared key of a pair of members.
//! * [`trust`]: what the card says about the server, and the TLS configuration that follows from it.
//! * [`local`]: what the PAM module and `cugctl` say to `cugd` over its socket.
//! * [`password`]: what a new password may not be.
//! * [`secret`]: byte strings that wipe themselves and cannot be printed.
//! * [`id`]: validated names.
//! * [`enrol`]: how a user with a one-time code registers password and card; with its own table of messages.
//!
//! # One login, in order
//! | # | from | message | what may follow |
//! |---|---|---|---|
//! | 1 | terminal | [`message::Hello`] | `Challenge`, `Unavailable` |
//! | 2 | server | [`message::Challenge`] | `Login` |
//! | 3 | terminal | [`message::Login`] | `Rejected`, `Outcome`, `Unavailable` |
//! | 4 | server | [`message::ServerMessage::Rejected`] or [`message::ServerMessage::Outcome`] | `Ack` after a grant, else the connection ends |
//! | 5 | terminal | [`message::Ack`] | `Registered` |
//! | 6 | server | [`message::ServerMessage::Registered`] | the connection ends |
//!
//! # The session channel
//! | from | message | what may follow |
//! |---|---|---|
//! | terminal | [`message::Attach`] | `Attached`, `End` |
//! | server | [`message::Attached`], then [`message::Peers`] for each group, then `Synced` | everything below |
//! | terminal | [`message::Endpoints`] | the other members are told (again) where this terminal sits |
//! | terminal | `Heartbeat` | `Alive` |
//! | terminal | `Clear` | `Cleared`, and the connection ends (patent, Fig. 9, steps 4-6) |
//! | server | [`message::Peers`], [`message::SealedGroup`], `Activate`, `Left` | `KeyAck` after a `SealedGroup` |
//! | server | `End` | the connection ends; the terminal tears its tunnel down |
//!
//! Anything else in a given state ends the connection.
#![forbid(unsafe_code)]

pub mod enrol;
pub mod envelope;
pub mod frame;
pub mod hours;
pub mod id;
pub mod kdf;
pub mod local;
pub mod login;
pub mod message;
pub mod notice;
pub mod password;
pub mod policy;
pub mod secret;
pub mod session;
pub mod trust;
pub mod waiting;

/// Version of the protocol that this crate speaks; a peer with another one is refused with a clear sentence.
pub const PROTOCOL_VERSION: u16 = 1;

/// TCP port of the management server unless configured otherwise.
pub const DEFAULT_SERVER_PORT: u16 = 7531;

/// A byte string from a peer, a card or a socket was not what the protocol allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A frame is larger than its state allows.
    #[error("a message is larger than allowed")]
    TooLarge,
    /// Not the CBOR that the message asks for.
    #[error("a message is malformed")]
    Malformed,
    /// A message that must not come now.
    #[error("a message came out of order")]
    OutOfOrder,
    /// A MAC, a seal or a proof does not hold.
    #[error("a message does not authenticate")]
    NotAuthentic,
    /// The peer speaks another version.
    #[error("the other side speaks another version of the protocol")]
    Version,
    /// A key is not of the kind or size that is supported.
    #[error("a key is of a kind or size that is not supported")]
    Key,
}
