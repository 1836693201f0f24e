//! The session channel: TLS to a management server that the card vouches for, then frames in both directions.

mod dial;

use std::{collections::HashMap, future::Future, io, net::IpAddr, time::Duration};

use cug_proto::{
    ProtocolError,
    frame::{self, HEADER_LEN, MAX_SESSION},
    message::{ClearReason, ClientMessage, ServerMessage},
    session::ChannelKeys,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, interval_at, sleep_until, timeout},
};
use tokio_rustls::client::TlsStream;
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
    /// Finds out whether an attached channel still works: it closes when the server does not answer within [`CHECK`].
    fn check(&mut self, link: LinkId);
    /// Cuts the channel without a word; no event follows.
    fn disconnect(&mut self, link: LinkId);
}

/// How long the server may take to answer when the network has changed and the connection is in doubt.
pub const CHECK: Duration = Duration::from_secs(2);

/// Session channels over TLS.
pub struct TlsLinks {
    events: mpsc::Sender<Event>,
    limit: Duration,
    open: HashMap<LinkId, Handle>,
}

struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
}

enum Command {
    Say(ClientMessage),
    Check,
}

impl TlsLinks {
    /// Reports to `events`; `limit` bounds each wait for the server.
    pub fn new(events: mpsc::Sender<Event>, limit: Duration) -> Self {
        Self { events, limit, open: HashMap::new() }
    }

    fn command(&self, link: LinkId, command: Command) {
        if let Some(handle) = self.open.get(&link) {
            // A channel that has just closed reports it by itself.
            let _closed = handle.commands.send(command);
        }
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
        self.command(link, Command::Say(message));
    }

    fn check(&mut self, link: LinkId) {
        self.command(link, Command::Check);
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
    Io(#[source] io::Error),
    #[error("the server closed the connection")]
    Closed,
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

/// The TLS library has a lecture of its own for a connection that just ends, and people read this in `cugctl status`.
impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
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
    /// This terminal's address, here
    local: Option<IpAddr>,
    /// and at the server.
    seen: Option<IpAddr>,
}

/// A whole channel: attach, then read and write until one of them is over.
async fn converse(
    attachment: Attachment,
    queue: mpsc::UnboundedReceiver<Command>,
    teller: &Teller,
    limit: Duration,
) -> Result<(), LinkError> {
    let Channel { stream, keys, server, lease, heartbeat, local, seen } = match dial::attach(attachment, limit).await? {
        Ok(channel) => channel,
        Err(reason) => {
            teller.tell(ChannelEvent::Ended(reason)).await;
            return Ok(());
        }
    };
    teller.tell(ChannelEvent::Attached { server, lease, local, seen }).await;
    let (reader, writer) = tokio::io::split(stream);
    let (answered, answers) = watch::channel(OWN_MARKS);
    tokio::select! {
        result = read(reader, &keys, teller, &answered, heartbeat + limit) => result,
        result = write(writer, queue, answers, heartbeat, limit) => result,
    }
}

/// Passes on what the server says, until it says that this is the end. A server that is silent for `silence` is gone.
async fn read(
    mut reader: impl AsyncRead + Unpin,
    keys: &ChannelKeys,
    teller: &Teller,
    answered: &watch::Sender<u64>,
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
            ServerMessage::Alive(mark) => {
                answered.send_if_modified(|last| std::mem::replace(last, mark.max(*last)) != *last);
                ChannelEvent::Alive(mark)
            }
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

/// Sends what is to be sent, and heartbeats; each of them must be answered in time.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Command>,
    mut answers: watch::Receiver<u64>,
    heartbeat: Duration,
    limit: Duration,
) -> Result<(), LinkError> {
    let mut beats = interval_at(clock::timer() + heartbeat, heartbeat);
    let mut mark = OWN_MARKS;
    // The oldest heartbeat without an answer, and until when it must come.
    let mut waiting: Option<(u64, Instant)> = None;
    loop {
        let patience = tokio::select! {
            command = queue.recv() => match command.ok_or(LinkError::Silent)? {
                Command::Say(message) => {
                    say(&mut writer, &message, limit).await?;
                    continue;
                }
                Command::Check => CHECK.min(limit),
            },
            _ = beats.tick() => limit,
            answer = answered(&mut answers, waiting) => {
                answer?;
                waiting = None;
                continue;
            }
            () = overdue(waiting) => return Err(LinkError::Silent),
        };
        mark += 1;
        let by = clock::timer() + patience;
        waiting = Some(waiting.map_or((mark, by), |(first, earlier)| (first, earlier.min(by))));
        say(&mut writer, &ClientMessage::Heartbeat(mark), limit).await?;
    }
}

async fn answered(answers: &mut watch::Receiver<u64>, waiting: Option<(u64, Instant)>) -> Result<(), LinkError> {
    match waiting {
        Some((mark, _)) => answers.wait_for(|answer| mark <= *answer).await.map(drop).map_err(|_| LinkError::Silent),
        None => std::future::pending().await,
    }
}

async fn overdue(waiting: Option<(u64, Instant)>) {
    match waiting {
        Some((_, by)) => sleep_until(by).await,
        None => std::future::pending().await,
    }
}

async fn say(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &ClientMessage,
    limit: Duration,
) -> Result<(), LinkError> {
    let frame = frame::encode(message, MAX_SESSION)?;
    within(limit, async {
        writer.write_all(&frame).await?;
        Ok(writer.flush().await?)
    })
    .await
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
