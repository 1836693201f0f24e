//! The UNIX socket for the login module and `cugctl`. The kernel says who asks; a caller that misbehaves loses its connection, nobody else's.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cug_proto::{
    frame::{self, HEADER_LEN, MAX_LOGIN, MAX_MEMBERS, MAX_SESSION},
    id::UserId,
    local::{Refusal, Reply, Request},
    notice::Notice,
};
use nix::unistd::{Uid, User, geteuid};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

use crate::{
    core::{OsSession, Viewer},
    driver::Ask,
    logind::Logind,
    permit::{self, Caller},
    pidfd, watchers,
};

/// Most connections of root at a time: one login each, or two.
const MAX_ROOT: usize = 256;
/// Most connections of another user at a time.
const MAX_OTHER: usize = 8;
/// How long root may be silent between requests: a person types meanwhile.
const IDLE_ROOT: Duration = Duration::from_secs(300);
/// How long another user may be silent.
const IDLE_OTHER: Duration = Duration::from_secs(10);
/// How long the rest of a frame may take, and writing a reply.
const FRAME_TIME: Duration = Duration::from_secs(5);
/// How long an answer may take. Opening and closing end sooner by the core's own deadlines.
const ANSWER_TIME: Duration = Duration::from_secs(70);
/// How long finding out a user's name may take.
const NAME_TIME: Duration = Duration::from_secs(5);

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A daemon answers there.
    #[error("another cugd is running: it answers at {0}")]
    Running(PathBuf),
    /// Something else has the socket's name.
    #[error("{0} exists and is not a socket; remove it")]
    NotASocket(PathBuf),
    /// Others could replace the socket.
    #[error("the directory {0} must belong to the daemon's user and be writable for nobody else")]
    UnsafeDirectory(PathBuf),
    /// The system refuses.
    #[error("cannot make the socket {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The socket, removed when dropped.
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Left over it would do no harm: the next start replaces it.
        let _gone_already = fs::remove_file(&self.path);
    }
}

impl Listener {
    /// Makes the socket, mode 0666, in a directory of mode 0755 that is made if it is missing. A socket that nobody listens on is replaced.
    ///
    /// # Errors
    /// [`SocketError`]
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            prepare_directory(directory)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
            Ok(_) => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(SocketError::Running(path.to_owned()));
                }
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let socket = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(failed)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Accepts for ever; each connection is a task of its own.
    /// `accounts` finds the user ID to which a user's tunnel would belong; it may block.
    pub async fn serve(self, asks: mpsc::Sender<Ask>, accounts: fn(&UserId) -> Option<u32>, logind: Logind) {
        let places = Places::default();
        loop {
            match self.socket.accept().await {
                Ok((stream, _)) => accept(stream, &places, &asks, accounts, &logind),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn prepare_directory(directory: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: directory.to_owned(), source };
    match DirBuilder::new().mode(0o755).create(directory) {
        // The umask may have taken bits away that others need to reach the socket.
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755)).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let there = fs::symlink_metadata(directory).map_err(failed)?;
    let safe = there.is_dir() && there.uid() == geteuid().as_raw() && there.mode() & 0o022 == 0;
    if safe { Ok(()) } else { Err(SocketError::UnsafeDirectory(directory.to_owned())) }
}

fn accept(
    stream: UnixStream,
    places: &Places,
    asks: &mpsc::Sender<Ask>,
    accounts: fn(&UserId) -> Option<u32>,
    logind: &Logind,
) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let uid = credentials.uid();
    let Some(place) = places.take(uid) else {
        tracing::warn!(uid, "too many connections of one user; one is closed");
        return;
    };
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
    let client = Client { uid, pid, asks: asks.clone(), accounts, logind: logind.clone() };
    tokio::spawn(async move {
        let _held_until_the_end = place;
        client.serve(stream).await;
    });
}

/// Who is connected, and how often.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<HashMap<u32, usize>>>);

struct Place {
    places: Places,
    uid: u32,
}

