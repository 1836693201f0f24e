//! What the daemon decides: [`step`] takes what happened and says what to do. No I/O, no clock, no randomness.
//!
//! One user has at most one session at this terminal; several users may have theirs at once.
//!
//! ```text
//!            Prepare               Deliver                 Open, or a leader is there
//!  (nothing) -------> Offered ----------------> Granted ------------------------------> Up
//!                        |  Cancel, time           |  Cancel, time, card, server        | | ^
//!                        v                         v                                    | | |
//!                    (nothing)         (nothing), or Barred until                       | | | Deliver (unlocked
//!                                      the grant would have expired                     | | |  with the card)
//!                                                                                       | | |
//!   last leader closes or dies <--------------------------------------------------------+ v |
//!          (nothing)           <------------------------------------------------------- Suspended
//! ```
//!
//! * *Offered*: a key pair waits for a grant.
//! * *Granted*: the grant is here, the card is watched, the channel is being attached; no tunnel. `Open` makes it *Up*.
//! * *Up*: interfaces stand or are being made. The OS sessions (by leader process) hold it.
//! * *Suspended*: the card is gone, the machine slept, or the session ended otherwise while OS sessions live on. Nothing is left but their list and
//!   what the person is known by who unlocks: the card's fingerprint and the overlay addresses. What becomes of the OS sessions is in [`desk`].
//! * *Barred*: no secret, only the reason why the `Open` that follows a lost grant is refused.
//!
//! All secrets of a session are in its [`life::Life`], which is dropped, and thereby wiped, in the step that ends it. The order of an
//! end is: tunnel down, watch stopped, secrets dropped; when the interfaces are gone, the server is told (in bounded time). If the channel does
//! not stand then, one connection is tried for that; it holds the session secret, which proves who says goodbye, for as long.
//!
//! While the server cannot be reached a session that is up stays up (P10), until the lease that the server gave has run out:
//! then it ends (fail closed), because the server has told the others to drop this terminal.

mod action;
mod channel;
mod desk;
mod end;
mod endpoints;
mod event;
mod follow;
mod groups;
mod life;
mod limits;
mod offline;
mod requests;
mod roam;
#[cfg(test)]
mod tests;
mod time;
mod types;
mod unlock;
mod view;

use std::collections::BTreeMap;

use cug_proto::{
    id::UserId,
    local::{OfferId, Opened, Refusal, Reply},
    message::ClearReason,
};

pub use action::{Action, Attachment, FenceSpec, GroupView, InterfaceSpec, PeerSpec};
pub use desk::{Deed, LogindEvent, Removal};
use desk::{Leaving, Vigil};
use end::End;
pub use endpoints::Sight;
pub use event::{ChannelEvent, Event, FreshKeys, Request, TunnelEvent, WaitingEvent, WatchEvent};
use follow::Followed;
use ipnet::IpNet;
use life::{Life, Waiter};
pub use limits::*;
pub use time::Time;
pub use types::{Leader, LinkId, Number, OsDesk, OsSession, Settings, Token, Viewer};
use unlock::{Budget, Former, Unlock};

/// Everything the daemon knows. Changed by [`step`] only.
pub struct State {
    settings: Settings,
    /// Last [`Number`], [`LinkId`] or mark given away.
    counter: u64,
    offers: BTreeMap<OfferId, Offered>,
    /// Those of users' own processes.
    unlocks: BTreeMap<OfferId, Unlock>,
    budgets: BTreeMap<u32, Budget>,
    sessions: BTreeMap<UserId, Session>,
    /// Tunnels on their way down.
    falling: BTreeMap<Number, Falling>,
    /// Channels that only say goodbye, with the time at which they are cut.
    farewells: BTreeMap<LinkId, Time>,
    addresses: Vec<IpNet>,
    stopping: bool,
    /// The machine sleeps or goes down.
    leaving: Option<Leaving>,
    /// Logins that wait for a server.
    waiting: BTreeMap<UserId, offline::Waiting>,
    /// Tunnels that went down since the start.
    teardowns: u64,
    /// What was left over of them.
    leftovers: u64,
    followed: Followed,
}

