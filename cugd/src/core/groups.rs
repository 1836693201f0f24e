//! A group of a session: its key, its members, and how both change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use cug_proto::{
    ProtocolError,
    id::{Epoch, UserId},
    kdf,
    local::OpenedGroup,
    message::{GroupGrant, KeyAck, Peer, Peers, SessionId, WgPublicKey},
    policy::Policy,
    secret::Secret,
    session::preshared_key,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Action, FenceSpec, InterfaceSpec, KEEPALIVE, Number, PeerSpec, Time,
    endpoints::{Path, candidates},
    roam::Calls,
};
use crate::{guard::plan, tunnel::InterfaceName};

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
    /// The way to each of them.
    pub paths: BTreeMap<WgPublicKey, Path>,
    /// Members that a snapshot under way has not named yet.
    stale: BTreeSet<UserId>,
    /// The interface was ordered.
    pub ordered: bool,
    /// The interface stands and listens here.
    pub port: Option<u16>,
    /// Set while this side has to keep the ways to the members open.
    pub knocks: Option<Knocks>,
}

/// Calls to members who do not answer.
#[derive(Default)]
pub(super) struct Knocks {
    /// Not before then.
    pub next: Option<Time>,
    /// How many there were.
    pub count: u32,
}

/// Where this terminal stands.
pub(super) struct From<'a> {
    /// Its addresses.
    pub addresses: &'a [IpNet],
    /// The networks of its groups.
    pub overlay: &'a [IpNet],
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
        plan::closed(&grant.policy)?;
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
            paths: BTreeMap::new(),
            stale: BTreeSet::new(),
            ordered: false,
            port: None,
            knocks: None,
        })
    }

    pub fn interface(&self, uid: u32) -> InterfaceSpec {
        InterfaceSpec { group: self.grant.id, uid, fence: self.fence() }
    }

    pub fn fence(&self) -> FenceSpec {
        let own4 = Ipv4Net::new(self.grant.address4, self.prefix4.prefix_len());
        let own6 = Ipv6Net::new(self.grant.address6, self.prefix6.prefix_len());
        let addresses = own4.ok().map(IpNet::V4).into_iter().chain(own6.ok().map(IpNet::V6)).collect();
        FenceSpec { name: self.name.clone(), addresses, policy: self.grant.policy.clone() }
    }

    /// Its interface and its networks.
    pub fn network(&self) -> (&InterfaceName, (Ipv4Net, Ipv6Net)) {
        (&self.name, (self.prefix4, self.prefix6))
    }

    pub fn opened(&self, guard: &str) -> OpenedGroup {
        OpenedGroup {
            name: self.grant.name.clone(),
            interface: self.name.as_str().to_owned(),
            address4: self.grant.address4,
            address6: self.grant.address6,
            epoch: self.grant.epoch,
            guard: guard.to_owned(),
        }
    }

    /// The networks of the group.
    pub fn networks(&self) -> [IpNet; 2] {
        [self.prefix4.into(), self.prefix6.into()]
    }

    /// Takes changes in, and passes them on to the interface when it stands.
    #[expect(clippy::too_many_arguments, reason = "of one caller; a struct for them would have no other use")]
    pub fn apply(
        &mut self,
        now: Time,
        number: Number,
        own: &WgPublicKey,
        synced: bool,
        change: Peers,
        from: &From<'_>,
        out: &mut Vec<Action>,
    ) {
        if change.full {
            self.stale = self.peers.keys().cloned().collect();
        }
        let mut gone: Vec<WgPublicKey> = change.gone.iter().filter_map(|user| self.forget(user)).collect();
        let (mut news, mut calls) = (Vec::new(), Calls::new());
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
                if let Some(key) = former.filter(|key| *key != peer.wg_public_key) {
                    self.paths.remove(&key);
                    gone.push(key);
                }
                news.push((peer.user.clone(), self.place(now, &peer, from, &mut calls)));
                self.peers.insert(peer.user.clone(), peer);
            }
        }
        self.seen = Some(change.revision);
        if synced {
            self.revision = self.seen;
        }
        self.remove(number, gone, out);
        if self.port.is_some() {
            let peers = news.iter().filter_map(|(user, at)| self.peers.get(user).map(|peer| self.spec(own, peer, *at)));
            let peers: Vec<_> = peers.collect();
            if !peers.is_empty() {
                out.push(Action::UpsertPeers { number, group: self.grant.id, peers });
                // Who is new is called when the next look is due.
                self.keep_open(self.knocks.is_some());
            }
            self.call(number, calls, out);
        }
    }

    /// Where WireGuard is told that a new or changed member sits; `None` leaves what it knows. A member in a running session is called there.
    fn place(&mut self, now: Time, peer: &Peer, from: &From<'_>, calls: &mut Calls) -> Option<SocketAddr> {
        let candidates = candidates(&peer.endpoints, from.addresses, from.overlay);
        match self.paths.get_mut(&peer.wg_public_key) {
            Some(path) => {
                let at = path.announced(now, candidates);
                if at.is_some() && path.is_live() {
                    calls.push((peer.wg_public_key, None));
                }
                at
            }
            None => {
                let path = Path::new(candidates);
                let at = path.current();
                self.paths.insert(peer.wg_public_key, path);
                at
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
        let at = |peer: &Peer| self.paths.get(&peer.wg_public_key).and_then(Path::current);
        let peers: Vec<_> = self.peers.values().map(|peer| self.spec(own, peer, at(peer))).collect();
        if !peers.is_empty() {
            out.push(Action::UpsertPeers { number, group: self.grant.id, peers });
        }
    }

    /// The same members, where WireGuard knows them to be, with other settings.
    pub fn refresh(&self, number: Number, own: &WgPublicKey, out: &mut Vec<Action>) {
        let peers: Vec<_> = self.peers.values().map(|peer| self.spec(own, peer, None)).collect();
        if self.port.is_some() && !peers.is_empty() {
            out.push(Action::UpsertPeers { number, group: self.grant.id, peers });
        }
    }

    /// The policy that comes with a key counts at once, also in the epoch that is in use; one that makes no sense lets nothing pass.
    pub fn confine(&mut self, number: Number, grant: &GroupGrant, out: &mut Vec<Action>) {
        let wanted = match plan::closed(&grant.policy) {
            Ok(_) => grant.policy.clone(),
            Err(_) => Policy::Closed(Vec::new()),
        };
        if grant.epoch < self.grant.epoch || wanted == self.grant.policy {
            return;
        }
        self.grant.policy = wanted.clone();
        if self.ordered {
            out.push(Action::Confine { number, group: self.grant.id, policy: wanted });
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
        let key = self.peers.remove(user).map(|peer| peer.wg_public_key)?;
        self.paths.remove(&key);
        Some(key)
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

    fn spec(&self, own: &WgPublicKey, peer: &Peer, endpoint: Option<SocketAddr>) -> PeerSpec {
        PeerSpec {
            public_key: peer.wg_public_key,
            preshared_key: self.pair_key(own, &peer.wg_public_key),
            endpoint,
            allowed_ips: vec![
                IpNet::from(std::net::IpAddr::V4(peer.address4)),
                IpNet::from(std::net::IpAddr::V6(peer.address6)),
            ],
            keepalive: self.knocks.as_ref().map(|_| KEEPALIVE),
        }
    }

    fn pair_key(&self, own: &WgPublicKey, other: &WgPublicKey) -> Secret<32> {
        preshared_key(&self.grant.key, self.grant.id, self.grant.epoch, own, other)
    }
}
