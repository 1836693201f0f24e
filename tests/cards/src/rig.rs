//! A real pcscd of one's own, with virtual readers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

/// The name that all readers share; pcscd appends ` 00 00`, ` 01 00` and so on.
pub const READER_NAME: &str = "Cug Virtual Reader";

/// How long pcscd may take to start or stop.
const LIMIT: Duration = Duration::from_secs(10);

/// Passes the listening socket on as file 3, as systemd does, and ends pcscd when nobody holds the pipe any more: also
/// when the test was killed.
const WRAPPER: &str = r#"
exec 3<&0 </dev/null
start='LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
if [ "$(id -u)" = 0 ]; then
    # A /run of its own, so that its process id file is not taken for that of the system's pcscd.
    unshare --mount sh -c "mount -t tmpfs none /run && mkdir /run/pcscd && $start" start "$@" >&2 &
else
    sh -c "$start" start "$@" >&2 &
fi
echo $!
exec 3<&- >&2
cat "$ALIVE" >/dev/null
kill $! 2>/dev/null
wait $!
rm -rf "$DIRECTORY"
"#;

/// The driver's file, `libcug_ifd.so`: from the environment variable `CUG_IFD`, or beside or below the running program.
pub fn driver() -> crate::Result<PathBuf> {
    if let Some(path) = std::env::var_os("CUG_IFD") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    let places = program.ancestors().skip(1).take(2).flat_map(|dir| [dir.join("deps"), dir.to_owned()]);
    let newest = places
        .map(|dir| dir.join("libcug_ifd.so"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max();
    Ok(newest.context("libcug_ifd.so is not built; run cargo build -p cug-ifd or set CUG_IFD")?.1)
}

/// The text of a `reader.conf` with one reader per socket.
pub fn reader_conf(driver: &Path, sockets: &[PathBuf]) -> String {
    let block = |(channel, socket): (usize, &PathBuf)| {
        format!(
            "FRIENDLYNAME \"{READER_NAME}\"\nDEVICENAME /dev/null:{}\nLIBPATH {}\nCHANNELID {channel}\n\n",
            socket.display(),
            driver.display()
        )
    };
    sockets.iter().enumerate().map(block).collect()
}

/// The name of reader `n` as PC/SC clients see it.
pub fn reader_name(n: usize) -> String {
    format!("{READER_NAME} {n:02X} 00")
}

/// Unplugs the reader at `socket`, card and all: its clients see it become unavailable at once, and calls fail. Its name
/// stays in the list (Debian's pcscd removes USB readers only); to see a name vanish use [`Pcscd::kill`].
pub fn unplug(socket: &Path) -> crate::Result<()> {
    fs::write(flag(socket), "")?;
    // The driver looks when somebody knocks.
    let _ = UnixStream::connect(socket);
    Ok(())
}

/// Plugs the reader at `socket` in again; pcscd notices within a tenth of a second.
pub fn plug(socket: &Path) -> crate::Result<()> {
    Ok(fs::remove_file(flag(socket))?)
}

fn flag(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".unplugged");
    name.into()
}

fn signal(process: u32, signal: Signal) -> crate::Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(process)?), signal)?)
}

/// Waits until `done` or the limit: whether it was done. Looks every millisecond.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        let _ = nix::poll::poll(&mut [], 1_u8);
    }
    true
}

/// A running pcscd. Dropping it stops it and removes its directory; it also stops when this process dies.
pub struct Pcscd {
    directory: PathBuf,
    sockets: Vec<PathBuf>,
    wrapper: Child,
    process: u32,
    alive: Option<fs::File>,
}

impl Pcscd {
    /// Starts one with this many readers in a new directory below the system's temporary one.
    pub fn start(readers: usize) -> crate::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("cug-pcscd-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory)?;
        Self::start_in(directory.clone(), readers).inspect_err(|_| {
            let _ = fs::remove_dir_all(&directory);
        })
    }

    fn start_in(directory: PathBuf, readers: usize) -> crate::Result<Self> {
        ensure!(directory.as_os_str().as_bytes().len() < 80, "the directory's name is too long for UNIX sockets");
        let sockets: Vec<_> = (0..readers).map(|n| directory.join(format!("reader{n}.sock"))).collect();
        let conf = directory.join("reader.conf.d");
        fs::create_dir(&conf)?;
        fs::write(conf.join("virtual"), reader_conf(&driver()?, &sockets))?;
        let pipe = directory.join("alive");
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Opened for both, so that this does not wait for the other end.
        let alive = fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&pipe)?;
        let listener = UnixListener::bind(directory.join("pcscd.sock"))?;
        let mut command = Command::new("sh");
        command.args(["-c", WRAPPER, "rig", "pcscd", "--foreground", "-c"]).arg(&conf);
        if knows_polkit() {
            command.arg("--disable-polkit");
        }
        if std::env::var_os("CUG_PCSCD_DEBUG").is_some() {
            command.args(["--debug", "--apdu"]);
        }
        let mut wrapper = command
            .env("ALIVE", &pipe)
            .env("DIRECTORY", &directory)
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.join("log"))?)
            .spawn()
            .context("pcscd could not be started")?;
        let mut line = String::new();
        BufReader::new(wrapper.stdout.take().context("no output")?).read_line(&mut line)?;
        let process = line.trim().parse().context("pcscd could not be started")?;
        let pcscd = Self { directory, sockets, wrapper, process, alive: Some(alive) };
        if !wait_until(LIMIT, || pcscd.sockets.iter().all(|socket| socket.exists())) {
            bail!("pcscd did not load the readers: {}", pcscd.log());
        }
        Ok(pcscd)
    }

    /// The UNIX socket where clients find this pcscd, for `PCSCLITE_CSOCK_NAME`.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("pcscd.sock")
    }

    /// The directory of this pcscd; tests may keep files there.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The UNIX socket where reader `n` takes cards.
    pub fn reader(&self, n: usize) -> &Path {
        &self.sockets[n]
    }

    /// pcscd's process id.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// A command whose PC/SC calls go to this pcscd.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("PCSCLITE_CSOCK_NAME", self.socket());
        command
    }

    /// Kills pcscd as a crash would.
    pub fn kill(&self) -> crate::Result<()> {
        signal(self.process, Signal::SIGKILL)
    }

    /// What pcscd has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Pcscd {
    fn drop(&mut self) {
        drop(self.alive.take());
        let ended = |wrapper: &mut Child| !matches!(wrapper.try_wait(), Ok(None));
        if !wait_until(LIMIT, || ended(&mut self.wrapper)) {
            let _ = signal(self.process, Signal::SIGKILL);
            let _ = self.wrapper.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn knows_polkit() -> bool {
    let help = Command::new("pcscd").arg("--help").stdin(Stdio::null()).output();
    help.is_ok_and(|out| {
        [out.stdout, out.stderr].iter().any(|text| String::from_utf8_lossy(text).contains("--disable-polkit"))
    })
}
