//! The WireGuard edge: one interface per session and group, by the kernel or by an engine embedded in this process.
//!
//! [`Backend::up`] makes an interface completely or leaves nothing; [`Tunnel::down`] returns when the interface is
//! verifiably gone; [`sweep`] removes what a crash left. Everything acts in the network namespace of the calling process,
//! needs `CAP_NET_ADMIN` and a tokio runtime, never blocks the caller's thread, and ends by a deadline.
//!
//! Two backends stand behind [`driver::Driver`]. What they must not be trusted with is done here, once for both: the list
//! of peers and their addresses (`roster`), addresses, MTU and routes (`link`), and the check that all is gone.
//!
//! Keys: a program that uses this module installs [`memory::WipingAllocator`]. Both WireGuard libraries copy keys in heap
//! blocks that they free unwiped; the stacks they run on are wiped here when their threads end.

pub mod driver;
mod embedded;
mod error;
mod kernel;
mod link;
pub mod memory;
mod name;
mod roster;
mod rules;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, SystemTime},
};

use cug_proto::secret::Secret;
use futures_util::future::{BoxFuture, FutureExt, join, join_all};
use ipnet::IpNet;
use tokio::{sync::Mutex, time::timeout};

use driver::Driver;
pub use error::TunnelError;
pub use name::InterfaceName;
use roster::Roster;

/// A WireGuard public key (Curve25519, 32 bytes).
pub type PublicKey = [u8; 32];

/// MTU that fits WireGuard over IPv6 into an Ethernet frame, in bytes.
pub const DEFAULT_MTU: u16 = 1420;

/// Limit of one operation on a running interface.
const OPERATION: Duration = Duration::from_secs(10);
/// Limit of bringing an interface up, and again of removing what a failed attempt made.
const BRING_UP: Duration = Duration::from_secs(10);

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// The kernel where it has WireGuard, else the embedded engine.
    Auto,
    /// The kernel or nothing.
    Kernel,
    /// The embedded engine.
    Embedded,
}

/// Who encrypts the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// WireGuard of the Linux kernel.
    Kernel,
    /// The gotatun engine on a TUN device of this process.
    Embedded,
}

/// How an interface is to be.
pub struct InterfaceConfig {
    /// Its name; an interface of that name must not exist.
    pub name: InterfaceName,
    /// The session's private key, shared by the session's interfaces.
    pub private_key: Arc<Secret<32>>,
    /// UDP ports to listen on: the first free one is taken. Zero lets the system choose.
    pub ports: RangeInclusive<u16>,
    /// Overlay addresses of this terminal, each with the prefix of its group, which becomes an on-link route.
    pub addresses: Vec<IpNet>,
    /// Further networks reached through the interface.
    pub routes: Vec<IpNet>,
    /// MTU in bytes, at least 1280; see [`DEFAULT_MTU`].
    pub mtu: u16,
    /// Whose packets find the way into it.
    pub routing: Routing,
}

/// Who finds the way into an interface. This leads packets and keeps nobody out: that is what [`crate::guard`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Everybody: routes in the main table.
    Everybody,
    /// The sockets of this user ID, and the kernel's answers: routes in a table of the interface's own, so that the groups of two users
    /// may have the same network.
    User(u32),
}

/// A member of the group, as seen from this terminal.
pub struct PeerConfig {
    /// The member's public key in this session.
    pub public_key: PublicKey,
    /// The key of this pair for the current epoch.
    pub preshared_key: Secret<32>,
    /// Where the member sits; `None` leaves what is known (or waits for the member's first packet).
    pub endpoint: Option<SocketAddr>,
    /// The member's overlay addresses: inside the interface's networks, disjoint from those of every other peer.
    pub allowed_ips: Vec<IpNet>,
    /// Interval of keepalive packets, rounded up to whole seconds (at most 65535); `None` sends none.
    pub keepalive: Option<Duration>,
}

