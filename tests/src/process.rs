//! Children with a log, an end in every case, and a deadline for those that must finish.

use crate::wait;
use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A running program whose output goes into a file. Dropping it kills it. Its standard input is a pipe from here, so that a program that
/// wants to can see the end of this process.
pub struct Daemon {
    /// What it is called in messages.
    pub name: String,
    child: Child,
    log: PathBuf,
    /// Through `rig enter`: the program itself is a child of `child`.
    entered: bool,
}

impl Daemon {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, command: Command, log: &Path, entered: bool) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        Self::spawn_with(name, command, file, log, entered)
    }

    /// The same with standard output going into `out`, and only errors into `log`.
    ///
    /// # Errors
    /// As [`Daemon::spawn`].
    pub fn spawn_with(name: &str, mut command: Command, out: File, log: &Path, entered: bool) -> anyhow::Result<Self> {
        let errors = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), entered })
    }

    /// Everything that it has printed.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits for `text` in the log, at most `limit`.
    ///
    /// # Errors
    /// With the log, when it does not come or the program ends.
    pub fn wait_log(&mut self, text: &str, limit: Duration) -> anyhow::Result<()> {
        wait::until(&format!("`{text}` in the log of {}", self.name), limit, || {
            if self.log().contains(text) {
                return Some(Ok(()));
            }
            self.exited().map(|status| Err(anyhow::anyhow!("{} ended: {status}", self.name)))
        })
        .and_then(|found| found)
        .with_context(|| self.log())
    }

    /// Its PID on this machine (not in its namespace).
    ///
    /// # Errors
    /// When it is not there.
    pub fn pid(&self) -> anyhow::Result<i32> {
        let own = i32::try_from(self.child.id())?;
        if !self.entered {
            return Ok(own);
        }
        wait::until(&format!("the process of {}", self.name), Duration::from_secs(5), || child_of(own))
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to the program itself.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid()?), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits for its end, at most `limit`.
    ///
    /// # Errors
    /// When it still runs.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, limit, || self.exited())
    }

    /// SIGTERM, and wait for the end.
    ///
    /// # Errors
    /// When it does not end within ten seconds.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(10))
    }

    /// SIGKILL, and wait for the end.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }

    /// Ends its standard input.
    pub fn end_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Lets it run on after this process.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.exited().is_some() {
            return;
        }
        // The program first: `rig enter` ends when it has seen its end, so afterwards nothing of it is left, its sockets included.
        let own = i32::try_from(self.child.id()).unwrap_or_default();
        let program = if self.entered { child_of(own) } else { None };
        let killed = program.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
        if !killed || self.wait(Duration::from_secs(5)).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a program printed and how it ended.
pub struct Finished {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// How it ended.
    pub status: ExitStatus,
}

impl Finished {
    /// Standard output of a program that succeeded.
    ///
    /// # Errors
    /// With all output, when it failed.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.status.success() {
            return Ok(self.out);
        }
        bail!("{}: {}{}", self.status, self.err, self.out)
    }
}

/// Runs a program to its end with `input`, at most `limit`.
///
/// # Errors
/// When it cannot be started, or does not end (it is killed then).
pub fn run(mut command: Command, input: &[u8], limit: Duration) -> anyhow::Result<Finished> {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| name.clone())?;
    let stdin = child.stdin.take();
    let (mut stdout, mut stderr) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input)));
        let out = scope.spawn(move || read_all(&mut stdout));
        let err = scope.spawn(move || read_all(&mut stderr));
        let status = wait::until(&name, limit, || child.try_wait().ok().flatten());
        if status.is_err() {
            // A set-uid program does not die with the one that started it, and would hold the pipes open.
            kill_tree(i32::try_from(child.id()).unwrap_or_default());
            let _ = child.wait();
        }
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        Ok(Finished { status: status.with_context(|| format!("{out}{err}"))?, out, err })
    })
}

fn read_all(pipe: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// SIGKILL to a process and everything below it.
pub fn kill_tree(pid: i32) {
    while let Some(child) = child_of(pid).filter(|_| pid > 1) {
        kill_tree(child);
        if child_of(pid) == Some(child) {
            // Killed, and waited for by nobody but its parent: stop here.
            break;
        }
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// All processes in the PID namespace of `pid`, as this machine numbers them.
pub fn beside(pid: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(pid);
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| namespace(*pid) == own).collect()
}

/// The login that waits for a server (`cugd waiting-login`) among these.
pub fn waiting_login(processes: &[i32]) -> Option<i32> {
    processes.iter().copied().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| crate::memory::contains(&line, b"waiting-login"))
    })
}

/// Its number in its own PID namespace.
///
/// # Errors
/// When it is gone.
pub fn own_number(pid: i32) -> anyhow::Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("NSpid")?;
    numbers.split_whitespace().last().map(str::to_owned).context("no number")
}

/// A child process of `parent`, if it has one.
pub fn child_of(parent: i32) -> Option<i32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in parentheses may hold anything; the state and the parent follow the last one.
        let ppid: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (ppid == parent).then_some(pid)
    })
}
