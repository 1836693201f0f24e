//! Overlay networks and addresses: a network for each group, a stable place in it for each member.

use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Length of the IPv4 networks that groups get by default: 4,094 members.
pub const DEFAULT_LEN4: u8 = 20;

/// The first /20 of `pool` that overlaps none of `taken`; `None` when the pool is used up.
pub fn free_prefix4(pool: Ipv4Net, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    pool.subnets(DEFAULT_LEN4).ok()?.find(|net| !taken.iter().any(|t| t.contains(net) || net.contains(t)))
}

/// The /64 number `subnet` of the deployment's unique local /48 (RFC 4193).
pub fn prefix6(ula: [u8; 5], subnet: u16) -> Option<Ipv6Net> {
    let [a, b, c, d, e] = ula;
    let [high, low] = subnet.to_be_bytes();
    Ipv6Net::new(Ipv6Addr::from([0xfd, a, b, c, d, e, high, low, 0, 0, 0, 0, 0, 0, 0, 0]), 64).ok()
}

/// Address number `host` (from 1) of an IPv4 network; `None` when the network has no such place. The broadcast address is never given.
pub fn address4(net: Ipv4Net, host: u32) -> Option<Ipv4Addr> {
    let address = Ipv4Addr::from(u32::from(net.network()).checked_add(host)?);
    (host > 0 && net.contains(&address) && address != net.broadcast()).then_some(address)
}

/// Address number `host` (from 1) of an IPv6 network.
pub fn address6(net: Ipv6Net, host: u32) -> Option<Ipv6Addr> {
    let address = Ipv6Addr::from(u128::from(net.network()).checked_add(host.into())?);
    (host > 0 && net.contains(&address)).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pool_is_used_up_in_order() {
        let pool: Ipv4Net = "10.0.0.0/18".parse().unwrap();
        let mut taken = vec!["10.0.16.0/24".parse().unwrap()];
        let mut given = vec![];
        while let Some(net) = free_prefix4(pool, &taken) {
            taken.push(net);
            given.push(net.to_string());
        }
        assert_eq!(given, ["10.0.0.0/20", "10.0.32.0/20", "10.0.48.0/20"]);
    }

    proptest! {
        #[test]
        fn addresses_are_inside_and_distinct(base in any::<u32>(), len in 8u8..30, a in 1u32..5000, b in 1u32..5000) {
            let net = Ipv4Net::new(base.into(), len).unwrap().trunc();
            if let (Some(one), Some(other)) = (address4(net, a), address4(net, b)) {
                prop_assert!(net.contains(&one) && one != net.network() && one != net.broadcast());
                prop_assert_eq!(a == b, one == other);
            }
        }
    }
}
