//! What the login module and `cugctl` ask.

use cug_proto::{
    id::UserId,
    local::{Deliver, LOCAL_VERSION, Offer, OfferId, Open, Opened, Prepare, Refusal, Reply},
    message::{MAX_ADDRESSES, Purpose},
    waiting,
};
use ipnet::IpNet;

use super::{
    Action, FreshKeys, Leader, MAX_OFFERS, OFFER_TIME, Offered, OsSession, Request, Stage, State, Time, Token,
    end::End,
    life::{Life, Waiter},
};

impl State {
    pub(super) fn request(&mut self, now: Time, token: Token, request: Request, out: &mut Vec<Action>) {
        match request {
            Request::Prepare(prepare, keys) => {
                let reply = self.prepare(now, prepare, keys);
                prepared(token, reply, out);
            }
            Request::Deliver(deliver) => self.deliver(now, token, *deliver, out),
            Request::Cancel(offer) => self.cancel(now, token, offer, out),
            Request::Open(open, leader, uid, os) => self.open(now, token, &open, (leader, uid, os), out),
            Request::Close(user, leader) => self.close(now, token, &user, leader, out),
            Request::Status(viewer) => {
                let reply = Reply::Status(self.status(now, &viewer));
                out.push(Action::Reply { token, reply });
            }
            Request::Watch(viewer) => {
                let reply = Reply::WatchStarted(self.status(now, &viewer));
                out.push(Action::Reply { token, reply });
            }
            Request::Peers(viewer) => out.push(Action::ReplyPeers { token, groups: self.peers(&viewer) }),
            Request::PrepareUnlock(uid, prepare, keys) => {
                let reply = self.prepare_unlock(now, uid, &prepare, keys);
                prepared(token, reply, out);
            }
            Request::DeliverUnlock(uid, deliver) => self.deliver_unlock(now, token, uid, *deliver, out),
            Request::CancelUnlock(uid, offer) => self.cancel_unlock(now, token, uid, offer, out),
            Request::Wait(wait, leader, uid, os) => self.wait(now, token, *wait, (leader, uid, os), out),
            Request::Exempt => {
                let reply = Reply::Exempt(self.settings.exempt.clone());
                out.push(Action::Reply { token, reply });
            }
            Request::Servers => out.push(Action::Reply { token, reply: Reply::Servers(self.servers()) }),
        }
    }

    fn prepare(&mut self, now: Time, prepare: Prepare, keys: FreshKeys) -> Reply {
        if prepare.version != LOCAL_VERSION {
            return Reply::Refused(Refusal::Version);
        }
        if self.stopping || self.leaving.is_some() || self.offers.len() >= MAX_OFFERS {
            return Reply::Refused(Refusal::Busy);
        }
        let up = self.sessions.get(&prepare.user).is_some_and(|session| matches!(session.stage, Stage::Up(_)));
        let purpose = if up { Purpose::Verify } else { Purpose::Open };
        let mut offer = self.offer(&prepare.user, &keys, purpose);
        // Only a login program can let somebody in.
        offer.offline_local = self.settings.offline_wait.is_some();
        if !up && prepare.service == waiting::SERVICE && !self.offered_to_waiting(&prepare.user, offer.id) {
            return Reply::Refused(Refusal::Ended);
        }
        if !up {
            // A mere check of card and password leads to no grant: its keys are dropped at once.
            self.offers.insert(keys.offer, Offered { user: prepare.user, keys, expires: now + OFFER_TIME });
        }
        Reply::Offer(offer)
    }

    /// What the login module needs.
    pub(super) fn offer(&self, user: &UserId, keys: &FreshKeys, purpose: Purpose) -> Offer {
        Offer {
            id: keys.offer,
            wg_public_key: keys.public,
            purpose,
            servers: self.settings.servers.clone(),
            server_timeout_ms: u32::try_from(self.settings.server_timeout.as_millis()).unwrap_or(u32::MAX),
            host_name: self.settings.host_name.clone(),
            addresses: self.addresses.iter().take(MAX_ADDRESSES).map(IpNet::addr).collect(),
            card_wait_ms: u32::try_from(self.settings.card_wait.as_millis()).unwrap_or(u32::MAX),
            readers: self.settings.readers.clone(),
            exempt: self.settings.exempt.clone(),
            media: self.settings.media.clone(),
            ca_pins: self.settings.ca_pins.iter().map(|pin| (*pin).into()).collect(),
            taken: self.taken(user),
            without_groups: false,
            version: LOCAL_VERSION,
            offline_local: false,
        }
    }

