//! The listener, and what may come when on a connection.
//!
//! ```text
//! accepted -> TLS -> Hello -> Challenge -> Login -> Outcome -> Ack -> Registered -> closed
//!                 \-> EnrolHello -> EnrolOffer -> EnrolClaim -> EnrolReady -> EnrolKey -> EnrolChallenge -> EnrolCommit -> EnrolResult -> closed
//!                 \-> Attach -> Attached, Peers.., Synced -> session channel -> closed
//! ```
//! Anything else, a frame that is too large, and a deadline that passes end the connection.

mod channel;
mod enrol;
mod frames;
mod login;

use crate::{
    clock,
    service::{Admission, Admitted, Service},
};
use cug_proto::{
    PROTOCOL_VERSION, ProtocolError, frame,
    login::EXPORTER_LABEL,
    message::{ClientMessage, ServerMessage, Unavailable},
};
use frames::{FrameReader, send};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{ReadHalf, WriteHalf},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use zeroize::Zeroizing;

/// For the TLS handshake and the first message.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// How long the listener rests when the system has no more file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
type Writer = WriteHalf<TlsStream<TcpStream>>;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Store(#[from] crate::store::StoreError),
    #[error("the time is up")]
    Deadline,
}

type Result<T> = std::result::Result<T, ConnectionError>;

/// What connections need of the server.
#[derive(Clone)]
pub struct Api {
    service: Arc<Service>,
    acceptor: TlsAcceptor,
    admission: Admission,
    stop: watch::Receiver<bool>,
}

impl Api {
    /// Serves with this TLS configuration until `stop` says true.
    pub fn new(service: Arc<Service>, tls: Arc<rustls::ServerConfig>, stop: watch::Receiver<bool>) -> Self {
        let config = service.config();
        let admission =
            Admission::new(config.max_unauthenticated, config.max_unauthenticated_per_source, config.source_rate);
        Self { acceptor: TlsAcceptor::from(tls), service, admission, stop }
    }

    /// Accepts connections until the server stops.
    pub async fn listen(self, listener: TcpListener) {
        let mut stop = self.stop.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let source = peer.ip().to_canonical();
        let Some(admitted) = self.admission.admit(source, clock::monotonic()) else {
            tracing::debug!(%source, "too many connections, or too often");
            return;
        };
        let (api, mut stop) = (self.clone(), self.stop.clone());
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = api.connection(stream, source, admitted) => ended,
                _ = stop.wait_for(|stop| *stop) => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%source, %error, "a connection ended");
            }
        });
    }

    async fn connection(&self, stream: TcpStream, source: IpAddr, admitted: Admitted) -> Result<()> {
        let greeting = tokio::time::timeout(HELLO_TIME, self.greet(stream)).await;
        let greeting = greeting.map_err(|_| ConnectionError::Deadline)??;
        let Some((reader, writer, attached)) = self.open(greeting, source).await? else { return Ok(()) };
        drop(admitted);
        channel::run(&self.service, reader, writer, attached, source).await
    }

    /// The TLS handshake, and the first message's body.
    async fn greet(&self, stream: TcpStream) -> Result<Greeting> {
        stream.set_nodelay(true)?;
        let tls = self.acceptor.accept(stream).await?;
        let exporter = tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        let (reader, writer) = tokio::io::split(tls);
        let mut reader = FrameReader::new(reader, frame::MAX_LOGIN);
        let first = reader.next().await?;
        Ok(Greeting { reader, writer, exporter, first })
    }

    /// Up to the end of a login (`None`), or up to a proven `Attach`.
    async fn open(&self, greeting: Greeting, source: IpAddr) -> Result<Option<(Reader, Writer, channel::Opened)>> {
        let Greeting { reader, mut writer, exporter, first } = greeting;
        match frame::decode(&first)? {
            ClientMessage::Hello(hello) => {
                if version_fits(hello.version, &mut writer).await? {
                    login::run(&self.service, reader, writer, hello, &first, &exporter, source).await?;
                }
                Ok(None)
            }
            ClientMessage::Attach(attach) => {
                if !version_fits(attach.version, &mut writer).await? {
                    return Ok(None);
                }
                let opened = channel::open(&self.service, &mut writer, attach, &exporter, source).await?;
                Ok(opened.map(|opened| (reader, writer, opened)))
            }
            ClientMessage::EnrolHello(hello) => {
                if version_fits(hello.version, &mut writer).await? {
                    enrol::run(&self.service, reader, writer, hello, &first, exporter, source).await?;
                }
                Ok(None)
            }
            _ => Err(ProtocolError::OutOfOrder.into()),
        }
    }
}

/// A connection whose first message has come.
struct Greeting {
    reader: Reader,
    writer: Writer,
    exporter: [u8; 32],
    first: Zeroizing<Vec<u8>>,
}

async fn version_fits(version: u16, writer: &mut Writer) -> Result<bool> {
    if version == PROTOCOL_VERSION {
        return Ok(true);
    }
    send(writer, &ServerMessage::Unavailable(Unavailable::Version(PROTOCOL_VERSION)), frame::MAX_LOGIN).await?;
    Ok(false)
}
