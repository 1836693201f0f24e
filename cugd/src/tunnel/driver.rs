//! The one trait in front of the two WireGuard implementations.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use cug_proto::secret::Secret;
use futures_util::future::BoxFuture;

use super::{PeerConfig, PeerStats, PublicKey, Rekey, TunnelError};

/// One WireGuard interface that exists as a link. Dropping it removes the link, in the background.
///
/// Callers have checked peers and addresses, call one method at a time, and set the deadline: a driver need not bound its
/// waits, but a dropped future must leave it usable for [`Driver::down`].
pub trait Driver: Send + Sync {
    /// Sets the private key and listens on `port`; the port in use, or `None` when it is taken by another socket.
    fn listen<'a>(
        &'a self,
        private_key: &'a Arc<Secret<32>>,
        port: u16,
    ) -> BoxFuture<'a, Result<Option<u16>, TunnelError>>;

    /// Adds or changes peers, keeping running sessions. A peer's addresses are replaced, not added to.
    fn upsert(&self, peers: Vec<PeerConfig>) -> BoxFuture<'_, Result<(), TunnelError>>;

    /// Sets the preshared keys of existing peers, keeping running sessions.
    fn set_preshared_keys(&self, keys: Vec<(PublicKey, Secret<32>)>) -> BoxFuture<'_, Result<(), TunnelError>>;

    /// Sets the endpoint of an existing peer, keeping its running session.
    fn set_endpoint(&self, peer: PublicKey, endpoint: SocketAddr) -> BoxFuture<'_, Result<(), TunnelError>>;

    /// Removes peers with their sessions; unknown ones are no error.
    fn remove(&self, peers: Vec<PublicKey>) -> BoxFuture<'_, Result<(), TunnelError>>;

    /// Starts handshakes although sessions are running.
    fn rekey(&self, peers: Vec<PublicKey>) -> BoxFuture<'_, Result<Rekey, TunnelError>>;

    /// Sends something authenticated to each of these peers now, at their present endpoints; also when a handshake is under way that went
    /// elsewhere. Does not wait for answers for longer than half a second. With each comes the keepalive interval that it has and keeps.
    fn call(&self, peers: Vec<(PublicKey, Option<Duration>)>) -> BoxFuture<'_, Result<(), TunnelError>>;

    /// What is known of all peers.
    fn stats(&self, now: SystemTime) -> BoxFuture<'_, Result<Vec<PeerStats>, TunnelError>>;

    /// Ends when the interface, whose index is `index`, stopped working.
    fn lost(&self, index: u32) -> BoxFuture<'static, ()>;

    /// Ends packets, removes the link, frees and wipes all keys. May be called again.
    fn down(&self) -> BoxFuture<'_, Result<(), TunnelError>>;
}
