//! Notices when a process that leads an OS session ends.

use std::{collections::HashMap, os::fd::OwnedFd};

use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    core::{Event, Leader},
    pidfd,
};

/// The leaders that are watched.
pub struct Leaders {
    events: mpsc::Sender<Event>,
    /// The caller of the request that is being decided, in case it becomes a leader.
    candidate: Option<(Leader, OwnedFd)>,
    watched: HashMap<Leader, JoinHandle<()>>,
}

impl Leaders {
    /// Reports to `events`.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, candidate: None, watched: HashMap::new() }
    }

    /// Who is asking now.
    pub fn candidate(&mut self, candidate: Option<(Leader, OwnedFd)>) {
        self.candidate = candidate;
    }

    /// Reports the end of the candidate.
    pub fn watch(&mut self, leader: Leader) {
        let events = self.events.clone();
        let fd = self.candidate.take().filter(|(candidate, _)| *candidate == leader).map(|(_, fd)| fd);
        let task = tokio::spawn(async move {
            if let Some(fd) = fd {
                // An error of the event loop counts as an end: nobody would notice the real one.
                let _ended_or_broken = pidfd::wait(fd).await;
            }
            let _daemon_stops = events.send(Event::LeaderDied(leader)).await;
        });
        if let Some(former) = self.watched.insert(leader, task) {
            former.abort();
        }
    }

    /// No longer of interest.
    pub fn forget(&mut self, leader: Leader) {
        if let Some(task) = self.watched.remove(&leader) {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_leader_is_told() {
        let (events, mut told) = mpsc::channel(1);
        let mut leaders = Leaders::new(events);
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (leader, fd) = pidfd::hold(child.id()).unwrap();
        leaders.candidate(Some((leader, fd)));
        leaders.watch(leader);
        tokio::task::yield_now().await;
        assert!(told.try_recv().is_err(), "it lives");
        child.kill().unwrap();
        let limit = std::time::Duration::from_secs(10);
        let event = tokio::time::timeout(limit, told.recv()).await.unwrap();
        assert!(matches!(event, Some(Event::LeaderDied(dead)) if dead == leader));
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_leader_that_cannot_be_watched_counts_as_dead() {
        let (events, mut told) = mpsc::channel(1);
        let leader = Leader { pid: 1, start: 0 };
        Leaders::new(events).watch(leader);
        assert!(matches!(told.recv().await, Some(Event::LeaderDied(_))));
    }
}
