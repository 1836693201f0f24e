//! Runs a program on a pseudo terminal that is its controlling one, as getty and sshd do: keys from standard input, screen to standard output.

use crate::ns;
use anyhow::{Context, bail};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `PROGRAM ARGS`. The end of standard input hangs the line up.
pub fn run(args: &[&str]) -> anyhow::Result<u8> {
    let [program, arguments @ ..] = args else { bail!("pty PROGRAM ARGS") };
    let mut master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let Some(child) = ns::fork()? else {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        nix::unistd::setsid()?;
        let line = open(name.as_str(), OFlag::O_RDWR, Mode::empty())?;
        ns::controlling_terminal(line.as_raw_fd())?;
        nix::unistd::dup2_stdin(&line)?;
        nix::unistd::dup2_stdout(&line)?;
        nix::unistd::dup2_stderr(&line)?;
        drop(line);
        return Err(Command::new(program).args(arguments).exec()).with_context(|| (*program).to_owned());
    };
    let mut buffer = [0; 4096];
    let (mut screen, keys) = (std::io::stdout(), std::io::stdin());
    loop {
        let (from_line, from_keys) = {
            let mut fds =
                [PollFd::new(master.as_fd(), PollFlags::POLLIN), PollFd::new(keys.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            (fds[0].any().unwrap_or(false), fds[1].any().unwrap_or(false))
        };
        if from_line {
            // EIO: nobody has the other side open any more.
            let Ok(length @ 1..) = master.read(&mut buffer) else { break };
            screen.write_all(&buffer[..length])?;
            screen.flush()?;
        }
        if from_keys {
            match keys.lock().read(&mut buffer)? {
                0 => break,
                length => master.write_all(&buffer[..length])?,
            }
        }
    }
    drop(master);
    match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        WaitStatus::Signaled(_, signal, _) => Ok(128_u8.saturating_add(signal as u8)),
        _ => Ok(u8::MAX),
    }
}
