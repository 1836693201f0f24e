//! What becomes of the OS sessions at this desk when their tunnel ends: nothing, locked, or logged out. And sleep and shutdown.
//!
//! The tunnel and its keys are gone in the step that ends the session, whatever is decided here.
//!
//! | what ended the tunnel | `disconnect` | `lock` | `logout` |
//! |---|---|---|---|
//! | card pulled, exchanged, reader or card service gone | nothing | lock after the grace | log out after the grace |
//! | the machine goes to sleep | nothing | lock at once | lock at once |
//! | the machine wakes up, and the card is not there within the grace (10 s at least) | nothing | lock | log out |
//! | the server: logged in elsewhere, disabled, card revoked, ended by an administrator | nothing | lock at once | lock at once |
//! | the lease ran out, the tunnel failed, the last group was left, this service stops | nothing | nothing | nothing |
//!
//! A word from elsewhere never logs out: what is not saved at the desk would be lost by it. A fault of the network is nobody's leaving.
//!
//! ```text
//!           the card goes                    the same card is back
//!   (Off) ------------------> Away (grace) ------------------------> Back (watched)
//!     ^                        |    ^                                  |
//!     |  deed, when it is due  |    +----------------------------------+
//!     +------------------------+              the card goes
//! ```
//! Unlocking with card and password, and the end of the last OS session, end both.

use std::{collections::BTreeSet, time::Duration};

use cug_proto::{
    id::UserId,
    local::CardBinding,
    message::{EndReason, Fingerprint},
};

use super::{Action, Leader, Number, Session, Stage, State, Time, WatchEvent, end::End};

/// `removal` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Removal {
    /// The tunnel goes, the OS sessions are left alone.
    #[default]
    Disconnect,
    /// They are locked, too.
    Lock,
    /// They are ended, too.
    Logout,
}

/// What is done to OS sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Their lockers are told to lock.
    Lock,
    /// They are ended with all their processes.
    Logout,
}

/// What logind says of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogindEvent {
    /// The machine is about to sleep (`true`), or has woken up or did not sleep after all.
    Sleep(bool),
    /// The machine is about to shut down (`true`), or does not after all.
    Shutdown(bool),
    /// An OS session is over.
    SessionRemoved(String),
    /// logind or the bus is gone: no word from it counts any longer.
    Lost,
}

/// The machine is on its way out, and nobody may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    /// Sleep, else shutdown.
    sleep: bool,
    /// logind was told to go on.
    told: bool,
}

/// How long the card may take to be there again after the machine woke up: USB is found anew.
const WAKE_TIME: Duration = Duration::from_secs(10);

/// Whether anybody looks for the card of a session that has none.
#[derive(Default)]
pub(super) enum Vigil {
    #[default]
    Off,
    /// It is looked for; without it the deed is due.
    Away { number: Number, due: Time, deed: Deed },
    /// It is there again; its removal counts.
    Back { number: Number },
}

impl Vigil {
    fn number(&self) -> Option<Number> {
        match self {
            Self::Off => None,
            Self::Away { number, .. } | Self::Back { number } => Some(*number),
        }
    }

    /// When the deed is due.
    pub fn due(&self) -> Option<Time> {
        match self {
            Self::Away { due, .. } => Some(*due),
            Self::Off | Self::Back { .. } => None,
        }
    }
}

/// Which card a session had that may come back.
pub(super) fn fingerprint(card: &CardBinding) -> Fingerprint {
    match card {
        CardBinding::Reader(reader) => reader.fingerprint,
        CardBinding::Medium(medium) => medium.fingerprint,
    }
}

/// What is done when a session ends in this way, and whether the grace comes before it.
fn deed(end: &End, removal: Removal) -> Option<(Deed, bool)> {
    let deed = match removal {
        Removal::Disconnect => return None,
        Removal::Lock => Deed::Lock,
        Removal::Logout => Deed::Logout,
    };
    match end {
        End::Card(_) => Some((deed, true)),
        End::Asleep => Some((Deed::Lock, false)),
        End::Server(
            EndReason::Displaced(_) | EndReason::Administrator | EndReason::Disabled(_) | EndReason::CardRevoked,
        ) => Some((Deed::Lock, false)),
        End::Server(EndReason::Unknown | EndReason::LeaseExpired | EndReason::NoGroup | EndReason::Protocol)
        | End::LoggedOut
        | End::NotOpened
        | End::Cancelled
        | End::Replaced
        | End::Stopped
        | End::Tunnel(_)
        | End::ServerAway
        | End::LeaseOver
        | End::NotTheSame(_) => None,
    }
}

