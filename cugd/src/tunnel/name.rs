//! Names of the interfaces that are ours.

use std::{fmt, str::FromStr};

use super::TunnelError;

/// `cug` and ten lower-case hexadecimal digits. The form is narrow on purpose: [`super::sweep`] removes whatever bears
/// such a name, and must not meet an interface that somebody called `cuggy`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// What all names begin with.
    pub const PREFIX: &'static str = "cug";
    const DIGITS: usize = 10;

    /// The name for the first five bytes of `hash`, which covers session and group.
    pub fn from_hash(hash: &[u8; 32]) -> Self {
        let digits: String = hash.iter().take(Self::DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{}{digits}", Self::PREFIX))
    }

    /// The name of the interface that asks the kernel whether it has WireGuard.
    pub(super) fn probe() -> Self {
        Self::from_hash(&[0; 32])
    }

    /// The index of the interface in the kernel, 2^30 to 2^31: taken from the name, so that it is known before the interface exists and
    /// no other network namespace has one of the same index, as small ones are bound to be. It is the number of its routing table, too.
    pub fn index(&self) -> u32 {
        let digits = self.0.get(self.0.len().saturating_sub(8)..).unwrap_or_default();
        // The form was checked when the name was made.
        0x4000_0000 | (u32::from_str_radix(digits, 16).unwrap_or_default() & 0x3fff_ffff)
    }

    /// The name as the kernel takes it, 13 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = TunnelError;

    fn from_str(name: &str) -> Result<Self, TunnelError> {
        let ours = name.strip_prefix(Self::PREFIX).is_some_and(|digits| {
            digits.len() == Self::DIGITS && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if ours { Ok(Self(name.to_owned())) } else { Err(TunnelError::Name(name.to_owned())) }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::InterfaceName;

    #[test]
    fn only_our_own_names_are_ours() {
        let name = InterfaceName::from_hash(&[0xab; 32]);
        assert_eq!(name.as_str(), "cugababababab");
        assert_eq!(name.as_str().parse::<InterfaceName>().unwrap(), name);
        assert_eq!(name.index(), 0x6bab_abab);
        assert_eq!(InterfaceName::from_hash(&[0; 32]).index(), 0x4000_0000);
        for foreign in ["cug", "cuggy", "cug0123456789a", "cug012345678", "cug012345678G", "cugABABABABAB", "wg0", ""] {
            assert!(foreign.parse::<InterfaceName>().is_err(), "{foreign}");
        }
    }
}
