//! Leases in memory. The store is not needed for them: after a restart every session gets a whole one.
//!
//! A heartbeat is one store into an atomic number: with thousands of terminals nothing else happens most of the time, so nobody is woken for it. The hub looks at
//! that number when the lease would have ended, and then at all that would end soon: they do not wake it one by one.

use cug_proto::message::SessionId;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Leases that would end within this time are looked at together. None ends sooner or later by it.
const TOGETHER: Duration = Duration::from_secs(1);

/// When a connection of a session was heard last.
pub struct Heard {
    since: Instant,
    /// Milliseconds after `since`.
    last: AtomicU64,
}

impl Heard {
    fn new(since: Instant) -> Self {
        Self { since, last: AtomicU64::new(0) }
    }

    /// A heartbeat came.
    pub fn note(&self, now: Instant) {
        let millis = u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(millis, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.since + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

struct Lease {
    deadline: Instant,
    /// The newest connection, and how long each heartbeat on it is good for.
    heard: Option<(Arc<Heard>, Duration)>,
    /// The heartbeat that was reported last.
    reported: Option<Instant>,
}

impl Lease {
    fn deadline(&self) -> Instant {
        let renewed = self.heard.as_ref().map(|(heard, lease)| heard.last() + *lease);
        renewed.map_or(self.deadline, |renewed| renewed.max(self.deadline))
    }
}

/// Leases by session. The queue may hold outdated entries; the map is right.
#[derive(Default)]
pub(super) struct Leases {
    leases: HashMap<SessionId, Lease>,
    queue: BinaryHeap<Reverse<(Instant, SessionId)>>,
}

impl Leases {
    /// Begins or changes a lease; heartbeats that came before no longer count.
    pub(super) fn set(&mut self, session: SessionId, deadline: Instant) {
        self.put(session, Lease { deadline, heard: None, reported: None });
    }

    /// A session attached: heartbeats on this connection count, and no others. The store confirmed that the session is there.
    pub(super) fn attach(&mut self, session: SessionId, now: Instant, lease: Duration) -> Arc<Heard> {
        let heard = Arc::new(Heard::new(now));
        self.put(session, Lease { deadline: now + lease, heard: Some((heard.clone(), lease)), reported: None });
        heard
    }

    fn put(&mut self, session: SessionId, lease: Lease) {
        let deadline = lease.deadline;
        if self.leases.insert(session, lease).is_none_or(|earlier| deadline < earlier.deadline) {
            self.queue.push(Reverse((deadline, session)));
        }
    }

    pub(super) fn remove(&mut self, session: &SessionId) {
        self.leases.remove(session);
    }

    /// When to look next; not later than the next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Sessions whose lease is over; they have none any more.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<SessionId> {
        let (mut expired, mut waiting) = (Vec::new(), Vec::new());
        let due = self.next().is_some_and(|at| at <= now);
        while let Some(Reverse((at, session))) =
            self.queue.peek().copied().filter(|Reverse((at, _))| due && *at <= now + TOGETHER)
        {
            self.queue.pop();
            let Some(lease) = self.leases.get_mut(&session) else { continue };
            let deadline = lease.deadline();
            lease.deadline = deadline;
            if deadline <= now {
                self.remove(&session);
                expired.push(session);
            } else if deadline >= at {
                // Renewed since, or not due yet: one entry for it goes back.
                waiting.push(Reverse((deadline, session)));
            }
        }
        self.queue.extend(waiting);
        expired
    }

    /// Sessions that were heard of since the last call.
    pub(super) fn take_renewed(&mut self) -> Vec<SessionId> {
        let mut renewed = Vec::new();
        for (session, lease) in &mut self.leases {
            let last = lease.heard.as_ref().map(|(heard, _)| heard.last());
            if last.is_some() && last != lease.reported {
                lease.reported = last;
                renewed.push(*session);
            }
        }
        renewed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        /// Whatever the order of events: exactly the sessions whose last deadline has passed expire, once.
        #[test]
        fn leases_expire_when_they_should(events in proptest::collection::vec((0u8..5, 0u8..4, 1u64..50), 1..80)) {
            let start = crate::clock::monotonic();
            let mut now = start;
            let mut leases = Leases::default();
            let mut model: HashMap<SessionId, Instant> = HashMap::new();
            let (mut connections, mut lengths) = (HashMap::new(), HashMap::new());
            for (kind, session, time) in events {
                let session = [session; 16];
                match kind {
                    0 => {
                        leases.set(session, now + Duration::from_secs(time));
                        model.insert(session, now + Duration::from_secs(time));
                        lengths.remove(&session);
                    }
                    1 => {
                        connections.insert(session, leases.attach(session, now, Duration::from_secs(time)));
                        model.insert(session, now + Duration::from_secs(time));
                        lengths.insert(session, time);
                    }
                    2 => {
                        leases.remove(&session);
                        model.remove(&session);
                        lengths.remove(&session);
                    }
                    // A connection that is no longer the session's, or of a session that is over, may go on talking.
                    3 => if let Some(connection) = connections.get(&session) {
                        connection.note(now);
                        if let (Some(deadline), Some(length)) = (model.get_mut(&session), lengths.get(&session)) {
                            *deadline = (*deadline).max(now + Duration::from_secs(*length));
                        }
                    },
                    _ => {
                        now += Duration::from_secs(time);
                        let mut expired = leases.take_expired(now);
                        expired.sort();
                        let mut expected: Vec<_> = model.iter().filter(|(_, d)| **d <= now).map(|(s, _)| *s).collect();
                        expected.sort();
                        model.retain(|_, d| *d > now);
                        lengths.retain(|session, _| model.contains_key(session));
                        prop_assert_eq!(expired, expected);
                    }
                }
                let first = model.values().min();
                prop_assert!(first.is_none() || leases.next() <= first.copied());
                prop_assert!(leases.queue.len() <= 200);
            }
        }
    }

    /// A thousand terminals whose heartbeats are spread evenly, as they are when nothing happens.
    #[test]
    fn leases_that_are_renewed_wake_nobody_one_by_one() {
        let begin = crate::clock::monotonic();
        let (lease, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let mut leases = Leases::default();
        let of = |n: u32| begin + Duration::from_millis(15 * u64::from(n));
        let heard: Vec<_> = (0..1000u32).map(|n| leases.attach(u128::from(n).to_be_bytes(), of(n), lease)).collect();
        let mut woken = 0;
        for beat in 1..=16u32 {
            for (n, heard) in (0u32..).zip(&heard) {
                let now = of(n) + 15 * second * beat;
                while let Some(at) = leases.next().filter(|at| *at <= now) {
                    assert!(leases.take_expired(at).is_empty());
                    woken += 1;
                }
                heard.note(now);
            }
        }
        assert!((1..=4 * 60).contains(&woken), "in four minutes woken {woken} times");
        // Who falls silent then is missed at the very moment, in the midst of the others.
        let end = of(500) + 15 * second * 16 + lease;
        for (n, heard) in (0u32..).zip(&heard).filter(|(n, _)| *n != 500) {
            heard.note(of(n) + 15 * second * 19);
        }
        assert!(leases.take_expired(end - Duration::from_millis(1)).is_empty());
        assert!(leases.next() <= Some(end));
        assert_eq!(leases.take_expired(end), [u128::from(500u32).to_be_bytes()]);
    }

    #[test]
    fn who_was_heard_of_is_reported_once() {
        let now = crate::clock::monotonic();
        let mut leases = Leases::default();
        leases.set([1; 16], now);
        let heard = leases.attach([2; 16], now, Duration::from_secs(9));
        assert_eq!(leases.take_renewed(), [[2; 16]], "who attaches is heard of");
        assert!(leases.take_renewed().is_empty());
        heard.note(now + Duration::from_secs(1));
        assert_eq!(leases.take_renewed(), [[2; 16]]);
        assert!(leases.take_renewed().is_empty());
    }
}
