//! What one session's task does: carries out orders on its interfaces, one after the other, and takes them down.

use std::{
    collections::BTreeMap, future::Future, net::SocketAddr, ops::RangeInclusive, pin::pin, sync::Arc, time::Duration,
};

use cug_proto::{
    id::{GroupId, UserId},
    message::WgPublicKey,
    policy::Policy,
    secret::Secret,
};
use futures_util::future::join_all;
use tokio::{
    net::lookup_host,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::Order;
use crate::{
    clock,
    core::{Event, FenceSpec, InterfaceSpec, Number, PeerSpec, Sight, TunnelEvent},
    guard::{
        Guard, Layers, causes,
        plan::{self, Exception, Fence},
    },
    teardown::{self, Ended},
    tunnel::{self, Backend, DEFAULT_MTU, InterfaceConfig, PeerConfig, PeerStats, Routing, Tunnel, TunnelError},
};

/// How long the names of the management servers may take to be found when a closed group's members are confined, and an account.
const LOOKUP: Duration = Duration::from_secs(1);

/// How often it is looked whether a falling interface has a name.
const LOOK: Duration = Duration::from_millis(1);

/// What all sessions of this terminal have in common.
#[derive(Clone)]
pub(super) struct Terminal {
    /// Where it is told what happens.
    pub events: mpsc::Sender<Event>,
    /// Who encrypts.
    pub backend: Backend,
    /// Of the interfaces.
    pub ports: RangeInclusive<u16>,
    /// Keeps the interfaces to their owners.
    pub guard: Guard,
    /// The management servers, each `host:port`.
    pub servers: Vec<String>,
    /// Finds the user ID of a user; it may block.
    pub accounts: fn(&UserId) -> Option<u32>,
}

/// The tunnel of one session.
pub(super) struct Worker {
    number: Number,
    terminal: Terminal,
    groups: BTreeMap<GroupId, Tunnel>,
    /// What there was, to look for at the end.
    ended: Ended,
    /// Ends with the group whose interface stopped working.
    lost: JoinSet<GroupId>,
}

impl Worker {
    /// One that has nothing yet.
    pub(super) fn new(number: Number, terminal: Terminal) -> Self {
        Self { number, terminal, groups: BTreeMap::new(), ended: Ended::default(), lost: JoinSet::new() }
    }

    /// Carries out what is ordered until it is told to stop, and takes everything down.
    pub(super) async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Order>, mut stop: watch::Receiver<bool>) {
        loop {
            let order = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                Some(lost) = self.lost.join_next(), if !self.lost.is_empty() => {
                    if let Ok(group) = lost && self.groups.contains_key(&group) {
                        self.tell(TunnelEvent::Failed("an interface stopped working".to_owned())).await;
                    }
                    continue;
                }
                order = queue.recv() => match order {
                    Some(order) => order,
                    None => break,
                },
            };
            if let Err(error) = self.carry_out(order, &mut stop).await {
                self.failed(&error).await;
            }
        }
        // Orders that were not carried out hold keys.
        drop(queue);
        self.fall().await;
    }

    /// A refused list changes nothing and is no reason to end the session.
    async fn failed(&self, error: &TunnelError) {
        if error.is_refusal() {
            tracing::warn!(error = %error.with_causes(), "a change of the members was refused");
        } else {
            self.tell(TunnelEvent::Failed(error.with_causes())).await;
        }
    }

    async fn carry_out(&mut self, order: Order, stop: &mut watch::Receiver<bool>) -> Result<(), TunnelError> {
        match order {
            Order::Fence(user, fences) => {
                if let Err(error) = self.fence(user, fences).await {
                    tracing::debug!(error = %error.with_causes(), "the guard is not raised beforehand");
                }
                Ok(())
            }
            Order::Up(private, interface) => self.up(private, interface).await,
            Order::Upsert(group, peers) => match self.groups.get(&group) {
                Some(tunnel) => {
                    unless(stop, tunnel.upsert_peers(peers.into_iter().map(PeerConfig::from).collect())).await
                }
                None => Ok(()),
            },
            Order::Remove(group, peers) => match self.groups.get(&group) {
                Some(tunnel) => unless(stop, tunnel.remove_peers(peers)).await,
                None => Ok(()),
            },
            Order::Rekey(group, keys, begin) => match self.groups.get(&group) {
                Some(tunnel) => unless(stop, rekey(tunnel, keys, begin)).await,
                None => Ok(()),
            },
            Order::GroupDown(group) => match self.groups.remove(&group) {
                Some(tunnel) => {
                    tunnel.down().await?;
                    Ok(self.terminal.guard.lower(&[tunnel.interface().name.clone()]).await?)
                }
                None => Ok(()),
            },
            Order::Reach(group, peers) => match self.groups.get(&group) {
                Some(tunnel) => unless(stop, tunnel.reach(peers)).await,
                None => Ok(()),
            },
            Order::Look(group) => self.look(group, stop).await,
            Order::Confine(group, policy) => {
                let closed = self.closed(&policy).await?;
                if let Some(tunnel) = self.groups.get(&group) {
                    // Not interrupted by a stop: afterwards nothing may be half done.
                    self.terminal.guard.confine(&tunnel.interface().name, closed).await?;
                }
                Ok(())
            }
            Order::Measure(group, answer) => {
                if let Some(tunnel) = self.groups.get(&group) {
                    unless(stop, async {
                        let _asker_gone = answer.send(tunnel.stats(clock::wall()).await?);
                        Ok(())
                    })
                    .await?;
                }
                Ok(())
            }
        }
    }

    async fn look(&self, group: GroupId, stop: &mut watch::Receiver<bool>) -> Result<(), TunnelError> {
        let Some(tunnel) = self.groups.get(&group) else { return Ok(()) };
        unless(stop, async {
            let stats = tunnel.stats(clock::wall()).await?;
            let sights = stats.iter().map(|peer| (peer.public_key, Sight::from(peer))).collect();
            self.tell(TunnelEvent::Seen { group, sights }).await;
            Ok(())
        })
        .await
    }

    /// All at once, which costs no more than one.
    async fn fence(&mut self, user: UserId, specs: Vec<FenceSpec>) -> Result<(), TunnelError> {
        // Rules alone go by the user's cgroup, which the login may be making just now. A closed group confines its member's programs, but only from
        // the opening on: the login may still be refused.
        let confines = specs.iter().any(|spec| !matches!(plan::closed(&spec.policy), Ok(None)));
        if confines || self.terminal.guard.layers() == Layers::Rules {
            return Ok(());
        }
        let accounts = self.terminal.accounts;
        let lookup = tokio::task::spawn_blocking(move || accounts(&user));
        let Ok(Ok(Some(uid))) = timeout(LOOKUP, lookup).await else { return Ok(()) };
        let mut fences = Vec::with_capacity(specs.len());
        for spec in &specs {
            fences.push(self.fence_of(spec, uid).await?);
        }
        Ok(self.terminal.guard.raise(fences).await?)
    }

    /// From now on the end looks for it.
    async fn fence_of(&mut self, spec: &FenceSpec, uid: u32) -> Result<Fence, TunnelError> {
        if !self.ended.interfaces.contains(&spec.name) {
            self.ended.interfaces.push(spec.name.clone());
        }
        let closed = self.closed(&spec.policy).await?;
        Ok(Fence { name: spec.name.clone(), uid, addresses: spec.addresses.clone(), closed })
    }

    /// Not interrupted by a stop: what it makes must be known here to be taken down.
    async fn up(&mut self, private: Arc<Secret<32>>, interface: InterfaceSpec) -> Result<(), TunnelError> {
        let fence = self.fence_of(&interface.fence, interface.uid).await?;
        self.ended.keys = vec![Arc::downgrade(&private)];
        // Before there is anything to guard; if the interface cannot be made, the end takes the guard away. As a rule it stands already.
        self.terminal.guard.raise([fence]).await?;
        let config = InterfaceConfig {
            name: interface.fence.name,
            private_key: private,
            ports: self.terminal.ports.clone(),
            addresses: interface.fence.addresses,
            routes: Vec::new(),
            mtu: DEFAULT_MTU,
            routing: Routing::User(interface.uid),
        };
        let tunnel = self.terminal.backend.up(config).await?;
        let port = tunnel.interface().port;
        tracing::info!(interface = %tunnel.interface().name, port, "interface up");
        let (group, lost) = (interface.group, tunnel.lost());
        self.lost.spawn(async move {
            lost.await;
            group
        });
        self.groups.insert(group, tunnel);
        self.tell(TunnelEvent::Raised { group, port }).await;
        Ok(())
    }

    /// Interfaces first, because they are what the keys are for; then what was around them; then a look whether it is true.
    async fn fall(&mut self) {
        self.lost.abort_all();
        self.close().await;
        let mut ended = std::mem::take(&mut self.ended);
        ended.programs = self.terminal.guard.program_ids().await.unwrap_or_default();
        if let Err(error) = self.terminal.guard.lower(&ended.interfaces).await {
            tracing::error!(error = %causes(&error), "the guard of a tunnel is not removed");
        }
        let leftovers = teardown::leftovers(&ended, &self.terminal.guard).await;
        if !leftovers.is_empty() {
            tokio::spawn(teardown::clear(ended, self.terminal.guard.clone()));
        }
        self.tell(TunnelEvent::Down { leftovers }).await;
    }

    /// Takes the interfaces down. A closed one has no name any more and passes nothing, and the others need not wait for the rest: the kernel gives it
    /// back some twenty milliseconds later, and tells of it then, and the engine's threads end after that.
    async fn close(&mut self) {
        let groups = std::mem::take(&mut self.groups);
        let names: Vec<_> = groups.values().map(|tunnel| tunnel.interface().name.clone()).collect();
        let mut down = pin!(join_all(groups.into_values().map(take_down)));
        let nameless = async {
            while names.iter().any(|name| !matches!(tunnel::stands(name), Ok(false))) {
                sleep(LOOK).await;
            }
        };
        let done = tokio::select! {
            _ = &mut down => true,
            () = nameless => false,
        };
        self.tell(TunnelEvent::Gone).await;
        if !done {
            down.await;
        }
    }

    /// A policy as it is enforced, with the servers found for it.
    async fn closed(&self, policy: &Policy) -> Result<Option<Vec<Exception>>, TunnelError> {
        let closed = plan::closed(policy).map_err(|_| TunnelError::Config("the group's policy makes no sense"))?;
        if closed.is_some() {
            self.terminal.guard.servers(find(&self.terminal.servers).await).await?;
        }
        Ok(closed)
    }

    async fn tell(&self, event: TunnelEvent) {
        let _daemon_stops = self.terminal.events.send(Event::Tunnel { number: self.number, event }).await;
    }
}