    /// Where the cards of other users' sessions are: two people may sit at one terminal with two readers.
    pub(super) fn taken(&self, user: &UserId) -> Vec<String> {
        let others = self.sessions.iter().filter(|(other, _)| *other != user);
        let others = others.filter_map(|(_, session)| session.stage.life()).map(|life| life.card_place());
        others.chain(self.cards_of_waiting(user)).collect()
    }

    fn deliver(&mut self, now: Time, token: Token, deliver: Deliver, out: &mut Vec<Action>) {
        let refuse = |why, out: &mut Vec<Action>| out.push(Action::Reply { token, reply: Reply::Refused(why) });
        let Some(offered) = self.offers.remove(&deliver.offer).filter(|offered| now < offered.expires) else {
            return refuse(Refusal::UnknownOffer, out);
        };
        let user = offered.user;
        if self.card_of_waiting(&deliver.offer).is_some_and(|card| *card != deliver.card) {
            return refuse(Refusal::CardGone, out);
        }
        if !self.settings.ca_pins.contains(&deliver.ca_pin) {
            out.push(Action::error(&format!("the login of {user} came from a card of another organisation")));
            return refuse(Refusal::ForeignCard, out);
        }
        let number = super::Number(self.next());
        let Ok(mut life) = Life::new(now, number, offered.keys, deliver, &self.settings) else {
            out.push(Action::error(&format!(
                "the grant for {user} makes no sense; the server and this service may be of different versions"
            )));
            return refuse(Refusal::Malformed, out);
        };
        // The server displaced what this user had before; the OS sessions stay and go over to the new grant.
        self.end(now, &user, &End::Replaced, None, out);
        self.stand_down(&user, out);
        life.wait(token, Waiter::Delivered);
        out.push(Action::StartWatch { number, card: life.card.clone() });
        out.push(Action::info(&format!("session of {user} granted by {}", life.channel.server)));
        let session = self.sessions.entry(user.clone()).or_default();
        session.stage = Stage::Granted(Box::new(life));
    }

    fn cancel(&mut self, now: Time, token: Token, offer: OfferId, out: &mut Vec<Action>) {
        self.offers.remove(&offer);
        match self.find(|life| life.offer == Some(offer) && !life.by_user) {
            Some((user, _)) => self.end(now, &user, &End::Cancelled, Some(token), out),
            None => out.push(Action::Reply { token, reply: Reply::Done }),
        }
    }

    fn open(
        &mut self,
        now: Time,
        token: Token,
        open: &Open,
        (leader, uid, os): (Leader, u32, OsSession),
        out: &mut Vec<Action>,
    ) {
        let server_timeout = self.settings.server_timeout;
        let user = &open.user;
        let answer = |reply, out: &mut Vec<Action>| out.push(Action::Reply { token, reply });
        if let Some(refusal) = no_desk(user, open.holds, &os, out) {
            return answer(refusal, out);
        }
        let Some(session) = self.sessions.get_mut(user) else { return answer(Reply::NoGrant, out) };
        let life = match &mut session.stage {
            Stage::Up(life) if !open.holds && life.settled => {
                return answer(Reply::Opened(Opened { groups: life.opened(&self.settings.guard) }), out);
            }
            Stage::Granted(_) | Stage::Up(_) | Stage::Barred { .. } if !open.holds => {
                return answer(Reply::NoGrant, out);
            }
            Stage::Granted(life) | Stage::Up(life) => life,
            Stage::Suspended => return answer(Reply::NoGrant, out),
            Stage::Barred { why, .. } => {
                let why = *why;
                self.sessions.remove(user);
                return answer(Reply::Refused(why), out);
            }
        };
        life.offer = None;
        life.wait(token, Waiter::Opened(leader));
        if !life.settled {
            if life.channel.link.is_none() {
                life.channel.retry_at = Some(now);
            }
            life.open_by = Some(life.open_by.map_or(now + server_timeout, |by| by.max(now + server_timeout)));
        }
        self.lead(user, (leader, uid, os), &open.service, &open.tty, out);
        self.advance(user, out);
    }

