//! The one loop: events in, [`step`], actions out. No second place changes the state.

use std::{
    collections::HashMap,
    future::{Future, pending},
    os::fd::OwnedFd,
    time::Duration,
};

use cug_proto::{
    id::UserId,
    local::{self, CardBinding, GroupPeers, Refusal, Reply},
    notice::Notice,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Interval, interval, sleep, timeout},
};

use crate::{
    clock,
    core::{Action, Event, GroupView, Leader, Number, OsSession, Request, State, Token, TunnelEvent, Viewer, step},
    keys,
    leaders::Leaders,
    link::Links,
    logind::Logind,
    names::{self, Names},
    tunnel::memory::scrub_stack,
    tunnels::{Order, Tunnels},
    waiting::Waitings,
    watch::Watches,
    watchers::Watchers,
};

/// Events that may wait for the loop; more make their senders wait.
pub const EVENT_QUEUE: usize = 256;

/// How long measuring the peers of one group may take.
const MEASURE_TIME: Duration = Duration::from_secs(1);

/// A permitted request from the socket.
pub struct Ask {
    /// What is asked.
    pub request: local::Request,
    /// The process that asks.
    pub caller: Option<(Leader, OwnedFd)>,
    /// What it may see.
    pub viewer: Viewer,
    /// User ID of the account that an `Open` is for; `None` without such an account, and for root's.
    pub account: Option<u32>,
    /// The OS session that the asking process of an `Open` belongs to.
    pub os: OsSession,
    /// Set for a user's own process, which may ask less: its user ID.
    pub user: Option<u32>,
    /// For the answer.
    pub answer: oneshot::Sender<Reply>,
    /// For what happens after the answer to `Watch`.
    pub watch: Option<mpsc::Sender<Notice>>,
}

/// The loop with its hands.
pub struct Driver<T, L, W> {
    /// What is decided on.
    pub state: State,
    /// Interfaces.
    pub tunnels: T,
    /// Session channels.
    pub links: L,
    /// Watches of cards.
    pub watches: W,
    /// Watches of processes.
    pub leaders: Leaders,
    /// Names of the members.
    pub names: Names,
    /// logind.
    pub logind: Logind,
    /// Logins that wait for a server; `None`: there cannot be any.
    pub waitings: Option<Waitings>,
    watchers: Watchers,
    waiting: HashMap<Token, oneshot::Sender<Reply>>,
    tokens: u64,
}

impl<T: Tunnels, L: Links, W: Watches> Driver<T, L, W> {
    /// Nothing asked yet, and members have no names.
    pub fn new(state: State, tunnels: T, links: L, watches: W, leaders: Leaders) -> Self {
        Self {
            state,
            tunnels,
            links,
            watches,
            leaders,
            names: Names::off(),
            logind: Logind::off(),
            waitings: None,
            watchers: Watchers::default(),
            waiting: HashMap::new(),
            tokens: 0,
        }
    }

    /// Until `shutdown` has come and all is down. `watchdog` is how often the service manager wants to hear from this loop.
    pub async fn run(
        mut self,
        mut asks: mpsc::Receiver<Ask>,
        mut events: mpsc::Receiver<Event>,
        shutdown: impl Future<Output = ()>,
        watchdog: Option<Duration>,
    ) {
        let mut watchdog = watchdog.map(interval);
        let mut stopping = false;
        tokio::pin!(shutdown);
        loop {
            let wait = self.state.deadline().map(|at| at.since(clock::now()));
            let event = tokio::select! {
                () = &mut shutdown, if !stopping => {
                    stopping = true;
                    Some(Event::Shutdown)
                }
                Some(event) = events.recv() => self.names.hold(event).map(names_left),
                Some(ask) = asks.recv() => self.admit(ask),
                () = due(wait) => Some(Event::Tick),
                () = beat(&mut watchdog) => {
                    let _no_service_manager = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                    None
                }
            };
            if event.is_some_and(|event| self.handle(event)) {
                return;
            }
        }
    }

