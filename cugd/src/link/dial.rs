//! Which server, at which of its addresses.
//!
//! The servers are tried in the order of the attachment, each at all addresses that its name has at this moment. A refusal leads to the next one
//! at once; an address that does not answer at all holds the others up for a moment only.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cug_proto::{
    PROTOCOL_VERSION, ProtocolError,
    frame::{self, MAX_SESSION},
    login::EXPORTER_LABEL,
    message::{Attach, ClientMessage, EndReason, ServerMessage},
    session::ChannelKeys,
    trust,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, lookup_host},
};
use tokio_rustls::TlsConnector;

use super::{Channel, LinkError, read_frame, within};
use crate::core::Attachment;

/// How long an address may take to answer at all while there are others to try.
const KNOCK: Duration = Duration::from_millis(1500);

/// Most addresses of one server.
const MOST: usize = 8;

/// The first server that takes the session; `limit` bounds each wait. The session secret is dropped with the attachment at the end.
pub(super) async fn attach(attachment: Attachment, limit: Duration) -> Result<Result<Channel, EndReason>, LinkError> {
    let mut causes = Vec::new();
    let mut servers = attachment.servers.iter().peekable();
    while let Some(server) = servers.next() {
        let addresses = match within(limit, resolve(server)).await {
            Ok(addresses) => addresses,
            Err(error) => {
                causes.push(format!("{server}: {error}"));
                continue;
            }
        };
        for (left, address) in (0..addresses.len()).rev().zip(addresses) {
            let last = left == 0 && servers.peek().is_none();
            let knock = if last { limit } else { KNOCK.min(limit) };
            let outcome = match within(knock, connect(address)).await {
                Ok(tcp) => within(limit, introduce(server, tcp, &attachment)).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(outcome) => return Ok(outcome),
                Err(error) => causes.push(format!("{server} at {address}: {error}")),
            }
        }
    }
    Err(LinkError::Unreachable(causes.join("; ")))
}

/// Asked anew for each attempt: a server may have moved.
async fn resolve(server: &str) -> Result<Vec<SocketAddr>, LinkError> {
    Ok(lookup_host(server).await?.take(MOST).collect())
}

async fn connect(address: SocketAddr) -> Result<TcpStream, LinkError> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// TLS, and the proof of both sides.
async fn introduce(
    server: &str,
    tcp: TcpStream,
    attachment: &Attachment,
) -> Result<Result<Channel, EndReason>, LinkError> {
    let local = tcp.local_addr().ok().map(|address| address.ip().to_canonical());
    let tls = TlsConnector::from(Arc::new(trust::client_config(attachment.ca_pin)?));
    let mut stream = tls.connect(trust::server_name(), tcp).await?;
    let mut exporter = [0; 32];
    stream.get_ref().1.export_keying_material(&mut exporter, EXPORTER_LABEL, None)?;
    let keys = ChannelKeys::new(attachment.session, &attachment.secret, &exporter);

    let known = attachment.known.clone();
    let attach = Attach { version: PROTOCOL_VERSION, session: attachment.session, proof: keys.terminal_proof(), known };
    stream.write_all(&frame::encode(&ClientMessage::Attach(attach), MAX_SESSION)?).await?;
    stream.flush().await?;
    let body = read_frame(&mut stream).await?;
    match frame::decode(&body)? {
        ServerMessage::Attached(attached) => {
            keys.verify_server(&attached.proof)?;
            let lease = Duration::from_secs(u64::from(attached.lease));
            let heartbeat = Duration::from_secs(u64::from(attached.heartbeat.clamp(1, 3600)));
            let seen = attached.seen_at.map(|address| address.to_canonical());
            Ok(Ok(Channel { stream, keys, server: server.to_owned(), lease, heartbeat, local, seen }))
        }
        ServerMessage::End(reason) => Ok(Err(reason)),
        ServerMessage::Unavailable(_) => Err(LinkError::Unavailable),
        _ => Err(ProtocolError::OutOfOrder.into()),
    }
}
