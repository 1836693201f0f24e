//! Tells terminals what changed. One task owns all of this: who is attached, which leases run, which rotations wait.
//!
//! Its only source is [`Store::changes_since`]; whoever writes to the store pokes it. The work for a change is proportional to the
//! groups concerned (P11). A terminal whose queue is full is dropped: it attaches again and gets what it missed.

pub mod closing;
mod leases;
mod rotation;
pub mod schedule;
mod terminals;

pub use leases::Heard;
pub use terminals::Push;
pub(crate) use terminals::peers_messages;

use crate::{
    clock,
    metrics::Metrics,
    service::blocking,
    store::{By, Change, Ending, Result, Store, StoreError},
};
use cug_proto::{
    id::{Epoch, GroupId, UserId},
    message::{EndReason, KeyAck, SessionId},
};
use leases::Leases;
use rotation::Rotations;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use terminals::Terminals;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

/// Messages that may wait for one terminal.
const QUEUE: usize = 256;

/// How often heartbeats are written to the store, and old rows deleted.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// How often a database that cannot be used is tried again.
const RETRY: Duration = Duration::from_secs(1);

enum Command {
    Subscribe { session: SessionId, reply: oneshot::Sender<Option<Subscription>> },
    Detach { session: SessionId, attachment: u64 },
    Expect(SessionId, Instant),
    KeyAck(SessionId, KeyAck),
    Ping(oneshot::Sender<()>),
}

/// A terminal's place at the hub.
pub struct Subscription {
    /// What the terminal must be told, in order. Closed when the terminal was dropped.
    pub pushes: mpsc::Receiver<Push>,
    /// Takes heartbeats.
    pub heard: Arc<Heard>,
    attachment: u64,
}

/// The hub cannot serve a terminal now.
#[derive(Debug, thiserror::Error)]
#[error("changes cannot be read now")]
pub struct HubUnavailable;

/// To talk to the hub. Cheap to clone.
#[derive(Clone)]
pub struct HubHandle {
    commands: mpsc::UnboundedSender<Command>,
    changed: Arc<Notify>,
    look: Arc<Notify>,
    metrics: Metrics,
}

impl HubHandle {
    /// The store changed.
    pub fn poke(&self) {
        self.changed.notify_one();
    }

    /// A session may have to end sooner than was known: see [`closing`].
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Waits for [`HubHandle::look`].
    pub(super) async fn look_wanted(&self) {
        self.look.notified().await;
    }

    /// Subscribes a terminal whose proof was right; an earlier connection of the session is dropped. `None` when the session is over.
    ///
    /// # Errors
    /// [`HubUnavailable`]: the store cannot be read now, or the server stops.
    pub async fn subscribe(&self, session: SessionId) -> std::result::Result<Option<Subscription>, HubUnavailable> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Subscribe { session, reply });
        answer.await.map_err(|_| HubUnavailable)
    }

    /// The connection ended; the session's lease goes on.
    pub fn detach(&self, session: SessionId, subscription: &Subscription) {
        self.send(Command::Detach { session, attachment: subscription.attachment });
    }

    /// A session was registered: its terminal must attach until `deadline`.
    pub fn expect(&self, session: SessionId, deadline: Instant) {
        self.send(Command::Expect(session, deadline));
        self.poke();
    }

    /// A terminal has an epoch's key.
    pub fn key_ack(&self, session: SessionId, ack: KeyAck) {
        self.send(Command::KeyAck(session, ack));
    }

    /// Waits until the hub has done everything that it was asked before. `false` when it is gone.
    pub async fn ping(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ping(reply));
        answer.await.is_ok()
    }

    /// How many terminals are attached.
    pub fn attached(&self) -> usize {
        self.metrics.attached()
    }

    /// A hub that is gone is a server that stops: nobody is left to be told.
    fn send(&self, command: Command) {
        let _stopped = self.commands.send(command);
    }
}

/// The task's state. See [`Hub::run`].
pub struct Hub {
    store: Arc<dyn Store>,
    lease: Duration,
    commands: mpsc::UnboundedReceiver<Command>,
    changed: Arc<Notify>,
    revision: u64,
    terminals: Terminals,
    leases: Leases,
    rotations: Rotations,
    metrics: Metrics,
    /// When changes that could not be read are read again.
    retry: Option<Instant>,
}

