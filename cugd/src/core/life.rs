//! One life of a session, from its grant to its end, with all its secrets.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

use cug_proto::{
    ProtocolError,
    id::{GroupId, UserId},
    local::{CardBinding, Deliver, OfferId, OpenedGroup, Refusal, Reply},
    message::{ClientMessage, Endpoints, GroupPort, Known, MAX_ADDRESSES, MAX_GROUPS, SessionId, WgPublicKey},
    secret::Secret,
    trust::CaPin,
};

use super::{
    Action, Attachment, FreshKeys, Leader, LinkId, Number, Settings, Time, Token, end::End, groups::Group,
    unlock::Proof,
};

/// A session from its grant to its end. Dropping it wipes its secrets.
pub(super) struct Life {
    pub number: Number,
    /// The offer it came from, as long as `Cancel` may take it back.
    pub offer: Option<OfferId>,
    pub session: SessionId,
    secret: Secret<32>,
    private: Arc<Secret<32>>,
    pub public: WgPublicKey,
    pub groups: BTreeMap<GroupId, Group>,
    ca_pin: CaPin,
    servers: Vec<String>,
    pub card: CardBinding,
    /// The card is there and is watched.
    pub watched: bool,
    /// Until when the grant may wait for `Open`.
    pub expires: Time,
    pub channel: Channel,
    pub announcement: Announcement,
    /// It was open once: interfaces, channel and announcement were complete.
    pub settled: bool,
    /// Until when it must be open; `None` when nobody waits.
    pub open_by: Option<Time>,
    /// Something of the tunnel was ordered, so it must be taken down; also when the group was left since.
    pub has_tunnel: bool,
    /// The guard was ordered beforehand, so it must be lowered.
    pub fenced: bool,
    /// When to look at the paths to the members.
    pub look_at: Option<Time>,
    /// Delivered by a user's own process, and not proved by the server yet: until then there is no interface.
    pub proof: Option<Proof>,
    /// It was delivered by a user's own process.
    pub by_user: bool,
    waiting: Vec<(Token, Waiter)>,
}

/// Who waits for a life to come up.
pub(super) enum Waiter {
    /// `Deliver`.
    Delivered,
    /// `Open`, by this leader.
    Opened(Leader),
}

/// What the server was told about where this terminal can be reached.
#[derive(PartialEq, Eq)]
pub(super) enum Announcement {
    /// Nothing, or not the present state.
    Due,
    /// Told; the heartbeat of this number, sent right after, is not answered yet.
    Sent(u64),
    /// The server has it, and has passed it on.
    Confirmed,
}

/// The session channel as seen from here.
pub(super) struct Channel {
    pub link: Option<LinkId>,
    pub attached: bool,
    /// This terminal's address on it.
    pub local: Option<IpAddr>,
    /// A router translates this terminal's addresses, by what the server saw last.
    pub translated: bool,
    /// It was attached before.
    pub known_there: bool,
    pub synced: bool,
    /// Which server, last.
    pub server: String,
    pub heard: Option<Time>,
    pub lease: Duration,
    pub lease_until: Time,
    pub failures: u32,
    pub retry_at: Option<Time>,
    /// It could not be attached when that was tried last: the server, or the way there, is away.
    pub away: bool,
    /// The last random number that came with its end.
    pub draw: u32,
}

impl Life {
    /// Out of an offer's keys and a grant.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`] when the grant makes no sense.
    pub fn new(
        now: Time,
        number: Number,
        keys: FreshKeys,
        mut deliver: Deliver,
        settings: &Settings,
    ) -> Result<Self, ProtocolError> {
        let mut groups = BTreeMap::new();
        for group in std::mem::take(&mut deliver.grant.groups) {
            let group = Group::new(&deliver.grant.session, group)?;
            if groups.insert(group.grant.id, group).is_some() {
                return Err(ProtocolError::Malformed);
            }
        }
        if groups.is_empty() || groups.len() > MAX_GROUPS {
            return Err(ProtocolError::Malformed);
        }
        Ok(Self { groups, ..Self::begin(now, number, keys, deliver, settings) })
    }

    /// Out of what a user's own process delivered: of its grant only the session's name and secret count, and the server has to prove them.
    pub fn unproven(
        now: Time,
        number: Number,
        keys: FreshKeys,
        deliver: Deliver,
        proof: Proof,
        settings: &Settings,
    ) -> Self {
        Self { proof: Some(proof), by_user: true, ..Self::begin(now, number, keys, deliver, settings) }
    }

    /// Without groups.
    fn begin(now: Time, number: Number, keys: FreshKeys, deliver: Deliver, settings: &Settings) -> Self {
        let grant = deliver.grant;
        let others = settings.servers.iter().filter(|server| **server != deliver.server).cloned();
        let servers = std::iter::once(deliver.server.clone()).chain(others).collect();
        let attach_within = Duration::from_secs(u64::from(grant.attach_within));
        Self {
            number,
            offer: Some(keys.offer),
            session: grant.session,
            secret: grant.secret,
            private: keys.private,
            public: keys.public,
            groups: BTreeMap::new(),
            ca_pin: deliver.ca_pin,
            servers,
            card: deliver.card,
            watched: false,
            expires: now + settings.grant_time,
            channel: Channel {
                link: None,
                attached: false,
                local: None,
                translated: false,
                known_there: false,
                synced: false,
                server: deliver.server,
                heard: None,
                lease: attach_within,
                lease_until: now + attach_within,
                failures: 0,
                retry_at: None,
                away: false,
                draw: 0,
            },
            announcement: Announcement::Due,
            settled: false,
            open_by: Some(now + settings.server_timeout),
            has_tunnel: false,
            fenced: false,
            look_at: None,
            proof: None,
            by_user: false,
            waiting: Vec::new(),
        }
    }

