//! The terminal's own network changes, and how the members are reached.

use std::{net::IpAddr, time::Duration};

use cug_proto::{
    id::{GroupId, UserId},
    message::WgPublicKey,
};
use ipnet::IpNet;

use super::{
    Action, KEEPALIVE, Number, SPREAD, Stage, State, Time,
    endpoints::{LOOK_CHOICE, LOOK_IDLE, Path, Sight},
    groups::{Group, Knocks},
    life::{Announcement, Channel, Life},
};

/// Whose packets go where: to a new endpoint, or (`None`) where WireGuard sends them already.
pub(super) type Calls = Vec<(WgPublicKey, Option<std::net::SocketAddr>)>;

impl State {
    /// Addresses or routes of this terminal changed.
    pub(super) fn addresses(&mut self, now: Time, addresses: Vec<IpNet>, out: &mut Vec<Action>) {
        let changed = self.addresses != addresses;
        self.addresses = addresses;
        if self.addresses.is_empty() {
            // Cut off. What stands is left standing: with the same address it goes on where it was.
            return;
        }
        self.waiting_sees_network(now);
        let users: Vec<UserId> = self.sessions.keys().cloned().collect();
        for user in users {
            let mark = self.next();
            let Some(session) = self.sessions.get_mut(&user) else { continue };
            let up = matches!(session.stage, Stage::Up(_));
            let Some(life) = session.stage.life_mut() else { continue };
            life.check_channel(now, &self.addresses, out);
            if up {
                life.rehome(now, &self.addresses, out);
                if changed {
                    life.announcement = Announcement::Due;
                }
                life.announce(mark, &self.addresses, out);
            }
        }
    }

    /// Orders a look at the paths when one is due.
    pub(super) fn look(&mut self, now: Time, user: &UserId, out: &mut Vec<Action>) {
        let Some(session) = self.sessions.get_mut(user) else { return };
        if let Stage::Up(life) = &mut session.stage {
            life.look(now, out);
        }
    }

    /// What a look has shown.
    pub(super) fn seen(
        &mut self,
        now: Time,
        number: Number,
        group: GroupId,
        sights: &[(WgPublicKey, Sight)],
        out: &mut Vec<Action>,
    ) {
        let Some((_, life)) = self.find(|life| life.number == number) else { return };
        if let Some(group) = life.groups.get_mut(&group) {
            group.seen(now, number, sights, out);
        }
    }
}

/// Between the first two calls to a member who does not answer.
const FIRST_KNOCK: Duration = Duration::from_secs(1);

impl Channel {
    /// When to attach after the network has changed. At once, when somebody has moved; but a whole house finds its network again at the same
    /// moment when a switch was away, and who has tried in vain since is one of many.
    fn again(&self, now: Time) -> Time {
        let spread = u64::try_from(SPREAD.as_millis()).unwrap_or(u64::MAX);
        let pause = Duration::from_millis(u64::from(self.draw) % spread);
        if self.away { now + pause } else { now }
    }
}

impl Life {
    /// A connection does not notice by itself that its address is gone: it would only fall silent.
    fn check_channel(&mut self, now: Time, own: &[IpNet], out: &mut Vec<Action>) {
        let Some(link) = self.channel.link else {
            if let Some(planned) = self.channel.retry_at.filter(|_| self.channel.known_there) {
                self.channel.failures = 0;
                self.channel.retry_at = Some(planned.min(self.channel.again(now)));
            }
            return;
        };
        let local_is_gone = |local: IpAddr| !local.is_loopback() && !own.iter().any(|net| net.addr() == local);
        if self.channel.attached && !self.channel.local.is_some_and(local_is_gone) {
            out.push(Action::Check { link });
            return;
        }
        if self.channel.known_there {
            out.push(Action::info("the network changed, attaching the session channel anew"));
            out.push(Action::Disconnect { link });
            let (away, draw) = (self.channel.away, self.channel.draw);
            self.detached(now, draw);
            // It was cut here: that says nothing of the server.
            self.channel.away = away;
            self.channel.failures = 0;
            self.channel.retry_at = Some(self.channel.again(now));
        }
    }

    /// The server has said from where it sees this terminal.
    pub fn translated(&mut self, seen: Option<IpAddr>, own: &[IpNet], out: &mut Vec<Action>) {
        let Some(seen) = seen else { return };
        let known = self.channel.local == Some(seen) || own.iter().any(|net| net.addr() == seen);
        let translated = !known && !seen.is_loopback();
        if translated == self.channel.translated {
            return;
        }
        self.channel.translated = translated;
        if translated {
            out.push(Action::info(&format!(
                "the server sees this terminal at {seen}: a router translates its addresses, and is kept reminded of it"
            )));
        }
        let (number, public) = (self.number, self.public);
        for group in self.groups.values_mut() {
            group.keep_open(translated);
            group.refresh(number, &public, out);
        }
    }