/// What is known of a peer at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// The peer.
    pub public_key: PublicKey,
    /// Where its last authenticated packet came from, or where it was said to be.
    pub endpoint: Option<SocketAddr>,
    /// Age of the newest WireGuard session, to a quarter of a second; `None` without one. The embedded engine shows the
    /// first session of a peer that called when it has received data in it.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it, WireGuard's framing included.
    pub received: u64,
    /// Bytes sent to it, WireGuard's framing included.
    pub sent: u64,
}

/// What [`Tunnel::rekey`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rekey {
    /// New handshakes are on their way to every peer whose endpoint is known.
    Started,
    /// The backend cannot be told; it renews sessions in use by itself within 120 s (kernel).
    ByItself,
}

/// An interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: InterfaceName,
    /// Its index in this network namespace.
    pub index: u32,
    /// The UDP port it listens on, IPv4 and IPv6.
    pub port: u16,
    /// Who encrypts.
    pub backend: Backend,
    /// The addresses it has. IPv6 ones are missing where the machine has IPv6 switched off.
    pub addresses: Vec<IpNet>,
}

impl Backend {
    /// Decides for `choice`. For the kernel this makes an interface for a moment: its answer is the only probe that also
    /// loads the module.
    ///
    /// # Errors
    /// [`TunnelError::NoKernel`] when the kernel was asked for by name and has no WireGuard.
    pub async fn select(choice: BackendChoice) -> Result<Self, TunnelError> {
        match choice {
            BackendChoice::Embedded => Ok(Self::Embedded),
            BackendChoice::Kernel => probe().await.map(|()| Self::Kernel),
            BackendChoice::Auto => match probe().await {
                Ok(()) => Ok(Self::Kernel),
                Err(TunnelError::NoKernel) => Ok(Self::Embedded),
                Err(error) => {
                    tracing::warn!(error = %error.with_causes(), "the kernel's WireGuard does not answer, using the embedded one");
                    Ok(Self::Embedded)
                }
            },
        }
    }

    /// Makes the interface, without peers. All or nothing: on an error, and when the future is dropped, nothing stays.
    ///
    /// # Errors
    /// What failed first. [`TunnelError::StillThere`] when even the removal failed.
    pub async fn up(self, config: InterfaceConfig) -> Result<Tunnel, TunnelError> {
        let roster = Roster::new(&config)?;
        if link::find(&config.name)?.is_some() {
            return Err(TunnelError::Exists(config.name));
        }
        let driver = within("making the network interface", self.create(&config).boxed()).await?;
        let made = timeout(BRING_UP, bring_up(self, driver.as_ref(), &config)).await;
        match made.unwrap_or(Err(TunnelError::Timeout("bringing the tunnel up"))) {
            Ok(interface) => Ok(Tunnel { interface, roster: Mutex::new(roster), driver }),
            Err(error) => {
                take_down(driver.as_ref(), &config.name).await?;
                Err(error)
            }
        }
    }

    async fn create(self, config: &InterfaceConfig) -> Result<Box<dyn Driver>, TunnelError> {
        Ok(match self {
            Self::Kernel => Box::new(kernel::KernelDriver::create(&config.name).await?),
            Self::Embedded => Box::new(embedded::EmbeddedDriver::create(&config.name, config.mtu).await?),
        })
    }
}

/// Addresses first, then the port, then the link: no packet passes before all is in place.
async fn bring_up(backend: Backend, driver: &dyn Driver, config: &InterfaceConfig) -> Result<Interface, TunnelError> {
    let links = link::Links::open()?;
    let index = link::find(&config.name)?.ok_or_else(|| TunnelError::Vanished(config.name.clone()))?;
    if index != config.name.index() {
        // The guard knows it by this number.
        return Err(TunnelError::Config("the system gave it another index than was asked for"));
    }
    let addresses = links.prepare(index, config.mtu, &config.addresses, config.routing).await?;
    let mut port = None;
    for candidate in config.ports.clone() {
        port = driver.listen(&config.private_key, candidate).await?;
        if port.is_some() {
            break;
        }
    }
    let port = port.ok_or(TunnelError::NoPort { first: *config.ports.start(), last: *config.ports.end() })?;
    links.activate(index).await?;
    let table = match config.routing {
        Routing::Everybody => None,
        Routing::User(uid) => {
            let rules = rules::add(&links, index, uid, &addresses);
            let route = |own: &IpNet| links.add_route(index, own.trunc(), Some(index), Some(own.addr()));
            let (ruled, routed) = join(rules, join_all(addresses.iter().map(route))).await;
            ruled?;
            routed.into_iter().collect::<Result<(), _>>()?;
            Some(index)
        }
    };
    for route in &config.routes {
        if let Some(own) = addresses.iter().find(|own| same_family(own.addr(), route.addr())) {
            links.add_route(index, *route, table, table.map(|_| own.addr())).await?;
        }
    }
    Ok(Interface { name: config.name.clone(), index, port, backend, addresses })
}

