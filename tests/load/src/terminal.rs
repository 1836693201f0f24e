//! The terminal's side of the protocol, as light as it can be: thousands live in one process.

use crate::cards::Card;
use anyhow::{Context, bail};
use cug_proto::id::{GroupId, UserId};
use cug_proto::login::{EXPORTER_LABEL, LoginKeys, Transcript, ack_mac};
use cug_proto::message::{
    Ack, Attach, ClearReason, ClientMessage, Credentials, Endpoints, Grant, GroupPort, Hello, KeyAck, Login, Outcome,
    Purpose, ServerMessage,
};
use cug_proto::secret::{Secret, SecretBytes};
use cug_proto::session::ChannelKeys;
use cug_proto::trust::{self, CaPin, ServerObject};
use cug_proto::{PROTOCOL_VERSION, frame};
use getrandom::SysRng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same password for all: who is measured is the server.
pub const PASSWORD: &str = "korrekt-7531";

/// What all terminals know of the server.
pub struct Organisation {
    address: SocketAddr,
    tls: TlsConnector,
    object: ServerObject,
}

impl Organisation {
    /// From the server object of any card.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(address: SocketAddr, object: &[u8]) -> anyhow::Result<Self> {
        let object = ServerObject::parse(object)?;
        let config = Arc::new(trust::client_config(*object.ca_pin())?);
        Ok(Self { address, tls: TlsConnector::from(config), object })
    }

    /// A connection up to the end of the TLS handshake, and nothing on it.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn shake_hands(&self) -> anyhow::Result<()> {
        Wire::open(self).await.map(drop)
    }

    /// Whom its cards trust.
    pub fn ca_pin(&self) -> CaPin {
        *self.object.ca_pin()
    }
}

/// A user with a card.
#[derive(Clone)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// The card.
    pub card: Card,
}

/// A TLS connection that carries frames.
pub struct Wire {
    reader: ReadHalf<TlsStream<TcpStream>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
    exporter: [u8; 32],
}

impl Wire {
    async fn open(to: &Organisation) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(to.address).await?;
        tcp.set_nodelay(true)?;
        let stream = to.tls.connect(trust::server_name(), tcp).await?;
        let exporter = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        let (reader, writer) = tokio::io::split(stream);
        Ok(Self { reader, writer, exporter })
    }

    async fn send(&mut self, message: &ClientMessage) -> anyhow::Result<Vec<u8>> {
        send(&mut self.writer, message).await
    }

    async fn receive(&mut self) -> anyhow::Result<(ServerMessage, Vec<u8>)> {
        tokio::time::timeout(PATIENCE, receive(&mut self.reader)).await.context("the server says nothing")?
    }
}

async fn send(writer: &mut WriteHalf<TlsStream<TcpStream>>, message: &ClientMessage) -> anyhow::Result<Vec<u8>> {
    let frame = frame::encode(message, frame::MAX_SESSION)?;
    writer.write_all(&frame).await?;
    writer.flush().await?;
    Ok(frame.get(frame::HEADER_LEN..).unwrap_or_default().to_vec())
}

async fn receive(reader: &mut ReadHalf<TlsStream<TcpStream>>) -> anyhow::Result<(ServerMessage, Vec<u8>)> {
    let mut header = [0; frame::HEADER_LEN];
    reader.read_exact(&mut header).await?;
    let mut body = vec![0; frame::body_len(header, frame::MAX_SESSION)?];
    reader.read_exact(&mut body).await?;
    Ok((frame::decode(&body)?, body))
}

