//! What changed in a step: told to those who watch, and to the names. Compares what is with what was told last, for the groups that a step
//! touched, so that no other part of the core has to think of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use cug_proto::{
    id::{Epoch, GroupId, GroupName, HostName, UserId},
    local::{LeaderStatus, NamesStatus},
    message::{EndReason, Lapse, Peer, WgPublicKey},
    notice::{Happening, Notice, Seat, SessionEnd},
};

use super::{Action, ChannelEvent, Event, Leader, LinkId, Number, State, Time, end::End, groups::Group, life::Life};
use crate::names::{
    Place,
    zone::{self, Member, Suffix, Zone},
};

/// What was told.
#[derive(Default)]
pub(super) struct Followed {
    /// What names end with; `None` for no names.
    suffix: Option<Suffix>,
    sessions: BTreeMap<Number, Session>,
    groups: BTreeMap<(Number, GroupId), Told>,
    /// The last word of channels that were lost in this step.
    lost: Vec<(LinkId, String)>,
    started: Option<Time>,
}

/// A session whose life goes on.
struct Session {
    user: UserId,
    link: Option<LinkId>,
    attached: bool,
    since: Time,
    cause: Option<String>,
    /// It was open, so its end is worth telling.
    open: bool,
}

/// A group whose interface stands.
struct Told {
    user: UserId,
    name: GroupName,
    epoch: Epoch,
    members: BTreeMap<UserId, Known>,
    /// The members are told of from when the session is open.
    open: bool,
    zone: Option<Arc<Zone>>,
    place: Option<Place>,
}

/// What makes a member's move worth telling.
#[derive(PartialEq, Eq)]
struct Known {
    host_name: HostName,
    endpoint: Option<SocketAddr>,
    key: WgPublicKey,
}

impl Known {
    fn of(peer: &Peer) -> Self {
        Self { host_name: peer.host_name.clone(), endpoint: peer.endpoints.first().copied(), key: peer.wg_public_key }
    }
}

impl State {
    /// The same with names for members that end with `suffix`, and the time from which [`cug_proto::local::Status::uptime_ms`] counts.
    #[must_use]
    pub fn following(mut self, suffix: Option<Suffix>, started: Time) -> Self {
        self.followed.suffix = suffix;
        self.followed.started = Some(started);
        self
    }

    /// Before a step: what it will not know afterwards.
    pub(super) fn notice(&mut self, event: &Event) {
        if let Event::Channel { link, event: ChannelEvent::Closed { cause, .. } } = event {
            self.followed.lost.push((*link, cause.clone()));
        }
    }

    pub(super) fn names(&mut self, number: Number, group: GroupId, place: Place) {
        if let Some(told) = self.followed.groups.get_mut(&(number, group)) {
            told.place = Some(place);
        }
    }

    /// After a step: says what is new.
    pub(super) fn follow(&mut self, now: Time, out: &mut Vec<Action>) {
        let touched: BTreeSet<(Number, GroupId)> = out
            .iter()
            .filter_map(|action| match action {
                Action::UpsertPeers { number, group, .. } | Action::RemovePeers { number, group, .. } => {
                    Some((*number, *group))
                }
                _ => None,
            })
            .collect();
        let Self { sessions, followed, .. } = self;
        let lost = std::mem::take(&mut followed.lost);
        let lives: Vec<_> = sessions.iter().filter_map(|(user, s)| s.stage.life().map(|life| (user, life))).collect();
        let mut gone = Vec::new();
        followed.groups.retain(|key, told| {
            let stays = lives.iter().any(|(_, life)| life.number == key.0 && life.groups.contains_key(&key.1));
            if !stays {
                let ended = !lives.iter().any(|(_, life)| life.number == key.0);
                gone.extend(told.gone(*key, ended));
            }
            stays
        });
        // First of all: who is told that a session is down is to find no names of it.
        out.splice(0..0, gone);
        followed.sessions.retain(|number, _| lives.iter().any(|(_, life)| life.number == *number));
        for (user, life) in lives {
            followed.session(now, user, life, &lost, out);
            for (id, group) in life.groups.iter().filter(|(_, group)| group.port.is_some()) {
                followed.group(user, life, group, touched.contains(&(life.number, *id)), out);
            }
        }
    }