impl State {
    /// What logind says.
    pub(super) fn logind(&mut self, now: Time, event: LogindEvent, out: &mut Vec<Action>) {
        match event {
            LogindEvent::Sleep(true) => self.leave(now, true, out),
            LogindEvent::Shutdown(true) => self.leave(now, false, out),
            LogindEvent::Sleep(false) => {
                self.leaving = None;
                self.wake(now, out);
            }
            LogindEvent::Shutdown(false) | LogindEvent::Lost => self.leaving = None,
            LogindEvent::SessionRemoved(id) => self.os_session_removed(now, &id, out),
        }
    }

    /// The machine goes to sleep or down: nothing secret stays in memory.
    fn leave(&mut self, now: Time, sleep: bool, out: &mut Vec<Action>) {
        self.leaving = Some(Leaving { sleep, told: false });
        self.offers.clear();
        self.unlocks.clear();
        let why = if sleep { "The computer went to sleep" } else { "The computer is shut down" };
        self.give_all_up(&format!("{why}; log in again once the management server is back."), out);
        let users: Vec<UserId> = self.sessions.keys().cloned().collect();
        for user in users {
            self.end(now, &user, if sleep { &End::Asleep } else { &End::Stopped }, None, out);
        }
    }

    /// logind may go on when all tunnels are down and the server was told.
    pub(super) fn let_go(&mut self, out: &mut Vec<Action>) {
        if let Some(leaving) = &mut self.leaving
            && !leaving.told
            && self.falling.is_empty()
            && self.farewells.is_empty()
        {
            leaving.told = true;
            let what = if leaving.sleep { "sleeps" } else { "goes down" };
            out.push(Action::info(&format!("the machine {what}; no tunnel and no key is left")));
            out.push(Action::LetGo);
        }
    }

    /// The machine has slept: is each card still there?
    fn wake(&mut self, now: Time, out: &mut Vec<Action>) {
        let Some(deed) = deed(&End::Card(String::new()), self.settings.removal).map(|(deed, _)| deed) else { return };
        let grace = self.settings.removal_grace.max(WAKE_TIME);
        let slept = self.sessions.iter_mut().filter_map(|(user, session)| {
            let slept = std::mem::take(&mut session.slept);
            slept.then(|| user.clone())
        });
        for user in slept.collect::<Vec<_>>() {
            self.await_card(now, &user, grace, deed, out);
        }
    }

    /// After the end of a session's life: what becomes of its OS sessions.
    pub(super) fn after_end(&mut self, now: Time, user: &UserId, end: &End, out: &mut Vec<Action>) {
        let removal = self.settings.removal;
        let Some(session) = self.sessions.get_mut(user).filter(|session| !session.leaders.is_empty()) else { return };
        session.slept = matches!(end, End::Asleep);
        let Some((deed, with_grace)) = deed(end, removal) else { return };
        let grace = self.settings.removal_grace;
        // A card that never brought a tunnel about is not looked for.
        if with_grace && !grace.is_zero() && session.former.is_some() {
            self.await_card(now, user, grace, deed, out);
        } else {
            self.act_on(user, deed, out);
        }
    }

    fn await_card(&mut self, now: Time, user: &UserId, grace: Duration, deed: Deed, out: &mut Vec<Action>) {
        let number = Number(self.next());
        let taken = self.taken(user);
        let Some(session) = self.sessions.get_mut(user) else { return };
        let Some(former) = session.former.as_ref().filter(|_| matches!(session.stage, Stage::Suspended)) else {
            return;
        };
        out.push(Action::AwaitCard { number, fingerprint: former.card, taken, within: grace });
        session.vigil = Vigil::Away { number, due: now + grace, deed };
    }