async fn take_down(tunnel: Tunnel) {
    match tunnel.down().await {
        Ok(()) => tracing::info!(interface = %tunnel.interface().name, "interface down"),
        Err(error) => {
            tracing::error!(interface = %tunnel.interface().name, error = %error.with_causes(), "a tunnel is not down");
        }
    }
}

/// Gives work up when the tunnel is to go down: taking it down undoes whatever was half done.
async fn unless(
    stop: &mut watch::Receiver<bool>,
    work: impl Future<Output = Result<(), TunnelError>>,
) -> Result<(), TunnelError> {
    tokio::select! {
        biased;
        () = stopped(stop) => Ok(()),
        result = work => result,
    }
}

/// Ends when the tunnel is to go down, or the daemon is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _asked_or_gone = stop.wait_for(|down| *down).await;
}

/// All addresses of `servers`. One that is not found in time is left out: the member's programs do not reach it.
async fn find(servers: &[String]) -> Vec<SocketAddr> {
    let found = join_all(servers.iter().map(|server| async move {
        match timeout(LOOKUP, lookup_host(server)).await {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(server, "no address is found for a management server; confined users do not reach it");
                Vec::new()
            }
        }
    }));
    let mut addresses: Vec<_> = found.await.into_iter().flatten().collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

async fn rekey(
    tunnel: &Tunnel,
    keys: Vec<(WgPublicKey, Secret<32>)>,
    begin: Vec<WgPublicKey>,
) -> Result<(), TunnelError> {
    tunnel.set_preshared_keys(keys).await?;
    tunnel.rekey(begin).await.map(|_| ())
}

impl From<&PeerStats> for Sight {
    fn from(peer: &PeerStats) -> Self {
        Self { endpoint: peer.endpoint, handshake: peer.last_handshake, received: peer.received, sent: peer.sent }
    }
}

impl From<PeerSpec> for PeerConfig {
    fn from(peer: PeerSpec) -> Self {
        Self {
            public_key: peer.public_key,
            preshared_key: peer.preshared_key,
            endpoint: peer.endpoint,
            allowed_ips: peer.allowed_ips,
            keepalive: peer.keepalive,
        }
    }
}
