//! The connection to a management server: TLS under the CA that this workstation's configuration names, one message at a time, each with a deadline.

use std::{future::Future, io, sync::Arc, time::Duration};

use cug_proto::{
    ProtocolError,
    frame::{self, HEADER_LEN},
    login::EXPORTER_LABEL,
    message::{ClientMessage, ServerMessage},
    trust::{self, CaPin},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, Runtime},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use zeroize::Zeroizing;

/// How long the server may take for one answer: hashing a password may have to wait for its turn.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// No connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("the management server cannot be reached; look at the network, or ask the administrator")]
    Unreachable(#[source] io::Error),
    #[error("the management server does not answer; try again or ask the administrator")]
    Silent,
    #[error("what answers is not this organisation's management server; ask the administrator")]
    NotTrusted(#[source] io::Error),
    #[error("the connection to the management server broke; run the command again")]
    Broken(#[source] io::Error),
    #[error("the management server does not keep to the protocol; ask the administrator")]
    Protocol(#[from] ProtocolError),
}

/// A connection.
pub(super) struct Line {
    /// Taken at the end only.
    runtime: Option<Runtime>,
    stream: TlsStream<TcpStream>,
    /// The TLS exporter.
    pub(super) exporter: [u8; 32],
    /// The CA's certificate, whose key is the pinned one.
    pub(super) ca: Vec<u8>,
    /// Which of this workstation's pins it is.
    pub(super) pin: CaPin,
}

impl Line {
    /// To the first server that answers and is trusted. Each gets `limit`.
    pub(super) fn connect(servers: &[String], pins: &[CaPin], limit: Duration) -> Result<Self, LineError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(LineError::Unreachable)?;
        let mut failure = LineError::Silent;
        let tries = servers.iter().flat_map(|server| pins.iter().map(move |pin| (server, pin)));
        for (server, pin) in tries {
            match runtime.block_on(within(limit, open(server, *pin))) {
                Ok((stream, exporter, ca)) => {
                    return Ok(Self { runtime: Some(runtime), stream, exporter, ca, pin: *pin });
                }
                // Of several failures the one that says more is told.
                Err(error @ LineError::NotTrusted(_)) => failure = error,
                Err(error) if !matches!(failure, LineError::NotTrusted(_)) => failure = error,
                Err(_) => {}
            }
        }
        // A name service that hangs must not hold the end up.
        runtime.shutdown_background();
        Err(failure)
    }

    /// Sends a message; its body as it was sent.
    pub(super) fn send(&mut self, message: &ClientMessage) -> Result<Zeroizing<Vec<u8>>, LineError> {
        let frame = frame::encode(message, frame::MAX_LOGIN)?;
        self.run(async |stream| {
            stream.write_all(&frame).await.map_err(LineError::Broken)?;
            stream.flush().await.map_err(LineError::Broken)
        })?;
        Ok(Zeroizing::new(frame.get(HEADER_LEN..).unwrap_or_default().to_vec()))
    }

    /// Receives a message with its body.
    pub(super) fn receive(&mut self) -> Result<(ServerMessage, Zeroizing<Vec<u8>>), LineError> {
        let body = self.run(async |stream| {
            let mut header = [0; HEADER_LEN];
            stream.read_exact(&mut header).await.map_err(LineError::Broken)?;
            let mut body = Zeroizing::new(vec![0; frame::body_len(header, frame::MAX_LOGIN)?]);
            stream.read_exact(&mut body).await.map_err(LineError::Broken)?;
            Ok(body)
        })?;
        Ok((frame::decode(&body)?, body))
    }

    fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut TlsStream<TcpStream>) -> Result<T, LineError>,
    ) -> Result<T, LineError> {
        let runtime = self.runtime.as_ref().ok_or(LineError::Silent)?;
        runtime.block_on(within(ANSWER_TIME, work(&mut self.stream)))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, LineError>>) -> Result<T, LineError> {
    timeout(limit, work).await.map_err(|_| LineError::Silent)?
}

async fn open(server: &str, pin: CaPin) -> Result<(TlsStream<TcpStream>, [u8; 32], Vec<u8>), LineError> {
    let tcp = TcpStream::connect(server).await.map_err(LineError::Unreachable)?;
    tcp.set_nodelay(true).map_err(LineError::Unreachable)?;
    let config = trust::client_config(pin).map_err(io::Error::other).map_err(LineError::NotTrusted)?;
    let connected = TlsConnector::from(Arc::new(config)).connect(trust::server_name(), tcp).await;
    let stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => LineError::NotTrusted(error),
        _ => LineError::Broken(error),
    })?;
    let (_, tls) = stream.get_ref();
    let exporter = tls.export_keying_material([0; 32], EXPORTER_LABEL, None);
    let exporter = exporter.map_err(io::Error::other).map_err(LineError::Broken)?;
    let chain = tls.peer_certificates().unwrap_or_default();
    let ca = chain.iter().find(|certificate| trust::spki_sha256(certificate).is_ok_and(|found| found == pin));
    let ca = ca.ok_or_else(|| LineError::NotTrusted(io::ErrorKind::NotFound.into()))?.to_vec();
    Ok((stream, exporter, ca))
}
