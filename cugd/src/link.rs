//! The session channel: TLS to a management server that the card vouches for, then frames in both directions.

use std::{collections::HashMap, future::Future, io, sync::Arc, time::Duration};

use cug_proto::{
    PROTOCOL_VERSION, ProtocolError,
    frame::{self, HEADER_LEN, MAX_SESSION},
    login::EXPORTER_LABEL,
    message::{Attach, ClearReason, ClientMessage, EndReason, ServerMessage},
    session::ChannelKeys,
    trust,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::{interval_at, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use zeroize::Zeroizing;

use crate::{
    clock,
    core::{Attachment, ChannelEvent, Event, LinkId},
};

/// Session channels. Calls return at once; what happens comes as events, the last of each channel is `Closed`.
pub trait Links {
    /// Attaches a channel.
    fn connect(&mut self, link: LinkId, attachment: Attachment);
    /// Sends, after what was sent before.
    fn send(&mut self, link: LinkId, message: ClientMessage);
    /// Sends `Clear` as soon as the channel is attached; it closes with the server's answer.
    fn farewell(&mut self, link: LinkId, reason: ClearReason) {
        self.send(link, ClientMessage::Clear(reason));
    }
    /// Cuts the channel without a word; no event follows.
    fn disconnect(&mut self, link: LinkId);
}

/// Session channels over TLS.
pub struct TlsLinks {
    events: mpsc::Sender<Event>,
    limit: Duration,
    open: HashMap<LinkId, Handle>,
}

struct Handle {
    commands: mpsc::UnboundedSender<ClientMessage>,
    task: JoinHandle<()>,
}

impl TlsLinks {
    /// Reports to `events`; `limit` bounds each wait for the server.
    pub fn new(events: mpsc::Sender<Event>, limit: Duration) -> Self {
        Self { events, limit, open: HashMap::new() }
    }
}

impl Links for TlsLinks {
    fn connect(&mut self, link: LinkId, attachment: Attachment) {
        self.open.retain(|_, handle| !handle.task.is_finished());
        let (commands, queue) = mpsc::unbounded_channel();
        let teller = Teller { link, events: self.events.clone() };
        let limit = self.limit;
        let task = tokio::spawn(async move {
            let cause = match converse(attachment, queue, &teller, limit).await {
                Ok(()) => "closed".to_owned(),
                Err(error) => error.to_string(),
            };
            teller.tell(ChannelEvent::Closed { cause, jitter: clock::jitter() }).await;
        });
        self.open.insert(link, Handle { commands, task });
    }

    fn send(&mut self, link: LinkId, message: ClientMessage) {
        if let Some(handle) = self.open.get(&link) {
            // A channel that has just closed reports it by itself.
            let _closed = handle.commands.send(message);
        }
    }

    fn disconnect(&mut self, link: LinkId) {
        if let Some(handle) = self.open.remove(&link) {
            handle.task.abort();
        }
    }
}

/// Why a channel closed, for the log.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("the server does not answer")]
    Silent,
    #[error("the server has no time")]
    Unavailable,
    #[error("no management server can be reached: {0}")]
    Unreachable(String),
}

/// Reports for one channel.
struct Teller {
    link: LinkId,
    events: mpsc::Sender<Event>,
}

impl Teller {
    async fn tell(&self, event: ChannelEvent) {
        let _daemon_stops = self.events.send(Event::Channel { link: self.link, event }).await;
    }
}

/// A channel on which both sides have proved who they are.
struct Channel {
    stream: TlsStream<TcpStream>,
    keys: ChannelKeys,
    server: String,
    lease: Duration,
    heartbeat: Duration,
}

/// A whole channel: attach, then read and write until one of them is over.
async fn converse(
    attachment: Attachment,
    queue: mpsc::UnboundedReceiver<ClientMessage>,
    teller: &Teller,
    limit: Duration,
) -> Result<(), LinkError> {
    let Channel { stream, keys, server, lease, heartbeat } = match attach_somewhere(attachment, limit).await? {
        Ok(channel) => channel,
        Err(reason) => {
            teller.tell(ChannelEvent::Ended(reason)).await;
            return Ok(());
        }
    };
    teller.tell(ChannelEvent::Attached { server, lease }).await;
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        result = read(reader, &keys, teller, heartbeat + limit) => result,
        result = write(writer, queue, heartbeat, limit) => result,
    }
}

