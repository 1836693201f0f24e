//! A terminal on a bench: socket in a temporary directory, medium in another, a server on loopback.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use cug_proto::{
    frame::{self, HEADER_LEN, MAX_SESSION},
    local::{
        CardBinding, Deliver, LOCAL_VERSION, MediumBinding, OfferId, Open, Prepare, Refusal, Reply, Request,
        SessionStatus,
    },
    message::{Grant, GroupGrant, Prefix4, Prefix6},
    secret::Secret,
};
use cugd::{
    core::{Event, Number, Removal, Settings, State, TunnelEvent},
    driver::{Driver, EVENT_QUEUE},
    leaders::Leaders,
    link::TlsLinks,
    logind::Logind,
    socket::Listener,
    tunnels::{Order, Tunnels},
    watch::CardWatches,
};
use tokio::sync::{mpsc, oneshot};

use crate::server::Server;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Bench {
    pub server: Server,
    pub tunnels: Journal,
    pub socket: PathBuf,
    directory: PathBuf,
    binding: MediumBinding,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    daemon: Mutex<Option<JoinHandle<()>>>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Bench {
    pub fn start() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("cugd-test-{}-{number}", std::process::id()));
        let medium = directory.join("medium");
        fs::create_dir_all(&medium).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let key = medium.join("card.p8");
        fs::write(&key, "a key").unwrap();
        let binding = MediumBinding {
            directory: medium.to_str().unwrap().to_owned(),
            device: fs::metadata(&medium).unwrap().dev(),
            inode: fs::metadata(&key).unwrap().ino(),
            fingerprint: [0; 32],
        };
        let server = Server::start();
        let socket = directory.join("run/cugd.sock");
        let tunnels = Journal::default();
        let (stop, stopped) = oneshot::channel();
        let trusted = (server.address.clone(), server.ca_pin);
        let daemon = daemon(socket.clone(), trusted, tunnels.clone(), stopped);
        let bench = Self {
            server,
            tunnels,
            socket,
            directory,
            binding,
            stop: Mutex::new(Some(stop)),
            daemon: Mutex::new(Some(daemon)),
        };
        wait_for(|| UnixStream::connect(&bench.socket).ok());
        bench
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    pub fn deliver(&self, offer: OfferId) -> Request {
        let secret = Secret::fill(|bytes| bytes.fill(7));
        let grant = Grant { session: [9; 16], secret, groups: vec![group(1, 1)], attach_within: 30 };
        let (server, ca_pin) = (self.server.address.clone(), self.server.ca_pin);
        Request::Deliver(Deliver { offer, grant, server, ca_pin, card: CardBinding::Medium(self.binding.clone()) })
    }

    pub fn log_in(&self, pam: &mut Client) {
        let Reply::Offer(offer) = pam.ask(&prepare("USER-A")) else { panic!("no offer") };
        assert!(matches!(pam.ask(&self.deliver(offer.id)), Reply::Delivered(false)));
        assert!(matches!(pam.ask(&open("USER-A")), Reply::Opened(_)));
    }

    pub fn pull_medium(&self) {
        fs::remove_dir_all(&self.binding.directory).unwrap();
    }

    /// Until the only session is as wanted.
    pub fn until(&self, client: &mut Client, wanted: impl Fn(&SessionStatus) -> bool) {
        wait_for(|| match client.ask(&Request::Status) {
            Reply::Status(status) => status.sessions.first().is_some_and(&wanted).then_some(()),
            _ => panic!("no status"),
        });
    }

    pub fn stop(&self) {
        if let Some(stop) = self.stop.lock().unwrap().take() {
            let _ended = stop.send(());
        }
    }

    pub fn ended(&self) {
        let daemon = self.daemon.lock().unwrap().take().unwrap();
        wait_for(|| daemon.is_finished().then_some(()));
        daemon.join().unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop();
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn daemon(
    socket: PathBuf,
    (server, ca_pin): (String, [u8; 32]),
    tunnels: Journal,
    stopped: oneshot::Receiver<()>,
) -> JoinHandle<()> {
    let settings = Settings {
        servers: vec![server],
        ca_pins: vec![ca_pin, [1; 32]],
        server_timeout: Duration::from_secs(3),
        card_wait: Duration::ZERO,
        readers: vec![],
        exempt: vec![],
        media: vec![],
        grant_time: Duration::from_secs(60),
        host_name: "term1".parse().unwrap(),
        backend: "double".into(),
        guard: "double".into(),
        removal: Removal::Disconnect,
        removal_grace: Duration::ZERO,
        offline_wait: None,
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = Listener::bind(&socket).unwrap();
            let (events, event_queue) = mpsc::channel(EVENT_QUEUE);
            let (asks, ask_queue) = mpsc::channel(64);
            let driver = Driver::new(
                State::new(settings.clone()),
                TunnelDouble { journal: tunnels, events: events.clone() },
                TlsLinks::new(events.clone(), settings.server_timeout),
                CardWatches::new(events.clone(), vec![], vec![]),
                Leaders::new(events),
            );
            let serving =
                tokio::spawn(listener.serve(asks, |user| (user.as_str() != "root").then_some(3001), Logind::off()));
            let stop = async { drop(stopped.await) };
            driver.run(ask_queue, event_queue, stop, None).await;
            serving.abort();
        });
        runtime.shutdown_background();
    })
}

