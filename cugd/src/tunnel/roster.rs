//! Who the peers of an interface are, and which addresses are whose.
//!
//! WireGuard moves an address from one peer to another without a word when a second peer claims it, and widens
//! `10.0.0.5/8` to the whole network. Both would hand one member's packets to another, so they are refused here.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;

use super::{InterfaceConfig, PeerConfig, PublicKey, TunnelError, same_family};

/// The peers of one interface.
pub(super) struct Roster {
    networks: Vec<IpNet>,
    own: Vec<IpAddr>,
    peers: HashMap<PublicKey, Vec<IpNet>>,
    /// All peers' networks by first address; they are disjoint.
    taken: BTreeMap<IpAddr, IpNet>,
    /// Those that have a keepalive interval.
    keepalives: HashMap<PublicKey, Duration>,
}

impl Roster {
    /// Checks the interface's own configuration.
    pub(super) fn new(config: &InterfaceConfig) -> Result<Self, TunnelError> {
        if config.addresses.is_empty() {
            return Err(TunnelError::Config("it has no address"));
        }
        if config.mtu < 1280 {
            return Err(TunnelError::Config("an MTU below 1280 does not carry IPv6"));
        }
        if config.ports.is_empty() {
            return Err(TunnelError::Config("the range of ports is empty"));
        }
        let networks = config.addresses.iter().chain(&config.routes).map(IpNet::trunc).collect();
        let own = config.addresses.iter().map(IpNet::addr).collect();
        Ok(Self { networks, own, peers: HashMap::new(), taken: BTreeMap::new(), keepalives: HashMap::new() })
    }

    /// Enters `batch`, all or nothing.
    pub(super) fn admit(&mut self, batch: &[PeerConfig]) -> Result<(), TunnelError> {
        let mut before = HashMap::with_capacity(batch.len());
        for peer in batch {
            if before.contains_key(&peer.public_key) {
                self.restore(before);
                return Err(TunnelError::Refused("a member is listed twice"));
            }
            before.insert(peer.public_key, self.withdraw(&peer.public_key));
        }
        for peer in batch {
            if let Err(refusal) = self.enter(peer) {
                self.restore(before);
                return Err(refusal);
            }
        }
        for peer in batch {
            match peer.keepalive {
                Some(keepalive) => drop(self.keepalives.insert(peer.public_key, keepalive)),
                None => drop(self.keepalives.remove(&peer.public_key)),
            }
        }
        Ok(())
    }

    /// The keepalive interval of a peer.
    pub(super) fn keepalive(&self, peer: &PublicKey) -> Option<Duration> {
        self.keepalives.get(peer).copied()
    }

