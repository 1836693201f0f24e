//! A gate before a file: a program's threads that open it wait there (fanotify), so that a test can see what does not wait for them.

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The gate. It opens when it is dropped.
pub struct Gate {
    open: Option<Sender<()>>,
    arrivals: Receiver<()>,
    keeper: Option<JoinHandle<()>>,
}

/// Tells threads apart, not programs.
const FLAGS: libc::c_uint = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_REPORT_TID;

impl Gate {
    /// Everybody opens `path` as ever but the threads of `process` beside its first one. They wait at the file, not at its name: who replaces it
    /// puts another file there.
    ///
    /// # Errors
    /// When the kernel has no such gates.
    pub fn shut(path: &Path, process: i32) -> anyhow::Result<Self> {
        // SAFETY: no memory is passed.
        let gate = unsafe { libc::fanotify_init(FLAGS, libc::O_RDONLY as libc::c_uint) };
        if gate < 0 {
            bail!("fanotify: {}", std::io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made, and is nobody else's.
        let gate = File::from(unsafe { OwnedFd::from_raw_fd(gate) });
        let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
        let descriptor = gate.as_raw_fd();
        // SAFETY: `name` ends with a zero and lives during the call.
        let marked = unsafe {
            libc::fanotify_mark(descriptor, libc::FAN_MARK_ADD, libc::FAN_OPEN_PERM, libc::AT_FDCWD, name.as_ptr())
        };
        if marked != 0 {
            bail!("a gate before {}: {}", path.display(), std::io::Error::last_os_error());
        }
        let (open, opened) = channel();
        let (arrived, arrivals) = channel();
        let keeper = std::thread::spawn(move || keep(gate, process, &opened, &arrived));
        Ok(Self { open: Some(open), arrivals, keeper: Some(keeper) })
    }

    /// Waits until a thread waits.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_arrival(&self, limit: Duration) -> anyhow::Result<()> {
        self.arrivals.recv_timeout(limit).context("nobody came to the gate")
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open = None;
        if let Some(keeper) = self.keeper.take() {
            let _panicked = keeper.join();
        }
    }
}

/// Answers until the gate is opened; its end lets everybody pass who waits.
fn keep(mut gate: File, process: i32, opened: &Receiver<()>, arrived: &Sender<()>) {
    let own = |thread: i32| thread != process && Path::new(&format!("/proc/{process}/task/{thread}")).exists();
    while !matches!(opened.try_recv(), Err(TryRecvError::Disconnected)) {
        let mut ready = [PollFd::new(gate.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(20_u8)).unwrap_or(0) == 0 {
            continue;
        }
        let mut buffer = [0; 4096];
        let Ok(length) = gate.read(&mut buffer) else { return };
        for event in buffer[..length].chunks_exact(size_of::<libc::fanotify_event_metadata>()) {
            // SAFETY: the kernel wrote whole structures of integers, of this size because none but permissions were asked for.
            let event: libc::fanotify_event_metadata = unsafe { std::ptr::read_unaligned(event.as_ptr().cast()) };
            // SAFETY: the event's descriptor is this reader's.
            let file = unsafe { OwnedFd::from_raw_fd(event.fd) };
            if own(event.pid) {
                let _nobody_listens = arrived.send(());
                // Kept without an answer.
            } else {
                let mut answer = [0; 8];
                answer[..4].copy_from_slice(&event.fd.to_ne_bytes());
                answer[4..].copy_from_slice(&libc::FAN_ALLOW.to_ne_bytes());
                let _gone = gate.write_all(&answer);
            }
            drop(file);
        }
    }
}
