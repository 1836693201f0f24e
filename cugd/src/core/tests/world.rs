//! Doubles of everything around the core. Each action is checked against what may be done now.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Weak},
    time::Duration,
};

use cug_proto::{
    id::UserId,
    local::{CardBinding, Deliver, LOCAL_VERSION, MediumBinding, Offer, OfferId, Open, Prepare, Reply, SessionStatus},
    message::{
        ClearReason, ClientMessage, Grant, GroupGrant, Peer, Peers, Prefix4, Prefix6, Purpose, SessionId, WgPublicKey,
    },
    notice::Notice,
    policy::Policy,
    secret::Secret,
};

use crate::{core::*, names::zone::Zone};

pub const GROUP: u32 = 1;

/// The account of every user.
pub const UID: u32 = 3001;

/// What a tunnel of a number is.
#[derive(Default)]
pub struct TunnelDouble {
    pub ordered: BTreeSet<u32>,
    pub raised: BTreeSet<u32>,
    pub peers: BTreeMap<(u32, WgPublicKey), [u8; 32]>,
    /// Of each group, as last ordered.
    pub policies: BTreeMap<u32, Policy>,
    pub falling: bool,
    /// Its interfaces are gone.
    pub gone: bool,
    pub calls: Vec<(WgPublicKey, Option<std::net::SocketAddr>)>,
    pub looks: u32,
    pub endpoints: BTreeMap<WgPublicKey, std::net::SocketAddr>,
    /// Peers that are kept reminded, and how often.
    pub keepalives: BTreeMap<WgPublicKey, Duration>,
    /// From then on the core need not wait for it any longer.
    late: Option<Time>,
}

#[derive(Default)]
pub struct LinkDouble {
    pub session: SessionId,
    pub known: usize,
    pub sent: Vec<ClientMessage>,
    pub farewell: Option<ClearReason>,
    pub checks: u32,
}

pub struct World {
    pub state: State,
    pub now: Time,
    pub watches: BTreeMap<Number, bool>,
    pub links: BTreeMap<LinkId, LinkDouble>,
    pub tunnels: BTreeMap<Number, TunnelDouble>,
    pub leaders: BTreeSet<Leader>,
    pub outstanding: BTreeSet<Token>,
    pub replies: BTreeMap<Token, Reply>,
    pub offers: Vec<(OfferId, UserId)>,
    /// Private keys that were made; they must be gone when nothing needs them.
    pub keys: BTreeMap<OfferId, Weak<Secret<32>>>,
    pub session_of: BTreeMap<Number, SessionId>,
    pub exited: bool,
    /// Names that were given and not taken back.
    pub zones: BTreeMap<(Number, u32), Arc<Zone>>,
    /// What those who watch were told.
    pub told: Vec<Notice>,
    /// How often a tunnel was said to be on its way.
    pub expected: u32,
    /// Where the server sees the terminal.
    pub seen: std::net::IpAddr,
    /// Cards that are looked for.
    pub searches: BTreeMap<Number, [u8; 32]>,
    /// What was done to OS sessions.
    pub deeds: Vec<(Deed, Vec<String>)>,
    /// How often the machine was let go to sleep or down.
    pub let_go: u32,
    /// Class of the OS sessions that begin.
    pub class: Option<&'static str>,
    /// Waiting logins, and how often each was told to try.
    pub processes: BTreeMap<Number, u32>,
    /// Of the card that is delivered.
    pub card_inode: u64,
    announced: Option<Number>,
    tokens: u64,
    names: u8,
}

pub fn user(n: usize) -> UserId {
    ["USER-A", "USER-B", "USER-C"][n % 3].parse().unwrap()
}

pub fn leader(n: u32) -> Leader {
    Leader { pid: 100 + n, start: 7 }
}

pub fn key(byte: u8) -> Secret<32> {
    Secret::fill(|bytes| bytes.fill(byte))
}

