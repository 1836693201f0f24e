//! What comes from the session channel, and when it is attached again.

use std::time::Duration;

use cug_proto::{
    id::UserId,
    message::{ClientMessage, EndReason, GroupGrant, KeyAck, Peers},
};
use ipnet::IpNet;

use super::{
    Action, ChannelEvent, LinkId, Stage, State, Time, backoff,
    end::End,
    groups::{From, Group, NewKey},
    life::{Announcement, Life},
};

impl State {
    pub(super) fn channel(&mut self, now: Time, link: LinkId, event: ChannelEvent, out: &mut Vec<Action>) {
        let addresses = self.addresses.clone();
        let Some((user, life)) = self.find(|life| life.channel.link == Some(link)) else {
            return self.goodbye(link, &event, out);
        };
        life.heard(now, &event);
        match event {
            ChannelEvent::Attached { server, local, seen, .. } => {
                life.channel.server = server;
                life.channel.local = local;
                life.channel.attached = true;
                life.channel.known_there = true;
                life.translated(seen, &addresses, out);
            }
            ChannelEvent::Peers(change) => life.members(now, &addresses, change, out),
            ChannelEvent::Synced => {
                life.synced(out);
                if self.prove(now, &user, out) {
                    self.advance(&user, out);
                }
            }
            ChannelEvent::Group(grant) => {
                life.learn(link, grant, out);
                self.advance(&user, out);
            }
            ChannelEvent::Activate(order) => {
                if !life.activate(order, out) {
                    out.push(Action::warn(&format!(
                        "epoch {} of group {} is not known here, attaching again",
                        order.epoch, order.group
                    )));
                    out.push(Action::Disconnect { link });
                    life.detached(now, 0);
                }
            }
            ChannelEvent::Left(group) => {
                if life.groups.remove(&group).is_some_and(|group| group.ordered) {
                    out.push(Action::GroupDown { number: life.number, group });
                }
                if life.groups.is_empty() {
                    self.end(now, &user, &End::Server(EndReason::NoGroup), None, out);
                }
            }
            ChannelEvent::Alive(mark) => {
                if life.announcement == Announcement::Sent(mark) {
                    life.announcement = Announcement::Confirmed;
                    life.knock(now, out);
                    self.advance(&user, out);
                }
            }
            ChannelEvent::Ended(EndReason::Unknown) if !life.channel.known_there => {
                // Not known yet: the login's last message is still on its way. The lease of the grant limits the attempts.
                out.push(Action::Disconnect { link });
                life.detached(now, 0);
            }
            ChannelEvent::Ended(reason) => self.end(now, &user, &End::Server(reason), None, out),
            ChannelEvent::Closed { cause, jitter } => {
                out.push(Action::warn(&format!("session channel of {user}: {cause}")));
                life.detached(now, jitter);
            }
        }
    }

    /// A channel that belongs to no life any more only has to close.
    fn goodbye(&mut self, link: LinkId, event: &ChannelEvent, out: &mut Vec<Action>) {
        match event {
            ChannelEvent::Closed { cause, .. } => {
                if self.farewells.remove(&link).is_some() {
                    out.push(Action::info(&format!("session channel closed: {cause}")));
                }
                for falling in self.falling.values_mut() {
                    falling.farewell.take_if(|(own, _)| *own == link);
                }
            }
            ChannelEvent::Attached { .. }
            | ChannelEvent::Peers(_)
            | ChannelEvent::Synced
            | ChannelEvent::Group(_)
            | ChannelEvent::Activate(_)
            | ChannelEvent::Left(_)
            | ChannelEvent::Alive(_)
            | ChannelEvent::Ended(_) => {}
        }
    }

    /// Attaches the channel of `user`'s session.
    pub(super) fn connect(&mut self, user: &UserId, out: &mut Vec<Action>) {
        let link = LinkId(self.next());
        let life = self.sessions.get_mut(user).and_then(|session| session.stage.life_mut());
        if let Some(life) = life {
            life.channel.link = Some(link);
            life.channel.retry_at = None;
            out.push(Action::Connect { link, attachment: life.attachment() });
        }
    }

