//! File descriptors for processes (pidfd_open(2)), and when a process was started.
//!
//! A process ID alone is not enough: it may be another process's a moment later.

use std::{
    fs, io,
    os::fd::{AsFd, FromRawFd, OwnedFd, RawFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{Interest, unix::AsyncFd};

use crate::core::Leader;

/// The process `pid`, held by a file descriptor that becomes readable when it ends.
///
/// # Errors
/// When there is no such process (any more), or `/proc` does not show it.
pub fn hold(pid: u32) -> io::Result<(Leader, OwnedFd)> {
    let fd = open(pid)?;
    let start = start_time(pid)?;
    // Still alive after its entry in /proc was read: so the entry was this process's.
    if ended(&fd)? {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok((Leader { pid, start }, fd))
}

/// Until the process ends. Needs the runtime.
///
/// # Errors
/// When the event loop does not take the descriptor.
pub async fn wait(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: an `OwnedFd` is an open descriptor, always the same one, and stays open until the `AsyncFd` drops it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)?;
    fd.readable().await.map(drop)
}

fn ended(fd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

/// Field 22 of `/proc/PID/stat`; the process name before it may contain anything, spaces and parentheses included.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let after_name = stat.iter().rposition(|b| *b == b')').and_then(|at| stat.get(at + 1..)).unwrap_or_default();
    let fields = String::from_utf8_lossy(after_name);
    let start = fields.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok());
    start.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_held_until_it_ends() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let (leader, fd) = hold(child.id()).unwrap();
        assert!(leader.start > 0 && !ended(&fd).unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(ended(&fd).unwrap());
        assert!(hold(child.id()).is_err());
        assert!(hold(0).is_err());
    }
}
