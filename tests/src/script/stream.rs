//! TLS and frames, blocking, with a deadline on every read and write.

use crate::space::Space;
use anyhow::{Context, bail};
use cug_proto::frame;
use cug_proto::login::EXPORTER_LABEL;
use minicbor::{Decode, Encode};
use nix::sched::{CloneFlags, setns};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the other side.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Runs `work` in the network of `host`. Sockets that it makes stay there, whoever uses them later.
///
/// # Errors
/// When the namespace cannot be entered, or those of `work`.
pub fn in_network<T: Send>(host: &Space, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let namespace = File::open(format!("/proc/{}/ns/net", host.pid()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // This thread alone.
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().map_err(|_| anyhow::anyhow!("panic in the host's network"))?
    })
}

/// A TCP connection from `host`.
///
/// # Errors
/// When it does not come about.
pub fn connect(host: &Space, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = in_network(host, || TcpStream::connect_timeout(&to, LIMIT).with_context(|| to.to_string()))?;
    limits(&stream)?;
    Ok(stream)
}

/// A listening socket on `host`.
///
/// # Errors
/// When the port is taken.
pub fn listen(host: &Space, port: u16) -> anyhow::Result<TcpListener> {
    in_network(host, || TcpListener::bind(("::", port)).with_context(|| format!("port {port}")))
}

/// Sets the deadlines of every read and write.
///
/// # Errors
/// When the socket is gone.
pub fn limits(stream: &TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream.set_write_timeout(Some(LIMIT))?)
}

/// A TLS connection that carries frames.
pub enum Wire {
    /// Our side is the terminal.
    Terminal(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// Our side is the server.
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Wire {
    /// TLS as the terminal, with the trust of a card.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn terminal(mut tcp: TcpStream, ca_pin: cug_proto::trust::CaPin) -> anyhow::Result<Self> {
        let config = Arc::new(cug_proto::trust::client_config(ca_pin)?);
        let mut connection = ClientConnection::new(config, cug_proto::trust::server_name())?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(Self::Terminal(Box::new(StreamOwned::new(connection, tcp))))
    }

    /// TLS as the server.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn server(mut tcp: TcpStream, config: Arc<rustls::ServerConfig>) -> anyhow::Result<Self> {
        limits(&tcp)?;
        let mut connection = ServerConnection::new(config)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(Self::Server(Box::new(StreamOwned::new(connection, tcp))))
    }

    /// The TLS exporter of this connection.
    ///
    /// # Errors
    /// When TLS refuses.
    pub fn exporter(&self) -> anyhow::Result<[u8; 32]> {
        Ok(match self {
            Self::Terminal(tls) => tls.conn.export_keying_material([0; 32], EXPORTER_LABEL, None)?,
            Self::Server(tls) => tls.conn.export_keying_material([0; 32], EXPORTER_LABEL, None)?,
        })
    }

    /// The TCP connection below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Terminal(tls) => &tls.sock,
            Self::Server(tls) => &tls.sock,
        }
    }

    /// Sends these bytes, whatever they are.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Terminal(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
            Self::Server(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
        .context("the other side does not take any more")
    }

    /// Sends a message: its body, for the transcript.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn send<T: Encode<()>>(&mut self, message: &T) -> anyhow::Result<Vec<u8>> {
        let frame = frame::encode(message, frame::MAX_SESSION)?;
        self.send_raw(&frame)?;
        Ok(frame[frame::HEADER_LEN..].to_vec())
    }

    /// The body of the next frame.
    ///
    /// # Errors
    /// When the other side closes or says nothing for [`LIMIT`].
    pub fn receive_raw(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut header = [0; frame::HEADER_LEN];
        self.fill(&mut header)?;
        let mut body = vec![0; frame::body_len(header, frame::MAX_SESSION)?];
        self.fill(&mut body)?;
        Ok(body)
    }

    /// The next message.
    ///
    /// # Errors
    /// As [`Wire::receive_raw`], or when it is not one.
    pub fn receive<T: for<'b> Decode<'b, ()>>(&mut self) -> anyhow::Result<T> {
        let body = self.receive_raw()?;
        Ok(frame::decode(&body)?)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> anyhow::Result<()> {
        match self {
            Self::Terminal(tls) => tls.read_exact(buffer),
            Self::Server(tls) => tls.read_exact(buffer),
        }
        .context("the other side closed the connection or was silent")
    }

    /// Waits for the other side to close.
    ///
    /// # Errors
    /// When it says something else instead, or nothing for [`LIMIT`].
    pub fn expect_close(&mut self) -> anyhow::Result<()> {
        let mut byte = [0];
        let result = match self {
            Self::Terminal(tls) => tls.read(&mut byte),
            Self::Server(tls) => tls.read(&mut byte),
        };
        match result {
            Ok(0) => Ok(()),
            Ok(_) => bail!("the other side goes on talking"),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                bail!("the other side keeps the connection open")
            }
            Err(_) => Ok(()),
        }
    }
}
