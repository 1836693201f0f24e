//! The terminal's own network changes, and how the members are reached.

use std::net::IpAddr;

use cug_proto::{
    id::{GroupId, UserId},
    message::WgPublicKey,
};
use ipnet::IpNet;

use super::{
    Action, Number, Stage, State, Time,
    endpoints::{LOOK_CHOICE, LOOK_IDLE, Sight},
    groups::Group,
    life::{Announcement, Life},
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

impl Life {
    /// A connection does not notice by itself that its address is gone: it would only fall silent.
    fn check_channel(&mut self, now: Time, own: &[IpNet], out: &mut Vec<Action>) {
        let Some(link) = self.channel.link else {
            if self.channel.retry_at.is_some() && self.channel.known_there {
                self.channel.failures = 0;
                self.channel.retry_at = Some(now);
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
            self.detached(now, 0);
            self.channel.failures = 0;
            self.channel.retry_at = Some(now);
        }
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
    fn look_interval(&self) -> Option<std::time::Duration> {
        let choice = self.paths.values().any(super::endpoints::Path::has_choice);
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
