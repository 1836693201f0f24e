//! How a session ends.

use cug_proto::{
    id::UserId,
    local::{Refusal, Reply},
    message::{ClearReason, EndReason, Lapse},
};

use super::{
    Action, FALL_TIME, FAREWELL_TIME, Falling, Leader, LinkId, Number, Session, Stage, State, Time, Token,
    unlock::Former,
};

/// Why a session ends.
pub(super) enum End {
    /// The last OS session is over.
    LoggedOut,
    /// The card is gone; how it was noticed.
    Card(String),
    /// Nobody opened the grant.
    NotOpened,
    /// The login was taken back.
    Cancelled,
    /// A newer grant of the same user takes its place.
    Replaced,
    /// The daemon stops.
    Stopped,
    /// The tunnel failed; how.
    Tunnel(String),
    /// The server did not answer in time while opening.
    ServerAway,
    /// The server was away for longer than its lease.
    LeaseOver,
    /// The server's word.
    Server(EndReason),
    /// The machine goes to sleep.
    Asleep,
    /// What a user's process delivered is not what the session was; why.
    NotTheSame(&'static str),
}

impl End {
    /// What to tell the server; `None` when it knows.
    fn clear(&self) -> Option<ClearReason> {
        match self {
            Self::LoggedOut => Some(ClearReason::LoggedOut),
            Self::Card(_) => Some(ClearReason::CardRemoved),
            Self::NotOpened | Self::Cancelled | Self::NotTheSame(_) => Some(ClearReason::NotOpened),
            Self::Stopped | Self::Asleep => Some(ClearReason::TerminalStopped),
            Self::Tunnel(_) | Self::ServerAway | Self::LeaseOver => Some(ClearReason::TunnelFailed),
            // The newer login displaced this session at the server before its grant came here.
            Self::Replaced | Self::Server(_) => None,
        }
    }

    /// What to tell those who wait.
    fn refusal(&self) -> Refusal {
        match self {
            Self::Card(_) => Refusal::CardGone,
            Self::Tunnel(_) => Refusal::TunnelFailed,
            Self::ServerAway | Self::LeaseOver => Refusal::ServerAway,
            Self::Server(_) | Self::LoggedOut => Refusal::Ended,
            Self::NotOpened | Self::Cancelled | Self::Replaced | Self::Asleep | Self::NotTheSame(_) => {
                Refusal::UnknownOffer
            }
            Self::Stopped => Refusal::Busy,
        }
    }

    /// Whether an `Open` that comes after this is refused, and not merely unknown.
    fn bars(&self) -> bool {
        matches!(self, Self::Card(_) | Self::Tunnel(_) | Self::ServerAway | Self::LeaseOver | Self::Server(_))
    }

    /// For the log.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::LoggedOut => "the last OS session is over".to_owned(),
            Self::Card(cause) => format!("the card is gone ({cause})"),
            Self::NotOpened => "no OS session was opened in time".to_owned(),
            Self::Cancelled => "the login was taken back".to_owned(),
            Self::Replaced => "a newer login takes its place".to_owned(),
            Self::Stopped => "the service stops".to_owned(),
            Self::Tunnel(cause) => format!("the tunnel failed ({cause})"),
            Self::ServerAway => "the management server did not answer in time".to_owned(),
            Self::LeaseOver => "the management server was away for longer than its lease".to_owned(),
            Self::Server(EndReason::Displaced(host)) => format!("the user logged in at {host}"),
            Self::Server(EndReason::Disabled(Some(Lapse::Expired))) => "the account has expired".to_owned(),
            Self::Server(EndReason::Disabled(Some(Lapse::OutsideHours))) => "the permitted hours have ended".to_owned(),
            Self::Asleep => "the machine goes to sleep".to_owned(),
            Self::NotTheSame(why) => format!("the unlocking was not confirmed ({why})"),
            Self::Server(reason) => format!("the management server ended it ({reason:?})"),
        }
    }
}

impl State {
    /// Ends the life of `user`'s session, if it lives. `answer` gets `Done` when the tunnel is down.
    pub(super) fn end(&mut self, now: Time, user: &UserId, end: &End, answer: Option<Token>, out: &mut Vec<Action>) {
        let lives = self.sessions.get(user).is_some_and(|session| session.stage.life().is_some());
        let mut goodbye = Vec::new();
        if lives && end.clear().is_some() && !self.has_link(user) {
            // The card was faster than the first attachment, or the server was away: one try to tell it, within the farewell's time.
            self.connect(user, &mut goodbye);
        }
        if lives {
            self.tell_end(user, end, out);
        }
        if let Some(session) = self.sessions.get_mut(user).filter(|_| lives) {
            out.push(Action::info(&format!("session of {user} ended: {}", end.sentence())));
            let (fall, failed) = session.fall(now, user, end, out);
            for leader in failed {
                self.release(user, leader, out);
            }
            out.append(&mut goodbye);
            self.start_falling(now, fall, out);
            self.after_end(now, user, end, out);
        }
        if let Some(token) = answer {
            // Several tunnels of one user may be falling; the last one answers.
            match self.falling.values_mut().rev().find(|falling| falling.user == *user) {
                Some(falling) => falling.waiting.push(token),
                None => out.push(Action::Reply { token, reply: Reply::Done }),
            }
        }
        let over = |session: &Session| session.leaders.is_empty() && matches!(session.stage, Stage::Suspended);
        if self.sessions.get(user).is_some_and(over) {
            self.stand_down(user, out);
            self.sessions.remove(user);
        }
    }

