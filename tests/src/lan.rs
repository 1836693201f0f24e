//! An Ethernet: a bridge in a namespace of its own, and a cable to each host.

use crate::process::Finished;
use crate::space::Space;
use crate::wait;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The bridge's interface, where everything that crosses the LAN can be seen.
pub const BRIDGE: &str = "lan0";

/// The host's interface.
pub const CARD: &str = "eth0";

/// The interface of a virtual machine's cable, on the host that runs it.
pub const TAP: &str = "tap0";

/// How long the kernel may take until a card is up.
const UP_LIMIT: Duration = Duration::from_secs(10);

/// An Ethernet with 10.0.0.0/24 and fd00:10::/64 on it.
pub struct Lan {
    space: Space,
    cables: AtomicU32,
}

/// IPv4 address of the host with this number.
pub fn address4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

/// IPv6 address of the host with this number.
pub fn address6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, u16::from(number))
}

impl Lan {
    /// Makes one without hosts.
    ///
    /// # Errors
    /// As [`Space::new`].
    pub fn new(logs: &Path) -> anyhow::Result<Self> {
        let space = Space::new("lan", logs)?;
        space.ip(&[
            "link set lo up".into(),
            format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
            format!("link set {BRIDGE} up"),
        ])?;
        Ok(Self { space, cables: AtomicU32::new(0) })
    }

    /// The namespace of the bridge.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Connects `host` as number `number`: 10.0.0.N/24 and fd00:10::N/64 on its `eth0`. Returns the cable.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn connect(&self, host: &Space, number: u8) -> anyhow::Result<Cable> {
        let port = format!("port{}", self.cables.fetch_add(1, Ordering::Relaxed));
        self.space.ip(&[
            format!("link add {port} type veth peer name {CARD} netns {}", host.pid()),
            format!("link set {port} master {BRIDGE} up"),
        ])?;
        // Nobody else has these addresses; looking for others who do takes a second.
        host.run("sh", &["-c", &format!("echo 0 >/proc/sys/net/ipv6/conf/{CARD}/accept_dad")])?.ok()?;
        host.ip(&[
            "link set lo up".into(),
            format!("addr add {}/24 dev {CARD}", address4(number)),
            format!("addr add {}/64 dev {CARD} nodad", address6(number)),
            format!("link set {CARD} up"),
        ])?;
        // The kernel adds this one by itself, some time after the carrier; what comes later would be taken for something that a session left behind.
        wait::for_true("the link-local address", UP_LIMIT, || {
            let shown = host.run("ip", &["-6", "address", "show", "dev", CARD, "scope", "link"]).and_then(Finished::ok);
            shown.is_ok_and(|text| text.contains("fe80:") && !text.contains("tentative"))
        })?;
        Ok(Cable { port })
    }

    /// Connects a virtual machine that runs on `host`, through [`TAP`]; its addresses are its own business, and the host has none.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn plug(&self, host: &Space) -> anyhow::Result<Cable> {
        let port = format!("port{}", self.cables.fetch_add(1, Ordering::Relaxed));
        self.space.ip(&[
            format!("link add {port} type veth peer name {CARD} netns {}", host.pid()),
            format!("link set {port} master {BRIDGE} up"),
        ])?;
        host.ip(&[
            "link set lo up".into(),
            format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
            format!("tuntap add {TAP} mode tap"),
            format!("link set {TAP} master {BRIDGE} up"),
            format!("link set {CARD} master {BRIDGE} up"),
            format!("link set {BRIDGE} up"),
        ])?;
        Ok(Cable { port })
    }

    /// Gives the namespace away, for a LAN that outlives this process.
    #[must_use]
    pub fn into_space(self) -> Space {
        self.space
    }

    /// Cuts a cable, or mends it.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn set_cable(&self, cable: &Cable, up: bool) -> anyhow::Result<()> {
        self.space.ip(&[format!("link set {} {}", cable.port, if up { "up" } else { "down" })]).map(drop)
    }
}

/// A host's connection to the LAN.
pub struct Cable {
    pub(crate) port: String,
}
