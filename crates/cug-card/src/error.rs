//! What can go wrong with a card, as one sentence for the person in front of it.

use std::io;

/// Why a card could not be used. `Display` is for the person; `source` is for the log.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// No reader is connected and no medium is there.
    #[error("no smart-card reader was found; connect a reader or plug in your medium and try again")]
    NoReader,
    /// No card came within the time.
    #[error("no card was found; insert your card and try again")]
    NoCard,
    /// More than one card of the kind that is looked for.
    #[error("several cards are inserted; leave only your own and try again")]
    SeveralCards,
    /// A card, but without the server object.
    #[error("this card was not issued for this network; insert the card that you were given")]
    NotOurs,
    /// The card does not hold the key that goes with its certificate, or none.
    #[error("this card has no usable key; ask the administrator to issue it again")]
    NoKey,
    /// The card went, or is another one than before.
    #[error("the card was removed; insert it and try again")]
    Removed,
    /// Another program has the card for itself.
    #[error("the card is in use by another program; close that program and try again")]
    Busy,
    /// No more tries for the PIN.
    #[error("the PIN of this card is blocked; ask the administrator to unblock it")]
    PinBlocked,
    /// The PIN is wrong.
    #[error("wrong PIN{}", Tries(*.tries_left))]
    WrongPin {
        /// How many tries are left, if the card says so.
        tries_left: Option<u8>,
    },
    /// The PIN that the card has just refused, typed once more; no try was spent.
    #[error("that is the PIN that the card has just refused; please type the right one")]
    SamePin,
    /// A PIN that no PIV card can have; no try was spent.
    #[error("a PIN has 4 to 8 characters; please try again")]
    PinFormat,
    /// The card wants its PIN (again) before it uses its key.
    #[error("the card asks for its PIN; please try again")]
    PinRequired,
    /// The passphrase does not open the key on the medium.
    #[error("wrong passphrase for the key on this medium")]
    WrongPassphrase,
    /// The challenge was not made for the key of this card.
    #[error("the server does not know this card; ask the administrator")]
    NotForThisCard,
    /// pcscd does not run, or cannot be reached.
    #[error("the smart-card service is not running; ask the administrator to start pcscd")]
    NoService(#[source] pcsc::Error),
    /// The environment names another PC/SC service (see [`crate::pcsc_env`]).
    #[error(
        "the environment names another smart-card service; unset PCSCLITE_CSOCK_NAME and LIBPCSCLITE_DELEGATE and try again"
    )]
    Redirected,
    /// pcscd does not let this user in (it asks polkit).
    #[error(
        "you may not use the card reader of this workstation; sit at it, or ask the administrator (polkit, org.debian.pcsc-lite)"
    )]
    NotPermitted(#[source] pcsc::Error),
    /// Any other word from PC/SC.
    #[error("the card reader does not work; take the card out, insert it and try again")]
    Reader(#[source] pcsc::Error),
    /// The card answered what no PIV card answers.
    #[error("the card cannot be read; take it out, insert it and try again")]
    Malformed(&'static str),
    /// The card refused: status word of ISO 7816-4.
    #[error("the card refused (status {0:04X}); ask the administrator")]
    Refused(u16),
    /// A file on the medium cannot be read or written.
    #[error("the medium cannot be used; plug it in again and try again")]
    Medium(#[source] io::Error),
    /// A file on the medium is not what it should be.
    #[error("the file {0} on the medium is not usable; ask the administrator to issue the medium again")]
    MediumFile(&'static str),
    /// The removal watch cannot be set up.
    #[error("the removal of the card cannot be watched; ask the administrator to look at the log")]
    Watch(#[source] io::Error),
    /// The management key is not the card's.
    #[error("the management key is not the one of this card")]
    ManagementKey,
    /// The file with the management key cannot be read.
    #[error("the file with the management key cannot be read")]
    KeyFile(#[source] io::Error),
    /// The card cannot do what is asked.
    #[error("this card does not support {0}")]
    Unsupported(&'static str),
    /// RSA keys have 2048, 3072 or 4096 bits.
    #[error("the key must be RSA with 2048, 3072 or 4096 bits")]
    KeyKind,
    /// The certificate or object is not for the key on the card, or too large.
    #[error("the {0} does not fit to the key on this card")]
    Mismatch(&'static str),
    /// There is a key already.
    #[error("the directory already holds a key; choose an empty one")]
    Exists,
    /// The operating system gives no random numbers.
    #[error("the system gives no random numbers; ask the administrator")]
    Random,
}

/// "; 2 tries are left" or nothing.
struct Tries(Option<u8>);

impl std::fmt::Display for Tries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(1) => f.write_str("; one try is left before the card blocks"),
            Some(n) => write!(f, "; {n} tries are left"),
            None => Ok(()),
        }
    }
}

impl From<pcsc::Error> for CardError {
    fn from(error: pcsc::Error) -> Self {
        use pcsc::Error as E;
        match error {
            E::NoService | E::ServiceStopped | E::Shutdown => Self::NoService(error),
            E::NoReadersAvailable => Self::NoReader,
            E::SecurityViolation => Self::NotPermitted(error),
            E::SharingViolation => Self::Busy,
            E::RemovedCard
            | E::NoSmartcard
            | E::UnknownReader
            | E::ReaderUnavailable
            | E::UnpoweredCard
            | E::InvalidHandle => Self::Removed,
            other => Self::Reader(other),
        }
    }
}
