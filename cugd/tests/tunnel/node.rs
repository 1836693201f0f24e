//! A terminal: carries out commands from its standard input, one line each, and answers with one line.

use std::{
    io::{BufRead, Write},
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use cug_proto::secret::Secret;
use cugd::tunnel::{Backend, BackendChoice, InterfaceConfig, InterfaceName, PeerConfig, Tunnel, sweep};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Set in the environment of a node.
pub const MARK: &str = "CUG_TEST_NODE";
/// What an answer begins with; the test framework writes to the same output.
pub const ANSWER: char = '@';

type Outcome = Result<String, Box<dyn std::error::Error>>;

/// Byte `index` of the secret numbered `seed`; both sides compute it, so no secret travels or is parsed.
fn byte_of(seed: u8, index: usize) -> u8 {
    (u32::from(seed) + 1).wrapping_mul(2_654_435_761).rotate_left(index as u32).to_le_bytes()[index % 4] ^ (index as u8)
}

/// All bytes, for the side that looks for them.
pub fn bytes_of(seed: u8) -> [u8; 32] {
    std::array::from_fn(|index| byte_of(seed, index))
}

fn secret(seed: u8) -> Secret<32> {
    Secret::fill(|bytes| bytes.iter_mut().enumerate().for_each(|(index, byte)| *byte = byte_of(seed, index)))
}

#[derive(Default)]
struct Node {
    tunnel: Option<Tunnel>,
    stream: Option<TcpStream>,
    sockets: Vec<UdpSocket>,
}

pub fn run() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut node = Node::default();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match runtime.block_on(node.serve(&words)) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("error {error}"),
        };
        // The test framework may have left its line open.
        writeln!(std::io::stderr().lock(), "{ANSWER}{answer}").unwrap();
    }
}

impl Node {
    async fn serve(&mut self, words: &[&str]) -> Outcome {
        match *words {
            ["up", seed, ports, addresses] => self.up(seed, ports, addresses).await,
            ["cancelled-up", seed, ports, addresses] => {
                let backend = backend().await?;
                let attempt = backend.up(config(seed, ports, addresses)?);
                // The look comes first each time, so that it sees the interface before the last of its steps is done.
                tokio::select! {
                    biased;
                    () = any_tunnel() => Ok(String::new()),
                    made = attempt => Err(format!("was not cancelled: {}", made.is_ok()).into()),
                }
            }
            ["select", "auto"] => Ok(format!("{:?}", Backend::select(BackendChoice::Auto).await?)),
            ["select", "kernel"] => Ok(format!("{:?}", Backend::select(BackendChoice::Kernel).await?)),
            ["sweep"] => Ok(format!("{:?}", sweep().await?)),
            ["occupy", ref ports @ ..] => {
                for port in ports {
                    self.sockets.push(UdpSocket::bind(("0.0.0.0", port.parse()?))?);
                }
                Ok(String::new())
            }
            ["serve", address] => {
                let listener = TcpListener::bind(address).await?;
                tokio::spawn(echo(listener));
                Ok(String::new())
            }
            ["connect", address] => {
                self.stream = Some(timeout(Duration::from_secs(10), TcpStream::connect(address)).await??);
                Ok(String::new())
            }
            ["exchange"] => self.exchange().await,
            ["bulk", size] => self.bulk(size.parse()?).await,
            ["lost"] => {
                let tunnel = self.tunnel.as_ref().ok_or("no tunnel")?;
                timeout(Duration::from_secs(10), tunnel.lost()).await?;
                Ok(String::new())
            }
            _ => self.on_tunnel(words).await,
        }
    }

    async fn up(&mut self, seed: &str, ports: &str, addresses: &str) -> Outcome {
        let backend = backend().await?;
        let config = config(seed, ports, addresses)?;
        let start = Instant::now();
        let tunnel = backend.up(config).await?;
        let took = start.elapsed().as_micros();
        let port = tunnel.interface().port;
        self.tunnel = Some(tunnel);
        Ok(format!("{port} {took}"))
    }

    async fn exchange(&mut self) -> Outcome {
        let stream = self.stream.as_mut().ok_or("not connected")?;
        let mut reply = [0; 16];
        stream.write_all(b"sixteen bytes ok").await?;
        timeout(Duration::from_secs(10), stream.read_exact(&mut reply)).await??;
        Ok(String::new())
    }