impl Member {
    /// A login up to its registration.
    ///
    /// # Errors
    /// When it is not granted.
    pub async fn log_in(&self, to: &Organisation) -> anyhow::Result<Grant> {
        let mut wire = Wire::open(to).await?;
        let hello = Hello { version: PROTOCOL_VERSION, user: self.user.clone(), card: self.card.fingerprint };
        let hello = wire.send(&ClientMessage::Hello(hello)).await?;
        let (ServerMessage::Challenge(challenge), body) = wire.receive().await? else { bail!("no challenge") };
        let card = self.card.clone();
        let opened = tokio::task::spawn_blocking(move || card.open(&challenge.ciphertext)).await??;
        let credentials = Credentials {
            user: self.user.clone(),
            password: SecretBytes::copy_from(PASSWORD.as_bytes()).context("a password that is too long")?,
            purpose: Purpose::Open,
            wg_public_key: random()?,
            host_name: "software".parse()?,
            addresses: vec![[192, 0, 2, 7].into()],
            outcome_secret: Secret::random(&mut rng()),
            new_password: None,
        };
        let envelope = to.object.envelope_key().seal(&credentials, &mut rng())?;
        let keys = LoginKeys::new(&opened, &wire.exporter);
        let bound = Transcript::new(&hello, &body).with_envelope(&envelope);
        let proof = keys.proof(&bound);
        wire.send(&ClientMessage::Login(Login { envelope, proof })).await?;
        let sealed = match wire.receive().await?.0 {
            ServerMessage::Outcome(sealed) => sealed.sealed,
            ServerMessage::Unavailable(why) => bail!("{}: {why:?}", self.user),
            _ => bail!("{}: no outcome", self.user),
        };
        let Outcome::Grant(grant) = keys.open_outcome(&bound, &credentials.outcome_binding(), &sealed)? else {
            bail!("{}: not granted", self.user)
        };
        let mac = ack_mac(&grant, &bound, &sealed);
        wire.send(&ClientMessage::Ack(Ack { mac })).await?;
        let (ServerMessage::Registered, _) = wire.receive().await? else { bail!("not registered") };
        Ok(grant)
    }

    /// A login, and the session channel up to `Synced`. The member is not announced yet.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn sit_down(&self, to: &Organisation) -> anyhow::Result<Terminal> {
        let grant = self.log_in(to).await?;
        Terminal::attach(self.user.clone(), to, grant).await
    }
}

/// A terminal with a session channel: the half that listens.
pub struct Terminal {
    /// Who sits there.
    pub user: UserId,
    /// The half that speaks.
    pub speaker: Speaker,
    reader: ReadHalf<TlsStream<TcpStream>>,
    keys: ChannelKeys,
}

/// The half of a terminal that speaks.
#[derive(Clone)]
pub struct Speaker {
    writer: Arc<Mutex<WriteHalf<TlsStream<TcpStream>>>>,
    groups: Arc<[GroupId]>,
}

impl Speaker {
    async fn say(&self, message: &ClientMessage) -> anyhow::Result<()> {
        send(&mut *self.writer.lock().await, message).await.map(drop)
    }

    /// Tells the server where this terminal can be reached.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn announce(&self, port: u16) -> anyhow::Result<()> {
        let ports = self.groups.iter().map(|group| GroupPort { group: *group, port }).collect();
        self.say(&ClientMessage::Endpoints(Endpoints { ports, addresses: vec![[192, 0, 2, 8].into()] })).await
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn heartbeat(&self, number: u64) -> anyhow::Result<()> {
        self.say(&ClientMessage::Heartbeat(number)).await
    }

    /// The session is over.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn clear(&self) -> anyhow::Result<()> {
        self.say(&ClientMessage::Clear(ClearReason::CardRemoved)).await
    }
}

impl Terminal {
    async fn attach(user: UserId, to: &Organisation, grant: Grant) -> anyhow::Result<Self> {
        let mut wire = Wire::open(to).await?;
        let keys = ChannelKeys::new(grant.session, &grant.secret, &wire.exporter);
        let attach = Attach {
            version: PROTOCOL_VERSION,
            session: grant.session,
            proof: keys.terminal_proof(),
            known: Vec::new(),
        };
        wire.send(&ClientMessage::Attach(attach)).await?;
        match wire.receive().await?.0 {
            ServerMessage::Attached(attached) => keys.verify_server(&attached.proof)?,
            _ => bail!("{user}: not attached"),
        }
        let groups = grant.groups.iter().map(|group| group.id).collect();
        let speaker = Speaker { writer: Arc::new(Mutex::new(wire.writer)), groups };
        let mut terminal = Self { user, speaker, reader: wire.reader, keys };
        loop {
            if let ServerMessage::Synced = terminal.next().await?.0 {
                return Ok(terminal);
            }
        }
    }

    /// The next message and its length on the wire in bytes, TLS not counted. A new key is acknowledged, as a terminal does.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn next(&mut self) -> anyhow::Result<(ServerMessage, usize)> {
        let (message, body) = receive(&mut self.reader).await?;
        if let ServerMessage::Group(sealed) = &message {
            let group = self.keys.open_group(sealed)?;
            self.speaker.say(&ClientMessage::KeyAck(KeyAck { group: group.id, epoch: group.epoch })).await?;
        }
        Ok((message, body.len() + frame::HEADER_LEN))
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn rng() -> rsa::rand_core::UnwrapErr<SysRng> {
    rsa::rand_core::UnwrapErr(SysRng)
}
