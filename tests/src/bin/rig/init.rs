//! Process 1 of a host: makes its file system, keeps its system log, and lives as long as standard input is open.

use crate::ns;
use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Prints the PID of process 1 as this machine sees it, then `ready`. Ends with the host.
pub fn run(name: &str, log: &str) -> anyhow::Result<u8> {
    // A session of its own: Ctrl-C at the terminal goes to the program that holds our standard input, not to us.
    let _ = nix::unistd::setsid();
    let syslog = File::options().create(true).append(true).open(log).with_context(|| log.to_owned())?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID,
    )
    .context("no new namespaces; the end-to-end tests need root")?;
    let (told, tell) = nix::unistd::pipe()?;
    if let Some(child) = ns::fork()? {
        println!("{child}");
        std::io::stdout().flush()?;
        // Only now the child may speak on the same pipe.
        drop((told, tell));
        nix::sys::wait::waitpid(child, None)?;
        return Ok(0);
    }
    drop(tell);
    File::from(told).read_to_end(&mut Vec::new())?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    ns::on_signal(Signal::SIGCHLD, SigHandler::SigIgn)?;
    nix::unistd::sethostname(name)?;
    files().context("cannot make the host's file system")?;
    settings(name).context("cannot make the host's settings")?;
    let socket = UnixDatagram::bind("/dev/log").context("/dev/log")?;
    fs::set_permissions("/dev/log", fs::Permissions::from_mode(0o666))?;
    println!("ready");
    std::io::stdout().flush()?;
    serve(&socket, syslog)
}

/// File systems that show the machine, not what is stored on it.
const PSEUDO: [&str; 20] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "tmpfs",
    "ramfs",
    "cgroup",
    "cgroup2",
    "mqueue",
    "securityfs",
    "debugfs",
    "tracefs",
    "pstore",
    "bpf",
    "configfs",
    "autofs",
    "binfmt_misc",
    "hugetlbfs",
    "fusectl",
    "nsfs",
];

/// A copy-on-write view of the machine's root; own /proc, /sys, /dev, /run and /tmp.
fn files() -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let own = std::env::current_exe()?;
    // The directory of everything that is built: programs, and the images of machines.
    let programs = own.ancestors().nth(2).context("no directory")?.to_owned();
    let seen = File::open(&programs)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let others = fs::read_to_string("/proc/self/mountinfo")?;
    mount(Some("space"), "/tmp", Some("tmpfs"), MsFlags::empty(), none)?;
    for dir in ["/tmp/upper", "/tmp/work", "/tmp/root"] {
        fs::create_dir(dir)?;
    }
    fs::set_permissions("/tmp/upper", fs::Permissions::from_mode(0o755))?;
    mount(
        Some("space"),
        "/tmp/root",
        Some("overlay"),
        MsFlags::empty(),
        Some("lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work"),
    )
    .context("overlay over /")?;
    for at in others.lines().filter_map(stored) {
        let to = format!("/tmp/root{at}");
        if Path::new(&to).is_dir() && mount(Some(at), to.as_str(), none, MsFlags::MS_BIND, none).is_ok() {
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let _ = mount(none, to.as_str(), none, read_only, none);
        }
    }
    devices("/tmp/root/dev")?;
    mount(Some("run"), "/tmp/root/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    mount(Some("tmp"), "/tmp/root/tmp", Some("tmpfs"), MsFlags::empty(), Some("mode=1777"))?;
    bind_programs(&programs, &seen)?;
    std::env::set_current_dir("/tmp/root")?;
    nix::unistd::pivot_root(".", ".")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    // The machine's own tree: what a host attaches there counts for its own network only.
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)?;
    Ok(())
}

/// What was built is seen on the host too, also when the workspace lies below /tmp or somewhere else that the host has of its own.
fn bind_programs(programs: &Path, seen: &File) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let to = Path::new("/tmp/root").join(programs.strip_prefix("/")?);
    if to.join(std::env::current_exe()?.strip_prefix(programs)?).exists() {
        return Ok(());
    }
    fs::create_dir_all(&to)?;
    // By its descriptor: its path is covered by now.
    let from = format!("/proc/self/fd/{}", seen.as_raw_fd());
    mount(Some(from.as_str()), &to, none, MsFlags::MS_BIND, none).with_context(|| programs.display().to_string())
}

/// Mount point of a line of mountinfo (proc(5)) that holds stored files and is not below what the host replaces.
fn stored(line: &str) -> Option<&str> {
    let at = line.split(' ').nth(4)?;
    let kind = line.split(" - ").nth(1)?.split(' ').next()?;
    let replaced = ["/proc", "/sys", "/dev", "/run", "/tmp"];
    (at != "/" && !PSEUDO.contains(&kind) && !replaced.iter().any(|top| Path::new(at).starts_with(top))).then_some(at)
}

fn devices(dev: &str) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    mount(Some("dev"), dev, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    for dir in ["net", "pts", "shm"] {
        fs::create_dir(format!("{dev}/{dir}"))?;
    }
    for node in ["null", "zero", "full", "random", "urandom", "tty", "net/tun"] {
        let (from, to) = (format!("/dev/{node}"), format!("{dev}/{node}"));
        if Path::new(&from).exists() {
            File::create(&to)?;
            mount(Some(from.as_str()), to.as_str(), none, MsFlags::MS_BIND, none).context(from)?;
        }
    }
    mount(
        Some("devpts"),
        format!("{dev}/pts").as_str(),
        Some("devpts"),
        MsFlags::empty(),
        Some("newinstance,ptmxmode=0666,mode=0620"),
    )?;
    mount(Some("shm"), format!("{dev}/shm").as_str(), Some("tmpfs"), MsFlags::empty(), Some("mode=1777"))?;
    symlink("pts/ptmx", format!("{dev}/ptmx"))?;
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(to, format!("{dev}/{name}"))?;
    }
    Ok(())
}

/// Nothing of an installed product shows through, and the network needs no waiting.
fn settings(name: &str) -> anyhow::Result<()> {
    for old in ["/etc/cug", "/var/lib/cug-server", "/var/lib/cugd"] {
        if Path::new(old).exists() {
            fs::remove_dir_all(old)?;
        }
    }
    fs::create_dir("/etc/cug")?;
    fs::write("/etc/hostname", format!("{name}\n"))?;
    fs::write("/etc/hosts", format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"))?;
    fs::write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")?;
    for (key, value) in [
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
    ] {
        // Without IPv6 in the kernel the first two are not there.
        let _ = fs::write(format!("/proc/sys/{key}"), value);
    }
    Ok(())
}

/// Writes what comes to /dev/log into `syslog`, until standard input ends. A byte on standard input: live on without it.
fn serve(socket: &UnixDatagram, mut syslog: File) -> anyhow::Result<u8> {
    let mut watched = true;
    let mut buffer = [0; 8192];
    loop {
        let (lifeline, message) = {
            let stdin = std::io::stdin();
            let mut fds = vec![PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if watched {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let fired = |n: usize| fds.get(n).and_then(PollFd::any).unwrap_or(false);
            (fired(1), fired(0))
        };
        if message {
            let length = socket.recv(&mut buffer)?;
            let _ = syslog.write_all(buffer.get(..length).unwrap_or_default());
            let _ = syslog.write_all(b"\n");
        }
        if lifeline {
            match std::io::stdin().read(&mut buffer[..1])? {
                0 => return Ok(0),
                _ => watched = false,
            }
        }
    }
}