/// The servers in turn; each has `limit` for everything. The session secret is dropped with the attachment at the end.
async fn attach_somewhere(attachment: Attachment, limit: Duration) -> Result<Result<Channel, EndReason>, LinkError> {
    let mut causes = Vec::new();
    for server in &attachment.servers {
        match within(limit, attach(server, &attachment)).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => causes.push(format!("{server}: {error}")),
        }
    }
    Err(LinkError::Unreachable(causes.join("; ")))
}

async fn attach(server: &str, attachment: &Attachment) -> Result<Result<Channel, EndReason>, LinkError> {
    let tcp = TcpStream::connect(server).await?;
    tcp.set_nodelay(true)?;
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
            Ok(Ok(Channel { stream, keys, server: server.to_owned(), lease, heartbeat }))
        }
        ServerMessage::End(reason) => Ok(Err(reason)),
        ServerMessage::Unavailable(_) => Err(LinkError::Unavailable),
        _ => Err(ProtocolError::OutOfOrder.into()),
    }
}

/// Passes on what the server says, until it says that this is the end. A server that is silent for `silence` is gone.
async fn read(
    mut reader: impl AsyncRead + Unpin,
    keys: &ChannelKeys,
    teller: &Teller,
    silence: Duration,
) -> Result<(), LinkError> {
    loop {
        let body = within(silence, read_frame(&mut reader)).await?;
        let event = match frame::decode(&body)? {
            ServerMessage::Peers(change) => ChannelEvent::Peers(change),
            ServerMessage::Synced => ChannelEvent::Synced,
            ServerMessage::Group(sealed) => ChannelEvent::Group(keys.open_group(&sealed)?),
            ServerMessage::Activate(order) => ChannelEvent::Activate(order),
            ServerMessage::Left(group) => ChannelEvent::Left(group),
            ServerMessage::Alive(mark) => ChannelEvent::Alive(mark),
            ServerMessage::End(reason) => {
                teller.tell(ChannelEvent::Ended(reason)).await;
                return Ok(());
            }
            ServerMessage::Cleared => return Ok(()),
            ServerMessage::Unavailable(_) => return Err(LinkError::Unavailable),
            ServerMessage::Challenge(_)
            | ServerMessage::Rejected
            | ServerMessage::Outcome(_)
            | ServerMessage::Registered
            | ServerMessage::Attached(_)
            | ServerMessage::EnrolOffer(_)
            | ServerMessage::EnrolReady(_)
            | ServerMessage::EnrolChallenge(_)
            | ServerMessage::EnrolResult(_) => return Err(ProtocolError::OutOfOrder.into()),
        };
        teller.tell(event).await;
    }
}

/// Heartbeats of this module are numbered from here, those of the core from one.
const OWN_MARKS: u64 = 1 << 63;

/// Sends what is to be sent, and heartbeats.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<ClientMessage>,
    heartbeat: Duration,
    limit: Duration,
) -> Result<(), LinkError> {
    let mut beats = interval_at(clock::timer() + heartbeat, heartbeat);
    let mut mark = OWN_MARKS;
    loop {
        let message = tokio::select! {
            message = queue.recv() => message.ok_or(LinkError::Silent)?,
            _ = beats.tick() => {
                mark += 1;
                ClientMessage::Heartbeat(mark)
            }
        };
        let frame = frame::encode(&message, MAX_SESSION)?;
        within(limit, async {
            writer.write_all(&frame).await?;
            Ok(writer.flush().await?)
        })
        .await?;
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> Result<Zeroizing<Vec<u8>>, LinkError> {
    let mut header = [0; HEADER_LEN];
    reader.read_exact(&mut header).await?;
    let mut body = Zeroizing::new(vec![0; frame::body_len(header, MAX_SESSION)?]);
    reader.read_exact(&mut body).await?;
    Ok(body)
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    timeout(limit, work).await.unwrap_or(Err(LinkError::Silent))
}
