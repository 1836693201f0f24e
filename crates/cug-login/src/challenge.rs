//! From the first connection to the opened challenge: all of a login that does not need the password.

use crate::{
    contain,
    edge::{self, Clock},
    failure::Failure,
    login::{AwaitChallenge, Challenged, Frame, Ready},
    server::{Link, LinkError, Servers},
};
use cug_card::{Card, CardError};
use cug_proto::{id::UserId, message::Fingerprint, secret::Secret, trust::CaPin};
use nix::sys::signal::{SigSet, SigmaskHow};
use std::{
    thread,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// Whom to log in, and where.
pub struct Errand<'a> {
    /// Who.
    pub user: &'a UserId,
    /// `host:port`, in the order in which to try them.
    pub servers: &'a [String],
    /// What all waiting for servers may take together, from now on.
    pub limit: Duration,
    /// How servers are reached.
    pub network: &'a dyn Servers,
    /// For the limit.
    pub clock: &'a dyn Clock,
}

/// A server that waits for the password.
pub struct Opened<'a> {
    /// The connection.
    pub line: Line<'a>,
    /// The protocol's state.
    pub ready: Ready,
}

/// A connection and the time that it may still cost.
pub struct Line<'a> {
    /// The connection.
    pub link: Box<dyn Link + 'a>,
    /// `host:port`
    pub server: &'a str,
    /// What is left of the errand's limit. Neither the card's work nor the person's typing counts.
    pub left: Duration,
}

impl Line<'_> {
    /// Sends a frame and gives the body of the answer.
    pub fn ask(&mut self, frame: &Frame, clock: &dyn Clock) -> Result<Zeroizing<Vec<u8>>, LinkError> {
        let begin = clock.now();
        let deadline = begin + self.left;
        let answer = self.link.send(frame, deadline).and_then(|()| self.link.receive(deadline));
        self.left = self.left.saturating_sub(clock.now().saturating_duration_since(begin));
        answer
    }
}

/// Runs the errand in a thread of its own while `ask` runs in this one, which alone may use the PAM conversation. The thread has ended when this returns.
/// It has all signals blocked: those of the host are for the host's threads.
pub fn while_asking<'a, T>(
    errand: &Errand<'a>,
    card: &mut dyn Card,
    ask: impl FnOnce() -> T,
) -> (Result<Opened<'a>, Failure>, T) {
    let (fetched, answer) = thread::scope(|scope| {
        let card = &mut *card;
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let worker = thread::Builder::new().name("pam_cug".into()).stack_size(1024 * 1024).spawn_scoped(scope, || {
            let fetched = contain::caught(|| fetch(errand, card));
            // glibc keeps the stacks of ended threads for later ones.
            contain::scrub_stack::<{ 256 * 1024 }>();
            fetched
        });
        if let Ok(before) = before {
            let _set_before = before.thread_set_mask();
        }
        let answer = ask();
        (worker.ok().map(thread::ScopedJoinHandle::join), answer)
    });
    let opened = match fetched {
        Some(Ok(Ok(opened))) => opened,
        Some(Ok(Err(place))) => Err(Failure::Internal(place)),
        Some(Err(payload)) => {
            std::mem::forget(payload);
            Err(Failure::Internal("the thread".into()))
        }
        // No thread to be had (a limit on processes): one after the other, then.
        None => fetch(errand, card),
    };
    (opened, answer)
}

/// Runs the errand when there is nothing to ask; in a thread too, whose stack and resolver limits are no concern of the host.
pub fn obtain<'a>(errand: &Errand<'a>, card: &mut dyn Card) -> Result<Opened<'a>, Failure> {
    while_asking(errand, card, || ()).0
}

/// Tries the servers in order, each with its share of the time that is left, until one sends a challenge, and has the card open it.
fn fetch<'a>(errand: &Errand<'a>, card: &mut dyn Card) -> Result<Opened<'a>, Failure> {
    let (mut left, mut failure) = (errand.limit, Failure::NoServer);
    let (fingerprint, ca_pin) = (*card.fingerprint(), *card.server_object().ca_pin());
    for (tried, server) in errand.servers.iter().enumerate() {
        let shares = u32::try_from(errand.servers.len() - tried).unwrap_or(u32::MAX);
        let begin = errand.clock.now();
        let outcome = challenge(errand, server, &fingerprint, ca_pin, begin + left / shares);
        left = left.saturating_sub(errand.clock.now().saturating_duration_since(begin));
        match outcome {
            Ok((link, challenged)) => {
                let ready = open(card, &*link, challenged)?;
                return Ok(Opened { line: Line { link, server, left }, ready });
            }
            Err(other) => failure = more_telling(failure, other),
        }
    }
    Err(failure)
}

/// Hello and Challenge.
fn challenge<'a>(
    errand: &Errand<'a>,
    server: &str,
    card: &Fingerprint,
    ca_pin: CaPin,
    deadline: Instant,
) -> Result<(Box<dyn Link + 'a>, Challenged), Failure> {
    let mut link = errand.network.connect(server, ca_pin, deadline).map_err(Failure::Server)?;
    let (state, hello) = AwaitChallenge::start(errand.user, card).map_err(Failure::Protocol)?;
    link.send(&hello, deadline).map_err(Failure::Server)?;
    let body = link.receive(deadline).map_err(Failure::Server)?;
    Ok((link, state.receive(&body)?))
}

