//! systemd-resolved: told, for a group's interface, which responder knows the group's names. It forgets when the interface goes.
//! org.freedesktop.resolve1(5) describes the calls. They need CAP_NET_ADMIN, or polkit's leave.

use std::{fs, time::Duration};

use tokio::time::timeout;
use zbus::{Connection, fdo::DBusProxy, names::BusName};

use super::{responder::ADDRESS, zone::Zone};

/// Limit of all calls for one interface, the connection to the bus included.
const LIMIT: Duration = Duration::from_secs(3);

/// Address family of the calls (AF_INET).
const INET: i32 = libc::AF_INET;

#[zbus::proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Resolve {
    /// Family, address, port (0: 53) and server name.
    #[zbus(name = "SetLinkDNSEx")]
    fn set_link_dns_ex(&self, link: i32, servers: Vec<(i32, Vec<u8>, u16, &str)>) -> zbus::Result<()>;
    /// Domain, and whether it is for routing only, not for completing short names.
    fn set_link_domains(&self, link: i32, domains: Vec<(&str, bool)>) -> zbus::Result<()>;
    fn set_link_default_route(&self, link: i32, enable: bool) -> zbus::Result<()>;
    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, link: i32, mode: &str) -> zbus::Result<()>;
}

/// Whether the C library of this machine asks systemd-resolved at all: through its module, or through its listener.
pub fn is_asked() -> bool {
    let switch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    asks(&switch, &resolver)
}

/// By nsswitch.conf(5) and resolv.conf(5). 127.0.0.53 and .54 are systemd-resolved's own.
fn asks(switch: &str, resolver: &str) -> bool {
    let words = |line: &str| {
        line.split('#').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let hosts = switch.lines().map(words).find(|line| line.first().is_some_and(|first| first == "hosts:"));
    let hosts = hosts.unwrap_or_default();
    let listener = resolver.lines().map(words).any(|line| {
        line.first().is_some_and(|first| first == "nameserver")
            && line.get(1).is_some_and(|address| address == "127.0.0.53" || address == "127.0.0.54")
    });
    let has = |word: &str| hosts.iter().any(|source| source == word);
    has("resolve") || (listener && has("dns"))
}

/// Why systemd-resolved does not know.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    /// Nobody has its name on the system bus.
    #[error("systemd-resolved does not run")]
    NotRunning,
    /// Not within the time.
    #[error("systemd-resolved did not answer in time")]
    Late,
    /// The interface is gone already.
    #[error("there is no such interface")]
    NoInterface,
    /// The bus or systemd-resolved said no.
    #[error("systemd-resolved or the system bus refused")]
    Refused(#[source] zbus::Error),
}

/// Has systemd-resolved ask the responder at `port` for the names of `zone`, and nobody else for them.
///
/// # Errors
/// [`ResolvedError`]. What was set until then goes with the interface.
pub async fn tell(zone: &Zone, port: u16) -> Result<(), ResolvedError> {
    timeout(LIMIT, tell_all(zone, port)).await.map_err(|_| ResolvedError::Late)?
}

async fn tell_all(zone: &Zone, port: u16) -> Result<(), ResolvedError> {
    let refused = ResolvedError::Refused;
    let index = nix::net::if_::if_nametoindex(zone.interface.as_str()).map_err(|_| ResolvedError::NoInterface)?;
    let link = i32::try_from(index).map_err(|_| ResolvedError::NoInterface)?;
    let bus = Connection::system().await.map_err(|_| ResolvedError::NotRunning)?;
    let names = DBusProxy::new(&bus).await.map_err(refused)?;
    // Asked first, because a call would start it.
    let runs = match BusName::try_from("org.freedesktop.resolve1") {
        Ok(name) => names.name_has_owner(name).await.unwrap_or(false),
        Err(_) => false,
    };
    if !runs {
        return Err(ResolvedError::NotRunning);
    }
    let resolve = ResolveProxy::new(&bus).await.map_err(refused)?;
    let reverse = zone.reverse_domains();
    let domains = std::iter::once(&zone.domain).chain(&reverse).map(|domain| (domain.as_str(), true)).collect();
    resolve.set_link_default_route(link, false).await.map_err(refused)?;
    resolve.set_link_llmnr(link, "no").await.map_err(refused)?;
    resolve.set_link_multicast_dns(link, "no").await.map_err(refused)?;
    // The responder signs nothing and speaks no TLS, whatever is the rule elsewhere; it is on this machine.
    resolve.set_link_dnssec(link, "no").await.map_err(refused)?;
    resolve.set_link_dns_over_tls(link, "no").await.map_err(refused)?;
    // The server before the domains: without it, queries for them would go to the servers of other links.
    let server = (INET, ADDRESS.octets().to_vec(), port, "");
    resolve.set_link_dns_ex(link, vec![server]).await.map_err(refused)?;
    resolve.set_link_domains(link, domains).await.map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::asks;

    #[test]
    fn who_is_asked_for_names() {
        let stub = "# x\nnameserver 127.0.0.53\n";
        for (switch, resolver, expected) in [
            ("hosts: files dns\n", stub, true),
            ("passwd: files\nhosts:\tfiles resolve [!UNAVAIL=return] dns\n", "nameserver 10.0.0.1\n", true),
            ("hosts: files dns\n", "nameserver 10.0.0.1\n", false),
            ("hosts: files\n", stub, false),
            ("hosts: files dns # resolve\n", "#nameserver 127.0.0.53\n", false),
            ("", stub, false),
        ] {
            assert_eq!(asks(switch, resolver), expected, "{switch}{resolver}");
        }
    }
}
