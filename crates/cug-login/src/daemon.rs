//! Requests to cugd over its socket. Blocking, with a deadline; the daemon is only believed when it runs as root.

use crate::edge::Clock;
use cug_proto::{
    ProtocolError, frame,
    local::{CONFIG_PATH, Reply, Request},
    waiting::HandOver,
};
use minicbor::Encode;
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, send, setsockopt, socket,
            sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout},
        },
        time::TimeVal,
    },
};
use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// How long cugd may take for an ordinary request.
pub const ORDINARY: Duration = Duration::from_secs(2);

/// How long cugd may take to open a session: it attaches at the server and configures interfaces.
pub const OPENING: Duration = Duration::from_secs(10);

/// The daemon.
pub trait Daemon {
    /// One request, one reply, on a connection of its own: between two of them the user may type for minutes.
    ///
    /// # Errors
    /// [`DaemonError`]
    fn call(&self, request: &Request, limit: Duration) -> Result<Reply, DaemonError>;

    /// Gives what was typed to a login that waits at this socket.
    ///
    /// # Errors
    /// [`DaemonError`]
    fn hand_over(&self, socket: &Path, typed: &HandOver, limit: Duration) -> Result<(), DaemonError>;
}

/// Why the daemon cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Nobody listens at the socket, or the connection failed.
    #[error("cugd's socket: {0}")]
    Socket(#[from] Errno),
    /// Nobody listens, and the daemon has no configuration: this workstation was never set up.
    #[error("this workstation has no configuration of cugd")]
    NotConfigured,
    /// Who listens there is not root but this user: somebody who wants to catch grants.
    #[error("cugd's socket is served by user {0} and not by root")]
    NotRoot(u32),
    /// No reply in time.
    #[error("no reply from cugd in time")]
    Timeout,
    /// The daemon closed the connection.
    #[error("cugd closed the connection")]
    Closed,
    /// A request that is too large, or a reply that is not one.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// A reply to another request.
    #[error("cugd's reply does not belong to the request")]
    Unexpected,
}

/// cugd at its socket.
pub struct Cugd<'a> {
    socket: &'a Path,
    configuration: &'a Path,
    trusted: u32,
    clock: &'a dyn Clock,
}

impl<'a> Cugd<'a> {
    /// At this socket, run by root.
    pub fn new(socket: &'a Path, clock: &'a dyn Clock) -> Self {
        Self { socket, configuration: Path::new(CONFIG_PATH), trusted: 0, clock }
    }
}

impl Daemon for Cugd<'_> {
    fn call(&self, request: &Request, limit: Duration) -> Result<Reply, DaemonError> {
        match self.exchange(self.socket, request, limit) {
            Err(DaemonError::Socket(Errno::ENOENT | Errno::ECONNREFUSED)) if self.is_not_configured() => {
                Err(DaemonError::NotConfigured)
            }
            outcome => outcome,
        }
    }

    fn hand_over(&self, socket: &Path, typed: &HandOver, limit: Duration) -> Result<(), DaemonError> {
        match self.exchange(socket, typed, limit)? {
            Reply::Done => Ok(()),
            _ => Err(DaemonError::Unexpected),
        }
    }
}

impl Cugd<'_> {
    /// A file that is there and cannot be looked at is a configuration.
    fn is_not_configured(&self) -> bool {
        std::fs::symlink_metadata(self.configuration).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    fn exchange(&self, socket: &Path, request: &impl Encode<()>, limit: Duration) -> Result<Reply, DaemonError> {
        let connection = Connection::open(socket, self.clock.now() + limit, self.clock)?;
        let peer = getsockopt(&connection.fd, PeerCredentials)?.uid();
        if peer != self.trusted {
            return Err(DaemonError::NotRoot(peer));
        }
        connection.send_all(&frame::encode(request, frame::MAX_SESSION)?)?;
        let mut header = [0; frame::HEADER_LEN];
        connection.receive_all(&mut header)?;
        let mut body = Zeroizing::new(vec![0; frame::body_len(header, frame::MAX_SESSION)?]);
        connection.receive_all(&mut body)?;
        Ok(frame::decode(&body)?)
    }
}

/// A stream socket with a deadline. Not the standard library's: its connect waits without limit while the daemon's queue is full, and its writes
/// can raise SIGPIPE, which would end the host.
struct Connection<'a> {
    fd: OwnedFd,
    deadline: Instant,
    clock: &'a dyn Clock,
}

impl<'a> Connection<'a> {
    fn open(path: &Path, deadline: Instant, clock: &'a dyn Clock) -> Result<Self, DaemonError> {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let connection = Self { fd, deadline, clock };
        let address = UnixAddr::new(path)?;
        connection.retry(|| connect(connection.fd.as_raw_fd(), &address))?;
        Ok(connection)
    }

