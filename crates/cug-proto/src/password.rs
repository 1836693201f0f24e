//! What a new password may not be. The server decides; the sentences are here, so that they are the same at its command line and at a terminal.

use minicbor::{Decode, Encode};

/// Longest password, in bytes of UTF-8.
pub const MAX_PASSWORD: usize = crate::secret::SecretBytes::MAX;

/// The rule that a new password breaks. Says nothing about the password that the person did not type.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PasswordProblem {
    /// Fewer characters (Unicode scalar values) than this.
    #[error("The new password is too short: it needs at least {0} characters.")]
    #[n(0)]
    TooShort(#[n(0)] u32),
    /// More bytes than this.
    #[error("The new password is too long: it may have at most {0} bytes.")]
    #[n(1)]
    TooLong(#[n(0)] u32),
    /// Not UTF-8, or with a control character in it: it could not be typed everywhere.
    #[error("The new password has a character in it that cannot be typed at every workstation.")]
    #[n(2)]
    NotText,
    /// Among the passwords that are tried first, or an easy pattern.
    #[error("The new password is one that many people use; choose one that nobody would guess.")]
    #[n(3)]
    Common,
    /// It contains the user ID.
    #[error("The new password has the user ID in it; choose another one.")]
    #[n(4)]
    UserId,
    /// It is the old one.
    #[error("The new password is the old one; choose another one.")]
    #[n(5)]
    Unchanged,
}