    /// Turns a request into an event, with what it needs from outside.
    fn admit(&mut self, ask: Ask) -> Option<Event> {
        let leader = ask.caller.as_ref().map(|(leader, _)| *leader);
        let refuse = |answer: oneshot::Sender<Reply>, why| {
            let _asker_gone = answer.send(Reply::Refused(why));
            None
        };
        let request = match (ask.request, leader) {
            (local::Request::Prepare(prepare), _) => match keys::fresh() {
                Ok(keys) => match ask.user {
                    None => Request::Prepare(prepare, keys),
                    Some(uid) => Request::PrepareUnlock(uid, prepare, keys),
                },
                Err(error) => {
                    tracing::error!(%error, "no keys for a login");
                    return refuse(ask.answer, Refusal::Busy);
                }
            },
            (local::Request::Deliver(deliver), _) => match ask.user {
                None => Request::Deliver(Box::new(deliver)),
                Some(uid) => Request::DeliverUnlock(uid, Box::new(deliver)),
            },
            (local::Request::Cancel(offer), _) => match ask.user {
                None => Request::Cancel(offer),
                Some(uid) => Request::CancelUnlock(uid, offer),
            },
            (local::Request::Open(open), Some(leader)) => match ask.account {
                Some(uid) => Request::Open(open, leader, uid, ask.os),
                None => {
                    tracing::error!(user = %open.user, "no account of that name here, or it is root's: nobody to whom a tunnel could belong");
                    return refuse(ask.answer, Refusal::TunnelFailed);
                }
            },
            (local::Request::Close(user), Some(leader)) => Request::Close(user, leader),
            (local::Request::Wait(wait), Some(leader)) => match ask.account {
                Some(uid) => Request::Wait(Box::new(wait), leader, uid, ask.os),
                None => {
                    tracing::error!(user = %wait.user, "no account of that name here, or it is root's: nobody to wait for");
                    return refuse(ask.answer, Refusal::NotPermitted);
                }
            },
            (local::Request::Exempt, _) => Request::Exempt,
            (local::Request::Open(_) | local::Request::Close(_) | local::Request::Wait(_), None) => {
                return refuse(ask.answer, Refusal::NotPermitted);
            }
            (local::Request::Status, _) => Request::Status(ask.viewer),
            (local::Request::Peers, _) => Request::Peers(ask.viewer),
            (local::Request::Servers, _) => Request::Servers,
            (local::Request::Watch, _) => {
                if !ask.watch.is_some_and(|sender| self.watchers.add(ask.viewer.clone(), sender)) {
                    return refuse(ask.answer, Refusal::Busy);
                }
                Request::Watch(ask.viewer)
            }
        };
        self.tokens += 1;
        let token = Token(self.tokens);
        self.waiting.insert(token, ask.answer);
        self.leaders.candidate(ask.caller);
        Some(Event::Request { token, request })
    }

