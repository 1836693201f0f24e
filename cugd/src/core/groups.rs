//! A group of a session: its key, its members, and how both change.

use std::collections::{BTreeMap, BTreeSet};

use cug_proto::{
    ProtocolError,
    id::{Epoch, UserId},
    kdf,
    local::OpenedGroup,
    message::{GroupGrant, KeyAck, Peer, Peers, SessionId, WgPublicKey},
    secret::Secret,
    session::preshared_key,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Action, InterfaceSpec, Number, PeerSpec};
use crate::tunnel::InterfaceName;

/// A group of a session.
pub(super) struct Group {
    /// Key and epoch in use, and this terminal's place.
    pub grant: GroupGrant,
    prefix4: Ipv4Net,
    prefix6: Ipv6Net,
    name: InterfaceName,
    /// A key that waits for `Activate`.
    pending: Option<(Epoch, Secret<32>)>,
    /// Revision up to which `peers` is complete; `None` before the first snapshot.
    pub revision: Option<u64>,
    /// Revision of the last message; becomes `revision` with `Synced`.
    seen: Option<u64>,
    pub peers: BTreeMap<UserId, Peer>,
    /// Members that a snapshot under way has not named yet.
    stale: BTreeSet<UserId>,
    /// The interface was ordered.
    pub ordered: bool,
    /// The interface stands and listens here.
    pub port: Option<u16>,
}

/// What a group's key from the server means here.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum NewKey {
    /// New; it waits for `Activate`.
    Pending,
    /// In use already.
    Known,
    /// Of an epoch that is over.
    Old,
}

impl Group {
    /// # Errors
    /// [`ProtocolError::Malformed`] when the addresses do not lie in the prefixes.
    pub fn new(session: &SessionId, grant: GroupGrant) -> Result<Self, ProtocolError> {
        let prefix4 = Ipv4Net::try_from(grant.prefix4)?;
        let prefix6 = Ipv6Net::try_from(grant.prefix6)?;
        if !prefix4.contains(&grant.address4) || !prefix6.contains(&grant.address6) {
            return Err(ProtocolError::Malformed);
        }
        let hash = kdf::hash_parts(&[b"cug/1 interface", session, &grant.id.to_be_bytes()]);
        Ok(Self {
            grant,
            prefix4,
            prefix6,
            name: InterfaceName::from_hash(&hash),
            pending: None,
            revision: None,
            seen: None,
            peers: BTreeMap::new(),
            stale: BTreeSet::new(),
            ordered: false,
            port: None,
        })
    }

    pub fn interface(&self) -> InterfaceSpec {
        let own4 = Ipv4Net::new(self.grant.address4, self.prefix4.prefix_len());
        let own6 = Ipv6Net::new(self.grant.address6, self.prefix6.prefix_len());
        let addresses = own4.ok().map(IpNet::V4).into_iter().chain(own6.ok().map(IpNet::V6)).collect();
        InterfaceSpec { group: self.grant.id, name: self.name.clone(), addresses }
    }

    /// Its interface and its networks.
    pub fn place(&self) -> (&InterfaceName, (Ipv4Net, Ipv6Net)) {
        (&self.name, (self.prefix4, self.prefix6))
    }

    pub fn opened(&self) -> OpenedGroup {
        OpenedGroup {
            name: self.grant.name.clone(),
            interface: self.name.as_str().to_owned(),
            address4: self.grant.address4,
            address6: self.grant.address6,
            epoch: self.grant.epoch,
        }
    }

    /// Takes changes in, and passes them on to the interface when it stands.
    pub fn apply(&mut self, number: Number, own: &WgPublicKey, synced: bool, change: Peers, out: &mut Vec<Action>) {
        if change.full {
            self.stale = self.peers.keys().cloned().collect();
        }
        let mut gone: Vec<WgPublicKey> = change.gone.iter().filter_map(|user| self.forget(user)).collect();
        let mut news = Vec::new();
        for peer in change.present {
            self.stale.remove(&peer.user);
            if !self.acceptable(own, &peer) {
                out.push(Action::warn(&format!(
                    "member {} of {} is ignored: impossible key or address",
                    peer.user, self.grant.name
                )));
                gone.extend(self.forget(&peer.user));
            } else if self.peers.get(&peer.user) != Some(&peer) {
                let former = self.peers.get(&peer.user).map(|former| former.wg_public_key);
                gone.extend(former.filter(|key| *key != peer.wg_public_key));
                news.push(peer.user.clone());
                self.peers.insert(peer.user.clone(), peer);
            }
        }
        self.seen = Some(change.revision);
        if synced {
            self.revision = self.seen;
        }
        self.remove(number, gone, out);
        if self.port.is_some() {
            let peers = news.iter().filter_map(|user| self.peers.get(user)).map(|peer| self.spec(own, peer));
            let peers: Vec<_> = peers.collect();
            if !peers.is_empty() {
                out.push(Action::UpsertPeers { number, group: self.grant.id, peers });
            }
        }
    }

