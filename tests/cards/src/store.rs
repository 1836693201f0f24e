//! A card's state in a file, so that the same card can be inserted elsewhere later.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// Bytes as hexadecimal text.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal text as bytes; spaces and colons are skipped.
pub fn from_hex(text: &str) -> crate::Result<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).map(|digit| digit as u8).context("not a hexadecimal digit"))
        .collect::<crate::Result<_>>()?;
    anyhow::ensure!(digits.len().is_multiple_of(2), "an odd number of hexadecimal digits");
    Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// For serde: a byte vector as hexadecimal text.
pub mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::to_hex(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        super::from_hex(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Reads a state file. None if there is none.
pub fn load<T: for<'de> Deserialize<'de>>(path: &Path) -> crate::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => {
            Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{} is no such card", path.display()))?))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// Replaces a state file as a whole: a card pulled at any moment leaves the old state or the new one.
pub fn save<T: Serialize>(path: &Path, state: &T) -> crate::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&name)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    fs::rename(&name, path)?;
    Ok(())
}
