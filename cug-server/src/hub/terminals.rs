//! Attached terminals, found by session and by group.

use cug_proto::{
    frame,
    id::{GroupId, UserId},
    message::{EndReason, KeyAck, Peer, Peers, ServerMessage, SessionId},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::{sync::mpsc, time::Instant};

/// Members in one message: some 400 bytes each at most, so a message stays well under [`frame::MAX_SESSION`].
pub(crate) const PEERS_PER_MESSAGE: usize = 100;

/// Something to tell a terminal.
#[derive(Clone)]
pub enum Push {
    /// Members of a group changed; a whole frame, made once for all who get it.
    Members {
        /// The group.
        group: GroupId,
        /// To be skipped by a terminal that knows this revision already.
        revision: u64,
        /// The frame.
        frame: Arc<[u8]>,
    },
    /// The user became a member.
    Joined(GroupId),
    /// The user is no longer a member.
    Left(GroupId),
    /// There is a new key of this group. It does not wait in a queue: the connection reads and seals it.
    Keys(GroupId),
    /// The group's policy changed. It does not wait in a queue either.
    Policy(GroupId),
    /// Use this epoch.
    Activate(KeyAck),
    /// The session is over.
    End(EndReason),
}

struct Terminal {
    user: UserId,
    groups: HashSet<GroupId>,
    attachment: u64,
    since: Instant,
    queue: mpsc::Sender<Push>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Terminals {
    by_session: HashMap<SessionId, Terminal>,
    by_group: HashMap<GroupId, HashSet<SessionId>>,
    attachments: u64,
}

impl Terminals {
    /// Adds a terminal in place of an earlier connection of the session. Answers with the number of the attachment.
    pub(super) fn attach(
        &mut self,
        session: SessionId,
        user: UserId,
        groups: &[GroupId],
        queue: mpsc::Sender<Push>,
        since: Instant,
    ) -> u64 {
        self.remove(&session);
        self.attachments += 1;
        let attachment = self.attachments;
        for group in groups {
            self.by_group.entry(*group).or_default().insert(session);
        }
        let groups = groups.iter().copied().collect();
        self.by_session.insert(session, Terminal { user, groups, attachment, since, queue });
        attachment
    }

    /// Removes a terminal, unless another connection took its place.
    pub(super) fn detach(&mut self, session: &SessionId, attachment: u64) {
        if self.by_session.get(session).is_some_and(|t| t.attachment == attachment) {
            self.remove(session);
        }
    }

    fn remove(&mut self, session: &SessionId) {
        let Some(terminal) = self.by_session.remove(session) else { return };
        for group in terminal.groups {
            self.leave_index(group, session);
        }
    }

    fn leave_index(&mut self, group: GroupId, session: &SessionId) {
        if let Some(sessions) = self.by_group.get_mut(&group) {
            sessions.remove(session);
            if sessions.is_empty() {
                self.by_group.remove(&group);
            }
        }
    }

    /// Since when the session's terminal is attached, if it is.
    pub(super) fn attached_since(&self, session: &SessionId) -> Option<Instant> {
        self.by_session.get(session).map(|t| t.since)
    }

    pub(super) fn len(&self) -> usize {
        self.by_session.len()
    }

    pub(super) fn any_in(&self, group: GroupId) -> bool {
        self.by_group.contains_key(&group)
    }

    /// Tells one terminal. One that is too slow is dropped.
    fn push(&mut self, session: &SessionId, push: Push) {
        let full = self.by_session.get(session).is_some_and(|t| t.queue.try_send(push).is_err());
        if full {
            self.remove(session);
        }
    }

    /// Tells all terminals of a group.
    pub(super) fn push_to_group(&mut self, group: GroupId, push: Push) {
        let sessions: Vec<_> = self.by_group.get(&group).into_iter().flatten().copied().collect();
        for session in sessions {
            self.push(&session, push.clone());
        }
    }

    pub(super) fn end(&mut self, session: &SessionId, reason: EndReason) {
        self.push(session, Push::End(reason));
        self.remove(session);
    }

    pub(super) fn join(&mut self, group: GroupId, session: &SessionId) {
        let Some(terminal) = self.by_session.get_mut(session) else { return };
        terminal.groups.insert(group);
        self.by_group.entry(group).or_default().insert(*session);
        self.push(session, Push::Joined(group));
    }

    pub(super) fn leave(&mut self, group: GroupId, session: &SessionId) {
        let Some(terminal) = self.by_session.get_mut(session) else { return };
        terminal.groups.remove(&group);
        self.leave_index(group, session);
        self.push(session, Push::Left(group));
    }

    /// Tells a group's terminals about `users`: those of them in `present` can be reached, the others cannot.
    pub(super) fn tell_members(&mut self, group: GroupId, revision: u64, users: &[UserId], present: Vec<Peer>) {
        let own: Vec<_> = self.sessions_of(group, users);
        let shared = members_frames(group, revision, users, &present, None);
        let sessions: Vec<_> = self.by_group.get(&group).into_iter().flatten().copied().collect();
        for session in sessions {
            // A terminal is told of the others only.
            let frames = match own.iter().find(|(s, _)| *s == session) {
                Some((_, user)) => &members_frames(group, revision, users, &present, Some(user)),
                None => &shared,
            };
            for frame in frames {
                self.push(&session, Push::Members { group, revision, frame: frame.clone() });
            }
        }
    }

    fn sessions_of(&self, group: GroupId, users: &[UserId]) -> Vec<(SessionId, UserId)> {
        let sessions = self.by_group.get(&group).into_iter().flatten();
        let terminals = sessions.filter_map(|s| self.by_session.get(s).map(|t| (*s, t.user.clone())));
        terminals.filter(|(_, user)| users.binary_search(user).is_ok()).collect()
    }
}

fn members_frames(
    group: GroupId,
    revision: u64,
    users: &[UserId],
    present: &[Peer],
    except: Option<&UserId>,
) -> Vec<Arc<[u8]>> {
    let present: Vec<_> = present.iter().filter(|p| Some(&p.user) != except).cloned().collect();
    let gone = users.iter().filter(|u| Some(*u) != except && !present.iter().any(|p| p.user == **u)).cloned().collect();
    peers_messages(group, revision, false, present, gone).iter().filter_map(encode).collect()
}

/// [`Peers`] messages that fit into frames; at least one for a snapshot (`full`), none for no change.
pub(crate) fn peers_messages(
    group: GroupId,
    revision: u64,
    full: bool,
    present: Vec<Peer>,
    gone: Vec<UserId>,
) -> Vec<ServerMessage> {
    let mut full = full;
    let mut messages = Vec::new();
    let mut add = |present: &[Peer], gone: &[UserId], full: bool| {
        messages.push(ServerMessage::Peers(Peers {
            group,
            revision,
            full,
            present: present.to_vec(),
            gone: gone.to_vec(),
        }));
    };
    if full && present.is_empty() {
        add(&[], &[], true);
    }
    for some in present.chunks(PEERS_PER_MESSAGE) {
        add(some, &[], std::mem::take(&mut full));
    }
    for some in gone.chunks(PEERS_PER_MESSAGE) {
        add(&[], some, false);
    }
    messages
}

fn encode(message: &ServerMessage) -> Option<Arc<[u8]>> {
    let frame = frame::encode(message, frame::MAX_SESSION);
    frame.inspect_err(|error| tracing::error!(%error, "a message does not fit")).ok().map(|f| Arc::from(f.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(user: &str) -> Peer {
        Peer {
            user: user.parse().unwrap(),
            host_name: "h".repeat(64).parse().unwrap(),
            wg_public_key: [255; 32],
            endpoints: vec!["[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(); 9],
            address4: "255.255.255.255".parse().unwrap(),
            address6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(),
        }
    }

    #[test]
    fn the_largest_members_fit_into_frames() {
        let users: Vec<_> = (0..250).map(|i| peer(&format!("{i:0>32}"))).collect();
        let messages = peers_messages(u32::MAX, u64::MAX, true, users, vec!["u".repeat(32).parse().unwrap(); 250]);
        assert_eq!(messages.len(), 6);
        assert!(messages.iter().all(|m| encode(m).is_some()));
        let full: Vec<_> = messages.iter().map(|m| matches!(m, ServerMessage::Peers(p) if p.full)).collect();
        assert_eq!(full, [true, false, false, false, false, false]);
        assert_eq!(peers_messages(1, 1, true, vec![], vec![]).len(), 1);
        assert!(peers_messages(1, 1, false, vec![], vec![]).is_empty());
    }

    #[test]
    fn a_slow_terminal_is_dropped_and_the_others_are_told() {
        let mut terminals = Terminals::default();
        let (slow, mut slow_queue) = mpsc::channel(1);
        let (quick, mut quick_queue) = mpsc::channel(9);
        let [a, b] = ["a", "b"].map(|u| u.parse::<UserId>().unwrap());
        terminals.attach([1; 16], a.clone(), &[7], slow, crate::clock::monotonic());
        terminals.attach([2; 16], b, &[7], quick, crate::clock::monotonic());
        for revision in 0..3 {
            terminals.tell_members(7, revision, &["c".parse().unwrap()], vec![]);
        }
        assert!(slow_queue.try_recv().is_ok());
        assert!(matches!(slow_queue.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert_eq!(std::iter::from_fn(|| quick_queue.try_recv().ok()).count(), 3);
        terminals.tell_members(7, 9, &["b".parse().unwrap()], vec![peer("b")]);
        assert!(quick_queue.try_recv().is_err(), "a terminal is not told of its own user");
    }
}
