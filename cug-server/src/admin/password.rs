//! A password on its way from the prompt to the hash.

use cug_proto::secret::SecretBytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

/// UTF-8, wiped on drop. Whether it may be a user's password is decided where the rules are: see [`crate::policy::password`].
pub struct Password(SecretBytes);

impl Password {
    /// Takes what was typed.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn new(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.is_empty() {
            return Err("no password was entered");
        }
        // On its way to the server it is a JSON string.
        std::str::from_utf8(bytes).map_err(|_| "the password is not UTF-8")?;
        SecretBytes::copy_from(bytes).map(Self).ok_or("the password is longer than 1024 bytes")
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
