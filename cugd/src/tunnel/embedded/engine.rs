//! The task that owns one gotatun device and carries out commands, one after another.
//!
//! What gotatun 0.10 needs to be told, found by reading and measuring it: `modify_peer` keeps a session where removing and
//! adding loses it; only a change of key or port opens the socket; writing holds the lock that packets need, so long lists
//! go in pieces; `clear_peers` opens the socket anew and is not used.

use std::{collections::HashSet, io, net::SocketAddr, sync::Arc, time::Duration};

use cug_proto::secret::Secret;
use futures_util::future::join_all;
use gotatun::{
    device::{self, Device, DeviceBuilder, Peer},
    noise::TimerParams,
    x25519,
};
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::unconstrained,
    time::timeout_at,
};
use zeroize::Zeroize;

use super::{datagrams::Sockets, device_file, offload};
use crate::{
    clock,
    tunnel::{InterfaceName, PeerConfig, PeerStats, PublicKey, Rekey, TunnelError, keepalive_seconds},
};

type Engine = Device<(Sockets, offload::Sender, offload::Receiver)>;
type Answer<T> = oneshot::Sender<Result<T, TunnelError>>;

/// Peers configured at a time: some 8 ms during which no packet passes.
const PIECE: usize = 50;
/// Size of a handshake initiation in bytes.
const INITIATION: usize = 148;
/// How long a call may wait: gotatun looks once in a quarter of a second whether an initiation is to be sent again.
const CALL: Duration = Duration::from_millis(300);
/// How long a rekey waits for handshakes to complete; the engine goes on asking by itself.
const HANDSHAKE: Duration = Duration::from_millis(250);
/// What the peers of a [`PIECE`] have at least, so that they are asked while packets pass.
const BEGIN: Duration = Duration::from_millis(20);

/// What the task can be asked.
pub(super) enum Command {
    /// Set the key and open the socket.
    Listen { private_key: Arc<Secret<32>>, port: u16, answer: Answer<Option<u16>> },
    /// Add or change peers.
    Upsert { peers: Vec<PeerConfig>, answer: Answer<()> },
    /// Change preshared keys.
    PresharedKeys { keys: Vec<(PublicKey, Secret<32>)>, answer: Answer<()> },
    /// Change an endpoint.
    Endpoint { peer: PublicKey, endpoint: SocketAddr, answer: Answer<()> },
    /// Remove peers.
    Remove { peers: Vec<PublicKey>, answer: Answer<()> },
    /// Start handshakes.
    Rekey { peers: Vec<PublicKey>, answer: Answer<Rekey> },
    /// Start handshakes, also where one is under way.
    Call { peers: Vec<PublicKey>, answer: Answer<()> },
    /// Report on the peers.
    Stats { answer: Answer<Vec<PeerStats>> },
    /// End.
    Stop { answer: Answer<()> },
}

