//! Leases in memory. The store is not needed for them: after a restart every session gets a whole one.

use cug_proto::message::SessionId;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};
use tokio::time::Instant;

/// Deadlines by session. The heap may hold outdated entries; the map is right.
#[derive(Default)]
pub(super) struct Leases {
    deadlines: HashMap<SessionId, Instant>,
    queue: BinaryHeap<Reverse<(Instant, SessionId)>>,
    renewed: HashSet<SessionId>,
}

impl Leases {
    /// Begins or changes a lease.
    pub(super) fn set(&mut self, session: SessionId, deadline: Instant) {
        if self.deadlines.insert(session, deadline).is_none_or(|earlier| deadline < earlier) {
            self.queue.push(Reverse((deadline, session)));
        }
    }

    /// A heartbeat. Does not revive a session that has no lease any more... unless it has just attached, which the store confirmed.
    pub(super) fn renew(&mut self, session: SessionId, deadline: Instant) {
        self.set(session, deadline);
        self.renewed.insert(session);
    }

    pub(super) fn remove(&mut self, session: &SessionId) {
        self.deadlines.remove(session);
        self.renewed.remove(session);
    }

    /// When to look next; not later than the next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Sessions whose lease is over; they have none any more.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<SessionId> {
        let mut expired = Vec::new();
        while let Some(Reverse((at, session))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.queue.pop();
            match self.deadlines.get(&session).copied() {
                Some(deadline) if deadline <= now => {
                    self.remove(&session);
                    expired.push(session);
                }
                // Renewed since: one entry for it goes back.
                Some(deadline) if deadline > at => self.queue.push(Reverse((deadline, session))),
                _ => {}
            }
        }
        expired
    }

    /// Sessions that were renewed since the last call.
    pub(super) fn take_renewed(&mut self) -> Vec<SessionId> {
        self.renewed.drain().collect()
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
        fn leases_expire_when_they_should(events in proptest::collection::vec((0u8..4, 0u8..4, 1u64..50), 1..80)) {
            let start = crate::clock::monotonic();
            let mut now = start;
            let mut leases = Leases::default();
            let mut model: HashMap<SessionId, Instant> = HashMap::new();
            for (kind, session, time) in events {
                let session = [session; 16];
                match kind {
                    0 => {
                        leases.set(session, now + Duration::from_secs(time));
                        model.insert(session, now + Duration::from_secs(time));
                    }
                    1 if model.contains_key(&session) => {
                        leases.renew(session, now + Duration::from_secs(time));
                        model.insert(session, now + Duration::from_secs(time));
                    }
                    2 => {
                        leases.remove(&session);
                        model.remove(&session);
                    }
                    _ => {
                        now += Duration::from_secs(time);
                        let mut expired = leases.take_expired(now);
                        expired.sort();
                        let mut expected: Vec<_> = model.iter().filter(|(_, d)| **d <= now).map(|(s, _)| *s).collect();
                        expected.sort();
                        model.retain(|_, d| *d > now);
                        prop_assert_eq!(expired, expected);
                    }
                }
                let first = model.values().min();
                prop_assert!(first.is_none() || leases.next() <= first.copied());
                prop_assert!(leases.queue.len() <= 200);
            }
        }
    }
}
