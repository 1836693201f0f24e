//! The interfaces of the sessions: one task per session carries out what is ordered, in order, and reports.

mod worker;

use std::{collections::HashMap, net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use cug_proto::{
    id::{GroupId, UserId},
    message::WgPublicKey,
    policy::Policy,
    secret::Secret,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use crate::{
    core::{Event, FenceSpec, InterfaceSpec, Number, PeerSpec, TunnelEvent},
    guard::Guard,
    tunnel::{Backend, PeerStats},
};
use worker::{Terminal, Worker};

/// What a person needs at least to type. Whoever logs in has the processor for that long.
const TYPING: Duration = Duration::from_millis(10);

/// How long the guard is kept ready for a login that has begun. Who types for longer waits some milliseconds more at the end.
const EXPECTED: Duration = Duration::from_secs(20);

/// Tunnels of sessions. Calls return at once; what happens comes as events.
pub trait Tunnels {
    /// A login has begun, so a tunnel may be ordered soon.
    fn expect(&mut self);
    /// Orders work on the tunnel of `number`.
    fn order(&mut self, number: Number, order: Order);
    /// Takes everything of `number` down before whatever is still ordered; `Down` follows.
    fn down(&mut self, number: Number);
}

/// Work on a session's tunnel.
pub enum Order {
    /// Raise the guard of interfaces that will belong to this user. Without it, [`Order::Up`] does.
    Fence(UserId, Vec<FenceSpec>),
    /// Make an interface; `Raised` or `Failed` follows.
    Up(Arc<Secret<32>>, InterfaceSpec),
    /// Add or change peers.
    Upsert(GroupId, Vec<PeerSpec>),
    /// Remove peers.
    Remove(GroupId, Vec<WgPublicKey>),
    /// Change keys, then begin handshakes with some.
    Rekey(GroupId, Vec<(WgPublicKey, Secret<32>)>, Vec<WgPublicKey>),
    /// Remove an interface.
    GroupDown(GroupId),
    /// Measure the peers of a group.
    Measure(GroupId, oneshot::Sender<Vec<PeerStats>>),
    /// Change endpoints and begin handshakes.
    Reach(GroupId, Vec<(WgPublicKey, Option<SocketAddr>)>),
    /// Measure the peers of a group; `Seen` follows.
    Look(GroupId),
    /// Change what the owner's processes may reach besides the group.
    Confine(GroupId, Policy),
}

/// Tunnels by [`crate::tunnel`].
pub struct WgTunnels {
    terminal: Terminal,
    workers: HashMap<Number, Handle>,
}

struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    down: watch::Sender<bool>,
}

impl WgTunnels {
    /// Reports to `events`. `servers`, each `host:port`, stay within reach of confined users. `accounts` finds the user ID of a user; it may block.
    pub fn new(
        events: mpsc::Sender<Event>,
        backend: Backend,
        ports: RangeInclusive<u16>,
        guard: Guard,
        servers: Vec<String>,
        accounts: fn(&UserId) -> Option<u32>,
    ) -> Self {
        Self { terminal: Terminal { events, backend, ports, guard, servers, accounts }, workers: HashMap::new() }
    }

    fn start(&self, number: Number) -> Handle {
        let (orders, queue) = mpsc::unbounded_channel();
        let (down, stop) = watch::channel(false);
        let worker = Worker::new(number, self.terminal.clone());
        tokio::spawn(worker.run(queue, stop));
        Handle { orders, down }
    }
}

impl Tunnels for WgTunnels {
    fn expect(&mut self) {
        let guard = self.terminal.guard.clone();
        tokio::spawn(async move {
            sleep(TYPING).await;
            guard.expect().await;
            sleep(EXPECTED).await;
            guard.relax().await;
        });
    }

    fn order(&mut self, number: Number, order: Order) {
        if matches!(order, Order::Fence(..) | Order::Up(..)) && !self.workers.contains_key(&number) {
            let handle = self.start(number);
            self.workers.insert(number, handle);
        }
        if let Some(handle) = self.workers.get(&number) {
            // A worker ends only after `down`, which removes its handle.
            let _ended = handle.orders.send(order);
        }
    }

    fn down(&mut self, number: Number) {
        match self.workers.remove(&number) {
            Some(handle) => {
                handle.down.send_replace(true);
            }
            None => {
                let events = self.terminal.events.clone();
                let event = Event::Tunnel { number, event: TunnelEvent::Down { leftovers: Vec::new() } };
                tokio::spawn(async move { events.send(event).await });
            }
        }
    }
}