/// Makes the device, says so to `ready`, then serves until told to stop or all senders are gone.
pub(super) async fn run(
    name: InterfaceName,
    mtu: u16,
    ready: Answer<()>,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    lost: watch::Sender<bool>,
) {
    let mut engine = match create(&name, mtu).await {
        Ok(engine) => engine,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    let mut heard = HashSet::new();
    let stopped = loop {
        let broken = *lost.borrow();
        let command = tokio::select! {
            command = inbox.recv() => command,
            () = engine.wait(), if !broken => {
                lost.send_replace(true);
                continue;
            }
        };
        match command {
            None => break None,
            Some(Command::Stop { answer }) => break Some(answer),
            Some(command) => serve(&engine, &mut heard, command).await,
        }
    };
    engine.stop().await;
    if let Some(answer) = stopped {
        let _ = answer.send(Ok(()));
    }
}

async fn create(name: &InterfaceName, mtu: u16) -> Result<Engine, TunnelError> {
    let device = device_file::create(name).map_err(TunnelError::tun)?;
    let (sender, receiver) = offload::pair(device, mtu);
    let builder = DeviceBuilder::new().with_udp(Sockets::default()).with_ip_pair(sender, receiver);
    builder.build().await.map_err(TunnelError::engine("its start"))
}

async fn serve(engine: &Engine, heard: &mut HashSet<PublicKey>, command: Command) {
    // An answer that nobody waits for any more is no error: the caller's deadline passed.
    match command {
        Command::Listen { private_key, port, answer } => drop(answer.send(listen(engine, &private_key, port).await)),
        Command::Upsert { peers, answer } => drop(answer.send(upsert(engine, &peers).await)),
        Command::PresharedKeys { keys, answer } => drop(answer.send(set_preshared_keys(engine, &keys).await)),
        Command::Endpoint { peer, endpoint, answer } => drop(answer.send(set_endpoint(engine, peer, endpoint).await)),
        Command::Remove { peers, answer } => {
            heard.retain(|peer| !peers.contains(peer));
            drop(answer.send(remove(engine, &peers).await));
        }
        Command::Rekey { peers, answer } => drop(answer.send(rekey(engine, &peers).await)),
        Command::Call { peers, answer } => drop(answer.send(call(engine, &peers).await)),
        Command::Stats { answer } => drop(answer.send(Ok(stats(engine, heard).await))),
        Command::Stop { answer } => drop(answer.send(Ok(()))),
    }
}

/// The socket opens when key or port change, which happens here and nowhere else.
async fn listen(engine: &Engine, private_key: &Secret<32>, port: u16) -> Result<Option<u16>, TunnelError> {
    let opened = engine
        .write(async |device| {
            device.set_listen_port(port);
            device.set_private_key(x25519::StaticSecret::from(*private_key.expose())).await;
        })
        .await;
    match opened {
        Ok(()) => Ok(Some(engine.read(async |device| device.listen_port()).await)),
        Err(device::Error::Bind(error, _)) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(TunnelError::Engine { doing: "opening its socket", source: error }),
    }
}

async fn upsert(engine: &Engine, peers: &[PeerConfig]) -> Result<(), TunnelError> {
    for piece in peers.chunks(PIECE) {
        let added = engine.write(async |device| {
            for peer in piece {
                let key = x25519::PublicKey::from(peer.public_key);
                let known = device.modify_peer(&key, |existing| {
                    existing.set_preshared_key(Some(*peer.preshared_key.expose()));
                    existing.set_keepalive(Some(keepalive_seconds(peer.keepalive)));
                    existing.clear_allowed_ips();
                    existing.add_allowed_ips(networks(&peer.allowed_ips));
                    if peer.endpoint.is_some() {
                        existing.set_endpoint(peer.endpoint);
                    }
                });
                if !known.await {
                    device.add_peer(full(key, peer));
                }
            }
        });
        added.await.map_err(TunnelError::engine("configuring peers"))?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn set_preshared_keys(engine: &Engine, keys: &[(PublicKey, Secret<32>)]) -> Result<(), TunnelError> {
    for piece in keys.chunks(PIECE) {
        let changed = engine.write(async |device| {
            for (peer, key) in piece {
                let key = || Some(*key.expose());
                device.modify_peer(&x25519::PublicKey::from(*peer), |existing| existing.set_preshared_key(key())).await;
            }
        });
        changed.await.map_err(TunnelError::engine("changing keys"))?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn set_endpoint(engine: &Engine, peer: PublicKey, endpoint: SocketAddr) -> Result<(), TunnelError> {
    let key = x25519::PublicKey::from(peer);
    engine
        .write(async |device| device.modify_peer(&key, |existing| existing.set_endpoint(Some(endpoint))).await)
        .await
        .map_err(TunnelError::engine("changing an endpoint"))?;
    Ok(())
}

async fn remove(engine: &Engine, peers: &[PublicKey]) -> Result<(), TunnelError> {
    for piece in peers.chunks(PIECE) {
        let removed = engine.write(async |device| {
            for peer in piece {
                device.remove_peer(&x25519::PublicKey::from(*peer)).await;
            }
        });
        removed.await.map_err(TunnelError::engine("removing peers"))?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// gotatun starts a handshake only when the session is due for renewal, so for a moment every session is.
async fn rekey(engine: &Engine, peers: &[PublicKey]) -> Result<Rekey, TunnelError> {
    let due = TimerParams { rekey_after_time: Duration::ZERO..=Duration::ZERO, ..TimerParams::default() };
    handshakes(engine, peers, &due, HANDSHAKE).await?;
    Ok(Rekey::Started)
}

/// As [`rekey`]. An initiation that is under way, to where the peer was before, would only be repeated after five seconds; so repeating is due
/// at once, too.
async fn call(engine: &Engine, peers: &[PublicKey]) -> Result<(), TunnelError> {
    let at_once = Duration::ZERO..=Duration::ZERO;
    let due = TimerParams { rekey_after_time: at_once.clone(), rekey_timeout: at_once, ..TimerParams::default() };
    handshakes(engine, peers, &due, CALL).await
}

/// Begins a handshake with each peer, by timers that say that it is due, and gives them `patience` to complete.
///
/// Peers without an endpoint fail here and are the other side's to call; late ones are asked again by the engine, but only once they were asked
/// at all. That must not depend on how many there are: in one go tokio would let the task have some of the locks and keep the rest for later.
async fn handshakes(
    engine: &Engine,
    peers: &[PublicKey],
    due: &TimerParams,
    patience: Duration,
) -> Result<(), TunnelError> {
    let end = clock::timer() + patience;
    let mut pieces = peers.chunks(PIECE).peekable();
    while let Some(piece) = pieces.next() {
        set_timers(engine, piece, Some(due)).await?;
        let keys: Vec<_> = piece.iter().map(|peer| x25519::PublicKey::from(*peer)).collect();
        let all = unconstrained(join_all(keys.iter().map(|key| engine.force_handshake(key))));
        let soon = clock::timer() + BEGIN;
        let _ = timeout_at(if pieces.peek().is_some() { soon } else { soon.max(end) }, all).await;
        set_timers(engine, piece, None).await?;
    }
    Ok(())
}

async fn set_timers(engine: &Engine, peers: &[PublicKey], timers: Option<&TimerParams>) -> Result<(), TunnelError> {
    for piece in peers.chunks(PIECE) {
        let set = engine.write(async |device| {
            for peer in piece {
                let key = x25519::PublicKey::from(*peer);
                device.modify_peer(&key, |existing| existing.dangerously_set_timer_params(timers.cloned())).await;
            }
        });
        set.await.map_err(TunnelError::engine("renewing sessions"))?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// gotatun hands out the preshared keys with the figures; they are wiped here.
///
/// It also counts a session that it has only answered, which anybody with the peer's key pair but another preshared key can
/// bring about. Until something else than initiations was received (`heard`), that is no session.
async fn stats(engine: &Engine, heard: &mut HashSet<PublicKey>) -> Vec<PeerStats> {
    let mut peers = engine.peers().await;
    let mut stats = Vec::with_capacity(peers.len());
    for entry in &mut peers {
        entry.peer.preshared_key.zeroize();
        let public_key = entry.peer.public_key.to_bytes();
        if entry.stats.rx_bytes % INITIATION != 0 {
            heard.insert(public_key);
        }
        stats.push(PeerStats {
            public_key,
            endpoint: entry.peer.endpoint,
            last_handshake: entry.stats.last_handshake.filter(|_| heard.contains(&public_key)),
            received: entry.stats.rx_bytes.try_into().unwrap_or(u64::MAX),
            sent: entry.stats.tx_bytes.try_into().unwrap_or(u64::MAX),
        });
    }
    stats
}

fn full(key: x25519::PublicKey, peer: &PeerConfig) -> Peer {
    let mut new =
        Peer::new(key).with_preshared_key(*peer.preshared_key.expose()).with_allowed_ips(networks(&peer.allowed_ips));
    new.endpoint = peer.endpoint;
    new.keepalive = Some(keepalive_seconds(peer.keepalive));
    new
}

/// Prefixes of `IpNet` are valid; were one not, leaving it out would be the safe side.
fn networks(ips: &[IpNet]) -> impl Iterator<Item = IpNetwork> {
    ips.iter().filter_map(|ip| IpNetwork::new(ip.network(), ip.prefix_len()).ok())
}
