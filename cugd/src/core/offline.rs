//! Logins that wait for a server: when to try, and when to give up.
//!
//! A waiting login belongs to a session that is `Suspended`: OS sessions are there, a tunnel is not. Password and PIN are in a process of its own (see [`crate::waiting`]), never
//! here. It is over, and that process with them, with the first of these: the server's refusal, the card gone or exchanged, the last OS session over, the limit of
//! `offline-wait-minutes`, another login of the user, the machine's sleep, a stop of the daemon, success.

use std::time::Duration;

use cug_proto::{
    id::UserId,
    local::{CardBinding, OfferId, Refusal, Reply, Wait, WaitingStatus},
    notice::{Happening, Notice},
};

use super::{
    Action, Leader, Number, OsSession, Stage, State, Time, Token, WaitingEvent, WatchEvent, end::End, follow::ms,
    limits::backoff, requests::no_desk,
};

/// How long the process may take to get what was typed.
const HAND_OVER_TIME: Duration = Duration::from_secs(10);
/// How long one try may take beyond the server's time: card and tunnel.
const TRY_TIME: Duration = Duration::from_secs(30);
/// The person's own try has just failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A network that has just changed may change again.
const NETWORK_PAUSE: Duration = Duration::from_millis(300);

/// A login that waits for a server.
pub(super) struct Waiting {
    number: Number,
    card: CardBinding,
    /// When it gives up.
    until: Time,
    watched: bool,
    state: Progress,
    tries: u32,
    last: Option<String>,
    /// The offer of the try that is under way.
    offer: Option<OfferId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Password and PIN are on their way, until then.
    Expected(Time),
    /// The next try is then.
    Pausing(Time),
    /// A try is under way, until then.
    Trying(Time),
}

impl Waiting {
    fn due(&self) -> Time {
        let (Progress::Expected(at) | Progress::Pausing(at) | Progress::Trying(at)) = self.state;
        // Without a watch nothing is tried; the watch's word comes, or its end.
        let at = if self.watched || !matches!(self.state, Progress::Pausing(_)) { at } else { self.until };
        at.min(self.until)
    }
}

impl State {
    /// An OS session begins, or an unlocked one wants its tunnel back, and no server is there.
    pub(super) fn wait(
        &mut self,
        now: Time,
        token: Token,
        wait: Wait,
        leader: (Leader, u32, OsSession),
        out: &mut Vec<Action>,
    ) {
        let Some(limit) = self.settings.offline_wait else {
            return out.push(Action::Reply { token, reply: Reply::Refused(Refusal::ServerAway) });
        };
        if self.stopping || self.leaving.is_some() {
            return out.push(Action::Reply { token, reply: Reply::Refused(Refusal::Busy) });
        }
        if let Some(refusal) = no_desk(&wait.user, wait.leads, &leader.2, out) {
            return out.push(Action::Reply { token, reply: refusal });
        }
        let user = wait.user.clone();
        let stage = self.sessions.get(&user).map(|session| &session.stage);
        let stands = matches!(stage, Some(Stage::Granted(_) | Stage::Up(_)));
        let unlocks = matches!(stage, Some(Stage::Suspended)) && !self.waiting.contains_key(&user);
        if stands || (!wait.leads && !unlocks) {
            return out.push(Action::Reply { token, reply: Reply::NoGrant });
        }
        self.stop_waiting(&user, out);
        if let Some(session) = self.sessions.get_mut(&user) {
            // A grant that was lost before bars nobody who has logged in anew.
            session.stage = Stage::Suspended;
        }
        if wait.leads {
            self.lead(&user, leader, &wait.service, &wait.tty, out);
        }
        let number = Number(self.next());
        let minutes = u32::try_from(limit.as_secs() / 60).unwrap_or(u32::MAX);
        out.push(Action::StartWatch { number, card: wait.card.clone() });
        out.push(Action::StartWaiting { token, number, user: user.clone(), card: wait.card.clone(), minutes });
        out.push(Action::info(&format!(
            "no management server can be reached; the login of {user} waits, {minutes} minutes at most"
        )));
        let waiting = Waiting {
            number,
            card: wait.card,
            until: now + limit,
            watched: false,
            state: Progress::Expected(now + HAND_OVER_TIME),
            tries: 0,
            last: None,
            offer: None,
        };
        self.waiting.insert(user, waiting);
    }