    /// One OS session more, led by this process.
    pub(super) fn lead(
        &mut self,
        user: &UserId,
        (leader, uid, os): (Leader, u32, OsSession),
        service: &str,
        tty: &str,
        out: &mut Vec<Action>,
    ) {
        let known = self.leads(leader);
        let session = self.sessions.entry(user.clone()).or_default();
        *session.leaders.entry(leader).or_default() += 1;
        // Another user's session (`su` to a member) is not locked or ended for the member's card.
        if let OsSession::Known(desk) = os
            && desk.uid == uid
        {
            session.os.insert(leader, desk.id);
        }
        session.uid = Some(uid);
        if !known {
            out.push(Action::WatchLeader(leader));
        }
        out.push(Action::info(&format!(
            "{user} opens an OS session ({}, process {}, {})",
            service.escape_debug(),
            leader.pid,
            tty.escape_debug()
        )));
    }

    fn close(&mut self, now: Time, token: Token, user: &UserId, leader: Leader, out: &mut Vec<Action>) {
        let Some(session) = self.sessions.get_mut(user).filter(|session| session.leaders.contains_key(&leader)) else {
            out.push(Action::Reply { token, reply: Reply::Done });
            return;
        };
        if let Some(life) = session.stage.life_mut() {
            life.take_back(leader, 1, out);
        }
        self.release(user, leader, out);
        self.after_release(now, user, Some(token), out);
    }

    pub(super) fn leader_died(&mut self, now: Time, leader: Leader, out: &mut Vec<Action>) {
        let users = self.sessions.iter().filter(|(_, session)| session.leaders.contains_key(&leader));
        let users: Vec<UserId> = users.map(|(user, _)| user.clone()).collect();
        if users.is_empty() {
            return;
        }
        out.push(Action::ForgetLeader(leader));
        for user in users {
            out.push(Action::info(&format!("process {} that led an OS session of {user} has ended", leader.pid)));
            self.bereave(&user, leader, out);
            self.after_release(now, &user, None, out);
        }
    }

    /// The tunnel goes with the last OS session.
    pub(super) fn after_release(&mut self, now: Time, user: &UserId, answer: Option<Token>, out: &mut Vec<Action>) {
        let last = self
            .sessions
            .get(user)
            .is_some_and(|session| session.leaders.is_empty() && !matches!(session.stage, Stage::Granted(_)));
        if last {
            return self.end(now, user, &End::LoggedOut, answer, out);
        }
        if let Some(token) = answer {
            out.push(Action::Reply { token, reply: Reply::Done });
        }
        self.advance(user, out);
    }
}

/// Answers `Prepare`; what a tunnel will need is got ready while the person types.
fn prepared(token: Token, reply: Reply, out: &mut Vec<Action>) {
    let opens = matches!(&reply, Reply::Offer(offer) if offer.purpose == Purpose::Open);
    out.push(Action::Reply { token, reply });
    if opens {
        out.push(Action::Expect);
    }
}

/// Why this OS session gets no tunnel, whatever the login was: nobody works in it. The module may stand in a stack without `pam_systemd`; a login with
/// the card counts there, too. What holds nothing (a job, root's `su`) takes nothing here, and may use what stands in any case, by its user ID.
pub(super) fn no_desk(user: &UserId, holds: bool, os: &OsSession, out: &mut Vec<Action>) -> Option<Reply> {
    match os {
        OsSession::Known(desk) if holds && !desk.is_a_persons() => {
            let class = desk.class.escape_debug();
            out.push(Action::warn(&format!("{user} gets no tunnel in an OS session of class {class}")));
            Some(Reply::Refused(Refusal::NoDesk))
        }
        OsSession::Known(_) | OsSession::None | OsSession::Unknown => None,
    }
}