/// What was ordered of WireGuard.
#[derive(Clone, Default)]
pub struct Journal(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Journal {
    fn note(&self, what: String) {
        self.0.0.lock().unwrap().push(what);
        self.0.1.notify_all();
    }

    pub fn expect(&self, what: &str) {
        let journal = self.0.0.lock().unwrap();
        let missing = |journal: &mut Vec<String>| !journal.iter().any(|entry| entry == what);
        let (journal, late) = self.0.1.wait_timeout_while(journal, PATIENCE, missing).unwrap();
        assert!(!late.timed_out(), "no {what:?} in {journal:?}");
    }

    pub fn never(&self, what: &str) {
        assert!(!self.0.0.lock().unwrap().iter().any(|entry| entry == what));
    }
}

struct TunnelDouble {
    journal: Journal,
    events: mpsc::Sender<Event>,
}

impl TunnelDouble {
    fn tell(&self, number: Number, event: TunnelEvent) {
        let events = self.events.clone();
        tokio::spawn(async move { events.send(Event::Tunnel { number, event }).await });
    }
}

impl Tunnels for TunnelDouble {
    fn expect(&mut self) {
        self.journal.note("expect".to_owned());
    }

    fn order(&mut self, number: Number, order: Order) {
        match order {
            Order::Fence(_, fences) => self.journal.note(format!("fence {}", fences.len())),
            Order::Up(_, interface) => {
                self.journal.note(format!("up {}", interface.group));
                self.tell(number, TunnelEvent::Raised { group: interface.group, port: 51820 });
            }
            Order::Upsert(group, peers) => self.journal.note(format!("upsert {group} {}", peers.len())),
            Order::Remove(group, peers) => self.journal.note(format!("remove {group} {}", peers.len())),
            Order::Rekey(group, ..) => self.journal.note(format!("rekey {group}")),
            Order::GroupDown(group) => self.journal.note(format!("group down {group}")),
            Order::Measure(..) | Order::Reach(..) | Order::Look(_) => {}
            Order::Confine(group, policy) => self.journal.note(format!("confine {group} {policy:?}")),
        }
    }

    fn down(&mut self, number: Number) {
        self.journal.note("down".to_owned());
        self.tell(number, TunnelEvent::Gone);
        self.tell(number, TunnelEvent::Down { leftovers: Vec::new() });
    }
}

/// A caller on the socket.
pub struct Client(UnixStream);

impl Client {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub fn ask(&mut self, request: &Request) -> Reply {
        self.send_raw(&frame::encode(request, MAX_SESSION).unwrap());
        self.receive()
    }

    pub fn receive(&mut self) -> Reply {
        let mut header = [0; HEADER_LEN];
        self.0.read_exact(&mut header).unwrap();
        let mut body = vec![0; frame::body_len(header, MAX_SESSION).unwrap()];
        self.0.read_exact(&mut body).unwrap();
        frame::decode(&body).unwrap()
    }

    /// The daemon may have closed already.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        drop(self.0.write_all(bytes));
    }

    pub fn finish(&self) {
        drop(self.0.shutdown(Shutdown::Write));
    }

    pub fn drain(&mut self) {
        let mut rest = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut rest) {
            assert!(
                !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
                "the connection hangs"
            );
        }
    }

    pub fn is_closed(&mut self) -> bool {
        !matches!(self.0.read(&mut [0]), Ok(1..))
    }
}

pub fn prepare(user: &str) -> Request {
    Request::Prepare(Prepare { version: LOCAL_VERSION, user: user.parse().unwrap(), service: "login".into() })
}

pub fn open(user: &str) -> Request {
    Request::Open(Open { user: user.parse().unwrap(), service: "login".into(), tty: "tty1".into(), holds: true })
}

pub fn refused(reply: Reply) -> Refusal {
    match reply {
        Reply::Refused(why) => why,
        _ => panic!("not refused"),
    }
}

pub fn group(id: u32, epoch: u32) -> GroupGrant {
    GroupGrant {
        id,
        name: "VPN1".parse().unwrap(),
        epoch,
        key: Secret::fill(|bytes| bytes.fill(epoch as u8)),
        prefix4: Prefix4 { address: [100, 96, 1, 0].into(), len: 24 },
        prefix6: Prefix6 { address: "fd00::".parse().unwrap(), len: 64 },
        address4: [100, 96, 1, 1].into(),
        address6: "fd00::1".parse().unwrap(),
        policy: cug_proto::policy::Policy::Open,
    }
}

/// Polls, as often as the other side lets it.
pub fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let gate = (Mutex::new(()), Condvar::new());
    for _ in 0..PATIENCE.as_millis() / 5 {
        if let Some(value) = condition() {
            return value;
        }
        drop(gate.1.wait_timeout(gate.0.lock().unwrap(), Duration::from_millis(5)).unwrap());
    }
    panic!("waited in vain");
}

/// Runs `work` on a thread whose user is `nobody`; the kernel reports that user to whom it connects.
pub fn as_nobody(work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        // SAFETY: the system call itself changes the credentials of the calling thread only, and touches no memory.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(changed, 0, "the tests run as root");
        work();
    })
    .join()
    .unwrap();
}
