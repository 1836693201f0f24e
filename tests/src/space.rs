//! A host: a process tree in its own mount, network, PID, UTS and IPC namespaces, on a copy-on-write view of this machine's files.
//!
//! Process 1 of the host ends when its standard input ends, and with it the kernel ends every process of the host and drops its mounts
//! and interfaces. The other end of that pipe is held by this process alone; so a host cannot outlive it, not even after SIGKILL.

use crate::process::{self, Daemon, Finished};
use crate::{paths, wait};
use anyhow::{Context, ensure};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Stands between programs and the C library's clocks.
const CLOCK: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Longest run of a program that should end by itself.
pub const RUN_LIMIT: Duration = Duration::from_secs(60);

/// A host. Dropping it ends everything on it.
pub struct Space {
    name: String,
    holder: Child,
    lifeline: Option<ChildStdin>,
    pid: i32,
    logs: PathBuf,
    own_clock: AtomicBool,
}

impl Space {
    /// Makes a host called `name` (its host name too), with its logs in `logs`.
    ///
    /// # Errors
    /// When the namespaces cannot be made (not root).
    pub fn new(name: &str, logs: &Path) -> anyhow::Result<Self> {
        paths::build_all()?;
        ensure!(nix::unistd::geteuid().is_root(), "hosts in namespaces need root: run this with sudo");
        let mut holder = Command::new(paths::built("rig")?)
            .args(["init", name])
            .arg(logs.join(format!("{name}.syslog")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(logs.join(format!("{name}.init")))?)
            .spawn()?;
        let lifeline = holder.stdin.take();
        let mut lines = BufReader::new(holder.stdout.take().context("stdout")?).lines();
        let mut line = || lines.next().transpose().ok().flatten().unwrap_or_default();
        let (pid, ready) = (line(), line());
        // From here on it is ended when something goes wrong.
        let space = Self {
            name: name.to_owned(),
            holder,
            lifeline,
            pid: pid.parse().unwrap_or(0),
            logs: logs.to_owned(),
            own_clock: AtomicBool::new(false),
        };
        let why = || fs::read_to_string(logs.join(format!("{name}.init"))).unwrap_or_default();
        ensure!(space.pid != 0 && ready == "ready", "host {name} did not start (`{pid}`, `{ready}`): {}", why());
        Ok(space)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process 1 of the host, as this machine numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Directory of the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The host's `path`, as this machine reaches it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let inner = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()).to_owned();
        PathBuf::from(format!("/proc/{}/root", self.pid)).join(inner)
    }

    /// Writes a file on the host; its directory is made.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> anyhow::Result<()> {
        let at = self.path(path);
        if let Some(dir) = at.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&at, content).with_context(|| path.to_owned())?;
        Ok(fs::set_permissions(&at, fs::Permissions::from_mode(mode))?)
    }

    /// Whether a program on the host listens at this UNIX socket. Does not connect, which a daemon would notice.
    pub fn listens(&self, path: &str) -> bool {
        let sockets = fs::read_to_string(format!("/proc/{}/net/unix", self.pid)).unwrap_or_default();
        // proc(5): the fourth column holds the flags, the last one the path; 0x10000 is a listening socket.
        sockets.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.get(3) == Some(&"00010000") && fields.last() == Some(&path)
        })
    }

    /// What programs on the host sent to syslog.
    pub fn syslog(&self) -> String {
        fs::read(self.logs.join(format!("{}.syslog", self.name)))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// A program to be run on the host, by root.
    ///
    /// # Errors
    /// When the harness's own program is not built.
    pub fn command(&self, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        self.enter(&[], program)
    }

    /// A program to be run on the host, by `user`.
    ///
    /// # Errors
    /// As [`Space::command`].
    pub fn command_as(&self, user: &str, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        self.enter(&["--user", user], program)
    }

    /// A program to be run in the host's network, with this machine's files and processes.
    ///
    /// # Errors
    /// As [`Space::command`].
    pub fn net_command(&self, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        self.enter(&["--net"], program)
    }

    fn enter(&self, options: &[&str], program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        let mut command = Command::new(paths::built("rig")?);
        command.arg("enter").arg(self.pid.to_string()).args(options).arg("--").arg(program);
        // The host's programs find their own things, and say the same in every language.
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        if self.own_clock.load(Ordering::Relaxed) {
            // Only the wall clock; and a new time counts at once.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_NO_CACHE", "1");
        }
        Ok(command)
    }

    /// Sets the wall clock of the host's programs, as an offset like `+400d` from this machine's. Those that are started after the first call
    /// have such a clock, and it can be set again while they run. Their other clocks are the kernel's.
    ///
    /// # Errors
    /// When the library that does it is not installed.
    pub fn set_clock(&self, offset: &str) -> anyhow::Result<()> {
        ensure!(Path::new(CLOCK).exists(), "{CLOCK} is not there: the package libfaketime is missing");
        self.write("/etc/faketimerc", format!("{offset}\n"), 0o644)?;
        self.write("/etc/ld.so.preload", format!("{CLOCK}\n"), 0o644)?;
        self.own_clock.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Runs a program on the host to its end.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than [`RUN_LIMIT`].
    pub fn run(&self, program: impl AsRef<OsStr>, args: &[&str]) -> anyhow::Result<Finished> {
        let mut command = self.command(program)?;
        command.args(args);
        process::run(command, b"", RUN_LIMIT)
    }

    /// Runs `ip` with these commands in the host's network.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn ip(&self, commands: &[String]) -> anyhow::Result<String> {
        let mut command = self.net_command("ip")?;
        command.args(["-batch", "-"]);
        process::run(command, commands.join("\n").as_bytes(), RUN_LIMIT)?.ok().with_context(|| commands.join("; "))
    }

    /// Starts a program that runs on, with its output in the log directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn daemon(&self, name: &str, command: Command) -> anyhow::Result<Daemon> {
        let log = self.logs.join(format!("{}.{name}.log", self.name));
        Daemon::spawn(&format!("{name} on {}", self.name), command, &log, true)
    }

    /// Lets the host live on after this process; PID 1's number is then the handle to end it.
    ///
    /// # Errors
    /// When the host is gone.
    pub fn keep(mut self) -> anyhow::Result<i32> {
        let mut lifeline = self.lifeline.take().context("host is gone")?;
        lifeline.write_all(b"k")?;
        // Process 1 must have read the byte before the pipe is closed.
        let pid = self.pid;
        wait::for_true("the host to let go", Duration::from_secs(5), || pipe_is_empty(&lifeline))?;
        std::mem::forget(self);
        drop(lifeline);
        Ok(pid)
    }
}