    fn find_waiting(&mut self, number: Number) -> Option<(UserId, &mut Waiting)> {
        self.waiting.iter_mut().find(|(_, waiting)| waiting.number == number).map(|(user, w)| (user.clone(), w))
    }

    /// From the watch of a waiting login's card.
    pub(super) fn waiting_watch(&mut self, now: Time, number: Number, event: WatchEvent, out: &mut Vec<Action>) {
        let Some((user, waiting)) = self.find_waiting(number) else { return };
        match event {
            WatchEvent::Started => waiting.watched = true,
            WatchEvent::Ended(cause) => {
                out.push(Action::info(&format!("the login of {user} waits no longer: {cause}")));
                self.give_up(&user, "The card was removed; insert it and log in again.".to_owned(), out);
                // The card is gone as it would be with a tunnel.
                self.after_end(now, &user, &End::Card(cause), out);
            }
            WatchEvent::Back(_) => {}
        }
    }

    /// From the process of a waiting login.
    pub(super) fn waiting_event(&mut self, now: Time, number: Number, event: WaitingEvent, out: &mut Vec<Action>) {
        let Some((user, waiting)) = self.find_waiting(number) else { return };
        match event {
            WaitingEvent::Ready => {
                waiting.state = Progress::Pausing(now + FIRST_PAUSE);
                let minutes = u32::try_from(waiting.until.since(now).as_secs().div_ceil(60)).unwrap_or(u32::MAX);
                out.push(Action::Tell(Notice { user, what: Happening::WaitBegan { minutes } }));
            }
            WaitingEvent::Away { cause, jitter } => {
                if waiting.last.as_ref() != Some(&cause) {
                    out.push(Action::info(&format!("the login of {user} goes on waiting: {cause}")));
                }
                waiting.state = Progress::Pausing(backoff(now, waiting.tries, jitter));
                waiting.last = Some(cause);
                waiting.offer = None;
            }
            WaitingEvent::Refused(sentence) => {
                out.push(Action::warn(&format!("the login of {user} waits no longer: {sentence}")));
                self.give_up(&user, sentence, out);
            }
            WaitingEvent::LoggedIn => {
                // The offer has become the session: it stays.
                waiting.offer = None;
                self.stop_waiting(&user, out);
            }
            WaitingEvent::Ended(cause) => {
                out.push(Action::error(&format!("the process that keeps the waiting login of {user} failed: {cause}")));
                self.give_up(&user, "The login could not be kept waiting; log in again.".to_owned(), out);
            }
        }
    }

    /// Which card an offer is good for, when a waiting login asked for it.
    pub(super) fn card_of_waiting(&self, offer: &OfferId) -> Option<&CardBinding> {
        self.waiting.values().find(|waiting| waiting.offer.as_ref() == Some(offer)).map(|waiting| &waiting.card)
    }

    /// A waiting login asks for an offer: noted, so that it goes with it. `false`: nobody waits.
    pub(super) fn offered_to_waiting(&mut self, user: &UserId, offer: OfferId) -> bool {
        match self.waiting.get_mut(user).filter(|waiting| matches!(waiting.state, Progress::Trying(_))) {
            Some(waiting) => {
                waiting.offer = Some(offer);
                true
            }
            None => false,
        }
    }