/// A key pair that waits for a grant.
struct Offered {
    user: UserId,
    keys: FreshKeys,
    expires: Time,
}

/// A user at this terminal.
#[derive(Default)]
struct Session {
    stage: Stage,
    /// The user's ID in the operating system, from the first `Open` on: whose the interfaces are.
    uid: Option<u32>,
    /// OS sessions by leader; the count is for hosts that open several.
    leaders: BTreeMap<Leader, u32>,
    /// What logind calls the OS sessions of the leaders, as far as it knows them.
    os: BTreeMap<Leader, String>,
    /// The last life, by which the person is known who unlocks.
    former: Option<Former>,
    vigil: Vigil,
    /// It ended because the machine went to sleep.
    slept: bool,
}

#[derive(Default)]
enum Stage {
    Granted(Box<Life>),
    Up(Box<Life>),
    #[default]
    Suspended,
    Barred {
        why: Refusal,
        until: Time,
    },
}

struct Falling {
    user: UserId,
    /// Answered with `Done` when the tunnel is down.
    waiting: Vec<Token>,
    /// Told when its interfaces are gone.
    farewell: Option<(LinkId, ClearReason)>,
    /// When to go on without the tunnel's word.
    until: Time,
}

/// Takes what happened and says what to do, in this order.
pub fn step(state: &mut State, now: Time, event: Event) -> Vec<Action> {
    let mut actions = Vec::new();
    let out = &mut actions;
    state.notice(&event);
    match event {
        Event::Request { token, request } => state.request(now, token, request, out),
        Event::LeaderDied(leader) => state.leader_died(now, leader, out),
        Event::Watch { number, event } => state.watch(now, number, event, out),
        Event::Channel { link, event } => state.channel(now, link, event, out),
        Event::Tunnel { number, event } => state.tunnel(now, number, event, out),
        Event::Names { number, group, place } => state.names(number, group, place),
        Event::Addresses(addresses) => state.addresses(now, addresses, out),
        Event::Waiting { number, event } => state.waiting_event(now, number, event, out),
        Event::Tick => {}
        Event::Logind(event) => state.logind(now, event, out),
        Event::Shutdown => state.shutdown(now, out),
    }
    state.expire(now, out);
    state.expire_waiting(now, out);
    state.let_go(out);
    state.follow(now, out);
    if state.stopping && state.falling.is_empty() && state.farewells.is_empty() {
        out.push(Action::Exit);
    }
    actions
}

