//! System calls that have no safe form: fork, and the name to user look-up after it.

use nix::unistd::{ForkResult, Pid};

/// Forks: the child's PID in the parent, `None` in the child.
pub fn fork() -> anyhow::Result<Option<Pid>> {
    // SAFETY: this program has one thread, so the child may do anything.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Makes `handler` the handler of `signal`.
pub fn on_signal(signal: nix::sys::signal::Signal, handler: nix::sys::signal::SigHandler) -> anyhow::Result<()> {
    // SAFETY: the handlers of this program only store to an atomic or call kill(2), both of which are allowed in one.
    unsafe { nix::sys::signal::signal(signal, handler) }?;
    Ok(())
}

/// Makes the terminal `fd` the controlling terminal of this session.
pub fn controlling_terminal(fd: std::os::fd::RawFd) -> anyhow::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory of ours.
    let result = unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
