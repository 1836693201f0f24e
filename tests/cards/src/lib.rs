//! Virtual PIV cards and a private pcscd to put them in, for end-to-end tests.
//!
//! A card is a [`Card`]: our own [`OwnCard`], or the independently written `PivAuthenticatorCard` (feature `piv-authenticator`, on by default).
//! [`VirtualCard::insert`] puts it into a reader of the driver in `tests/ifd` (a UNIX socket) on a thread of its own;
//! the [`Inserted`] handle pulls it again, injects faults, counts and records APDUs. The program `virtual-card` does the
//! same from a shell. [`rig::Pcscd`] starts a real pcscd with any number of such readers.
//!
//! ```no_run
//! use cug_cards::{Fault, OwnCard, OwnOptions, VirtualCard};
//! let card = OwnCard::new(OwnOptions::default()).unwrap();
//! let handle = VirtualCard::insert("/run/test/reader0.sock", card).unwrap();
//! handle.fail_next(Fault::Status(0x6F00));
//! let card = handle.eject(); // the same card may go into another reader now
//! # drop(card);
//! ```

mod apdu;
mod card;
pub mod host;
mod management;
mod own;
mod own_commands;
#[cfg(feature = "piv-authenticator")]
mod piv_authenticator_card;
pub mod rig;
mod store;
mod tlv;
mod virtual_card;
mod wire;

pub use apdu::{Command, sw};
pub use card::Card;
pub use management::{Management, ManagementAlgorithm};
pub use own::{OwnCard, OwnOptions, PinPolicy};
#[cfg(feature = "piv-authenticator")]
pub use piv_authenticator_card::PivAuthenticatorCard;
pub use virtual_card::{Exchange, Fault, Inserted, VirtualCard};

/// Result of the functions here; errors are for people who read test output.
pub type Result<T> = anyhow::Result<T>;