    /// Where the cards of other users' waiting logins are.
    pub(super) fn cards_of_waiting(&self, but: &UserId) -> impl Iterator<Item = String> {
        self.waiting.iter().filter(move |(user, _)| *user != but).map(|(_, waiting)| match &waiting.card {
            CardBinding::Reader(card) => card.reader.clone(),
            CardBinding::Medium(medium) => medium.directory.clone(),
        })
    }

    /// The network has changed: a server may be in reach.
    pub(super) fn waiting_sees_network(&mut self, now: Time) {
        for waiting in self.waiting.values_mut() {
            if let Progress::Pausing(at) = &mut waiting.state {
                *at = (now + NETWORK_PAUSE).min(*at);
            }
        }
    }

    /// All that is due by `now`, and logins whose session is over or has its tunnel.
    pub(super) fn expire_waiting(&mut self, now: Time, out: &mut Vec<Action>) {
        let users: Vec<UserId> = self.waiting.keys().cloned().collect();
        for user in users {
            let session = self.sessions.get(&user);
            let waits = session.is_some_and(|session| matches!(session.stage, Stage::Suspended));
            let led = session.is_some_and(|session| !session.leaders.is_empty());
            let try_limit = self.settings.server_timeout + TRY_TIME;
            let Some(waiting) = self.waiting.get_mut(&user) else { continue };
            if !led {
                self.stop_waiting(&user, out);
                continue;
            }
            if waiting.until <= now {
                let sentence = "The management server was away for too long; log in again once it is back.";
                out.push(Action::info(&format!("the login of {user} has waited for as long as it may")));
                self.give_up(&user, sentence.to_owned(), out);
                continue;
            }
            match waiting.state {
                // A try that has delivered is let go on: it still has to tell the server.
                Progress::Expected(_) | Progress::Pausing(_) if !waits => self.stop_waiting(&user, out),
                Progress::Pausing(at) if at <= now && waiting.watched => {
                    waiting.tries = waiting.tries.saturating_add(1);
                    waiting.state = Progress::Trying(now + try_limit);
                    out.push(Action::TryWaiting { number: waiting.number });
                }
                Progress::Expected(at) | Progress::Trying(at) if at <= now => {
                    out.push(Action::error(&format!(
                        "the process that keeps the waiting login of {user} does not answer"
                    )));
                    self.give_up(&user, "The login could not be kept waiting; log in again.".to_owned(), out);
                }
                _ => {}
            }
        }
    }

    /// When something of the waiting logins is due.
    pub(super) fn waiting_deadline(&self) -> Option<Time> {
        self.waiting.values().map(Waiting::due).min()
    }

    /// Ends it, and tells the person why.
    fn give_up(&mut self, user: &UserId, reason: String, out: &mut Vec<Action>) {
        self.stop_waiting(user, out);
        out.push(Action::Tell(Notice { user: user.clone(), what: Happening::WaitEnded { reason } }));
    }

    /// Ends the waiting login of this user, if there is one, and what was offered to it.
    pub(super) fn stop_waiting(&mut self, user: &UserId, out: &mut Vec<Action>) {
        let Some(waiting) = self.waiting.remove(user) else { return };
        if let Some(offer) = waiting.offer {
            self.offers.remove(&offer);
        }
        out.push(Action::StopWaiting { number: waiting.number });
        out.push(Action::StopWatch { number: waiting.number });
    }

    /// Ends all of them: the daemon stops, the machine sleeps.
    pub(super) fn give_all_up(&mut self, reason: &str, out: &mut Vec<Action>) {
        let users: Vec<UserId> = self.waiting.keys().cloned().collect();
        users.iter().for_each(|user| self.give_up(user, reason.to_owned(), out));
    }

    pub(super) fn waiting_status(&self, now: Time, user: &UserId) -> Option<WaitingStatus> {
        let waiting = self.waiting.get(user)?;
        Some(WaitingStatus { left_ms: ms(waiting.until.since(now)), tries: waiting.tries, last: waiting.last.clone() })
    }
}