impl State {
    /// Nothing going on.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            counter: 0,
            offers: BTreeMap::new(),
            unlocks: BTreeMap::new(),
            budgets: BTreeMap::new(),
            sessions: BTreeMap::new(),
            falling: BTreeMap::new(),
            farewells: BTreeMap::new(),
            addresses: Vec::new(),
            stopping: false,
            leaving: None,
            waiting: BTreeMap::new(),
            teardowns: 0,
            leftovers: 0,
            followed: Followed::default(),
        }
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let sessions = self.sessions.values().filter_map(|session| match &session.stage {
            Stage::Granted(life) => Some(life.deadline().min(life.expires)),
            Stage::Up(life) => Some(life.deadline()),
            Stage::Suspended => session.vigil.due(),
            Stage::Barred { until, .. } => Some(*until),
        });
        let unlocks = self.unlocks.values().map(|unlock| unlock.expires);
        let offers = self.offers.values().map(|offer| offer.expires).chain(unlocks);
        let falling = self.falling.values().map(|falling| falling.until);
        sessions
            .chain(offers)
            .chain(falling)
            .chain(self.farewells.values().copied())
            .chain(self.waiting_deadline())
            .min()
    }

    /// Nothing is held for anybody: no offer, session, tunnel or channel.
    pub fn is_idle(&self) -> bool {
        self.offers.is_empty()
            && self.unlocks.is_empty()
            && self.sessions.is_empty()
            && self.falling.is_empty()
            && self.farewells.is_empty()
            && self.waiting.is_empty()
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// The life that `wanted` picks out, and whose it is.
    fn find(&mut self, wanted: impl Fn(&Life) -> bool) -> Option<(UserId, &mut Life)> {
        self.sessions.iter_mut().find_map(|(user, session)| {
            session.stage.life_mut().filter(|life| wanted(life)).map(|life| (user.clone(), life))
        })
    }

    /// All that is due by `now`.
    fn expire(&mut self, now: Time, out: &mut Vec<Action>) {
        self.offers.retain(|_, offer| now < offer.expires);
        self.unlocks.retain(|_, unlock| now < unlock.expires);
        self.sessions.retain(|_, session| !matches!(session.stage, Stage::Barred { until, .. } if until <= now));
        let users: Vec<UserId> = self.sessions.keys().cloned().collect();
        for user in users {
            if let Some(end) = self.sessions.get(&user).and_then(|session| session.stage.overdue(now)) {
                self.end(now, &user, &end, None, out);
            }
            self.expire_grace(now, &user, out);
            self.reconnect(now, &user, out);
            self.look(now, &user, out);
        }
        self.expire_goodbyes(now, out);
    }

    fn expire_goodbyes(&mut self, now: Time, out: &mut Vec<Action>) {
        let late: Vec<Number> = self.falling.iter().filter(|(_, f)| f.until <= now).map(|(n, _)| *n).collect();
        for number in late {
            out.push(Action::error(
                "a tunnel did not report that it is down; its interface may be left over until the next start",
            ));
            self.fallen(now, number, out);
        }
        let late: Vec<LinkId> = self.farewells.iter().filter(|(_, until)| **until <= now).map(|(l, _)| *l).collect();
        for link in late {
            self.farewells.remove(&link);
            out.push(Action::Disconnect { link });
            out.push(Action::warn("the management server did not confirm the end of a session; its lease will end it"));
        }
    }

    fn watch(&mut self, now: Time, number: Number, event: WatchEvent, out: &mut Vec<Action>) {
        let Some((user, life)) = self.find(|life| life.number == number) else {
            // Not a life's: a card that is looked for, or one of a login that waits.
            return if self.is_vigil(number) {
                self.vigil(now, number, event, out)
            } else {
                self.waiting_watch(now, number, event, out)
            };
        };
        match event {
            WatchEvent::Started => {
                life.watched = true;
                if life.channel.link.is_none() {
                    life.channel.retry_at.get_or_insert(now + ATTACH_DELAY);
                }
                self.advance(&user, out);
            }
            WatchEvent::Back(card) => {
                // Found again by this daemon itself: this is the one to watch.
                life.card = card.clone();
                out.push(Action::StartWatch { number, card });
            }
            WatchEvent::Ended(cause) => {
                // The watch ended by itself: there is nothing to stop, and stopping it again is harmless.
                self.end(now, &user, &End::Card(cause), None, out);
            }
        }
    }

    fn tunnel(&mut self, now: Time, number: Number, event: TunnelEvent, out: &mut Vec<Action>) {
        if let TunnelEvent::Down { leftovers } = event {
            self.teardowns += 1;
            self.leftovers += u64::try_from(leftovers.len()).unwrap_or(u64::MAX);
            for what in leftovers {
                out.push(Action::error(&format!("left over of a session: {what}; it is tried again")));
            }
            return self.fallen(now, number, out);
        }
        if let TunnelEvent::Gone = event {
            return self.gone(now, number, out);
        }
        let Some((user, life)) = self.find(|life| life.number == number) else { return };
        match event {
            TunnelEvent::Raised { group, port } => {
                life.raised(group, port, out);
                self.advance(&user, out);
            }
            TunnelEvent::Seen { group, sights } => self.seen(now, number, group, &sights, out),
            TunnelEvent::Failed(cause) => self.end(now, &user, &End::Tunnel(cause), None, out),
            TunnelEvent::Gone | TunnelEvent::Down { .. } => {}
        }
    }

    /// Moves a session on as far as it can go: `Granted` to `Up` when somebody wants it, interfaces, announcement, answers.
    fn advance(&mut self, user: &UserId, out: &mut Vec<Action>) {
        let still_falling = self.falling.values().any(|falling| falling.user == *user);
        let mark = self.next();
        let Some(session) = self.sessions.get_mut(user) else { return };
        if session.leaders.is_empty() {
            // Nobody wants the tunnel yet. The login is told that the grant is safe.
            if let Stage::Granted(life) = &mut session.stage
                && life.watched
            {
                life.answer(out, |waiter| matches!(waiter, Waiter::Delivered).then_some(Reply::Delivered(false)));
                life.fence(user, out);
            }
            return;
        }
        session.stage.rise();
        let Stage::Up(life) = &mut session.stage else { return };
        if life.proof.is_some() {
            // The server has to hear of the login before it can prove it, and hears of it when the delivery is answered.
            life.answer(out, |waiter| matches!(waiter, Waiter::Delivered).then_some(Reply::Delivered(false)));
            return;
        }
        if still_falling {
            return;
        }
        let Some(uid) = session.uid else { return };
        life.raise_missing(uid, out);
        if !life.raising() {
            // The server hears of the login only when the delivery is answered: do not wait for it here.
            life.answer(out, |waiter| matches!(waiter, Waiter::Delivered).then_some(Reply::Delivered(true)));
        }
        life.announce(mark, &self.addresses, out);
        if life.is_open() {
            if !life.settled {
                life.settled = true;
                life.open_by = None;
                out.push(Action::info(&format!("the closed group of {user} is open")));
            }
            let groups = life.opened(&self.settings.guard);
            life.answer(out, |_| Some(Reply::Opened(Opened { groups: groups.clone() })));
        }
    }

    fn shutdown(&mut self, now: Time, out: &mut Vec<Action>) {
        self.stopping = true;
        self.offers.clear();
        self.unlocks.clear();
        self.give_all_up("The VPN service of this workstation was stopped; log in again.", out);
        let users: Vec<UserId> = self.sessions.keys().cloned().collect();
        for user in users {
            self.end(now, &user, &End::Stopped, None, out);
            self.stand_down(&user, out);
            if let Some(session) = self.sessions.remove(&user) {
                // A process may lead sessions of several users; the last one forgets it.
                let done = session.leaders.into_keys().filter(|leader| !self.leads(*leader));
                out.extend(done.map(Action::ForgetLeader));
            }
        }
    }
}

impl Stage {
    fn life_mut(&mut self) -> Option<&mut Life> {
        match self {
            Self::Granted(life) | Self::Up(life) => Some(life),
            Self::Suspended | Self::Barred { .. } => None,
        }
    }

    fn life(&self) -> Option<&Life> {
        match self {
            Self::Granted(life) | Self::Up(life) => Some(life),
            Self::Suspended | Self::Barred { .. } => None,
        }
    }

    /// `Granted` becomes `Up` when the card is watched.
    fn rise(&mut self) {
        match std::mem::replace(self, Self::Suspended) {
            Self::Granted(life) if life.watched => *self = Self::Up(life),
            other => *self = other,
        }
    }

    /// Why this must end now, if it must.
    fn overdue(&self, now: Time) -> Option<End> {
        let life = self.life()?;
        if life.open_by.is_some_and(|by| by <= now) {
            return Some(life.late());
        }
        if life.channel.lease_until <= now {
            return Some(End::LeaseOver);
        }
        (matches!(self, Self::Granted(_)) && life.expires <= now).then_some(End::NotOpened)
    }
}