pub fn group(id: u32, epoch: u32) -> GroupGrant {
    GroupGrant {
        id,
        name: format!("VPN{id}").parse().unwrap(),
        epoch,
        key: key(epoch as u8),
        prefix4: Prefix4 { address: Ipv4Addr::new(100, 96, id as u8, 0), len: 24 },
        prefix6: Prefix6 { address: "fd00::".parse().unwrap(), len: 64 },
        address4: Ipv4Addr::new(100, 96, id as u8, 1),
        address6: "fd00::1".parse().unwrap(),
        policy: Policy::Open,
    }
}

/// A member of group `id`: user `PEER-n` with key `key`.
pub fn peer(id: u32, n: u8, key: u8) -> Peer {
    Peer {
        user: format!("PEER-{n}").parse().unwrap(),
        host_name: "term2".parse().unwrap(),
        wg_public_key: [key; 32],
        endpoints: vec![format!("10.0.0.{n}:51820").parse().unwrap()],
        address4: Ipv4Addr::new(100, 96, id as u8, n),
        address6: format!("fd00::{n}").parse().unwrap(),
    }
}

pub fn change(revision: u64, full: bool, present: Vec<Peer>, gone: &[u8]) -> ChannelEvent {
    let gone = gone.iter().map(|n| format!("PEER-{n}").parse().unwrap()).collect();
    ChannelEvent::Peers(Peers { group: GROUP, revision, full, present, gone })
}

impl World {
    pub fn new() -> Self {
        let settings = Settings {
            servers: vec!["one:1".into(), "two:2".into()],
            ca_pins: vec![[0; 32]],
            server_timeout: Duration::from_secs(5),
            card_wait: Duration::from_secs(30),
            readers: vec![],
            exempt: vec![],
            media: vec![],
            grant_time: Duration::from_secs(60),
            host_name: "term1".parse().unwrap(),
            backend: "embedded".into(),
            guard: "bpf+nft".into(),
            removal: Removal::Disconnect,
            removal_grace: Duration::ZERO,
            offline_wait: Some(Duration::from_secs(3600)),
        };
        Self {
            state: State::new(settings).following(Some("cug".parse().unwrap()), Time::since_boot(Duration::ZERO)),
            now: Time::since_boot(Duration::from_secs(1000)),
            watches: BTreeMap::new(),
            links: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            leaders: BTreeSet::new(),
            outstanding: BTreeSet::new(),
            replies: BTreeMap::new(),
            offers: Vec::new(),
            keys: BTreeMap::new(),
            session_of: BTreeMap::new(),
            exited: false,
            zones: BTreeMap::new(),
            told: Vec::new(),
            expected: 0,
            seen: [10, 0, 0, 1].into(),
            searches: BTreeMap::new(),
            deeds: Vec::new(),
            let_go: 0,
            class: Some("user"),
            processes: BTreeMap::new(),
            card_inode: 2,
            announced: None,
            tokens: 0,
            names: 0,
        }
    }

    pub fn event(&mut self, event: Event) {
        assert!(!self.exited, "an event after the end");
        let delivered = match &event {
            Event::Request { request: Request::Deliver(deliver) | Request::DeliverUnlock(_, deliver), .. } => {
                Some(deliver.grant.session)
            }
            _ => None,
        };
        let actions = step(&mut self.state, self.now, event);
        for action in actions {
            self.act(action, delivered);
        }
        self.check();
    }