    /// So many bytes there and back at once, every one of them looked at.
    async fn bulk(&mut self, size: usize) -> Outcome {
        let (mut read, mut write) = self.stream.as_mut().ok_or("not connected")?.split();
        // No part of the stream looks like another, nor like itself some bytes later.
        let byte = |at: usize| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
        let sent: Vec<u8> = (0..size).map(byte).collect();
        let mut received = vec![0; size];
        let both = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut received)) };
        timeout(Duration::from_secs(60), both).await??;
        match sent.iter().zip(&received).position(|(sent, received)| sent != received) {
            None => Ok(String::new()),
            Some(at) => Err(format!("byte {at} is another one").into()),
        }
    }

    async fn on_tunnel(&mut self, words: &[&str]) -> Outcome {
        let tunnel = self.tunnel.as_ref().ok_or("no tunnel")?;
        let start = Instant::now();
        match *words {
            ["peer", key, seed, endpoint, ips] => tunnel.upsert_peers(vec![peer(key, seed, endpoint, ips)?]).await?,
            ["psk", key, seed] => tunnel.set_preshared_keys(vec![(unhex(key)?, secret(seed.parse()?))]).await?,
            ["endpoint", key, address] => tunnel.set_endpoint(unhex(key)?, address.parse()?).await?,
            ["remove", key] => tunnel.remove_peers(vec![unhex(key)?]).await?,
            ["rekey", key] => _ = tunnel.rekey(vec![unhex(key)?]).await?,
            ["crowd", count] => tunnel.upsert_peers(crowd(count.parse()?)).await?,
            ["crowd-rekey", count] => {
                _ = tunnel.rekey(crowd(count.parse()?).iter().map(|p| p.public_key).collect()).await?;
            }
            ["crowd-remove", count] => {
                tunnel.remove_peers(crowd(count.parse()?).iter().map(|p| p.public_key).collect()).await?;
            }
            ["down"] => tunnel.down().await?,
            ["stats"] => return stats(tunnel).await,
            _ => return Err(format!("what is {words:?}?").into()),
        }
        Ok(start.elapsed().as_micros().to_string())
    }
}

/// Waits for an interface of ours to exist.
async fn any_tunnel() {
    while !std::fs::read_to_string("/proc/self/net/dev").unwrap().contains(InterfaceName::PREFIX) {
        tokio::task::yield_now().await;
    }
}

async fn backend() -> Result<Backend, cugd::tunnel::TunnelError> {
    let kernel = std::env::var("CUG_TEST_BACKEND").is_ok_and(|backend| backend == "kernel");
    Backend::select(if kernel { BackendChoice::Kernel } else { BackendChoice::Embedded }).await
}

fn config(seed: &str, ports: &str, addresses: &str) -> Result<InterfaceConfig, Box<dyn std::error::Error>> {
    let (first, last) = ports.split_once('-').ok_or("no range")?;
    let seed: u8 = seed.parse()?;
    Ok(InterfaceConfig {
        name: InterfaceName::from_hash(&[seed; 32]),
        private_key: Arc::new(secret(seed)),
        ports: first.parse()?..=last.parse()?,
        addresses: addresses.split(',').map(str::parse).collect::<Result<_, _>>()?,
        routes: vec!["192.168.77.0/24".parse()?],
        mtu: 1420,
        routing: cugd::tunnel::Routing::Everybody,
    })
}

fn peer(key: &str, seed: &str, endpoint: &str, ips: &str) -> Result<PeerConfig, Box<dyn std::error::Error>> {
    Ok(PeerConfig {
        public_key: unhex(key)?,
        preshared_key: secret(seed.parse()?),
        endpoint: (endpoint != "-").then(|| endpoint.parse::<SocketAddr>()).transpose()?,
        allowed_ips: ips.split(',').map(str::parse).collect::<Result<_, _>>()?,
        keepalive: None,
    })
}

/// Members that answer nothing, all with addresses of their own.
fn crowd(count: u16) -> Vec<PeerConfig> {
    (0..count)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            let mut public_key = [9; 32];
            public_key[..2].copy_from_slice(&[high, low]);
            PeerConfig {
                public_key,
                preshared_key: secret(3),
                endpoint: Some(SocketAddr::from(([127, 0, 0, 1], 9))),
                allowed_ips: vec![format!("100.96.{}.{low}/32", 8 + high).parse().unwrap()],
                keepalive: None,
            }
        })
        .collect()
}

async fn stats(tunnel: &Tunnel) -> Outcome {
    let stats = tunnel.stats(SystemTime::now()).await?;
    let lines = stats.iter().map(|peer| {
        let endpoint = peer.endpoint.map_or("-".to_owned(), |endpoint| endpoint.to_string());
        let age = peer.last_handshake.map_or(-1, |age| i64::try_from(age.as_micros()).unwrap());
        format!("{} {endpoint} {age} {} {}", hex(&peer.public_key), peer.received, peer.sent)
    });
    Ok(lines.collect::<Vec<_>>().join(";"))
}

async fn echo(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let (mut read, mut write) = stream.into_split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<[u8; 32], Box<dyn std::error::Error>> {
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2).ok_or("short key")?, 16)?;
    }
    Ok(bytes)
}