impl Places {
    fn take(&self, uid: u32) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(uid).or_default();
        let most = if uid == 0 { MAX_ROOT } else { MAX_OTHER };
        (*count < most).then(|| {
            *count += 1;
            Place { places: self.clone(), uid }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

/// One connection.
struct Client {
    uid: u32,
    pid: Option<u32>,
    asks: mpsc::Sender<Ask>,
    accounts: fn(&UserId) -> Option<u32>,
    logind: Logind,
}

impl Client {
    /// Requests in turn, until one is not understood, not permitted, or late.
    async fn serve(self, mut stream: UnixStream) {
        // A grant of many groups is large; others than root deliver one without its groups.
        let (idle, max) = if self.uid == 0 { (IDLE_ROOT, MAX_SESSION) } else { (IDLE_OTHER, MAX_LOGIN) };
        while let Some(body) = read(&mut stream, idle, max).await {
            let (watch, notices) = mpsc::channel(watchers::QUEUE);
            let reply = match body {
                Ok(body) => self.answer(&body, watch).await,
                Err(refusal) => Err(refusal),
            };
            let go_on = reply.is_ok();
            let watches = matches!(reply, Ok(Reply::WatchStarted(_)));
            if !write(&mut stream, &reply.unwrap_or_else(Reply::Refused)).await || !go_on {
                return;
            }
            if watches {
                return self.tell(stream, notices).await;
            }
        }
    }

    /// Passes on what happens, until the caller goes, says anything, or does not keep up.
    async fn tell(self, mut stream: UnixStream, mut notices: mpsc::Receiver<Notice>) {
        let mut byte = [0];
        loop {
            tokio::select! {
                _ = stream.read(&mut byte) => return,
                notice = notices.recv() => match notice {
                    Some(notice) => if !write(&mut stream, &Reply::Event(notice)).await { return },
                    None => {
                        tracing::warn!(uid = self.uid, "one who watches does not keep up and is cut off");
                        return;
                    }
                },
            }
        }
    }

    /// An error ends the connection after it was told; a refusal by the core does not.
    async fn answer(&self, body: &[u8], watch: mpsc::Sender<Notice>) -> Result<Reply, Refusal> {
        let request: Request = frame::decode(body).map_err(|_| Refusal::Malformed)?;
        let caller = Caller::of(self.uid);
        let account = match (&request, caller) {
            (Request::Open(open), Caller::System) => self.account(open.user.clone()).await,
            (Request::Wait(wait), Caller::System) => self.account(wait.user.clone()).await,
            (Request::Prepare(prepare), Caller::User(_)) => self.account(prepare.user.clone()).await,
            _ => None,
        };
        permit::check(caller, &request, account)
            .inspect_err(|_| tracing::warn!(uid = self.uid, "a request was not permitted"))?;
        let (answer, reply) = oneshot::channel();
        let viewer = self.viewer(&request).await;
        let user = match caller {
            Caller::System => None,
            Caller::User(uid) => Some(uid),
        };
        // Held afresh for each request: a connection may be handed on to a child process after its leader's end.
        let caller = self.pid.and_then(|pid| pidfd::hold(pid).ok());
        let os = match (&request, &caller) {
            // The process is held, so its number is not another's meanwhile.
            (Request::Open(_) | Request::Wait(_), Some((leader, _))) => self.logind.session_of(leader.pid).await,
            _ => OsSession::Unknown,
        };
        let watch = matches!(request, Request::Watch).then_some(watch);
        self.asks
            .try_send(Ask { request, caller, viewer, account, os, user, answer, watch })
            .map_err(|_| Refusal::Busy)?;
        match timeout(ANSWER_TIME, reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(_) => Err(Refusal::Busy),
        }
    }

    async fn account(&self, user: UserId) -> Option<u32> {
        let accounts = self.accounts;
        let lookup = tokio::task::spawn_blocking(move || accounts(&user));
        timeout(NAME_TIME, lookup).await.ok()?.ok()?
    }

    async fn viewer(&self, request: &Request) -> Viewer {
        if self.uid == 0 {
            return Viewer::All;
        }
        match request {
            Request::Status | Request::Peers | Request::Watch => {
                user_name(self.uid).await.map_or(Viewer::Nobody, Viewer::User)
            }
            Request::Prepare(_)
            | Request::Deliver(_)
            | Request::Cancel(_)
            | Request::Open(_)
            | Request::Close(_)
            | Request::Wait(_)
            | Request::Exempt => Viewer::Nobody,
            // The same for everybody.
            Request::Servers => Viewer::Nobody,
        }
    }
}

/// The account's name; asking the system may block.
async fn user_name(uid: u32) -> Option<UserId> {
    let lookup = tokio::task::spawn_blocking(move || User::from_uid(Uid::from_raw(uid)));
    let user = timeout(NAME_TIME, lookup).await.ok()?.ok()?.ok()??;
    user.name.parse().ok()
}

/// A frame's body in a buffer that is wiped; `None` when the connection is over, `Err` when it has to be.
async fn read(stream: &mut UnixStream, idle: Duration, max: usize) -> Option<Result<Zeroizing<Vec<u8>>, Refusal>> {
    let mut header = [0; HEADER_LEN];
    let (first, rest) = header.split_at_mut(1);
    timeout(idle, stream.read_exact(first)).await.ok()?.ok()?;
    timeout(FRAME_TIME, stream.read_exact(rest)).await.ok()?.ok()?;
    let Ok(length) = frame::body_len(header, max) else { return Some(Err(Refusal::Malformed)) };
    let mut body = Zeroizing::new(vec![0; length]);
    timeout(FRAME_TIME, stream.read_exact(&mut body)).await.ok()?.ok()?;
    Some(Ok(body))
}

/// Most bytes that a reply may take. A list of members is as long as they are many.
fn room(reply: &Reply) -> usize {
    /// Of one member, its names included.
    const MEMBER: usize = 512;
    match reply {
        Reply::Peers(groups) => {
            let members: usize = groups.iter().map(|group| group.peers.len()).sum();
            MAX_SESSION.saturating_add(members.saturating_mul(MEMBER)).min(MAX_MEMBERS)
        }
        _ => MAX_SESSION,
    }
}

/// `false` when the caller does not take it.
async fn write(stream: &mut UnixStream, reply: &Reply) -> bool {
    let frame = frame::encode(reply, room(reply)).or_else(|_| {
        tracing::error!("an answer does not fit into a frame");
        frame::encode(&Reply::Refused(Refusal::Busy), MAX_SESSION)
    });
    match frame {
        Ok(frame) => matches!(timeout(FRAME_TIME, stream.write_all(&frame)).await, Ok(Ok(()))),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cug_proto::local::{GroupPeers, PeerStatus};

    #[test]
    fn a_list_of_members_has_room_however_many_they_are() {
        let longest = || PeerStatus {
            user: "u".repeat(UserId::MAX).parse().unwrap(),
            host_name: "h".repeat(cug_proto::id::HostName::MAX).parse().unwrap(),
            endpoint: Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap()),
            address4: [255; 4].into(),
            address6: [255; 16].into(),
            handshake_ms: Some(u64::MAX),
            received: u64::MAX,
            sent: u64::MAX,
            name: Some("n".repeat(253)),
        };
        for count in [0, 1, 1000, 20_000] {
            let peers = (0..count).map(|_| longest()).collect();
            let group = GroupPeers { group: "g".parse().unwrap(), user: "u".parse().unwrap(), peers };
            let reply = Reply::Peers(vec![group]);
            let frame = frame::encode(&reply, room(&reply)).unwrap();
            assert!(frame.len() <= MAX_MEMBERS, "{count}: {}", frame.len());
            assert!(
                matches!(frame::decode(&frame[HEADER_LEN..]), Ok(Reply::Peers(groups)) if groups[0].peers.len() == count)
            );
        }
    }
}
