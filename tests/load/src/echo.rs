//! The floor of what attached terminals cost: as many TLS connections, on which as many bytes come as often and are sent back, and nothing else.
//!
//! The server is a process of its own, with one event loop: rustls on sockets, without a protocol, a database or members.

use crate::host::{cpu_of, end_with_us};
use anyhow::{Context, ensure};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// As long as a heartbeat with its header.
const BYTES: usize = 12;

/// Handshakes at a time.
const AT_ONCE: usize = 64;

const NAME: &str = "localhost";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Serves until it is killed. Says first where, and with which certificate.
///
/// # Errors
/// When it cannot listen.
pub fn serve() -> anyhow::Result<()> {
    let own = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = rustls::ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let certificate: String = own.cert.der().iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{} {certificate}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            // Whoever goes, goes.
            tokio::spawn(async move { echo(stream, acceptor).await.ok() });
        }
    })
}

async fn echo(stream: TcpStream, acceptor: TlsAcceptor) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let mut bytes = [0; BYTES];
    loop {
        stream.read_exact(&mut bytes).await?;
        stream.write_all(&bytes).await?;
        stream.flush().await?;
    }
}

/// The server's process, killed when it is dropped.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// [`idle`] in a process of its own: a process may have no more files than there are terminals already. Blocks.
///
/// # Errors
/// As [`idle`].
pub fn idle_apart(count: usize, period: Duration, measured: Duration) -> anyhow::Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--echo-idle", &count.to_string()]);
    command.args([period, measured].map(|time| time.as_millis().to_string()));
    let output = end_with_us(&mut command).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Share of a processor that the server takes with `count` connections, on each of which something comes every `period`.
///
/// # Errors
/// When a connection cannot be made, or breaks.
pub async fn idle(count: usize, period: Duration, measured: Duration) -> anyhow::Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--echo").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut echo = Echo(end_with_us(&mut command).spawn()?);
    let mut line = String::new();
    BufReader::new(echo.0.stdout.take().context("no output")?).read_line(&mut line)?;
    let (address, certificate) = line.trim().split_once(' ').context("it does not listen")?;
    let address: SocketAddr = address.parse()?;
    let mut streams = connect(count, address, unhex(certificate)?).await?;
    let steps = 100.min(count.max(1));
    let mut tick = tokio::time::interval(period / u32::try_from(steps)?);
    let portion = count.div_ceil(steps).max(1);
    // The first round is not measured: everything is touched once.
    let (mut begin, mut before, mut rounds) = (Instant::now(), Duration::ZERO, 0);
    while rounds < 2 || begin.elapsed() < measured {
        for some in streams.chunks_mut(portion) {
            tick.tick().await;
            for stream in some.iter_mut() {
                stream.write_all(&[0; BYTES]).await?;
                stream.flush().await?;
            }
            for stream in some {
                stream.read_exact(&mut [0; BYTES]).await?;
            }
        }
        rounds += 1;
        if rounds == 1 {
            (begin, before) = (Instant::now(), cpu_of(&echo.0)?);
        }
    }
    Ok((cpu_of(&echo.0)? - before).as_secs_f64() / begin.elapsed().as_secs_f64())
}

async fn connect(count: usize, address: SocketAddr, certificate: Vec<u8>) -> anyhow::Result<Vec<TlsStream<TcpStream>>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(certificate))?;
    let config = rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let mut coming = tokio::task::JoinSet::new();
    let mut streams = Vec::with_capacity(count);
    for n in 0..count {
        let connector = connector.clone();
        coming.spawn(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connector.connect(ServerName::try_from(NAME).map_err(std::io::Error::other)?, stream).await
        });
        if coming.len() >= AT_ONCE || n + 1 == count {
            streams.extend(coming.join_next().await.transpose()?.transpose()?);
        }
    }
    while let Some(stream) = coming.join_next().await {
        streams.push(stream??);
    }
    Ok(streams)
}

fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}
