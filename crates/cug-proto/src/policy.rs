//! What a session's processes may reach besides the group (P7).

use crate::ProtocolError;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, num::NonZeroU16, str::FromStr};

/// Most exceptions of a closed group.
pub const MAX_ALLOW: usize = 32;

/// A group's policy.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// The member's processes may reach anything besides the group.
    #[default]
    #[n(0)]
    Open,
    /// They reach the group, the management servers, loopback, and what is listed: at most [`MAX_ALLOW`].
    #[n(1)]
    Closed(#[n(0)] Vec<Allow>),
}

/// An exception of a closed group: a network, and one port of TCP and UDP or all of them and every protocol.
///
/// As text: `192.0.2.0/24`, `192.0.2.7:53`, `2001:db8::/32`, `[2001:db8::/64]:443`.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[cbor(map)]
pub struct Allow {
    /// Network address.
    #[n(0)]
    address: IpAddr,
    /// Prefix length: 0 to 32 or 128.
    #[n(1)]
    len: u8,
    /// 1 to 65535; 0 for all.
    #[n(2)]
    port: u16,
}

impl Allow {
    /// The network without host bits.
    #[must_use]
    pub fn new(net: IpNet, port: Option<NonZeroU16>) -> Self {
        Self { address: net.network(), len: net.prefix_len(), port: port.map_or(0, NonZeroU16::get) }
    }

    /// The network.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`]: it came over the wire with a prefix length that does not fit.
    pub fn net(&self) -> Result<IpNet, ProtocolError> {
        let net = match self.address {
            IpAddr::V4(a) => Ipv4Net::new(a, self.len).map(IpNet::from),
            IpAddr::V6(a) => Ipv6Net::new(a, self.len).map(IpNet::from),
        };
        net.map(|n| n.trunc()).map_err(|_| ProtocolError::Malformed)
    }

    /// The port of TCP and UDP; `None` for everything.
    #[must_use]
    pub fn port(&self) -> Option<NonZeroU16> {
        NonZeroU16::new(self.port)
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, 0) => write!(f, "{address}/{}", self.len),
            (IpAddr::V4(address), port) => write!(f, "{address}/{}:{port}", self.len),
            (IpAddr::V6(address), port) => write!(f, "[{address}/{}]:{port}", self.len),
        }
    }
}

/// The text is not a network with or without a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network such as 192.0.2.0/24, 192.0.2.7:53 or [2001:db8::/64]:443")]
pub struct NotAnAllow(String);

impl FromStr for Allow {
    type Err = NotAnAllow;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || NotAnAllow(text.to_owned());
        let net = |t: &str| t.parse::<IpNet>().or_else(|_| t.parse::<IpAddr>().map(IpNet::from)).ok();
        if let Some(net) = net(text) {
            return Ok(Self::new(net, None));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port: NonZeroU16 = port.parse().map_err(|_| bad())?;
        let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let net = net(v6.unwrap_or(host)).filter(|n| v6.is_some() == matches!(n, IpNet::V6(_))).ok_or_else(bad)?;
        Ok(Self::new(net, Some(port)))
    }
}

impl Serialize for Allow {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Allow {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_there_and_back() {
        for (text, shown) in [
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7:53", "192.0.2.7/32:53"),
            ("192.0.2.0/24:53", "192.0.2.0/24:53"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:db8::/64]:443", "[2001:db8::/64]:443"),
            ("[2001:db8::1]:443", "[2001:db8::1/128]:443"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            let allow: Allow = text.parse().unwrap();
            assert_eq!(allow.to_string(), shown);
            assert_eq!(shown.parse::<Allow>().unwrap(), allow);
        }
        for bad in
            ["", "x", "192.0.2.0/33", "192.0.2.7:0", "192.0.2.7:65536", "[192.0.2.7]:53", "2001:db8::/32:53", ":53"]
        {
            assert!(bad.parse::<Allow>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_from_the_wire_is_checked() {
        let wire = Allow { address: "192.0.2.0".parse().unwrap(), len: 64, port: 0 };
        assert_eq!(wire.net(), Err(ProtocolError::Malformed));
    }
}