    /// The deed, when the grace is over.
    pub(super) fn expire_grace(&mut self, now: Time, user: &UserId, out: &mut Vec<Action>) {
        let Some(session) = self.sessions.get_mut(user) else { return };
        if let Vigil::Away { number, due, deed } = session.vigil
            && due <= now
        {
            session.vigil = Vigil::Off;
            out.push(Action::StopWatch { number });
            self.act_on(user, deed, out);
        }
    }

    /// Nobody looks for the card any longer: the person is back, or gone for good.
    pub(super) fn stand_down(&mut self, user: &UserId, out: &mut Vec<Action>) {
        if let Some(session) = self.sessions.get_mut(user) {
            session.slept = false;
            out.extend(std::mem::take(&mut session.vigil).number().map(|number| Action::StopWatch { number }));
        }
    }

    fn act_on(&self, user: &UserId, deed: Deed, out: &mut Vec<Action>) {
        let Some(session) = self.sessions.get(user) else { return };
        let ids: BTreeSet<String> = session.os.values().cloned().collect();
        if ids.is_empty() {
            out.push(Action::error(&format!(
                "no OS session of {user} is known to logind, so it is neither locked nor logged out (`removal`)"
            )));
            return;
        }
        let what = match deed {
            Deed::Lock => "locked",
            Deed::Logout => "logged out",
        };
        let list: Vec<&str> = ids.iter().map(String::as_str).collect();
        out.push(Action::info(&format!("OS session {} of {user} is {what}", list.join(", "))));
        out.push(Action::Desk { deed, sessions: ids.into_iter().collect() });
    }

    pub(super) fn is_vigil(&self, number: Number) -> bool {
        self.sessions.values().any(|session| session.vigil.number() == Some(number))
    }

    /// The watch of a vigil says something.
    pub(super) fn vigil(&mut self, now: Time, number: Number, event: WatchEvent, out: &mut Vec<Action>) {
        let own = |(_, session): &(&UserId, &mut Session)| session.vigil.number() == Some(number);
        let Some((user, session)) = self.sessions.iter_mut().find(own) else { return };
        match (&session.vigil, event) {
            (Vigil::Away { .. }, WatchEvent::Back(card)) => {
                session.vigil = Vigil::Back { number };
                out.push(Action::info(&format!(
                    "the card of {user} is back; the tunnel comes back with the password, by unlocking"
                )));
                out.push(Action::StartWatch { number, card });
            }
            (Vigil::Back { .. }, WatchEvent::Ended(cause)) => {
                out.push(Action::info(&format!("the card of {user} is gone again ({cause})")));
                let user = user.clone();
                session.vigil = Vigil::Off;
                self.after_end(now, &user, &End::Card(cause), out);
            }
            // A search that fails finds nothing: the deed stays due. The rest is of no interest.
            _ => {}
        }
    }

    fn os_session_removed(&mut self, now: Time, id: &str, out: &mut Vec<Action>) {
        let leads = |session: &Session| -> Vec<Leader> {
            session.os.iter().filter(|(_, own)| *own == id).map(|(leader, _)| *leader).collect()
        };
        let over: Vec<(UserId, Vec<Leader>)> =
            self.sessions.iter().map(|(user, session)| (user.clone(), leads(session))).collect();
        for (user, leaders) in over.into_iter().filter(|(_, leaders)| !leaders.is_empty()) {
            out.push(Action::info(&format!("logind's session {} of {user} is over", id.escape_debug())));
            for leader in leaders {
                self.bereave(&user, leader, out);
                if !self.leads(leader) {
                    out.push(Action::ForgetLeader(leader));
                }
            }
            self.after_release(now, &user, None, out);
        }
    }

    /// This process leads no OS session of the user's any more.
    pub(super) fn bereave(&mut self, user: &UserId, leader: Leader, out: &mut Vec<Action>) {
        let Some(session) = self.sessions.get_mut(user) else { return };
        session.leaders.remove(&leader);
        session.os.remove(&leader);
        if let Some(life) = session.stage.life_mut() {
            life.take_back(leader, usize::MAX, out);
        }
    }
}
