//! WireGuard of the Linux kernel, through wireguard-control.
//!
//! The library is synchronous and copies keys freely, so each call runs on a thread of its own whose stack is wiped at the
//! end ([`super::memory`]). Its `PeerConfigBuilder` creates a peer when it is missing: callers know which exist. Its `apply` creates
//! the link when it is missing, unguarded and with an index of the kernel's choice: a change that was given up while it ran therefore
//! removes whatever it may have made.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use cug_proto::secret::Secret;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::oneshot;
use wireguard_control::{Backend, Device, DeviceUpdate, Key, PeerConfigBuilder};

use super::{
    InterfaceName, PeerConfig, PeerStats, PublicKey, Rekey, TunnelError, driver::Driver, error::errno,
    keepalive_seconds, link, memory::scrub_stack,
};

/// A WireGuard link of the kernel.
pub(super) struct KernelDriver {
    name: InterfaceName,
    kernel_name: wireguard_control::InterfaceName,
    gone: Arc<AtomicBool>,
}

/// Asks the kernel for a WireGuard link and removes it again. Loads the module where there is one.
///
/// # Errors
/// [`TunnelError::NoKernel`] for EOPNOTSUPP, the kernel's answer for a kind of link that it does not know.
pub(super) async fn probe() -> Result<(), TunnelError> {
    let name = InterfaceName::probe();
    let driver = KernelDriver::create(&name).await?;
    driver.down().await?;
    link::ensure_gone(&name).await
}

impl KernelDriver {
    /// Makes the link, without a key.
    pub(super) async fn create(name: &InterfaceName) -> Result<Self, TunnelError> {
        let kernel_name = name.as_str().parse().map_err(|_| TunnelError::Name(name.to_string()))?;
        // Made before the link, so that a link whose maker was cancelled is removed: by this driver's end when it exists by
        // then, by its own task when it comes later.
        let driver = Self { name: name.clone(), kernel_name, gone: Arc::default() };
        match make(name.clone(), kernel_name).await {
            Ok(()) => Ok(driver),
            Err(error) => {
                driver.gone.store(true, Ordering::Release);
                Err(match error {
                    TunnelError::Netlink { source, .. } if errno(&source) == Some(libc::EOPNOTSUPP) => {
                        TunnelError::NoKernel
                    }
                    other => other,
                })
            }
        }
    }

    /// Applies what `build` makes of an empty update. Given up (the tunnel goes down, or time is up), it takes the link with it: the
    /// change may have run into the link's removal and have made it anew.
    fn apply(
        &self,
        doing: &'static str,
        build: impl FnOnce(DeviceUpdate) -> DeviceUpdate + Send + 'static,
    ) -> BoxFuture<'_, Result<(), TunnelError>> {
        let (name, gone) = (self.kernel_name, Arc::clone(&self.gone));
        let change = move || {
            if gone.load(Ordering::Acquire) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            build(DeviceUpdate::new()).apply(&name, Backend::Kernel)
        };
        async move {
            if self.gone.load(Ordering::Acquire) {
                return Err(TunnelError::Down);
            }
            apart(doing, change, move || delete(&name)).await
        }
        .boxed()
    }
}