    /// Calls those members who cannot call here.
    pub fn knock(&mut self, now: Time, out: &mut Vec<Action>) {
        let number = self.number;
        self.groups.values_mut().for_each(|group| group.knock_anew(now, number, out));
    }

    fn rehome(&mut self, now: Time, own: &[IpNet], out: &mut Vec<Action>) {
        let (number, overlay) = (self.number, self.overlay());
        for group in self.groups.values_mut() {
            group.rehome(now, number, own, &overlay, out);
        }
    }

    /// The networks of all groups: nobody's endpoint can lie there.
    pub fn overlay(&self) -> Vec<IpNet> {
        self.groups.values().flat_map(Group::networks).collect()
    }

    fn look(&mut self, now: Time, out: &mut Vec<Action>) {
        let interval = self.groups.values().filter_map(Group::look_interval).min();
        let Some(interval) = interval else {
            self.look_at = None;
            return;
        };
        let at = self.look_at.map_or(now + interval, |at| at.min(now + interval));
        self.look_at = Some(at);
        if at <= now {
            self.look_at = Some(now + interval);
            let number = self.number;
            let groups = self.groups.iter().filter(|(_, group)| group.look_interval().is_some());
            out.extend(groups.map(|(group, _)| Action::Look { number, group: *group }));
        }
    }
}

impl Group {
    /// How often the paths to the members are looked at; `None` without members or interface.
    fn look_interval(&self) -> Option<Duration> {
        let knocking = self.knocks.is_some() && !self.paths.values().all(Path::is_live);
        let choice = knocking || self.paths.values().any(Path::has_choice);
        let some = self.port.is_some() && !self.paths.is_empty();
        some.then_some(if choice { LOOK_CHOICE } else { LOOK_IDLE })
    }

    fn seen(&mut self, now: Time, number: Number, sights: &[(WgPublicKey, Sight)], out: &mut Vec<Action>) {
        let mut calls = Calls::new();
        for (key, sight) in sights {
            let next = self.paths.get_mut(key).and_then(|path| path.look(now, *sight));
            calls.extend(next.map(|endpoint| (*key, Some(endpoint))));
        }
        self.call(number, calls, out);
        self.knock(now, number, out);
    }

    /// From now on this side keeps the ways to the members open, or no longer.
    pub fn keep_open(&mut self, translated: bool) {
        self.knocks = translated.then(Knocks::default);
    }

    fn knock_anew(&mut self, now: Time, number: Number, out: &mut Vec<Action>) {
        if let Some(knocks) = &mut self.knocks {
            *knocks = Knocks::default();
            self.knock(now, number, out);
        }
    }

    /// A member outside cannot call through the router before it was called from here. Who does not answer is called again, after longer and
    /// longer pauses: WireGuard itself gives up after ninety seconds.
    fn knock(&mut self, now: Time, number: Number, out: &mut Vec<Action>) {
        let Some(knocks) = &mut self.knocks else { return };
        let silent: Calls =
            self.paths.iter().filter(|(_, path)| !path.is_live()).map(|(key, _)| (*key, None)).collect();
        if silent.is_empty() {
            *knocks = Knocks::default();
        } else if knocks.next.is_none_or(|next| next <= now) {
            knocks.next = Some(now + KEEPALIVE.min(FIRST_KNOCK * (1 << knocks.count.min(8))));
            knocks.count += 1;
            self.call(number, silent, out);
        }
    }

    fn rehome(&mut self, now: Time, number: Number, own: &[IpNet], overlay: &[IpNet], out: &mut Vec<Action>) {
        let mut calls = Calls::new();
        for peer in self.peers.values() {
            let Some(path) = self.paths.get_mut(&peer.wg_public_key) else { continue };
            let live = path.is_live();
            let candidates = super::endpoints::candidates(&peer.endpoints, own, overlay);
            match path.rehomed(now, candidates, own) {
                Some(endpoint) => calls.push((peer.wg_public_key, Some(endpoint))),
                None if live => calls.push((peer.wg_public_key, None)),
                None => {}
            }
        }
        self.call(number, calls, out);
    }

    pub fn call(&self, number: Number, peers: Calls, out: &mut Vec<Action>) {
        if self.port.is_some() && !peers.is_empty() {
            out.push(Action::Reach { number, group: self.grant.id, peers });
        }
    }
}
