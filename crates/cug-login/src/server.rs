//! A TLS connection to a management server. Blocking, with a deadline for every wait.

use crate::{edge::Clock, login::Frame, resolve};
use cug_proto::{ProtocolError, frame, login::EXPORTER_LABEL, trust};
use rustls::{ClientConnection, StreamOwned};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// Where connections to servers come from.
pub trait Servers: Sync {
    /// Connects to `host:port`, up to the end of the TLS handshake, and trusts only the CA of the card.
    fn connect(&self, server: &str, ca_pin: trust::CaPin, deadline: Instant) -> Result<Box<dyn Link + '_>, LinkError>;
}

/// A connection to a server that the card trusts.
pub trait Link: Send {
    /// The TLS exporter of the login protocol.
    fn exporter(&self) -> Result<[u8; 32], LinkError>;
    /// Sends a frame.
    fn send(&mut self, frame: &Frame, deadline: Instant) -> Result<(), LinkError>;
    /// Receives the body of a frame of at most [`frame::MAX_SESSION`] bytes.
    fn receive(&mut self, deadline: Instant) -> Result<Zeroizing<Vec<u8>>, LinkError>;
}

/// Why a server cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The name has no address, or is none.
    #[error("no address for the server {0:?}")]
    Address(String),
    /// Nobody listens there.
    #[error("cannot connect")]
    Unreachable(#[source] io::Error),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// Its certificate is not from the CA that the card names.
    #[error("the server's certificate is not trusted")]
    NotTrusted(#[source] rustls::Error),
    /// Anything else that TLS does not like.
    #[error("TLS failed")]
    Tls(#[source] rustls::Error),
    /// A frame that is empty or too large.
    #[error(transparent)]
    Frame(#[from] ProtocolError),
}

/// Servers over TCP and TLS 1.3.
pub struct TlsServers<'a> {
    /// For the deadlines.
    pub clock: &'a dyn Clock,
}

impl Servers for TlsServers<'_> {
    fn connect(&self, server: &str, ca_pin: trust::CaPin, deadline: Instant) -> Result<Box<dyn Link + '_>, LinkError> {
        let left = deadline.saturating_duration_since(self.clock.now());
        let addresses = resolve::resolve(server, left);
        let tcp = connect_to_any(server, &addresses, deadline, self.clock)?;
        // Requests are small and wait for answers: without this each could wait for the other side's delayed acknowledgement.
        tcp.set_nodelay(true).map_err(classify)?;
        let config = trust::client_config(ca_pin).map_err(LinkError::Tls)?;
        let tls = ClientConnection::new(Arc::new(config), trust::server_name()).map_err(LinkError::Tls)?;
        let mut stream = StreamOwned::new(tls, DeadlineSocket { tcp, deadline, clock: self.clock });
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(classify)?;
        }
        Ok(Box::new(TlsLink { stream }))
    }
}

/// Tries the addresses in turn; each gets its share of the time that is left, so that a dead first one leaves some for the others.
fn connect_to_any(
    server: &str,
    addresses: &[SocketAddr],
    deadline: Instant,
    clock: &dyn Clock,
) -> Result<TcpStream, LinkError> {
    let mut failure = LinkError::Address(server.to_owned());
    for (tried, address) in addresses.iter().enumerate() {
        match TcpStream::connect_timeout(address, share(deadline, clock, addresses.len() - tried)?) {
            Ok(tcp) => return Ok(tcp),
            Err(error) if error.kind() == ErrorKind::TimedOut => failure = LinkError::Timeout,
            Err(error) => failure = LinkError::Unreachable(error),
        }
    }
    Err(failure)
}

/// An equal part, for one of `parts`, of the time until the deadline.
fn share(deadline: Instant, clock: &dyn Clock, parts: usize) -> Result<Duration, LinkError> {
    let left = deadline.saturating_duration_since(clock.now());
    let part = left / u32::try_from(parts).unwrap_or(u32::MAX).max(1);
    if part.is_zero() { Err(LinkError::Timeout) } else { Ok(part) }
}

struct TlsLink<'a> {
    stream: StreamOwned<ClientConnection, DeadlineSocket<'a>>,
}