/// Ends the driver, then looks: the interface must be gone whatever the driver says.
async fn take_down(driver: &dyn Driver, name: &InterfaceName) -> Result<(), TunnelError> {
    if let Err(error) =
        timeout(OPERATION, driver.down()).await.unwrap_or(Err(TunnelError::Timeout("stopping the tunnel")))
    {
        tracing::warn!(interface = %name, error = %error.with_causes(), "the tunnel did not stop by itself, removing its interface");
    }
    clear_away(name).await
}

/// An interface with its peers. Operations run one after another, each ends within ten seconds.
///
/// After an error that is not a refusal ([`TunnelError::is_refusal`]) the peers are in doubt: take the tunnel down.
/// Dropping it closes the interface too, but nobody waits for that or checks it: call [`Tunnel::down`].
pub struct Tunnel {
    interface: Interface,
    roster: Mutex<Roster>,
    driver: Box<dyn Driver>,
}

impl Tunnel {
    /// Name, port and addresses.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Adds `peers`, or changes those that are known; a running WireGuard session stays.
    ///
    /// # Errors
    /// Refused as a whole when an address lies outside the interface's networks or belongs to another peer: WireGuard itself
    /// would silently move it, and with it the other member's packets.
    pub async fn upsert_peers(&self, peers: Vec<PeerConfig>) -> Result<(), TunnelError> {
        let mut roster = self.roster.lock().await;
        roster.admit(&peers)?;
        within("configuring the peers", self.driver.upsert(peers)).await
    }

    /// Sets new preshared keys. Running sessions stay; the keys count from the next handshake on, see [`Tunnel::rekey`].
    ///
    /// # Errors
    /// Refused as a whole when a peer is not known.
    pub async fn set_preshared_keys(&self, keys: Vec<(PublicKey, Secret<32>)>) -> Result<(), TunnelError> {
        let roster = self.roster.lock().await;
        roster.require(keys.iter().map(|(peer, _)| peer))?;
        within("changing the peers' keys", self.driver.set_preshared_keys(keys)).await
    }

    /// Says where a peer sits now. The running session stays.
    ///
    /// # Errors
    /// Refused when the peer is not known.
    pub async fn set_endpoint(&self, peer: PublicKey, endpoint: SocketAddr) -> Result<(), TunnelError> {
        let roster = self.roster.lock().await;
        roster.require(std::iter::once(&peer))?;
        within("changing a peer's address", self.driver.set_endpoint(peer, endpoint)).await
    }