    /// One step and what follows from it. `true`: all is over.
    fn handle(&mut self, event: Event) -> bool {
        let fallen = matches!(&event, Event::Tunnel { event: TunnelEvent::Gone | TunnelEvent::Down { .. }, .. });
        let actions = step(&mut self.state, clock::now(), event);
        if fallen || actions.iter().any(|action| matches!(action, Action::StopWatch { .. })) {
            // A session ended: what its keys left on this thread's stack goes, before anybody is told that it has ended.
            tokio::spawn(async { scrub_stack() });
        }
        let mut over = false;
        for action in actions {
            over |= self.act(action);
        }
        self.leaders.candidate(None);
        over
    }

    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Reply { token, reply } => self.reply(token, reply),
            Action::ReplyPeers { token, groups } => self.measure(token, groups),
            Action::StartWatch { number, card } => self.watches.start(number, card),
            Action::StopWatch { number } => self.watches.stop(number),
            Action::WatchLeader(leader) => self.leaders.watch(leader),
            Action::ForgetLeader(leader) => self.leaders.forget(leader),
            Action::Connect { link, attachment } => self.links.connect(link, attachment),
            Action::Send { link, message } => self.links.send(link, message),
            Action::Farewell { link, reason } => self.links.farewell(link, reason),
            Action::Disconnect { link } => self.links.disconnect(link),
            Action::Check { link } => self.links.check(link),
            Action::Expect => self.tunnels.expect(),
            Action::Fence { number, user, fences } => self.tunnels.order(number, Order::Fence(user, fences)),
            Action::TunnelUp { number, private, interface } => {
                self.tunnels.order(number, Order::Up(private, interface))
            }
            Action::UpsertPeers { number, group, peers } => self.tunnels.order(number, Order::Upsert(group, peers)),
            Action::RemovePeers { number, group, peers } => self.tunnels.order(number, Order::Remove(group, peers)),
            Action::Rekey { number, group, keys, begin } => {
                self.tunnels.order(number, Order::Rekey(group, keys, begin))
            }
            Action::GroupDown { number, group } => self.tunnels.order(number, Order::GroupDown(group)),
            Action::Confine { number, group, policy } => self.tunnels.order(number, Order::Confine(group, policy)),
            Action::TunnelDown { number } => self.tunnels.down(number),
            Action::Reach { number, group, peers } => self.tunnels.order(number, Order::Reach(group, peers)),
            Action::Look { number, group } => self.tunnels.order(number, Order::Look(group)),
            Action::Names { number, group, zone } => self.names.set((number, group), zone),
            Action::AwaitCard { number, fingerprint, taken, within } => {
                self.watches.find(number, fingerprint, taken, within)
            }
            Action::Desk { deed, sessions } => self.logind.act(deed, sessions),
            Action::LetGo => self.logind.let_go(),
            Action::StartWaiting { token, number, user, card, minutes } => {
                self.start_waiting(token, (number, user, card), minutes);
            }
            Action::TryWaiting { number } => {
                if let Some(waitings) = &self.waitings {
                    waitings.attempt(number);
                }
            }
            Action::StopWaiting { number } => {
                if let Some(waitings) = &mut self.waitings {
                    waitings.stop(number);
                }
            }
            Action::Tell(notice) => self.watchers.tell(&notice),
            Action::Log { level, text } => log(level, &text),
            Action::Exit => return true,
        }
        false
    }

    fn start_waiting(&mut self, token: Token, (number, user, card): (Number, UserId, CardBinding), minutes: u32) {
        let started = match &mut self.waitings {
            Some(waitings) => waitings.start(number, user, card),
            None => Err(std::io::ErrorKind::Unsupported.into()),
        };
        match started {
            Ok(socket) => self.reply(token, Reply::Waiting(local::Waiting { socket, minutes })),
            Err(error) => {
                tracing::error!(%error, "no process for a waiting login");
                // Its limit ends what the core has noted.
                self.reply(token, Reply::Refused(Refusal::Busy));
            }
        }
    }

    fn reply(&mut self, token: Token, reply: Reply) {
        if let Some(answer) = self.waiting.remove(&token) {
            let _asker_gone = answer.send(reply);
        }
    }

    /// Measures beside the loop and answers.
    fn measure(&mut self, token: Token, groups: Vec<GroupView>) {
        let Some(answer) = self.waiting.remove(&token) else { return };
        let mut measured = Vec::new();
        for group in groups {
            let (figures, result) = oneshot::channel();
            self.tunnels.order(group.number, Order::Measure(group.group, figures));
            measured.push((group, result));
        }
        tokio::spawn(async move {
            let mut shown = Vec::new();
            for (mut group, result) in measured {
                // Without a tunnel, or when it does not answer, the members are shown without figures.
                let figures = timeout(MEASURE_TIME, result).await.ok().and_then(Result::ok).unwrap_or_default();
                for (key, peer) in &mut group.peers {
                    if let Some(stats) = figures.iter().find(|stats| stats.public_key == *key) {
                        peer.endpoint = stats.endpoint.or(peer.endpoint);
                        peer.handshake_ms =
                            stats.last_handshake.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
                        peer.received = stats.received;
                        peer.sent = stats.sent;
                    }
                }
                let peers = group.peers.into_iter().map(|(_, peer)| peer).collect();
                shown.push(GroupPeers { group: group.name, user: group.user, peers });
            }
            let _asker_gone = answer.send(Reply::Peers(shown));
        });
    }
}

/// Names are looked for last: they are there for as long as the interface.
fn names_left(mut event: Event) -> Event {
    if let Event::Tunnel { event: TunnelEvent::Down { leftovers }, .. } = &mut event {
        leftovers.extend(names::leftovers());
    }
    event
}

async fn due(wait: Option<Duration>) {
    match wait {
        Some(wait) => sleep(wait).await,
        None => pending().await,
    }
}

async fn beat(watchdog: &mut Option<Interval>) {
    match watchdog {
        Some(interval) => {
            interval.tick().await;
        }
        None => pending().await,
    }
}

fn log(level: tracing::Level, text: &str) {
    match level {
        tracing::Level::ERROR => tracing::error!("{text}"),
        tracing::Level::WARN => tracing::warn!("{text}"),
        _ => tracing::info!("{text}"),
    }
}