    /// Every one of `peers` must be known.
    pub(super) fn require<'a>(&self, mut peers: impl Iterator<Item = &'a PublicKey>) -> Result<(), TunnelError> {
        if peers.all(|peer| self.peers.contains_key(peer)) {
            Ok(())
        } else {
            Err(TunnelError::Refused("a member is not known"))
        }
    }

    /// Takes `peers` out; unknown ones are no error.
    pub(super) fn remove(&mut self, peers: &[PublicKey]) {
        for peer in peers {
            self.withdraw(peer);
            self.keepalives.remove(peer);
        }
    }

    fn enter(&mut self, peer: &PeerConfig) -> Result<(), TunnelError> {
        // Entered step by step so that a peer's networks are also checked against each other.
        self.peers.insert(peer.public_key, Vec::with_capacity(peer.allowed_ips.len()));
        for network in &peer.allowed_ips {
            self.check(network)?;
            self.taken.insert(network.network(), *network);
            self.peers.entry(peer.public_key).or_default().push(*network);
        }
        Ok(())
    }

    fn check(&self, network: &IpNet) -> Result<(), TunnelError> {
        if network.trunc() != *network {
            return Err(TunnelError::Refused("an address has bits beyond its prefix"));
        }
        if !self.networks.iter().any(|own| same_family(own.addr(), network.addr()) && own.contains(network)) {
            return Err(TunnelError::Refused("an address lies outside the group's networks"));
        }
        if self.own.iter().any(|own| network.contains(own)) {
            return Err(TunnelError::Refused("an address is this terminal's own"));
        }
        // Disjoint networks in order: only the neighbours can overlap.
        let below = self.taken.range(..=network.network()).next_back();
        let above = self.taken.range(network.network()..).next();
        if below.is_some_and(|(_, other)| other.contains(network))
            || above.is_some_and(|(_, other)| network.contains(other))
        {
            return Err(TunnelError::Refused("an address belongs to two members"));
        }
        Ok(())
    }

    fn withdraw(&mut self, peer: &PublicKey) -> Option<Vec<IpNet>> {
        let networks = self.peers.remove(peer)?;
        for network in &networks {
            self.taken.remove(&network.network());
        }
        Some(networks)
    }

    fn restore(&mut self, before: HashMap<PublicKey, Option<Vec<IpNet>>>) {
        for peer in before.keys() {
            self.withdraw(peer);
        }
        for (peer, networks) in before {
            let Some(networks) = networks else { continue };
            self.taken.extend(networks.iter().map(|network| (network.network(), *network)));
            self.peers.insert(peer, networks);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cug_proto::secret::Secret;

    use super::*;
    use crate::tunnel::InterfaceName;

    fn roster() -> Roster {
        Roster::new(&InterfaceConfig {
            name: InterfaceName::from_hash(&[1; 32]),
            private_key: Arc::new(Secret::fill(|b| b.fill(1))),
            ports: 1..=2,
            addresses: vec!["100.96.0.1/20".parse().unwrap(), "fd00::1/64".parse().unwrap()],
            routes: vec!["192.168.7.0/24".parse().unwrap()],
            mtu: 1420,
            routing: crate::tunnel::Routing::Everybody,
        })
        .unwrap()
    }

    fn peer(id: u8, networks: &[&str]) -> PeerConfig {
        PeerConfig {
            public_key: [id; 32],
            preshared_key: Secret::fill(|b| b.fill(id)),
            endpoint: None,
            allowed_ips: networks.iter().map(|n| n.parse().unwrap()).collect(),
            keepalive: None,
        }
    }

    #[test]
    fn no_address_is_handed_from_one_member_to_another() {
        let mut roster = roster();
        roster.admit(&[peer(1, &["100.96.0.2/32", "fd00::2/128"]), peer(2, &["100.96.0.16/28"])]).unwrap();
        for stolen in
            ["100.96.0.2/32", "100.96.0.2/31", "100.96.0.20/32", "100.96.0.16/28", "100.96.0.0/27", "fd00::2/127"]
        {
            assert!(roster.admit(&[peer(3, &[stolen])]).is_err(), "{stolen}");
        }
        roster.admit(&[peer(3, &["100.96.0.3/32", "192.168.7.0/24"])]).unwrap();
    }

    #[test]
    fn no_address_is_wider_than_given() {
        let mut roster = roster();
        for wide in
            ["0.0.0.0/0", "100.96.0.9/28", "100.96.0.0/19", "::/0", "10.0.0.1/32", "100.96.0.1/32", "100.96.0.0/20"]
        {
            assert!(roster.admit(&[peer(1, &[wide])]).is_err(), "{wide}");
        }
        assert!(roster.require([[1; 32]].iter()).is_err());
    }

    #[test]
    fn a_refused_batch_changes_nothing_and_a_swap_is_no_theft() {
        let mut roster = roster();
        roster.admit(&[peer(1, &["100.96.0.2/32"]), peer(2, &["100.96.0.3/32"])]).unwrap();
        let refused = [peer(1, &["100.96.0.9/32"]), peer(4, &["100.96.0.3/32"])];
        assert!(roster.admit(&refused).unwrap_err().is_refusal());
        assert!(roster.admit(&[peer(5, &["100.96.0.2/32"])]).is_err(), "peer 1 kept its address");
        assert!(roster.admit(&[peer(1, &["100.96.0.2/32"]), peer(1, &[])]).is_err(), "listed twice");
        roster.require([[1; 32], [2; 32]].iter()).unwrap();
        roster.admit(&[peer(1, &["100.96.0.3/32"]), peer(2, &["100.96.0.2/32"])]).unwrap();
        roster.remove(&[[1; 32], [9; 32]]);
        roster.admit(&[peer(5, &["100.96.0.3/32"])]).unwrap();
    }
}
