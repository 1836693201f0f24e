//! What this workstation is called and where it can be reached.

use std::net::IpAddr;

use cug_proto::{
    id::{HostName, UserId},
    message::MAX_ADDRESSES,
};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    unistd::{User, gethostname},
};

use crate::tunnel::InterfaceName;

/// The host name, with what the protocol does not allow replaced by `-`.
pub fn name() -> Option<HostName> {
    let name = gethostname().ok()?.into_string().ok()?;
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '-' };
    name.chars().map(allowed).take(HostName::MAX).collect::<String>().parse().ok()
}

/// The user ID of an account other than root. Asks the system's name services, which may block.
pub fn account(user: &UserId) -> Option<u32> {
    let account = User::from_name(user.as_str()).ok()??;
    (!account.uid.is_root()).then(|| account.uid.as_raw())
}

/// Addresses at which others can reach this workstation: of interfaces that are up, neither loopback nor ours, neither
/// link-local nor multicast; at most as many as the protocol carries.
pub fn addresses() -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for interface in getifaddrs().into_iter().flatten() {
        let up =
            interface.flags.contains(InterfaceFlags::IFF_UP) && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        if !up || interface.interface_name.parse::<InterfaceName>().is_ok() {
            continue;
        }
        let Some(storage) = interface.address else { continue };
        let four = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let six = storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        addresses.extend(four.or(six).filter(|address| reachable(*address) && !addresses.contains(address)));
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

fn reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_unspecified()),
        IpAddr::V6(a) => !(a.is_loopback() || a.is_unicast_link_local() || a.is_multicast() || a.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reachable_addresses_are_announced() {
        for (address, expected) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
            ("::1", false),
            ("10.0.0.1", true),
            ("fd00::1", true),
        ] {
            assert_eq!(reachable(address.parse().unwrap()), expected, "{address}");
        }
        assert!(addresses().len() <= MAX_ADDRESSES);
    }
}