impl Link for TlsLink<'_> {
    fn exporter(&self) -> Result<[u8; 32], LinkError> {
        self.stream.conn.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(LinkError::Tls)
    }

    fn send(&mut self, frame: &Frame, deadline: Instant) -> Result<(), LinkError> {
        self.stream.sock.deadline = deadline;
        self.stream.write_all(frame).and_then(|()| self.stream.flush()).map_err(classify)
    }

    fn receive(&mut self, deadline: Instant) -> Result<Zeroizing<Vec<u8>>, LinkError> {
        self.stream.sock.deadline = deadline;
        let mut header = [0; frame::HEADER_LEN];
        self.stream.read_exact(&mut header).map_err(classify)?;
        let mut body = Zeroizing::new(vec![0; frame::body_len(header, frame::MAX_SESSION)?]);
        self.stream.read_exact(&mut body).map_err(classify)?;
        Ok(body)
    }
}

/// A socket whose every read and write ends at the deadline, however slowly the bytes come. (Writes of TCP sockets in the
/// standard library raise no SIGPIPE.)
struct DeadlineSocket<'a> {
    tcp: TcpStream,
    deadline: Instant,
    clock: &'a dyn Clock,
}

impl DeadlineSocket<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(self.clock.now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for DeadlineSocket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(self.left()?)?;
        self.tcp.read(buffer)
    }
}

impl Write for DeadlineSocket<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(self.left()?)?;
        self.tcp.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// What an error of the stream means. rustls hands its own errors through as `InvalidData`.
fn classify(error: io::Error) -> LinkError {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => LinkError::Timeout,
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected => LinkError::Closed,
        _ => match error.downcast::<rustls::Error>() {
            Ok(error @ rustls::Error::InvalidCertificate(_)) => LinkError::NotTrusted(error),
            Ok(error) => LinkError::Tls(error),
            Err(error) => LinkError::Unreachable(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doubles::{TestCa, tls_server},
        edge::SystemClock,
    };
    use std::net::TcpListener;

    const SERVERS: TlsServers<'static> = TlsServers { clock: &SystemClock };

    fn soon(milliseconds: u64) -> Instant {
        SystemClock.now() + Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_server_that_never_answers_costs_no_more_than_the_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let begin = SystemClock.now();
        let outcome = SERVERS.connect(&listener.local_addr().unwrap().to_string(), [0; 32], soon(200));
        let took = SystemClock.now() - begin;
        assert!(matches!(outcome, Err(LinkError::Timeout)));
        assert!((200..1500).contains(&took.as_millis()), "{took:?}");
    }

    #[test]
    fn a_server_that_trickles_bytes_costs_no_more_than_the_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                // A TLS record of 16 KiB, one byte each time that the client has had time to wait for it.
                client.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
                let record = [0x16, 3, 3, 0x3f, 0xff].into_iter().chain(std::iter::repeat(0));
                for byte in record {
                    let ended = matches!(client.read(&mut [0; 4096]), Ok(0));
                    if ended || client.write_all(&[byte]).is_err() {
                        break;
                    }
                }
            });
            let begin = SystemClock.now();
            assert!(matches!(SERVERS.connect(&address, [0; 32], soon(250)), Err(LinkError::Timeout)));
            assert!((SystemClock.now() - begin).as_millis() < 1500);
        });
    }

    #[test]
    fn a_dead_port_and_a_name_without_address_are_told_apart() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert!(matches!(SERVERS.connect(&free, [0; 32], soon(2000)), Err(LinkError::Unreachable(_))));
        assert!(matches!(SERVERS.connect("no port", [0; 32], soon(2000)), Err(LinkError::Address(_))));
    }

    #[test]
    fn only_the_ca_of_the_card_is_trusted() {
        let ca = TestCa::new();
        let echo = tls_server(&ca);
        let mut link = SERVERS.connect(&echo.address, ca.pin, soon(5000)).unwrap_or_else(|e| panic!("{e:?}"));
        let frame = frame::encode(&7_u32, 16).unwrap();
        link.send(&frame, soon(5000)).unwrap();
        assert_eq!(*link.receive(soon(5000)).unwrap(), frame[4..]);
        assert_eq!(link.exporter().unwrap(), echo.exporter());

        // The grant of a user in many closed groups.
        let echo = tls_server(&ca);
        let mut link = SERVERS.connect(&echo.address, ca.pin, soon(5000)).unwrap_or_else(|e| panic!("{e:?}"));
        let header = u32::try_from(frame::MAX_SESSION).unwrap().to_be_bytes();
        link.send(&Zeroizing::new(header.to_vec()), soon(5000)).unwrap();
        assert_eq!(link.receive(soon(5000)).unwrap().len(), frame::MAX_SESSION);

        let echo = tls_server(&ca);
        let outcome = SERVERS.connect(&echo.address, [1; 32], soon(5000));
        assert!(matches!(outcome, Err(LinkError::NotTrusted(_))));
    }
}