    /// A session that was open ends.
    pub(super) fn tell_end(&self, user: &UserId, end: &End, out: &mut Vec<Action>) {
        let own = self.sessions.get(user).and_then(|session| session.stage.life());
        // Whoever unlocked was let in before the server had its say.
        let unproven = own.is_some_and(|life| life.proof.is_some());
        if unproven || self.followed.sessions.values().any(|session| session.user == *user && session.open) {
            let elsewhere = match end {
                End::Server(EndReason::Displaced(host)) => Some(host.clone()),
                _ => None,
            };
            let what = Happening::SessionDown { reason: reason(end), detail: end.sentence(), elsewhere };
            out.push(Action::Tell(Notice { user: user.clone(), what }));
        }
    }

    pub(super) fn uptime_ms(&self, now: Time) -> Option<u64> {
        self.followed.started.map(|started| ms(now.since(started)))
    }

    /// Milliseconds since the channel of this life was attached or lost, and why it was lost last.
    pub(super) fn channel_history(&self, now: Time, life: &Life) -> (Option<u64>, Option<String>) {
        let session = self.followed.sessions.get(&life.number);
        session.map_or((None, None), |session| (Some(ms(now.since(session.since))), session.cause.clone()))
    }

    pub(super) fn names_status(&self, life: &Life) -> Vec<NamesStatus> {
        let groups = life.groups.values().filter_map(|group| {
            let told = self.followed.groups.get(&(life.number, group.grant.id))?;
            let zone = told.zone.as_ref()?;
            let (by, problem) = match &told.place {
                Some(Place::Resolved) => ("systemd-resolved", None),
                Some(Place::Hosts) => ("/etc/hosts", None),
                Some(Place::Nobody(why)) => ("", Some(why.clone())),
                None => ("", None),
            };
            Some(NamesStatus {
                group: group.grant.name.clone(),
                domain: zone.domain.clone(),
                by: by.to_owned(),
                problem,
            })
        });
        groups.collect()
    }

    /// The domain name of a member, if it has one.
    pub(super) fn name_of(&self, number: Number, group: GroupId, peer: &Peer) -> Option<String> {
        let zone = self.followed.groups.get(&(number, group))?.zone.as_ref()?;
        zone.name_of(peer.address4.into()).map(str::to_owned)
    }
}