    /// The next time at which something is due.
    pub fn deadline(&self) -> Time {
        let due = [self.open_by, self.channel.retry_at, self.look_at];
        due.into_iter().flatten().fold(self.channel.lease_until, Time::min)
    }

    /// What is to blame when `open_by` has passed.
    pub fn late(&self) -> End {
        if !self.watched {
            End::Card("the card could not be watched in time".to_owned())
        } else if self.proof.is_some() {
            End::ServerAway
        } else if self.raising() {
            End::Tunnel("the interfaces were not up in time".to_owned())
        } else {
            End::ServerAway
        }
    }

    /// Reader or directory of the card.
    pub fn card_place(&self) -> String {
        match &self.card {
            CardBinding::Reader(card) => card.reader.clone(),
            CardBinding::Medium(medium) => medium.directory.clone(),
        }
    }

    pub fn wait(&mut self, token: Token, waiter: Waiter) {
        self.waiting.push((token, waiter));
    }

    /// Answers those for whom `reply` has an answer.
    pub fn answer(&mut self, out: &mut Vec<Action>, reply: impl Fn(&Waiter) -> Option<Reply>) {
        self.waiting.retain(|(token, waiter)| match reply(waiter) {
            Some(reply) => {
                out.push(Action::Reply { token: *token, reply });
                false
            }
            None => true,
        });
        if self.waiting.is_empty() {
            self.open_by = None;
        }
    }

    /// Refuses up to `most` of the `Open`s of this leader that wait: it has closed again, or is no more.
    pub fn take_back(&mut self, leader: Leader, most: usize, out: &mut Vec<Action>) {
        let own =
            self.waiting.extract_if(.., |(_, waiter)| matches!(waiter, Waiter::Opened(waiting) if *waiting == leader));
        out.extend(own.take(most).map(|(token, _)| Action::Reply { token, reply: Reply::Refused(Refusal::Ended) }));
    }

    /// Refuses all who wait; the leaders whose `Open` failed.
    pub fn refuse_all(&mut self, why: Refusal, out: &mut Vec<Action>) -> Vec<Leader> {
        let mut leaders = Vec::new();
        for (token, waiter) in self.waiting.drain(..) {
            out.push(Action::Reply { token, reply: Reply::Refused(why) });
            if let Waiter::Opened(leader) = waiter {
                leaders.push(leader);
            }
        }
        leaders
    }

    /// Orders the guard of interfaces to come, once: it takes longer to make than they do, and meanwhile the server hears of the login.
    pub fn fence(&mut self, user: &UserId, out: &mut Vec<Action>) {
        if self.fenced || self.has_tunnel || self.groups.is_empty() {
            return;
        }
        let fences = self.groups.values().map(Group::fence).collect();
        self.fenced = true;
        out.push(Action::Fence { number: self.number, user: user.clone(), fences });
    }

    /// Orders the interfaces that are not there yet.
    pub fn raise_missing(&mut self, uid: u32, out: &mut Vec<Action>) {
        for group in self.groups.values_mut().filter(|group| !group.ordered) {
            group.ordered = true;
            self.has_tunnel = true;
            out.push(Action::TunnelUp {
                number: self.number,
                private: self.private.clone(),
                interface: group.interface(uid),
            });
        }
    }

    /// Not all interfaces stand.
    pub fn raising(&self) -> bool {
        self.proof.is_some() || self.groups.values().any(|group| group.port.is_none())
    }

    /// A group's interface stands: its members so far go in.
    pub fn raised(&mut self, group: GroupId, port: u16, out: &mut Vec<Action>) {
        let Some(group) = self.groups.get_mut(&group) else { return };
        group.port = Some(port);
        self.announcement = Announcement::Due;
        group.upsert_all(self.number, &self.public, out);
    }

    /// Tells the server where this terminal can be reached, when that is due and possible; `mark` numbers the heartbeat after it.
    pub fn announce(&mut self, mark: u64, addresses: &[IpNet], out: &mut Vec<Action>) {
        let Some(link) = self.channel.link else { return };
        if self.announcement != Announcement::Due || !self.channel.synced || self.raising() {
            return;
        }
        let ports =
            self.groups.values().filter_map(|g| g.port.map(|port| GroupPort { group: g.grant.id, port })).collect();
        let addresses = addresses.iter().take(MAX_ADDRESSES).map(IpNet::addr).collect();
        out.push(Action::Send { link, message: ClientMessage::Endpoints(Endpoints { ports, addresses }) });
        out.push(Action::Send { link, message: ClientMessage::Heartbeat(mark) });
        self.announcement = Announcement::Sent(mark);
    }

    /// Interfaces stand, and the others know of this terminal; or it was so, and only the server is away.
    pub fn is_open(&self) -> bool {
        self.settled || (!self.raising() && self.channel.synced && self.announcement == Announcement::Confirmed)
    }

    pub fn opened(&self, guard: &str) -> Vec<OpenedGroup> {
        self.groups.values().map(|group| group.opened(guard)).collect()
    }

    pub fn attachment(&self) -> Attachment {
        let known = self.groups.values().filter_map(|group| {
            Some(Known { group: group.grant.id, revision: group.revision?, epoch: group.grant.epoch })
        });
        let known = self.proof.as_ref().map_or_else(|| known.collect(), Proof::known);
        // The one that answered last comes first: they are equal, and it knows this session.
        let mut servers = self.servers.clone();
        servers.sort_by_key(|server| *server != self.channel.server);
        Attachment { servers, ca_pin: self.ca_pin, session: self.session, secret: self.secret.duplicate(), known }
    }
}