    /// Removes peers with their sessions and addresses; unknown ones count as removed. From its return on no packet passes.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn remove_peers(&self, peers: Vec<PublicKey>) -> Result<(), TunnelError> {
        let mut roster = self.roster.lock().await;
        within("removing peers", self.driver.remove(peers.clone())).await?;
        roster.remove(&peers);
        Ok(())
    }

    /// Starts new handshakes at once; the old sessions carry the traffic until they are through. Returns when all have
    /// completed, after a quarter of a second at the latest: a peer that does not answer is asked again by the backend.
    ///
    /// # Errors
    /// Refused as a whole when a peer is not known.
    pub async fn rekey(&self, peers: Vec<PublicKey>) -> Result<Rekey, TunnelError> {
        let roster = self.roster.lock().await;
        roster.require(peers.iter())?;
        within("renewing sessions", self.driver.rekey(peers)).await
    }

    /// Says where peers sit now (`None`: where they were) and asks them for a sign of life, which tells them where this terminal sits. Running
    /// sessions stay. Returns within half a second, whether they have answered or not.
    ///
    /// # Errors
    /// Refused as a whole when a peer is not known.
    pub async fn reach(&self, peers: Vec<(PublicKey, Option<SocketAddr>)>) -> Result<(), TunnelError> {
        let roster = self.roster.lock().await;
        roster.require(peers.iter().map(|(peer, _)| peer))?;
        for (peer, endpoint) in &peers {
            if let Some(endpoint) = endpoint {
                within("changing a peer's address", self.driver.set_endpoint(*peer, *endpoint)).await?;
            }
        }
        let called = peers.into_iter().map(|(peer, _)| (peer, roster.keepalive(&peer))).collect();
        within("calling peers", self.driver.call(called)).await
    }

    /// All peers, in no particular order. `now` turns the kernel's wall-clock times into ages.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn stats(&self, now: SystemTime) -> Result<Vec<PeerStats>, TunnelError> {
        let _one_at_a_time = self.roster.lock().await;
        within("reading the peers", self.driver.stats(now)).await
    }

    /// Ends when the interface no longer works: removed by somebody else, socket broken, or taken down.
    pub fn lost(&self) -> BoxFuture<'static, ()> {
        self.driver.lost(self.interface.index)
    }

    /// Takes the interface down, with its addresses, routes, peers and keys. Returns when the kernel says it is gone; may be
    /// called again after an error.
    ///
    /// # Errors
    /// [`TunnelError::StillThere`] when the interface could not be removed.
    pub async fn down(&self) -> Result<(), TunnelError> {
        take_down(self.driver.as_ref(), &self.interface.name).await
    }
}

/// Removes every interface with a name of ours and the rules that lead into them, and returns their names. For the start, before the first
/// tunnel: it would remove running ones as well. One daemon per network namespace.
///
/// # Errors
/// [`TunnelError::StillThere`] when an interface could not be removed; the others are removed nevertheless.
pub async fn sweep() -> Result<Vec<InterfaceName>, TunnelError> {
    let swept = link::sweep().await;
    rules::remove(None).await?;
    swept
}

/// Removes the interface called `name`, if it is there, and the rules that lead into it.
///
/// # Errors
/// [`TunnelError::StillThere`] when the interface could not be removed.
pub async fn clear_away(name: &InterfaceName) -> Result<(), TunnelError> {
    link::ensure_gone(name).await?;
    rules::remove(Some(name.index())).await
}

/// Whether there is an interface called `name`.
///
/// # Errors
/// When the kernel does not tell.
pub fn stands(name: &InterfaceName) -> Result<bool, TunnelError> {
    Ok(link::find(name)?.is_some())
}

/// What there is still of the interface called `name`, by names that a person can look for.
///
/// # Errors
/// When the kernel does not tell.
pub async fn remains(name: &InterfaceName) -> Result<Vec<String>, TunnelError> {
    let links = link::Links::open()?;
    let mut found = Vec::new();
    if link::find(name)?.is_some() {
        found.push(format!("interface {name}"));
    }
    found.extend(rules::list(&links, Some(name.index())).await?.iter().map(rules::describe));
    found.extend(links.routes(name.index()).await?);
    Ok(found)
}

async fn probe() -> Result<(), TunnelError> {
    within("asking the kernel for WireGuard", kernel::probe().boxed()).await
}

async fn within<T>(doing: &'static str, work: BoxFuture<'_, Result<T, TunnelError>>) -> Result<T, TunnelError> {
    timeout(OPERATION, work).await.unwrap_or(Err(TunnelError::Timeout(doing)))
}

/// Whole seconds for WireGuard, rounded up, zero for none.
fn keepalive_seconds(keepalive: Option<Duration>) -> u16 {
    keepalive.map_or(0, |interval| u16::try_from(interval.as_millis().div_ceil(1000)).unwrap_or(u16::MAX))
}

/// Whether two addresses are of one family.
fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}