    fn has_link(&self, user: &UserId) -> bool {
        self.sessions.get(user).and_then(|session| session.stage.life()).is_some_and(|life| life.channel.link.is_some())
    }

    /// The server is told when the interfaces are gone, or at once when there are none.
    fn start_falling(&mut self, now: Time, mut fall: Fall, out: &mut Vec<Action>) {
        let later = if fall.standing { fall.farewell.take() } else { None };
        if let Some(number) = fall.number {
            let falling = Falling { user: fall.user, waiting: Vec::new(), farewell: later, until: now + FALL_TIME };
            self.falling.insert(number, falling);
        }
        self.farewell(now, fall.farewell, out);
    }

    /// The interfaces of a tunnel are gone: the others need not wait for what is still tidied up here.
    pub(super) fn gone(&mut self, now: Time, number: Number, out: &mut Vec<Action>) {
        let farewell = self.falling.get_mut(&number).and_then(|falling| falling.farewell.take());
        self.farewell(now, farewell, out);
    }

    /// A tunnel is down.
    pub(super) fn fallen(&mut self, now: Time, number: Number, out: &mut Vec<Action>) {
        let Some(falling) = self.falling.remove(&number) else { return };
        for token in falling.waiting {
            out.push(Action::Reply { token, reply: Reply::Done });
        }
        self.farewell(now, falling.farewell, out);
        self.advance(&falling.user, out);
    }

    fn farewell(&mut self, now: Time, farewell: Option<(LinkId, ClearReason)>, out: &mut Vec<Action>) {
        if let Some((link, reason)) = farewell {
            self.farewells.insert(link, now + FAREWELL_TIME);
            out.push(Action::Farewell { link, reason });
        }
    }

    /// One OS session less for this leader.
    pub(super) fn release(&mut self, user: &UserId, leader: Leader, out: &mut Vec<Action>) {
        let Some(session) = self.sessions.get_mut(user) else { return };
        let Some(count) = session.leaders.get_mut(&leader) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            session.leaders.remove(&leader);
            session.os.remove(&leader);
            if !self.leads(leader) {
                out.push(Action::ForgetLeader(leader));
            }
        }
    }

    /// Whether this process leads any OS session.
    pub(super) fn leads(&self, leader: Leader) -> bool {
        self.sessions.values().any(|session| session.leaders.contains_key(&leader))
    }
}

/// What is still to do for a life that is over.
struct Fall {
    user: UserId,
    /// The tunnel that is going down.
    number: Option<Number>,
    /// It has interfaces, and not only a guard.
    standing: bool,
    /// Whom to tell when the interfaces are gone.
    farewell: Option<(LinkId, ClearReason)>,
}

impl Session {
    /// Tunnel first, then the watch; then the secrets are dropped. Returns the rest, and the leaders whose `Open` failed with it.
    fn fall(&mut self, now: Time, user: &UserId, end: &End, out: &mut Vec<Action>) -> (Fall, Vec<Leader>) {
        let mut fall = Fall { user: user.clone(), number: None, standing: false, farewell: None };
        let until = match &self.stage {
            Stage::Granted(life) | Stage::Up(life) => life.expires,
            Stage::Suspended | Stage::Barred { .. } => return (fall, Vec::new()),
        };
        let (Stage::Granted(mut life) | Stage::Up(mut life)) = std::mem::replace(&mut self.stage, Stage::Suspended)
        else {
            return (fall, Vec::new());
        };
        if life.has_tunnel || life.fenced {
            out.push(Action::TunnelDown { number: life.number });
            fall.number = Some(life.number);
        }
        out.push(Action::StopWatch { number: life.number });
        fall.standing = life.has_tunnel;
        match (life.channel.link, end.clear()) {
            (Some(link), Some(reason)) => fall.farewell = Some((link, reason)),
            (Some(link), None) => out.push(Action::Disconnect { link }),
            (None, _) => {}
        }
        let never_opened = life.offer.is_some() || !life.settled;
        let failed = life.refuse_all(end.refusal(), out);
        if life.settled {
            self.former = Some(Former::of(&life));
        }
        drop(life);
        if end.bars() && never_opened && self.leaders.is_empty() && now < until {
            self.stage = Stage::Barred { why: end.refusal(), until };
        }
        (fall, failed)
    }
}