impl Hub {
    /// The hub of `store`. All sessions that the store knows get one lease of grace: their terminals attach again.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn start(store: Arc<dyn Store>, lease: Duration, metrics: Metrics) -> Result<(Self, HubHandle)> {
        let (sender, commands) = mpsc::unbounded_channel();
        let changed = Arc::new(Notify::new());
        let now = clock::monotonic();
        let (revision, sessions, rotating) =
            blocking(store.clone(), |s| Ok((s.revision()?, s.live_sessions()?, s.rotating_groups()?))).await?;
        let mut hub = Self {
            store,
            lease,
            commands,
            changed: changed.clone(),
            revision,
            terminals: Terminals::default(),
            leases: Leases::default(),
            rotations: Rotations::default(),
            metrics: metrics.clone(),
            retry: None,
        };
        for session in sessions {
            hub.leases.set(session, now + lease);
        }
        for group in rotating {
            hub.begin_rotation(group, now).await?;
        }
        Ok((hub, HubHandle { commands: sender, changed, look: Arc::default(), metrics }))
    }

    /// Runs until nobody holds a [`HubHandle`] any more.
    pub async fn run(mut self) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            let changed = self.changed.clone();
            let due = [self.leases.next(), self.rotations.next(), self.retry].into_iter().flatten().min();
            let result = tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                () = changed.notified() => self.catch_up().await,
                () = sleep_until(due) => self.due().await,
                _ = housekeeping.tick() => self.housekeeping().await,
            };
            self.metrics.set_attached(self.terminals.len());
            if let Err(error) = result {
                tracing::error!(%error, "terminals cannot be told of changes now");
                self.retry = Some(clock::monotonic() + RETRY);
            }
        }
    }

    async fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Subscribe { session, reply } => {
                let subscription = self.subscribe(session).await?;
                if let Err(Some(unwanted)) = reply.send(subscription) {
                    self.terminals.detach(&session, unwanted.attachment);
                }
            }
            Command::Detach { session, attachment } => self.terminals.detach(&session, attachment),
            Command::Expect(session, deadline) => self.leases.set(session, deadline),
            // Nobody waits any more when the answer took too long.
            Command::Ping(reply) => drop(reply.send(())),
            Command::KeyAck(session, ack) => {
                if self.rotations.acknowledge(session, ack) {
                    self.activate(ack.group).await?;
                }
            }
        }
        Ok(())
    }

    /// First everything that happened, then the terminal: so that it misses nothing that comes after.
    async fn subscribe(&mut self, session: SessionId) -> Result<Option<Subscription>> {
        self.catch_up().await?;
        let Some((user, groups)) = self.store(move |s| s.session_groups(&session)).await? else {
            return Ok(None);
        };
        let now = clock::monotonic();
        let heard = self.leases.attach(session, now, self.lease);
        let (sender, pushes) = mpsc::channel(QUEUE);
        let attachment = self.terminals.attach(session, user, &groups, sender, now);
        Ok(Some(Subscription { pushes, heard, attachment }))
    }

    /// Reads what changed and passes it on.
    async fn catch_up(&mut self) -> Result<()> {
        loop {
            let since = self.revision;
            let changes = self.store(move |s| s.changes_since(since)).await?;
            let Some((last, _)) = changes.last() else {
                self.retry = None;
                return Ok(());
            };
            let last = *last;
            let mut members: BTreeMap<GroupId, Vec<UserId>> = BTreeMap::new();
            for (revision, change) in changes {
                match change {
                    Change::Member(group, user) => members.entry(group).or_default().push(user),
                    // Members first: a terminal must know its peers' last state before what follows.
                    other => {
                        self.tell_members(std::mem::take(&mut members), revision).await?;
                        self.apply(other).await?;
                    }
                }
            }
            self.tell_members(members, last).await?;
            self.revision = last;
        }
    }

    async fn tell_members(&mut self, members: BTreeMap<GroupId, Vec<UserId>>, revision: u64) -> Result<()> {
        for (group, mut users) in members {
            if !self.terminals.any_in(group) {
                continue;
            }
            users.sort_unstable();
            users.dedup();
            let asked = users.clone();
            let present = self.store(move |s| s.presence(group, &asked)).await?;
            self.terminals.tell_members(group, revision, &users, present);
        }
        Ok(())
    }

    async fn apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Member(..) => {}
            Change::Ended(session, reason) => {
                self.terminals.end(&session, reason);
                self.leases.remove(&session);
                for group in self.rotations.forget(session) {
                    self.activate(group).await?;
                }
            }
            Change::Joined(group, session) => self.terminals.join(group, &session),
            Change::Left(group, session) => {
                self.terminals.leave(group, &session);
                if self.rotations.forget_in(group, session) {
                    self.activate(group).await?;
                }
            }
            Change::Epoch(group) => self.begin_rotation(group, clock::monotonic()).await?,
            Change::Activated(group, epoch) => {
                self.terminals.push_to_group(group, Push::Activate(KeyAck { group, epoch }))
            }
            Change::Policy(group) => self.terminals.push_to_group(group, Push::Policy(group)),
        }
        Ok(())
    }

    /// All sessions of the group must have the new key, or had their time, before it is used.
    async fn begin_rotation(&mut self, group: GroupId, now: Instant) -> Result<()> {
        let Some((epoch, sessions)) = self.store(move |s| s.pending_epoch(group)).await? else {
            return Ok(());
        };
        self.terminals.push_to_group(group, Push::Keys(group));
        if self.rotations.begin(group, epoch, sessions, now + self.lease) {
            self.activate(group).await?;
        }
        Ok(())
    }

    async fn activate(&mut self, group: GroupId) -> Result<()> {
        let Some((epoch, acknowledged)) = self.rotations.finish(group) else { return Ok(()) };
        let activated = self.activate_in_store(group, epoch, acknowledged.clone()).await;
        if activated.is_err() {
            // A group must not stay between two keys because the disk was full for a moment.
            self.rotations.resume(group, epoch, acknowledged, clock::monotonic() + RETRY);
        }
        activated
    }

    async fn activate_in_store(&mut self, group: GroupId, epoch: Epoch, acknowledged: Vec<SessionId>) -> Result<()> {
        let now = clock::unix_now();
        if self.store(move |s| s.activate(group, epoch, &acknowledged, now)).await? {
            self.metrics.rotated();
        }
        self.poke_self();
        Ok(())
    }

    /// What a deadline has passed for. Whatever cannot be done now is tried again, and does not keep the rest from being done.
    async fn due(&mut self) -> Result<()> {
        let now = clock::monotonic();
        let mut result = Ok(());
        for session in self.leases.take_expired(now) {
            tracing::info!("a session ends: no heartbeat within the lease");
            match self.end(session, EndReason::LeaseExpired, "no heartbeat within the lease").await {
                Ok(()) => self.metrics.lease_expired(),
                Err(error) => result = Err(error),
            }
        }
        for (group, late) in self.rotations.take_overdue(now) {
            // Who is not attached gets the key when it attaches, and who has just attached has it by now; who had time and did not
            // take it cannot stay.
            let had_time =
                |s: &SessionId| self.terminals.attached_since(s).is_some_and(|since| since + self.lease / 2 <= now);
            let late: Vec<_> = late.into_iter().filter(had_time).collect();
            for session in late {
                match self.end(session, EndReason::Protocol, "did not take the new group key").await {
                    Ok(()) => self.metrics.key_not_taken(),
                    Err(error) => result = Err(error),
                }
            }
            if let Err(error) = self.activate(group).await {
                result = Err(error);
            }
        }
        // Mostly a lease came up that was renewed meanwhile, some hundred a second in a large deployment: the database has nothing to say to that.
        if self.retry.is_some_and(|at| at <= now) {
            self.catch_up().await?;
        }
        result
    }

    async fn end(&mut self, session: SessionId, tell: EndReason, reason: &'static str) -> Result<()> {
        let now = clock::unix_now();
        let ended = self.store(move |s| {
            let by = By { actor: "server", now };
            s.end_session(&session, &Ending { event: "session-end", by, reason, tell: Some(tell) })
        });
        if let Err(error) = ended.await {
            // Tried again a little later: a session must not outlive its lease because the disk was full for a moment.
            self.leases.set(session, clock::monotonic() + RETRY);
            return Err(error);
        }
        self.poke_self();
        Ok(())
    }

    async fn housekeeping(&mut self) -> Result<()> {
        let seen = self.leases.take_renewed();
        let (now, processed) = (clock::unix_now(), self.revision);
        let kept = self.store(move |s| {
            if !seen.is_empty() {
                s.seen(&seen, now)?;
            }
            s.prune(now, processed)
        });
        match kept.await {
            // Nothing of this is lost when it is done a minute later.
            Err(StoreError::Fault(error)) => tracing::warn!(%error, "heartbeats cannot be written now"),
            Err(StoreError::Refused(_)) | Ok(()) => {}
        }
        Ok(())
    }

    /// An operation of the store, measured.
    fn store<T, F>(&self, work: F) -> impl Future<Output = Result<T>> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Store) -> Result<T> + Send + 'static,
    {
        let (metrics, operation) = (self.metrics.clone(), blocking(self.store.clone(), work));
        async move { metrics.store(operation).await }
    }

    fn poke_self(&self) {
        self.changed.notify_one();
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
