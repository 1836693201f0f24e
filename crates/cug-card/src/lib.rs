//! The member's card: a PIV card in a PC/SC reader, or a key on a removable medium. Blocking calls, no runtime, no thread that outlives a call.
//!
//! * [`find`] waits for a card and gives it as a [`Card`]; with it a login is made.
//! * [`watch()`] tells when that very card goes.
//! * [`personalise`] makes cards and media.
//! * [`apdu`], [`tlv`], [`piv`], [`oaep`]: the same without I/O, for whoever brings their own reader.
//!
//! # What a login costs on a PIV card
//! | when | commands | APDUs (RSA-2048) | with extended lengths |
//! |---|---|---|---|
//! | [`find`] | SELECT, GET DATA of the server object, VERIFY without data | 1 + 3 or 4 + 1 | 1 + 1 + 1 |
//! | [`Card::unlock`] | SELECT, VERIFY | 1 + 1 | 1 + 1 |
//! | [`Card::open_challenge`] | GENERAL AUTHENTICATE | 3 | 1 |
//!
//! Extended lengths are used when the card's answer to reset and the reader's properties (PC/SC part 10) both say so.
//!
//! The card is released while the person types the PIN, so that other programs can use it meanwhile; that is the second SELECT. From
//! [`Card::unlock`] to [`Card::open_challenge`] it is held in one exclusive transaction: nobody else can use the PIN that was given.
#![forbid(unsafe_code)]

pub mod apdu;
mod error;
mod find;
mod lengths;
mod medium;
pub mod oaep;
pub mod pcsc_env;
pub mod personalise;
pub mod piv;
mod reader;
pub mod tlv;
pub mod watch;

pub use cug_proto::local::CardBinding;
pub use error::CardError;
pub use find::{find, find_again};
pub use watch::{Canceller, RemovalCause, Watch, watch};

use cug_proto::{
    message::Fingerprint,
    secret::{Secret, SecretBytes},
    trust::ServerObject,
};

/// A card of this network, ready for a login.
pub trait Card: Send {
    /// SHA-256 of the card key's DER `SubjectPublicKeyInfo`.
    fn fingerprint(&self) -> &Fingerprint;

    /// Whom the card trusts.
    fn server_object(&self) -> &ServerObject;

    /// What to ask the person for before [`Card::open_challenge`]. Does not block.
    ///
    /// # Errors
    /// [`CardError::PinBlocked`]
    fn pin(&mut self) -> Result<PinRequest, CardError>;

    /// Gives PIN or passphrase. Blocks for some 50 ms; a medium for the time of its key derivation. After a success call
    /// [`Card::open_challenge`] soon: a card in a reader is held for this process until then.
    ///
    /// # Errors
    /// [`CardError::WrongPin`], [`CardError::WrongPassphrase`], [`CardError::PinFormat`]: ask again. Others: the card is of no use now.
    fn unlock(&mut self, pin: &SecretBytes) -> Result<(), CardError>;

    /// Decrypts a challenge (RSA-OAEP-SHA256, 256, 384 or 512 bytes). Blocks for the card's private-key operation, up to 2 s on slow cards. The card
    /// locks again, whatever comes of it.
    ///
    /// # Errors
    /// [`CardError::PinRequired`]: [`Card::pin`] says what to ask for. [`CardError::NotForThisCard`] when the challenge was made for another key.
    fn open_challenge(&mut self, ciphertext: &[u8]) -> Result<Secret<32>, CardError>;

    /// The very card, for [`watch()`].
    fn binding(&self) -> CardBinding;
}

/// What a card wants from its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinRequest {
    /// Nothing.
    NotNeeded,
    /// The PIN.
    Pin {
        /// Tries left before the card blocks, if the card says so.
        tries_left: Option<u8>,
    },
    /// The passphrase of the key on a medium.
    Passphrase,
}

/// Where to look for a card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// PC/SC reader names, each a prefix; an earlier one is preferred. Empty means all readers.
    pub readers: Vec<String>,
    /// Directories on removable media; a last component `*` stands for every directory there. An earlier one is preferred.
    pub media: Vec<String>,
    /// Readers by full name and directories by path in which not to look: other people's cards are in use there.
    pub taken: Vec<String>,
}