/// The card's one operation. A challenge for another card is the server's decoy: the login goes on with a key that cannot be right, so that the server
/// hears of the attempt, and the person hears what everybody hears whose ID or card is not right.
fn open(card: &mut dyn Card, link: &dyn Link, challenged: Challenged) -> Result<Ready, Failure> {
    let key = match card.open_challenge(challenged.ciphertext()) {
        Ok(key) => key,
        Err(CardError::NotForThisCard) => Secret::random(&mut edge::random()),
        Err(error) => return Err(Failure::Card(error)),
    };
    let exporter = link.exporter().map_err(Failure::Server)?;
    Ok(challenged.opened(&key, &exporter))
}

/// Which of two failures says more to the person: a server that answers wrongly is worth more words than one that is off.
fn more_telling(one: Failure, other: Failure) -> Failure {
    let weight = |failure: &Failure| match failure {
        Failure::NoServer => 0,
        Failure::Server(LinkError::Address(_) | LinkError::Unreachable(_)) => 1,
        Failure::Server(LinkError::Closed) => 2,
        Failure::Server(LinkError::Timeout) => 3,
        Failure::Server(_) | Failure::Protocol(_) => 4,
        _ => 5,
    };
    if weight(&other) > weight(&one) { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doubles::{Act, FakeServers, ManualClock, TestCard, user_a};
    use cug_proto::message::Unavailable;

    fn errand<'a>(
        servers: &'a [String],
        network: &'a FakeServers<'a>,
        clock: &'a ManualClock,
        user: &'a UserId,
    ) -> Errand<'a> {
        Errand { user, servers, limit: Duration::from_secs(5), network, clock }
    }

    #[test]
    fn the_next_server_is_tried_and_the_time_is_shared() {
        let (clock, user) = (ManualClock::default(), user_a());
        let network = FakeServers::new(&clock, [Act::Hangs, Act::Busy, Act::Grants]);
        let servers = ["a:1".to_owned(), "b:1".to_owned(), "c:1".to_owned()];
        let opened = fetch(&errand(&servers, &network, &clock, &user), &mut TestCard::default())
            .unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(opened.line.server, "c:1");
        // The server that hangs had a third of 5 s.
        assert_eq!(opened.line.left.as_millis(), 3334);
    }

    #[test]
    fn all_servers_together_stay_within_the_limit() {
        let (clock, user) = (ManualClock::default(), user_a());
        let network = FakeServers::new(&clock, [Act::Hangs, Act::Hangs]);
        let servers = ["a:1".to_owned(), "b:1".to_owned()];
        let begin = clock.now();
        let failure = fetch(&errand(&servers, &network, &clock, &user), &mut TestCard::default()).err();
        assert!(matches!(failure, Some(Failure::Server(LinkError::Timeout))));
        assert!(clock.now() - begin <= Duration::from_secs(5));
    }

    #[test]
    fn the_most_telling_failure_is_told() {
        let (clock, user) = (ManualClock::default(), user_a());
        let network = FakeServers::new(&clock, [Act::Busy, Act::Unreachable]);
        let servers = ["a:1".to_owned(), "b:1".to_owned()];
        let failure = fetch(&errand(&servers, &network, &clock, &user), &mut TestCard::default()).err();
        assert!(matches!(failure, Some(Failure::Unavailable(Unavailable::Busy(_)))));
        let network = FakeServers::new(&clock, []);
        let failure = fetch(&errand(&[], &network, &clock, &user), &mut TestCard::default()).err();
        assert!(matches!(failure, Some(Failure::NoServer)));
    }

    #[test]
    fn the_thread_has_all_signals_blocked_and_this_one_has_not() {
        let (clock, user) = (ManualClock::default(), user_a());
        let network = FakeServers::new(&clock, [Act::Grants]);
        let servers = ["a:1".to_owned()];
        let before = SigSet::thread_get_mask().unwrap();
        let mut card = TestCard::default();
        let (opened, during) =
            while_asking(&errand(&servers, &network, &clock, &user), &mut card, || SigSet::thread_get_mask().unwrap());
        assert!(opened.is_ok());
        assert_eq!(during, before);
        let worker = card.mask_at_operation.unwrap();
        for signal in nix::sys::signal::Signal::iterator() {
            let blockable = !matches!(signal, nix::sys::signal::SIGKILL | nix::sys::signal::SIGSTOP);
            assert_eq!(worker.contains(signal), blockable, "{signal}");
        }
    }

    #[test]
    fn a_panic_in_the_thread_is_a_failure() {
        let (clock, user) = (ManualClock::default(), user_a());
        let network = FakeServers::new(&clock, [Act::Grants]);
        let servers = ["a:1".to_owned()];
        let mut card = TestCard::panicking();
        let (opened, ()) = while_asking(&errand(&servers, &network, &clock, &user), &mut card, || ());
        assert!(matches!(opened.err(), Some(Failure::Internal(_))));
    }
}