impl Driver for KernelDriver {
    /// The kernel binds when the link goes up, so a taken port shows there.
    fn listen<'a>(
        &'a self,
        private_key: &'a Arc<Secret<32>>,
        port: u16,
    ) -> BoxFuture<'a, Result<Option<u16>, TunnelError>> {
        let key = Arc::clone(private_key);
        async move {
            let set = move |update: DeviceUpdate| {
                update.set_private_key(Key(*key.expose())).set_listen_port(port).replace_peers()
            };
            self.apply("the WireGuard key and port", set).await?;
            let index = link::find(&self.name)?.ok_or_else(|| TunnelError::Vanished(self.name.clone()))?;
            match link::Links::open()?.try_activate(index).await? {
                Err(error) if errno(&error) == Some(libc::EADDRINUSE) => return Ok(None),
                answer => answer.map_err(TunnelError::netlink("to set an interface up"))?,
            }
            let name = self.kernel_name;
            let port = move || Device::get(&name, Backend::Kernel).map(|device| device.listen_port);
            apart("to show a WireGuard interface", port, || ()).await
        }
        .boxed()
    }

    fn upsert(&self, peers: Vec<PeerConfig>) -> BoxFuture<'_, Result<(), TunnelError>> {
        self.apply("to configure peers", move |update| {
            peers.iter().fold(update, |update, peer| update.add_peer(full(peer)))
        })
    }

    fn set_preshared_keys(&self, keys: Vec<(PublicKey, Secret<32>)>) -> BoxFuture<'_, Result<(), TunnelError>> {
        self.apply("to change preshared keys", move |update| {
            keys.iter().fold(update, |update, (peer, key)| {
                update.add_peer(PeerConfigBuilder::new(&Key(*peer)).set_preshared_key(Key(*key.expose())))
            })
        })
    }

    fn set_endpoint(&self, peer: PublicKey, endpoint: SocketAddr) -> BoxFuture<'_, Result<(), TunnelError>> {
        self.apply("to change a peer's address", move |update| {
            update.add_peer(PeerConfigBuilder::new(&Key(peer)).set_endpoint(endpoint))
        })
    }

    fn remove(&self, peers: Vec<PublicKey>) -> BoxFuture<'_, Result<(), TunnelError>> {
        self.apply("to remove peers", move |update| {
            peers.iter().fold(update, |update, peer| update.remove_peer_by_key(&Key(*peer)))
        })
    }

    /// The kernel has no request for a handshake. Removing and adding the peer would start one, but lose the packets on
    /// their way; its own renewal within 120 s loses none, and a removed member is removed as a peer anyway.
    fn rekey(&self, _: Vec<PublicKey>) -> BoxFuture<'_, Result<Rekey, TunnelError>> {
        async { Ok(Rekey::ByItself) }.boxed()
    }

    fn call(&self, peers: Vec<(PublicKey, Option<Duration>)>) -> BoxFuture<'_, Result<(), TunnelError>> {
        async move {
            for step in call_steps(&peers) {
                let set = move |update: DeviceUpdate| {
                    step.iter().fold(update, |update, (peer, seconds)| {
                        update.add_peer(PeerConfigBuilder::new(&Key(*peer)).set_persistent_keepalive_interval(*seconds))
                    })
                };
                self.apply("to call peers", set).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn stats(&self, now: SystemTime) -> BoxFuture<'_, Result<Vec<PeerStats>, TunnelError>> {
        let name = self.kernel_name;
        let read = move || {
            // A peer with many addresses comes in parts; the first one has the figures.
            let mut peers: HashMap<PublicKey, PeerStats> = HashMap::new();
            for peer in Device::get(&name, Backend::Kernel)?.peers {
                let public_key = peer.config.public_key.0;
                peers.entry(public_key).or_insert(PeerStats {
                    public_key,
                    endpoint: peer.config.endpoint,
                    last_handshake: peer.stats.last_handshake_time.map(|at| now.duration_since(at).unwrap_or_default()),
                    received: peer.stats.rx_bytes,
                    sent: peer.stats.tx_bytes,
                });
            }
            Ok(peers.into_values().collect())
        };
        apart("to show a WireGuard interface", read, || ()).boxed()
    }

    fn lost(&self, index: u32) -> BoxFuture<'static, ()> {
        link::until_gone(index).boxed()
    }

    fn down(&self) -> BoxFuture<'_, Result<(), TunnelError>> {
        async {
            self.gone.store(true, Ordering::Release);
            link::ensure_gone(&self.name).await
        }
        .boxed()
    }
}

impl Drop for KernelDriver {
    /// For a bring-up that was cancelled: nobody waits for it, the start's sweep is the second line.
    fn drop(&mut self) {
        if self.gone.load(Ordering::Acquire) {
            return;
        }
        let name = self.kernel_name;
        let thread = std::thread::Builder::new().name("wg-remove".to_owned());
        if let Err(error) = thread.spawn(move || {
            delete(&name);
            scrub_stack();
        }) {
            tracing::warn!(interface = %self.name, %error, "an interface cannot be removed");
        }
    }
}