    pub fn ask(&mut self, request: Request) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.outstanding.insert(token);
        self.event(Event::Request { token, request });
        token
    }

    pub fn prepare(&mut self, user: UserId) -> Purpose {
        self.prepare_for(user, "login")
    }

    /// For this PAM service.
    pub fn prepare_for(&mut self, user: UserId, service: &str) -> Purpose {
        let keys = self.fresh_keys();
        let prepare = Prepare { version: LOCAL_VERSION, user: user.clone(), service: service.into() };
        let token = self.ask(Request::Prepare(prepare, keys));
        match self.replies.remove(&token) {
            Some(Reply::Offer(offer)) => {
                if offer.purpose == Purpose::Open {
                    self.offers.push((offer.id, user));
                }
                offer.purpose
            }
            _ => Purpose::Verify,
        }
    }

    pub fn deliver(&mut self, offer: OfferId, groups: Vec<GroupGrant>) -> Token {
        let grant = Grant { session: offer, secret: key(0xee), groups, attach_within: 30 };
        let binding =
            MediumBinding { directory: "/media/x".into(), device: 1, inode: self.card_inode, fingerprint: [0; 32] };
        let deliver =
            Deliver { offer, grant, server: "two:2".into(), ca_pin: [0; 32], card: CardBinding::Medium(binding) };
        self.ask(Request::Deliver(Box::new(deliver)))
    }

    /// With what becomes of OS sessions.
    pub fn with_removal(removal: Removal, grace: u64) -> Self {
        let mut world = Self::new();
        world.state.settings.removal = removal;
        world.state.settings.removal_grace = Duration::from_secs(grace);
        world
    }

    fn fresh_keys(&mut self) -> FreshKeys {
        self.names += 1;
        // A key of 32 equal bytes below all keys of peers but the first ones.
        let private = Arc::new(key(self.names));
        let offer = [self.names; 16];
        self.keys.insert(offer, Arc::downgrade(&private));
        FreshKeys { offer, private, public: [100; 32] }
    }

    /// A user's own process asks.
    pub fn prepare_unlock(&mut self, uid: u32, user: UserId) -> Option<Offer> {
        let keys = self.fresh_keys();
        let prepare = Prepare { version: LOCAL_VERSION, user, service: "swaylock".into() };
        let token = self.ask(Request::PrepareUnlock(uid, prepare, keys));
        match self.replies.remove(&token) {
            Some(Reply::Offer(offer)) => Some(offer),
            _ => None,
        }
    }

    /// A user's own process delivers, with anything in it that could be of its own making.
    pub fn deliver_unlock(&mut self, uid: u32, offer: OfferId, change: impl FnOnce(&mut Deliver)) -> Token {
        let grant = Grant { session: offer, secret: key(0xee), groups: vec![], attach_within: u32::MAX };
        let binding = MediumBinding { directory: "/home/x".into(), device: 1, inode: 2, fingerprint: [66; 32] };
        let mut deliver =
            Deliver { offer, grant, server: "two:2".into(), ca_pin: [0; 32], card: CardBinding::Medium(binding) };
        change(&mut deliver);
        self.ask(Request::DeliverUnlock(uid, Box::new(deliver)))
    }

    /// logind's session of a leader.
    pub fn os(&self, leader: Leader) -> OsSession {
        match self.class {
            Some(class) => OsSession::Known(OsDesk { id: format!("s{}", leader.pid), class: class.into(), uid: UID }),
            None => OsSession::None,
        }
    }

    pub fn logind(&mut self, event: LogindEvent) {
        self.event(Event::Logind(event));
    }

    /// The card that is looked for is there.
    pub fn card_found(&mut self, number: Number) {
        if let Some(fingerprint) = self.searches.get(&number).copied() {
            let binding = MediumBinding { directory: "/media/y".into(), device: 3, inode: 4, fingerprint };
            self.event(Event::Watch { number, event: WatchEvent::Back(CardBinding::Medium(binding)) });
        }
    }

    /// It is not.
    pub fn card_not_found(&mut self, number: Number) {
        if self.searches.remove(&number).is_some() {
            self.event(Event::Watch { number, event: WatchEvent::Ended("no card".into()) });
        }
    }

    /// An OS session that did not begin with the card.
    pub fn join(&mut self, user: UserId, leader: Leader) -> Token {
        let os = self.os(leader);
        self.ask(Request::Open(Open { user, service: "su".into(), tty: "tty1".into(), holds: false }, leader, UID, os))
    }

    pub fn open(&mut self, user: UserId, leader: Leader) -> Token {
        let os = self.os(leader);
        self.ask(Request::Open(
            Open { user, service: "login".into(), tty: "tty1".into(), holds: true },
            leader,
            UID,
            os,
        ))
    }

    pub fn advance(&mut self, span: Duration) {
        let until = self.now + span;
        // As the driver does it: wake up when something is due.
        while let Some(due) = self.state.deadline().filter(|due| *due <= until && !self.exited) {
            self.now = self.now.max(due);
            self.event(Event::Tick);
        }
        self.now = until;
    }

    pub fn status(&mut self) -> Vec<SessionStatus> {
        let token = self.ask(Request::Status(Viewer::All));
        match self.replies.remove(&token) {
            Some(Reply::Status(status)) => status.sessions,
            _ => panic!("no status"),
        }
    }

    fn act(&mut self, action: Action, delivered: Option<SessionId>) {
        match action {
            Action::Reply { token, reply } => {
                assert!(self.outstanding.remove(&token), "an answer that nobody waits for");
                self.replies.insert(token, reply);
            }
            Action::ReplyPeers { token, .. } => assert!(self.outstanding.remove(&token)),
            Action::StartWatch { number, .. } => self.watch_begins(number, delivered),
            Action::StopWatch { number } => {
                let standing = self.tunnels.get(&number).is_some_and(|tunnel| !tunnel.falling);
                assert!(!standing, "the tunnel goes before the watch");
                self.watches.remove(&number);
                self.searches.remove(&number);
            }
            Action::StartWaiting { token, number, minutes, .. } => {
                assert_eq!(self.announced.take(), Some(number), "a card is watched that nobody waits with");
                assert!(self.outstanding.remove(&token) && self.processes.insert(number, 0).is_none());
                let place = cug_proto::local::Waiting { socket: "/run/x".into(), minutes };
                self.replies.insert(token, Reply::Waiting(place));
            }
            Action::TryWaiting { number } => *self.processes.get_mut(&number).expect("a process") += 1,
            Action::StopWaiting { number } => assert!(self.processes.remove(&number).is_some()),
            Action::WatchLeader(leader) => assert!(self.leaders.insert(leader)),
            Action::ForgetLeader(leader) => assert!(self.leaders.remove(&leader)),
            Action::Connect { link, attachment } => {
                assert_eq!(attachment.servers, ["two:2", "one:1"], "the server that granted first");
                let double =
                    LinkDouble { session: attachment.session, known: attachment.known.len(), ..LinkDouble::default() };
                assert!(self.links.insert(link, double).is_none());
            }
            Action::Send { link, message } => self.links.get_mut(&link).expect("an open channel").sent.push(message),
            Action::Farewell { link, reason } => {
                let session = self.links[&link].session;
                let own = self.tunnels.iter().filter(|(number, _)| self.session_of[number] == session);
                let gone = |tunnel: &TunnelDouble| tunnel.gone || tunnel.late.is_some_and(|late| late <= self.now);
                assert!(
                    own.into_iter().all(|(_, tunnel)| gone(tunnel)),
                    "the server is told when the interfaces are gone"
                );
                self.links.get_mut(&link).unwrap().farewell = Some(reason);
            }
            Action::Disconnect { link } => assert!(self.links.remove(&link).is_some()),
            Action::Log { .. } => {}
            Action::Check { link } => self.links.get_mut(&link).expect("an open channel").checks += 1,
            Action::Names { number, group, zone } => self.named(number, group, zone),
            Action::Tell(notice) => self.told.push(notice),
            Action::Expect => self.expected += 1,
            Action::AwaitCard { number, fingerprint, .. } => {
                assert!(self.searches.insert(number, fingerprint).is_none());
                self.session_of.extend(delivered.map(|session| (number, session)));
            }
            Action::Desk { deed, sessions } => self.deeds.push((deed, sessions)),
            Action::LetGo => {
                assert!(self.keys.values().all(|key| key.upgrade().is_none()), "a key goes to sleep");
                assert!(self.tunnels.values().all(|tunnel| tunnel.falling), "a tunnel stays");
                self.let_go += 1;
            }
            Action::Exit => self.exited = true,
            tunnel => self.tunnel(tunnel),
        }
    }

    fn watch_begins(&mut self, number: Number, delivered: Option<SessionId>) {
        assert!(self.watches.insert(number, false).is_none());
        if self.searches.remove(&number).is_some() {
            return;
        }
        match delivered {
            Some(session) => drop(self.session_of.insert(number, session)),
            // What comes next is the process that waits for a server.
            None => self.announced = Some(number),
        }
    }

    fn named(&mut self, number: Number, group: u32, zone: Option<Arc<Zone>>) {
        match zone {
            Some(zone) => {
                let tunnel = self.tunnels.get(&number).expect("names without a tunnel");
                assert!(!tunnel.falling && tunnel.raised.contains(&group), "names before their interface");
                assert_ne!(self.zones.insert((number, group), zone.clone()), Some(zone), "the same names again");
            }
            None => assert!(self.zones.remove(&(number, group)).is_some()),
        }
    }

    fn tunnel(&mut self, action: Action) {
        match action {
            Action::Fence { number, fences, .. } => {
                assert_eq!(self.watches.get(&number), Some(&true), "no guard without a live watch");
                assert!(!self.tunnels.contains_key(&number) && !fences.is_empty());
            }
            Action::TunnelUp { number, interface, .. } => {
                assert_eq!(self.watches.get(&number), Some(&true), "no tunnel without a live watch");
                let session = self.session_of[&number];
                let others =
                    self.tunnels.iter().filter(|(other, _)| **other != number && self.session_of[other] == session);
                assert_eq!(others.count(), 0);
                assert_eq!(interface.uid, UID, "an interface has an owner");
                assert!(self.live(number).ordered.insert(interface.group));
                self.live(number).policies.insert(interface.group, interface.fence.policy);
            }
            Action::UpsertPeers { number, group, peers } => {
                let tunnel = self.live(number);
                assert!(tunnel.raised.contains(&group) && !peers.is_empty());
                for peer in peers {
                    tunnel.peers.insert((group, peer.public_key), *peer.preshared_key.expose());
                    tunnel.endpoints.extend(peer.endpoint.map(|endpoint| (peer.public_key, endpoint)));
                    tunnel.keepalives.remove(&peer.public_key);
                    tunnel.keepalives.extend(peer.keepalive.map(|interval| (peer.public_key, interval)));
                }
            }
            Action::RemovePeers { number, group, peers } => {
                for peer in peers {
                    self.live(number).peers.remove(&(group, peer));
                }
            }
            Action::Rekey { number, group, keys, begin } => {
                let tunnel = self.live(number);
                let ours: BTreeSet<_> = keys.iter().map(|(peer, _)| *peer).collect();
                assert!(begin.iter().all(|peer| ours.contains(peer)));
                for (peer, key) in keys {
                    *tunnel.peers.get_mut(&(group, peer)).expect("a known peer") = *key.expose();
                }
            }
            Action::Confine { number, group, policy } => {
                let tunnel = self.live(number);
                assert!(tunnel.ordered.contains(&group), "before there is anything to guard");
                assert_ne!(tunnel.policies.insert(group, policy.clone()), Some(policy), "only what changes is ordered");
            }
            Action::GroupDown { number, group } => {
                let tunnel = self.live(number);
                assert!(tunnel.ordered.remove(&group));
                tunnel.raised.remove(&group);
                tunnel.peers.retain(|(of, _), _| *of != group);
            }
            Action::Reach { .. } | Action::Look { .. } => self.reach(action),
            Action::TunnelDown { number } => {
                // Without an interface only its guard is lowered.
                let (late, bare) = (self.now + FALL_TIME, !self.tunnels.contains_key(&number));
                let tunnel = self.live(number);
                (tunnel.falling, tunnel.gone, tunnel.late) = (true, bare, Some(late));
            }
            _ => panic!("not for the tunnel"),
        }
    }

    fn reach(&mut self, action: Action) {
        match action {
            Action::Reach { number, group, peers } => {
                let tunnel = self.live(number);
                assert!(!peers.is_empty());
                for (peer, endpoint) in peers {
                    assert!(tunnel.peers.contains_key(&(group, peer)), "a call to somebody unknown");
                    tunnel.calls.push((peer, endpoint));
                }
            }
            Action::Look { number, group } => {
                let tunnel = self.live(number);
                assert!(tunnel.raised.contains(&group));
                tunnel.looks += 1;
            }
            _ => panic!("not about endpoints"),
        }
    }

    fn live(&mut self, number: Number) -> &mut TunnelDouble {
        let tunnel = self.tunnels.entry(number).or_default();
        assert!(!tunnel.falling, "an order after the end");
        tunnel
    }

    /// What holds between steps.
    fn check(&self) {
        for (number, group) in self.zones.keys() {
            let stands =
                self.tunnels.get(number).is_some_and(|tunnel| !tunnel.falling && tunnel.ordered.contains(group));
            assert!(stands, "names outlive their interface");
        }
        assert_eq!(self.announced, None, "a card is watched that nobody waits with");
        for (number, tunnel) in &self.tunnels {
            assert!(tunnel.falling || self.watches.get(number) == Some(&true), "a tunnel without its card");
        }
        // A private key is needed by an offer or by a life; a life has a watch from its first step to its last.
        let numbers = self.watches.keys().chain(self.searches.keys());
        let alive: BTreeSet<SessionId> = numbers.filter_map(|number| self.session_of.get(number).copied()).collect();
        for (offer, key) in &self.keys {
            let offered = self.state.offers.contains_key(offer) || self.state.unlocks.contains_key(offer);
            assert!(offered || alive.contains(offer) || key.upgrade().is_none(), "a private key outlives its session");
        }
    }

    // What the world does by itself.

    pub fn watch_starts(&mut self, number: Number) {
        if let Some(live @ false) = self.watches.get_mut(&number) {
            *live = true;
            self.event(Event::Watch { number, event: WatchEvent::Started });
        }
    }

    pub fn card_pulled(&mut self, number: Number) {
        if self.watches.remove(&number).is_some() {
            self.event(Event::Watch { number, event: WatchEvent::Ended("pulled".into()) });
        }
    }

    pub fn raise_all(&mut self) {
        let numbers: Vec<Number> = self.tunnels.keys().copied().collect();
        for number in numbers {
            for group in self.tunnels[&number].ordered.clone() {
                let tunnel = self.tunnels.get_mut(&number).unwrap();
                if !tunnel.falling && tunnel.raised.insert(group) {
                    self.event(Event::Tunnel { number, event: TunnelEvent::Raised { group, port: 51820 } });
                }
            }
        }
    }

    /// The interfaces that are to go are gone.
    pub fn lose_all(&mut self) {
        let falling: Vec<Number> =
            self.falling().filter(|(_, tunnel)| !tunnel.gone).map(|(number, _)| *number).collect();
        for number in falling {
            self.tunnels.get_mut(&number).unwrap().gone = true;
            if !self.exited {
                self.event(Event::Tunnel { number, event: TunnelEvent::Gone });
            }
        }
    }

    fn falling(&self) -> impl Iterator<Item = (&Number, &TunnelDouble)> {
        self.tunnels.iter().filter(|(_, tunnel)| tunnel.falling)
    }

    pub fn fall_all(&mut self) {
        self.lose_all();
        let falling: Vec<Number> = self.falling().map(|(number, _)| *number).collect();
        for number in falling {
            self.tunnels.remove(&number);
            if self.exited {
                continue;
            }
            self.event(Event::Tunnel { number, event: TunnelEvent::Down { leftovers: Vec::new() } });
        }
    }

    pub fn say(&mut self, link: LinkId, event: ChannelEvent) {
        if self.links.contains_key(&link) {
            if matches!(event, ChannelEvent::Closed { .. }) {
                self.links.remove(&link);
            }
            self.event(Event::Channel { link, event });
        }
    }

    /// The server answers the last heartbeat, and `Clear`.
    pub fn answer(&mut self, link: LinkId) {
        let Some(double) = self.links.get(&link) else { return };
        let mark = double.sent.iter().rev().find_map(|message| match message {
            ClientMessage::Heartbeat(mark) => Some(*mark),
            _ => None,
        });
        if double.farewell.is_some() {
            self.say(link, ChannelEvent::Closed { cause: "cleared".into(), jitter: 0 });
        } else if let Some(mark) = mark {
            self.say(link, ChannelEvent::Alive(mark));
        }
    }

    pub fn attach(&mut self, link: LinkId) {
        let seen = Some(self.seen);
        self.say(
            link,
            ChannelEvent::Attached {
                server: "two:2".into(),
                lease: Duration::from_secs(90),
                local: Some([10, 0, 0, 1].into()),
                seen,
            },
        );
    }
}