    fn send_all(&self, mut bytes: &[u8]) -> Result<(), DaemonError> {
        while !bytes.is_empty() {
            let sent = self.retry(|| send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL))?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    fn receive_all(&self, mut bytes: &mut [u8]) -> Result<(), DaemonError> {
        while !bytes.is_empty() {
            match self.retry(|| recv(self.fd.as_raw_fd(), bytes, MsgFlags::empty()))? {
                0 => return Err(DaemonError::Closed),
                received => bytes = bytes.get_mut(received..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Does a call that blocks, until the deadline, and again when a signal of the host interrupts it.
    fn retry<T>(&self, mut call: impl FnMut() -> nix::Result<T>) -> Result<T, DaemonError> {
        loop {
            let left = self.deadline.saturating_duration_since(self.clock.now());
            if left.is_zero() {
                return Err(DaemonError::Timeout);
            }
            // Zero would mean no limit at all.
            let limit =
                TimeVal::new(i64::try_from(left.as_secs()).unwrap_or(i64::MAX), i64::from(left.subsec_micros().max(1)));
            setsockopt(&self.fd, SendTimeout, &limit)?;
            setsockopt(&self.fd, ReceiveTimeout, &limit)?;
            match call() {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(DaemonError::Timeout),
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(DaemonError::Closed),
                other => return Ok(other?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::SystemClock;
    use cug_proto::local::Refusal;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixListener,
        path::PathBuf,
    };

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("pam_cug-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            Self(directory)
        }
        fn listener(&self) -> UnixListener {
            UnixListener::bind(self.0.join("sock")).unwrap()
        }
        fn call(&self, trusted: u32, milliseconds: u64) -> Result<Reply, DaemonError> {
            let path = self.0.join("sock");
            let cugd = Cugd { socket: &path, configuration: &self.0, trusted, clock: &SystemClock };
            cugd.call(&Request::Status, Duration::from_millis(milliseconds))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }

    fn own_uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn with_daemon(name: &str, trusted: u32, answer: &[u8]) -> Result<Reply, DaemonError> {
        let place = Place::new(name);
        let listener = place.listener();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                let mut header = [0; 4];
                if client.read_exact(&mut header).is_ok() {
                    let mut body = vec![0; frame::body_len(header, frame::MAX_SESSION).unwrap()];
                    client.read_exact(&mut body).unwrap();
                    client.write_all(answer).unwrap();
                }
            });
            place.call(trusted, 3000)
        })
    }

    #[test]
    fn a_request_and_its_reply() {
        let reply = frame::encode(&Reply::Refused(Refusal::Busy), 64).unwrap();
        assert!(matches!(with_daemon("reply", own_uid(), &reply), Ok(Reply::Refused(Refusal::Busy))));
    }

    #[test]
    fn a_daemon_of_another_user_is_told_nothing() {
        let outcome = with_daemon("stranger", own_uid() + 1, &[]);
        assert!(matches!(outcome, Err(DaemonError::NotRoot(uid)) if uid == own_uid()));
    }

    #[test]
    fn bad_replies() {
        assert!(matches!(with_daemon("short", own_uid(), &[0, 0, 0, 9, 1]), Err(DaemonError::Closed)));
        assert!(matches!(
            with_daemon("large", own_uid(), &[0, 1, 0, 1]),
            Err(DaemonError::Protocol(ProtocolError::TooLarge))
        ));
        assert!(matches!(
            with_daemon("wrong", own_uid(), &[0, 0, 0, 1, 0xff]),
            Err(DaemonError::Protocol(ProtocolError::Malformed))
        ));
    }

    #[test]
    fn nobody_there() {
        assert!(matches!(Place::new("none").call(0, 1000), Err(DaemonError::Socket(Errno::ENOENT))));
        let place = Place::new("dead");
        drop(place.listener());
        assert!(matches!(place.call(0, 1000), Err(DaemonError::Socket(Errno::ECONNREFUSED))));
    }

    #[test]
    fn a_workstation_that_was_never_set_up() {
        let place = Place::new("new");
        let (socket, configuration) = (place.0.join("sock"), place.0.join("cugd.toml"));
        let cugd = Cugd { socket: &socket, configuration: &configuration, trusted: own_uid(), clock: &SystemClock };
        let ask = || cugd.call(&Request::Status, Duration::from_secs(1));
        assert!(matches!(ask(), Err(DaemonError::NotConfigured)));
        std::fs::write(&configuration, "not valid").unwrap();
        assert!(matches!(ask(), Err(DaemonError::Socket(Errno::ENOENT))), "it was, and its daemon is dead");
    }

    #[test]
    fn a_daemon_that_hangs_costs_no_more_than_the_limit() {
        let place = Place::new("hangs");
        let _listener = place.listener();
        let begin = SystemClock.now();
        assert!(matches!(place.call(own_uid(), 200), Err(DaemonError::Timeout)));
        assert!((200..1500).contains(&(SystemClock.now() - begin).as_millis()));
    }

    #[test]
    fn a_full_queue_costs_no_more_than_the_limit() {
        let place = Place::new("full");
        let listener = place.listener();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let path = place.0.join("sock");
        let mut waiting = Vec::new();
        let full = loop {
            match Connection::open(&path, SystemClock.now() + Duration::from_millis(100), &SystemClock) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert!(matches!(full, DaemonError::Timeout), "{full:?}");
        let begin = SystemClock.now();
        assert!(matches!(place.call(own_uid(), 200), Err(DaemonError::Timeout)));
        assert!((SystemClock.now() - begin).as_millis() < 1500);
    }
}