pub(super) fn ms(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn leaders(leaders: &BTreeMap<Leader, u32>) -> Vec<LeaderStatus> {
    leaders.iter().map(|(leader, sessions)| LeaderStatus { pid: leader.pid, sessions: *sessions }).collect()
}

fn reason(end: &End) -> SessionEnd {
    match end {
        End::LoggedOut => SessionEnd::LoggedOut,
        End::Card(_) => SessionEnd::CardRemoved,
        End::Tunnel(_) => SessionEnd::TunnelFailed,
        End::ServerAway | End::LeaseOver | End::Server(EndReason::LeaseExpired | EndReason::Unknown) => {
            SessionEnd::LeaseOver
        }
        End::Server(EndReason::Displaced(_)) => SessionEnd::Displaced,
        End::Server(EndReason::Disabled(Some(Lapse::Expired))) => SessionEnd::Expired,
        End::Server(EndReason::Disabled(Some(Lapse::OutsideHours))) => SessionEnd::OutsideHours,
        End::Replaced => SessionEnd::Replaced,
        End::Stopped => SessionEnd::Stopped,
        // Neither happens to a session that is open.
        End::NotOpened | End::Cancelled => SessionEnd::LoggedOut,
        End::Asleep => SessionEnd::Slept,
        // The tunnel did not come back with the unlocking.
        End::NotTheSame(_) => SessionEnd::TunnelFailed,
        End::Server(_) => SessionEnd::Removed,
    }
}

impl Followed {
    fn session(&mut self, now: Time, user: &UserId, life: &Life, lost: &[(LinkId, String)], out: &mut Vec<Action>) {
        let mut tell = |what| out.push(Action::Tell(Notice { user: user.clone(), what }));
        let channel = &life.channel;
        let session = self.sessions.entry(life.number).or_insert_with(|| Session {
            user: user.clone(),
            link: channel.link,
            attached: channel.attached,
            since: now,
            cause: None,
            open: false,
        });
        if let Some((_, cause)) = lost.iter().find(|(link, _)| session.link == Some(*link)) {
            session.cause = Some(cause.clone());
        }
        session.link = channel.link;
        if session.attached != channel.attached {
            session.attached = channel.attached;
            session.since = now;
            if session.open {
                tell(if channel.attached {
                    Happening::ChannelBack { server: channel.server.clone() }
                } else {
                    Happening::ChannelLost { cause: session.cause.clone().unwrap_or_default() }
                });
            }
        }
        if life.settled && !session.open {
            session.open = true;
            tell(Happening::SessionUp);
        }
    }

    fn group(&mut self, user: &UserId, life: &Life, group: &Group, touched: bool, out: &mut Vec<Action>) {
        let key = (life.number, group.grant.id);
        let fresh = !self.groups.contains_key(&key);
        let told = self.groups.entry(key).or_insert_with(|| Told {
            user: user.clone(),
            name: group.grant.name.clone(),
            epoch: group.grant.epoch,
            members: BTreeMap::new(),
            open: false,
            zone: None,
            place: None,
        });
        if fresh || touched {
            self.suffix.iter().for_each(|suffix| told.rename(key, suffix, user, group, out));
        }
        if !life.settled {
            return;
        }
        if !told.open {
            // Those who were there before are in the status.
            told.open = true;
            told.members = group.peers.values().map(|peer| (peer.user.clone(), Known::of(peer))).collect();
            if fresh {
                out.push(told.notice(Happening::GroupJoined { group: told.name.clone() }));
            }
        } else if touched {
            told.compare(group, out);
        }
        if told.epoch != group.grant.epoch {
            told.epoch = group.grant.epoch;
            out.push(told.notice(Happening::NewEpoch { group: told.name.clone(), epoch: told.epoch }));
        }
    }
}

impl Told {
    fn notice(&self, what: Happening) -> Action {
        Action::Tell(Notice { user: self.user.clone(), what })
    }

    fn gone(&self, (number, group): (Number, GroupId), with_its_session: bool) -> Vec<Action> {
        let names = self.zone.is_some().then_some(Action::Names { number, group, zone: None });
        let left =
            (self.open && !with_its_session).then(|| self.notice(Happening::GroupLeft { group: self.name.clone() }));
        names.into_iter().chain(left).collect()
    }

    fn compare(&mut self, group: &Group, out: &mut Vec<Action>) {
        let name = &self.name;
        let mut news = Vec::new();
        self.members.retain(|member, _| {
            let stays = group.peers.contains_key(member);
            if !stays {
                news.push(Happening::MemberLeft { group: name.clone(), member: member.clone() });
            }
            stays
        });
        for peer in group.peers.values() {
            let known = Known::of(peer);
            let seat = || Seat {
                member: peer.user.clone(),
                host_name: peer.host_name.clone(),
                endpoint: peer.endpoints.first().copied(),
                address4: peer.address4,
                address6: peer.address6,
            };
            match self.members.get(&peer.user) {
                None => news.push(Happening::MemberJoined { group: name.clone(), seat: seat() }),
                Some(before) if *before != known => {
                    news.push(Happening::MemberMoved { group: name.clone(), seat: seat() });
                }
                Some(_) => continue,
            }
            self.members.insert(peer.user.clone(), known);
        }
        out.extend(news.into_iter().map(|what| self.notice(what)));
    }

    fn rename(&mut self, key: (Number, GroupId), suffix: &Suffix, user: &UserId, group: &Group, out: &mut Vec<Action>) {
        let Some(domain) = zone::domain(&group.grant.name, suffix) else {
            if self.place.is_none() {
                let why = format!("the group's name {} cannot be part of a domain name", group.grant.name);
                out.push(Action::warn(&why));
                self.place = Some(Place::Nobody(why));
            }
            return;
        };
        let own = Member { user, address4: group.grant.address4, address6: group.grant.address6 };
        let others = group.peers.values().map(|peer| Member {
            user: &peer.user,
            address4: peer.address4,
            address6: peer.address6,
        });
        let (interface, prefixes) = group.network();
        let zone = Zone::new(interface.clone(), user.clone(), domain, prefixes, std::iter::once(own).chain(others));
        if self.zone.as_deref() == Some(&zone) {
            return;
        }
        let before = self.zone.as_ref().map(|zone| &zone.nameless);
        for nameless in zone.nameless.iter().filter(|user| before.is_none_or(|before| !before.contains(*user))) {
            out.push(Action::warn(&format!(
                "member {nameless} of {} has no name: its user ID is no domain name, or differs from another member's in case alone",
                group.grant.name
            )));
        }
        let zone = Arc::new(zone);
        self.zone = Some(Arc::clone(&zone));
        out.push(Action::Names { number: key.0, group: key.1, zone: Some(zone) });
    }
}
