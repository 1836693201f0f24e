//! Names that were checked once, where they came in.

use crate::ProtocolError;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use std::{fmt, str::FromStr};

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $max:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Longest name in bytes.
            pub const MAX: usize = $max;

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ProtocolError;

            fn from_str(name: &str) -> Result<Self, ProtocolError> {
                let allowed: fn(usize, u8) -> bool = $allowed;
                let valid = (1..=$max).contains(&name.len()) && name.bytes().enumerate().all(|(i, b)| allowed(i, b));
                if valid { Ok(Self(name.into())) } else { Err(ProtocolError::Malformed) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                d.str()?.parse().map_err(|_| decode::Error::message("not a valid name"))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                name.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// A user ID: what the user types at the login prompt, and the name of the account on the workstation. 1 to 32 of
    /// `A-Z a-z 0-9 . _ -`, not beginning with `-` or `.` (the rule of useradd, and upper case as in the patent's `USER-A`).
    UserId, 32, |i, b| b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && (b == b'-' || b == b'.'))
);

name_type!(
    /// The name of a closed group (the patent's VPN number). 1 to 32 of `A-Z a-z 0-9 _ -`, not beginning with `-`; a DNS label, but for `_`.
    GroupName, 32, |i, b| b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && b == b'-')
);

name_type!(
    /// The name of a workstation, for people to read. 1 to 64 of `A-Z a-z 0-9 . _ -`.
    HostName, 64, |_, b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')
);

name_type!(
    /// The name of a time zone, such as `Europe/Berlin`. 1 to 64 of `A-Z a-z 0-9 _ + - /`, beginning with a letter; whether there is one of
    /// that name is another question.
    ZoneName, 64, |i, b| b.is_ascii_alphabetic() || (i > 0 && (b.is_ascii_digit() || matches!(b, b'_' | b'+' | b'-' | b'/')))
);

/// A closed group's number at the server; never reused.
pub type GroupId = u32;

/// A generation of a group's key; grows by one with each rotation, from 1.
pub type Epoch = u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["USER-A", "a", "first.last", "x_1", "0day"] {
            assert!(good.parse::<UserId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "a\0", "ä", "a\n", &"x".repeat(33)] {
            assert!(bad.parse::<UserId>().is_err(), "{bad:?}");
        }
        assert!("vpn.1".parse::<GroupName>().is_err());
    }
}
