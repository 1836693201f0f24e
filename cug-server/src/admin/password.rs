//! A password on its way from the prompt to the hash.

use cug_proto::secret::SecretBytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

/// Shortest password that is taken, in bytes.
const SHORTEST: usize = 6;
/// Longest, in bytes.
const LONGEST: usize = 512;

/// UTF-8, no control characters, wiped on drop.
pub struct Password(SecretBytes);

impl Password {
    /// Checks a password.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn new(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "the password is not UTF-8")?;
        if text.len() < SHORTEST {
            return Err("the password is shorter than 6 bytes");
        }
        if text.len() > LONGEST {
            return Err("the password is longer than 512 bytes");
        }
        if text.chars().any(char::is_control) {
            return Err("the password has a control character in it");
        }
        SecretBytes::copy_from(bytes).map(Self).ok_or("the password is too long")
    }

    pub(super) fn secret(&self) -> &SecretBytes {
        &self.0
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(self.0.expose()).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::new(text.as_bytes()).map_err(D::Error::custom)
    }
}