fn pipe_is_empty(pipe: &ChildStdin) -> bool {
    use std::os::fd::AsRawFd;
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD stores one int.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    result == 0 && waiting == 0
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let ended =
            wait::until("the end of the host", Duration::from_secs(10), || self.holder.try_wait().ok().flatten());
        if ended.is_err() {
            let _ = self.holder.kill();
            let _ = self.holder.wait();
        }
    }
}

/// Runs a test with a directory for its logs, which are printed when it fails.
///
/// # Panics
/// When the test fails.
pub fn scenario(name: &str, test: impl FnOnce(&Path) -> anyhow::Result<()>) {
    let logs = Logs::new(name).unwrap_or_else(|error| panic!("{error:#}"));
    if let Err(error) = test(logs.path()) {
        let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
        panic!("{}\n{}", causes.join("\n  because: "), own_frames(&error.backtrace().to_string()));
    }
}

/// Where in this crate an error came from: a whole backtrace is mostly about the test runner.
fn own_frames(backtrace: &str) -> String {
    let lines: Vec<_> = backtrace.lines().map(str::trim).filter(|line| line.starts_with("at ./")).collect();
    lines.join("\n")
}

/// Prints the logs of an environment when the test that made it panics, and removes them when it does not.
pub struct Logs(PathBuf);

impl Logs {
    /// A fresh directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        paths::log_dir(name).map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Enough of each log to see the end of the story.
const SHOWN: usize = 12_000;

impl Drop for Logs {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            if std::env::var_os("CUG_KEEP_LOGS").is_none() {
                let _ = fs::remove_dir_all(&self.0);
            }
            return;
        }
        let mut files: Vec<_> =
            fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files
            .iter()
            .filter(|file| file.extension().is_none_or(|kind| kind != "pcap" && kind != "card" && kind != "flow"))
        {
            let text = fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            if !text.trim().is_empty() {
                let from = text.char_indices().rev().nth(SHOWN).map_or(0, |(at, _)| at);
                eprintln!("--- {}\n{}", file.display(), &text[from..]);
            }
        }
    }
}