/// Keepalive intervals to set one after another: the kernel sends a keepalive, or begins a handshake, when persistent keepalives are switched
/// on. Each peer has its own interval at the end.
fn call_steps(peers: &[(PublicKey, Option<Duration>)]) -> [Vec<(PublicKey, u16)>; 3] {
    let step = |seconds: fn(u16) -> u16| -> Vec<_> {
        peers.iter().map(|(peer, keepalive)| (*peer, seconds(keepalive_seconds(*keepalive)))).collect()
    };
    [step(|_| 0), step(|own| if own == 0 { 25 } else { own }), step(|own| own)]
}

/// The whole of a peer; addresses replace those it had.
fn full(peer: &PeerConfig) -> PeerConfigBuilder {
    let mut builder = PeerConfigBuilder::new(&Key(peer.public_key))
        .set_preshared_key(Key(*peer.preshared_key.expose()))
        .set_persistent_keepalive_interval(keepalive_seconds(peer.keepalive))
        .replace_allowed_ips();
    if let Some(endpoint) = peer.endpoint {
        builder = builder.set_endpoint(endpoint);
    }
    peer.allowed_ips.iter().fold(builder, |builder, ip| builder.add_allowed_ip(ip.network(), ip.prefix_len()))
}

/// Makes the link, by a task of its own that removes it when nobody waits for it any more. The library cannot choose its index.
async fn make(name: InterfaceName, kernel_name: wireguard_control::InterfaceName) -> Result<(), TunnelError> {
    let (answer, result) = oneshot::channel();
    tokio::spawn(async move {
        let made = async { link::Links::open()?.add_wireguard(&name).await };
        let outcome = made.await.and_then(|made| made.map_err(TunnelError::netlink("to make a WireGuard interface")));
        if answer.send(outcome).is_err() {
            let undo = move || {
                delete(&kernel_name);
                Ok(())
            };
            let _gone_or_swept_later = apart("to remove a WireGuard interface", undo, || ()).await;
        }
    });
    result.await.unwrap_or(Err(TunnelError::Down))
}

/// Removes the link if it exists.
fn delete(name: &wireguard_control::InterfaceName) {
    match Device::get(name, Backend::Kernel).and_then(Device::delete) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
            tracing::warn!(interface = %name, %error, "an interface cannot be removed");
        }
        _ => {}
    }
}

/// Runs `work` on a thread of its own and wipes that thread's stack; `undo` follows when nobody waits for it any more.
async fn apart<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
    undo: impl FnOnce() + Send + 'static,
) -> Result<T, TunnelError> {
    let (answer, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("wg-control".to_owned())
        .spawn(move || {
            let outcome = work();
            scrub_stack();
            if answer.send(outcome).is_err() {
                undo();
                scrub_stack();
            }
        })
        .map_err(TunnelError::io("a thread"))?;
    match result.await {
        Ok(outcome) => outcome.map_err(TunnelError::io(doing)),
        Err(_) => Err(TunnelError::Down),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn a_peer_is_passed_on_completely() {
        let peer = PeerConfig {
            public_key: [1; 32],
            preshared_key: Secret::fill(|b| b.fill(2)),
            endpoint: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7)),
            allowed_ips: vec!["100.96.0.2/32".parse().unwrap()],
            keepalive: Some(Duration::from_millis(24_001)),
        };
        let expected = PeerConfigBuilder::new(&Key([1; 32]))
            .set_preshared_key(Key([2; 32]))
            .set_persistent_keepalive_interval(25)
            .replace_allowed_ips()
            .set_endpoint("127.0.0.1:7".parse().unwrap())
            .add_allowed_ip("100.96.0.2".parse().unwrap(), 32);
        assert!(full(&peer) == expected);
    }

    #[test]
    fn a_call_switches_keepalives_on_and_leaves_them_as_they_were() {
        let [off, on, after] = call_steps(&[([1; 32], None), ([2; 32], Some(Duration::from_secs(20)))]);
        assert_eq!(off, [([1; 32], 0), ([2; 32], 0)]);
        assert_eq!(on, [([1; 32], 25), ([2; 32], 20)]);
        assert_eq!(after, [([1; 32], 0), ([2; 32], 20)]);
    }
}