    /// Attaches again when the pause is over.
    pub(super) fn reconnect(&mut self, now: Time, user: &UserId, out: &mut Vec<Action>) {
        let due = |stage: &Stage| stage.life().and_then(|life| life.channel.retry_at).is_some_and(|at| at <= now);
        if self.sessions.get(user).is_some_and(|session| due(&session.stage)) {
            self.connect(user, out);
        }
    }
}

impl Life {
    /// The lease runs from the server's last sign of life. Its other messages do not renew it: it counts heartbeats.
    fn heard(&mut self, now: Time, event: &ChannelEvent) {
        match event {
            ChannelEvent::Closed { .. } => return,
            ChannelEvent::Attached { lease, .. } => {
                // A server that leaves no time at all would end what it has just accepted.
                self.channel.lease = (*lease).max(Duration::from_secs(1));
                self.channel.lease_until = now + self.channel.lease;
            }
            ChannelEvent::Alive(_) => self.channel.lease_until = now + self.channel.lease,
            ChannelEvent::Peers(_)
            | ChannelEvent::Synced
            | ChannelEvent::Group(_)
            | ChannelEvent::Activate(_)
            | ChannelEvent::Left(_)
            | ChannelEvent::Ended(_) => {}
        }
        self.channel.heard = Some(now);
    }

    fn members(&mut self, now: Time, addresses: &[IpNet], change: Peers, out: &mut Vec<Action>) {
        if let Some(proof) = &mut self.proof {
            proof.heard_of(change.group);
        }
        let (number, own, synced) = (self.number, self.public, self.channel.synced);
        let from = From { addresses, overlay: &self.overlay() };
        if let Some(group) = self.groups.get_mut(&change.group) {
            group.apply(now, number, &own, synced, change, &from, out);
        }
    }

    fn synced(&mut self, out: &mut Vec<Action>) {
        self.channel.synced = true;
        self.channel.failures = 0;
        self.channel.away = false;
        // The server may be another one, or see another address: it is told anew.
        self.announcement = Announcement::Due;
        let number = self.number;
        self.groups.values_mut().for_each(|group| group.synced(number, out));
    }

    pub fn detached(&mut self, now: Time, jitter: u32) {
        self.channel.away |= !self.channel.attached;
        self.channel.draw = jitter;
        self.channel.link = None;
        self.channel.attached = false;
        self.channel.local = None;
        self.channel.synced = false;
        self.channel.retry_at = Some(backoff(now, self.channel.failures, jitter));
        self.channel.failures = self.channel.failures.saturating_add(1);
        self.announcement = Announcement::Due;
        self.groups.values_mut().for_each(Group::interrupted);
    }

    /// A new epoch's key, or a group that the user joined just now.
    fn learn(&mut self, link: LinkId, grant: GroupGrant, out: &mut Vec<Action>) {
        let ack = KeyAck { group: grant.id, epoch: grant.epoch };
        match self.groups.get_mut(&grant.id) {
            Some(group) => {
                group.confine(self.number, &grant, out);
                if group.learn(grant) == NewKey::Old {
                    out.push(Action::warn(&format!("an old key of group {} was sent and is ignored", ack.group)));
                    return;
                }
            }
            None => match Group::new(&self.session, grant) {
                Ok(mut group) => {
                    group.keep_open(self.channel.translated);
                    self.groups.insert(ack.group, group);
                }
                Err(_) => {
                    out.push(Action::error(&format!(
                        "group {} that was sent makes no sense and is ignored",
                        ack.group
                    )));
                    return;
                }
            },
        }
        out.push(Action::Send { link, message: ClientMessage::KeyAck(ack) });
    }

    fn activate(&mut self, order: KeyAck, out: &mut Vec<Action>) -> bool {
        let (number, own) = (self.number, self.public);
        self.groups.get_mut(&order.group).is_none_or(|group| group.activate(number, &own, order, out))
    }
}
