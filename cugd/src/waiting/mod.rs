//! Logins that wait for a server, each in a process of its own: this is the daemon's side. [`process`] is the other, `core::offline` decides.
//!
//! The process is this very program (`/proc/self/exe`, so it is of the same version even when the file was replaced meanwhile). Its standard input is a connection to
//! the daemon, its standard output a listening socket where root's PAM module hands over what was typed: the daemon never has it.

pub mod process;

use std::{
    collections::HashMap,
    fs::{self, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream as Pair},
        },
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use cug_proto::{
    frame::{self, HEADER_LEN, MAX_LOGIN},
    id::UserId,
    local::CardBinding,
    waiting::{Order, Report, Task},
};
use minicbor::{Decode, Encode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    sync::mpsc,
    task::JoinHandle,
};

use crate::{
    clock,
    core::{Event, Number, WaitingEvent},
};

/// The argument that makes this program a waiting login.
pub const ARGUMENT: &str = "waiting-login";

/// The running ones.
pub struct Waitings {
    events: mpsc::Sender<Event>,
    /// The daemon's own socket; those of waiting logins are beside it.
    socket: PathBuf,
    running: HashMap<Number, Running>,
}

struct Running {
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<()>,
    socket: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process goes with its handle, which the task has: killed, and its memory taken away by the kernel.
        self.task.abort();
        let _gone_already = fs::remove_file(&self.socket);
    }
}

impl Waitings {
    /// Reports to `events`; `socket` is where the daemon listens.
    pub fn new(events: mpsc::Sender<Event>, socket: PathBuf) -> Self {
        Self { events, socket, running: HashMap::new() }
    }

    /// Starts one: the path of the socket that takes what was typed.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start(&mut self, number: Number, user: UserId, card: CardBinding) -> io::Result<String> {
        let path = self.socket.with_file_name(format!("waiting-{}.sock", number.0));
        // Left by an earlier run that was killed.
        let _none = fs::remove_file(&path);
        let door = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let (near, far) = Pair::pair()?;
        let child = spawn(OwnedFd::from(far), OwnedFd::from(door))?;
        near.set_nonblocking(true)?;
        let near = UnixStream::from_std(near)?;
        let (orders, queue) = mpsc::unbounded_channel();
        let task = Task { user, card, daemon: self.socket.to_string_lossy().into_owned() };
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let cause = match follow(child, near, &task, queue, &events, number).await {
                Ok(()) => "it has ended".to_owned(),
                Err(error) => error.to_string(),
            };
            let _daemon_stops = events.send(Event::Waiting { number, event: WaitingEvent::Ended(cause) }).await;
        });
        let shown = path.to_string_lossy().into_owned();
        self.running.insert(number, Running { orders, task, socket: path });
        Ok(shown)
    }

    /// Lets it try.
    pub fn attempt(&self, number: Number) {
        if let Some(running) = self.running.get(&number) {
            // One that has just ended reports it by itself.
            let _ended = running.orders.send(Order::Try);
        }
    }

    /// Ends it.
    pub fn stop(&mut self, number: Number) {
        self.running.remove(&number);
    }
}

fn spawn(orders: OwnedFd, door: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new(Path::new("/proc/self/exe"));
    command.arg(ARGUMENT).env_clear();
    for kept in ["RUST_LOG", "JOURNAL_STREAM"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command.stdin(Stdio::from(orders)).stdout(Stdio::from(door)).kill_on_drop(true).spawn()
}

/// Passes orders to the process and its reports to the loop, until it ends.
async fn follow(
    mut child: Child,
    line: UnixStream,
    task: &Task,
    mut queue: mpsc::UnboundedReceiver<Order>,
    events: &mpsc::Sender<Event>,
    number: Number,
) -> io::Result<()> {
    let (mut reader, mut writer) = line.into_split();
    write(&mut writer, task).await?;
    let orders = async {
        while let Some(order) = queue.recv().await {
            write(&mut writer, &order).await?;
        }
        Ok(())
    };
    let reports = async {
        loop {
            let event = match read(&mut reader).await? {
                Report::Ready => WaitingEvent::Ready,
                Report::Away(cause) => WaitingEvent::Away { cause, jitter: clock::jitter() },
                Report::Refused(sentence) => WaitingEvent::Refused(sentence),
                Report::LoggedIn => WaitingEvent::LoggedIn,
            };
            let _daemon_stops = events.send(Event::Waiting { number, event }).await;
        }
    };
    tokio::select! {
        ended = child.wait() => Err(io::Error::other(format!("it ended with {}", ended?))),
        result = orders => result,
        result = reports => result,
    }
}

async fn write(writer: &mut (impl AsyncWriteExt + Unpin), message: &impl Encode<()>) -> io::Result<()> {
    writer.write_all(&frame::encode(message, MAX_LOGIN).map_err(io::Error::other)?).await
}

async fn read<T: for<'b> Decode<'b, ()>>(reader: &mut (impl AsyncReadExt + Unpin)) -> io::Result<T> {
    let mut header = [0; HEADER_LEN];
    reader.read_exact(&mut header).await?;
    let mut body = vec![0; frame::body_len(header, MAX_LOGIN).map_err(io::Error::other)?];
    reader.read_exact(&mut body).await?;
    frame::decode(&body).map_err(io::Error::other)
}
