//! Rotations of group keys: who has not acknowledged the new epoch yet.

use cug_proto::{
    id::{Epoch, GroupId},
    message::{KeyAck, SessionId},
};
use std::collections::{HashMap, HashSet};
use tokio::time::Instant;

struct Rotation {
    epoch: Epoch,
    waiting: HashSet<SessionId>,
    acknowledged: Vec<SessionId>,
    deadline: Instant,
}

/// The running rotations, one for a group at most.
#[derive(Default)]
pub(super) struct Rotations(HashMap<GroupId, Rotation>);

impl Rotations {
    /// Begins a rotation; an earlier one of the group is given up. One that runs already (the change was read again after a fault) goes on.
    /// Answers whether nobody has to be waited for.
    pub(super) fn begin(&mut self, group: GroupId, epoch: Epoch, sessions: Vec<SessionId>, deadline: Instant) -> bool {
        if let Some(running) = self.0.get(&group).filter(|r| r.epoch == epoch) {
            return running.waiting.is_empty();
        }
        let waiting: HashSet<_> = sessions.into_iter().collect();
        let ready = waiting.is_empty();
        self.0.insert(group, Rotation { epoch, waiting, acknowledged: Vec::new(), deadline });
        ready
    }

    /// Answers whether this was the last one.
    pub(super) fn acknowledge(&mut self, session: SessionId, ack: KeyAck) -> bool {
        let Some(rotation) = self.0.get_mut(&ack.group).filter(|r| r.epoch == ack.epoch) else { return false };
        if !rotation.waiting.remove(&session) {
            return false;
        }
        rotation.acknowledged.push(session);
        rotation.waiting.is_empty()
    }

    /// The session is over. Answers with the groups that wait for nobody any more.
    pub(super) fn forget(&mut self, session: SessionId) -> Vec<GroupId> {
        let groups: Vec<_> = self.0.keys().copied().collect();
        groups.into_iter().filter(|group| self.forget_in(*group, session)).collect()
    }

    /// The same for one group.
    pub(super) fn forget_in(&mut self, group: GroupId, session: SessionId) -> bool {
        self.0.get_mut(&group).is_some_and(|r| r.waiting.remove(&session) && r.waiting.is_empty())
    }

    /// Ends a rotation: its epoch, and who has the key.
    pub(super) fn finish(&mut self, group: GroupId) -> Option<(Epoch, Vec<SessionId>)> {
        self.0.remove(&group).map(|r| (r.epoch, r.acknowledged))
    }

    /// A rotation that could not be ended is due again at `deadline`, and waits for nobody; unless a newer one has begun.
    pub(super) fn resume(&mut self, group: GroupId, epoch: Epoch, acknowledged: Vec<SessionId>, deadline: Instant) {
        let waiting = HashSet::new();
        self.0.entry(group).or_insert(Rotation { epoch, waiting, acknowledged, deadline });
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().map(|r| r.deadline).min()
    }

    /// Groups whose time is up, with those who have not acknowledged; nobody is waited for any more.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<(GroupId, Vec<SessionId>)> {
        let overdue = self.0.iter_mut().filter(|(_, r)| r.deadline <= now);
        overdue.map(|(group, r)| (*group, r.waiting.drain().collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_epoch_is_ready_when_all_have_it_or_are_gone_or_late() {
        let now = crate::clock::monotonic();
        let later = now + Duration::from_secs(9);
        let mut rotations = Rotations::default();
        assert!(rotations.begin(1, 2, vec![], later), "nobody to wait for");
        assert!(!rotations.begin(1, 3, vec![[1; 16], [2; 16], [3; 16]], later));
        assert!(!rotations.acknowledge([1; 16], KeyAck { group: 1, epoch: 2 }), "an epoch that was given up");
        assert!(!rotations.acknowledge([1; 16], KeyAck { group: 1, epoch: 3 }));
        assert!(!rotations.begin(1, 3, vec![[1; 16], [2; 16], [3; 16]], later), "read again");
        assert!(!rotations.acknowledge([1; 16], KeyAck { group: 1, epoch: 3 }), "twice");
        assert!(rotations.forget([2; 16]).is_empty());
        assert!(rotations.take_overdue(now).is_empty());
        assert_eq!(rotations.take_overdue(later), vec![(1, vec![[3; 16]])]);
        assert_eq!(rotations.finish(1), Some((3, vec![[1; 16]])));
        assert_eq!(rotations.next(), None);
    }
}