    /// The snapshot is complete: who was not named in it is gone.
    pub fn synced(&mut self, number: Number, out: &mut Vec<Action>) {
        let stale = std::mem::take(&mut self.stale);
        let gone = stale.iter().filter_map(|user| self.forget(user)).collect();
        self.revision = self.seen.or(self.revision);
        self.remove(number, gone, out);
    }

    /// The channel is gone: a snapshot under way comes again.
    pub fn interrupted(&mut self) {
        self.stale.clear();
        self.seen = None;
    }

    pub fn upsert_all(&self, number: Number, own: &WgPublicKey, out: &mut Vec<Action>) {
        let peers: Vec<_> = self.peers.values().map(|peer| self.spec(own, peer)).collect();
        if !peers.is_empty() {
            out.push(Action::UpsertPeers { number, group: self.grant.id, peers });
        }
    }

    /// A key from the server.
    pub fn learn(&mut self, grant: GroupGrant) -> NewKey {
        if grant.epoch < self.grant.epoch {
            NewKey::Old
        } else if grant.epoch == self.grant.epoch {
            NewKey::Known
        } else {
            self.pending = Some((grant.epoch, grant.key));
            NewKey::Pending
        }
    }

    /// Goes over to the pending epoch: new keys for all pairs, and a handshake from the side with the smaller public key.
    /// `false` when that epoch's key is not here.
    pub fn activate(&mut self, number: Number, own: &WgPublicKey, order: KeyAck, out: &mut Vec<Action>) -> bool {
        if order.epoch <= self.grant.epoch {
            return true;
        }
        match self.pending.take() {
            Some((epoch, key)) if epoch == order.epoch => {
                self.grant.epoch = epoch;
                self.grant.key = key;
            }
            other => {
                self.pending = other;
                return false;
            }
        }
        if self.port.is_some() && !self.peers.is_empty() {
            let keys = self.peers.values().map(|peer| (peer.wg_public_key, self.pair_key(own, &peer.wg_public_key)));
            let begin = self.peers.values().map(|peer| peer.wg_public_key).filter(|peer| own < peer);
            out.push(Action::Rekey { number, group: self.grant.id, keys: keys.collect(), begin: begin.collect() });
        }
        true
    }

    fn forget(&mut self, user: &UserId) -> Option<WgPublicKey> {
        self.stale.remove(user);
        self.peers.remove(user).map(|peer| peer.wg_public_key)
    }

    fn remove(&self, number: Number, peers: Vec<WgPublicKey>, out: &mut Vec<Action>) {
        if self.port.is_some() && !peers.is_empty() {
            out.push(Action::RemovePeers { number, group: self.grant.id, peers });
        }
    }

    /// One bad entry must not spoil the list, and a member cannot take another one's place.
    fn acceptable(&self, own: &WgPublicKey, peer: &Peer) -> bool {
        let clashes = |other: &Peer| {
            other.user != peer.user
                && (other.wg_public_key == peer.wg_public_key
                    || other.address4 == peer.address4
                    || other.address6 == peer.address6)
        };
        peer.wg_public_key != *own
            && peer.address4 != self.grant.address4
            && peer.address6 != self.grant.address6
            && self.prefix4.contains(&peer.address4)
            && self.prefix6.contains(&peer.address6)
            && !self.peers.values().any(clashes)
    }

    fn spec(&self, own: &WgPublicKey, peer: &Peer) -> PeerSpec {
        PeerSpec {
            public_key: peer.wg_public_key,
            preshared_key: self.pair_key(own, &peer.wg_public_key),
            endpoint: peer.endpoints.first().copied(),
            allowed_ips: vec![
                IpNet::from(std::net::IpAddr::V4(peer.address4)),
                IpNet::from(std::net::IpAddr::V6(peer.address6)),
            ],
        }
    }

    fn pair_key(&self, own: &WgPublicKey, other: &WgPublicKey) -> Secret<32> {
        preshared_key(&self.grant.key, self.grant.id, self.grant.epoch, own, other)
    }
}
