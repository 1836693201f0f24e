//! Runs a program on a host, as a child that can be signalled and whose end is seen.

use crate::ns;
use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

static CHILD: AtomicI32 = AtomicI32::new(0);

/// `PID [--net] [--user NAME] -- PROGRAM ARGS`: with `--net` only the network is the host's, files and processes stay this machine's.
pub fn run(pid: &str, args: &[&str]) -> anyhow::Result<u8> {
    let (mut net_only, mut user, mut rest) = (false, None, args);
    let program = loop {
        match rest {
            ["--net", tail @ ..] => (net_only, rest) = (true, tail),
            ["--user", name, tail @ ..] => (user, rest) = (Some(*name), tail),
            ["--", program @ ..] => break program,
            _ => bail!("enter PID [--net] [--user NAME] -- PROGRAM ARGS"),
        }
    };
    let [program, arguments @ ..] = program else { bail!("no program") };
    join(pid, net_only).with_context(|| format!("cannot enter the namespaces of {pid}"))?;

    if let Some(child) = ns::fork()? {
        CHILD.store(child.as_raw(), Ordering::SeqCst);
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            ns::on_signal(signal, SigHandler::Handler(forward))?;
        }
        return follow(child);
    }
    let mut command = Command::new(program);
    command.args(arguments);
    match user {
        Some(name) => become_user(&mut command, name)?,
        None => drop(command.env("HOME", "/root").env("USER", "root").env("LOGNAME", "root")),
    }
    // After a change of user the kernel forgets it, so it comes last.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    Err(command.exec()).with_context(|| (*program).to_owned())
}

fn join(pid: &str, net_only: bool) -> anyhow::Result<()> {
    let names = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let wanted = if net_only { &names[..1] } else { &names[..] };
    let open =
        |(name, flag): &(&str, CloneFlags)| File::open(format!("/proc/{pid}/ns/{name}")).map(|file| (file, *flag));
    // All are opened before the first is entered: afterwards /proc is another one.
    for (file, flag) in wanted.iter().map(open).collect::<Result<Vec<_>, _>>()? {
        setns(file, flag)?;
    }
    if !net_only {
        std::env::set_current_dir("/")?;
    }
    Ok(())
}

extern "C" fn forward(signal: i32) {
    if let Ok(signal) = Signal::try_from(signal) {
        let _ = kill(Pid::from_raw(CHILD.load(Ordering::SeqCst)), signal);
    }
}

fn follow(child: Pid) -> anyhow::Result<u8> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128_u8.saturating_add(signal as u8)),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn become_user(command: &mut Command, name: &str) -> anyhow::Result<()> {
    let user = nix::unistd::User::from_name(name)?.with_context(|| format!("no user {name}"))?;
    nix::unistd::initgroups(&std::ffi::CString::new(name)?, user.gid)?;
    nix::unistd::setgid(user.gid)?;
    nix::unistd::setuid(user.uid)?;
    command.env("HOME", &user.dir).env("USER", name).env("LOGNAME", name);
    Ok(())
}
