//! A workstation with a distribution's own systemd, logind, login, sshd and PAM configuration, in a container on the LAN.
//!
//! Its files are a copy-on-write view of the image that `tests/image/build` makes; the product is put where the packages put it. It runs inside
//! a [`Space`], and ends with it.

use crate::card::{InReader, PivCard};
use crate::lan::{Cable, Lan};
use crate::process::{self, Finished};
use crate::server::ServerHost;
use crate::space::{RUN_LIMIT, Space};
use crate::{accounts, office, paths, wait};
use anyhow::{Context, ensure};
use cug_proto::trust::CaPin;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The distribution of the machines.
pub const SUITE: &str = "bookworm";

/// The same with a greeter.
pub const DESKTOP: &str = "bookworm-desktop";

/// Where the machine's files are on the host that carries it.
pub const ROOT: &str = "/run/machine/root";

/// How long a boot may take.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// How long an answer on the console may take.
const CONSOLE_LIMIT: Duration = Duration::from_secs(20);

/// A member's user ID on these machines and in the example.
pub const FIRST_UID: u32 = 3001;

/// What machines differ in.
pub struct Options<'a> {
    /// More lines in cugd.toml.
    pub lines: &'a str,
    /// The kernel lets the machine have BPF programs.
    pub bpf: bool,
}

/// What a machine is made of.
pub struct Setup {
    /// The distribution's release.
    pub suite: &'static str,
    /// The kernel lets the machine have BPF programs.
    pub bpf: bool,
    /// Files and directories of this machine, and where they are seen there.
    pub binds: Vec<(PathBuf, &'static str)>,
}

/// A machine that runs.
pub struct Machine {
    leader: i32,
    console: Console,
    cgroup: String,
    space: Space,
    /// Its cable.
    pub cable: Cable,
}

/// Joins a cgroup of its own, below which the container makes what it needs, and becomes the container.
const BOOT: &str = r#"
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
mkdir "/sys/fs/cgroup/$CGROUP" && echo $$ >"/sys/fs/cgroup/$CGROUP/cgroup.procs" || exit 1
exec "$@"
"#;

impl Machine {
    /// Boots machine number `number` (10.0.0.N) of the organisation with this CA: cugd, pcscd with one reader, and the PAM profile are installed.
    ///
    /// # Errors
    /// When the image is missing, or the machine does not come up.
    pub fn boot(lan: &Lan, logs: &Path, number: u8, trusts: &CaPin, options: &Options<'_>) -> anyhow::Result<Self> {
        Self::boot_from(SUITE, lan, logs, number, trusts, options)
    }

    /// The same from another image.
    ///
    /// # Errors
    /// As [`Machine::boot`].
    pub fn boot_from(
        image: &'static str,
        lan: &Lan,
        logs: &Path,
        number: u8,
        trusts: &CaPin,
        options: &Options<'_>,
    ) -> anyhow::Result<Self> {
        let binds = INSTALLED.iter().map(|(built, place)| Ok((paths::built(built)?, *place)));
        let setup = Setup { suite: image, bpf: options.bpf, binds: binds.collect::<anyhow::Result<_>>()? };
        Self::boot_with(lan, logs, number, &setup, |space| {
            configure(space, trusts, options.lines)?;
            product(space)
        })
    }

    /// Boots machine number `number` after `prepare` has put into its files what it needs beside accounts.
    ///
    /// # Errors
    /// When the image is missing, or the machine does not come up.
    pub fn boot_with(
        lan: &Lan,
        logs: &Path,
        number: u8,
        setup: &Setup,
        prepare: impl FnOnce(&Space) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let name = format!("machine{number}");
        let space = Space::new(&name, logs)?;
        let cable = lan.connect(&space, number)?;
        files(&space, setup.suite)?;
        people(&space)?;
        prepare(&space)?;
        static BOOTED: AtomicU32 = AtomicU32::new(0);
        let cgroup = format!("cug-{}-{}", std::process::id(), BOOTED.fetch_add(1, Ordering::Relaxed));
        let mut command = space.command(paths::built("rig")?)?;
        command.args(["pty", "sh", "-c", BOOT, "boot", "systemd-nspawn", "--quiet", "--directory", ROOT, "--boot"]);
        command.args(["--register=no", "--keep-unit", "--console=interactive", "--link-journal=no"]);
        command.args(["--network-namespace-path=/proc/self/ns/net", "--bind=/dev/net/tun"]);
        command.args(["--capability=CAP_NET_ADMIN,CAP_BPF,CAP_SYS_RESOURCE,CAP_IPC_LOCK", "--machine", &name]);
        if setup.bpf {
            command.arg("--system-call-filter=bpf");
        }
        for (built, place) in &setup.binds {
            command.arg(format!("--bind-ro={}:{place}", built.display()));
        }
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").env("CGROUP", &cgroup);
        let mut console = Console::start(command, &name, &logs.join(format!("{name}.console.log")))?;
        console.expect_login(BOOT_LIMIT)?;
        let leader = wait::until("the machine's process 1", BOOT_LIMIT, || leader(&space))?;
        Ok(Self { leader, console, cgroup, space, cable })
    }

    /// The host that carries it: its network is the machine's.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// The screen and keyboard.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// The machine's `path`, as the test reaches it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let inner = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()).to_owned();
        PathBuf::from(format!("/proc/{}/root", self.leader)).join(inner)
    }

    /// Runs a program as root, outside of every login session.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<Finished> {
        process::run(self.command(program, args), b"", RUN_LIMIT)
    }

    /// A program to be run as root, outside of every login session.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.leader.to_string(), "-m", "-u", "-i", "-n", "-p", "-C", "--", program]).args(args);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        command
    }

    /// Writes a file of root's, readable by all.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, path: &str, content: &str) -> anyhow::Result<()> {
        fs::write(self.path(path), content).with_context(|| path.to_owned())
    }

    /// What a unit wrote to the journal.
    pub fn journal(&self, unit: &str) -> String {
        let finished = self.run("journalctl", &["--no-pager", "-o", "short-precise", "-u", unit]);
        finished.and_then(Finished::ok).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Puts a card into the reader. pcscd is started by the first program that asks for it; this is that program.
    ///
    /// # Errors
    /// When there is no reader or it is occupied.
    pub fn insert(&self, card: PivCard) -> anyhow::Result<InReader> {
        self.run("systemctl", &["start", "pcscd.service"])?.ok()?;
        let reader = self.path(office::READER);
        wait::for_true("the reader", BOOT_LIMIT, || reader.exists())?;
        InReader::insert(&reader, card)
    }

    /// Process 1, as this machine numbers it.
    pub fn leader(&self) -> i32 {
        self.leader
    }

    /// The only process that runs this program, as this host numbers it.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn process(&self, program: &str) -> anyhow::Result<i32> {
        let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == program);
        let found: Vec<i32> = process::beside(self.leader).into_iter().filter(name).collect();
        let [pid] = found.as_slice() else { anyhow::bail!("{program} runs as {found:?}") };
        Ok(*pid)
    }

    /// The daemon's own process, without those of waiting logins.
    ///
    /// # Errors
    /// When it does not run.
    pub fn daemon(&self) -> anyhow::Result<i32> {
        let number = self.run("systemctl", &["show", "-p", "MainPID", "--value", "cugd"])?.ok()?;
        let own = |pid: &i32| process::own_number(*pid).is_ok_and(|own| own == number.trim());
        process::beside(self.leader).into_iter().find(own).context("cugd does not run")
    }

    /// Waits until a unit is active.
    ///
    /// # Errors
    /// With its journal, when it does not come up.
    pub fn wait_active(&self, unit: &str) -> anyhow::Result<()> {
        let active = || self.run("systemctl", &["is-active", unit]).is_ok_and(|finished| finished.ok().is_ok());
        wait::for_true(unit, BOOT_LIMIT, active).with_context(|| self.journal(unit))
    }

    /// The interfaces of tunnels.
    pub fn tunnels(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.leader)).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split(':').next())
            .map(str::trim)
            .filter(|name| name.starts_with("cug"))
            .map(str::to_owned)
            .collect()
    }

    /// Waits until there is no tunnel.
    ///
    /// # Errors
    /// With those that are left.
    pub fn wait_no_tunnel(&self, limit: Duration) -> anyhow::Result<()> {
        wait::for_true("the end of the tunnel", limit, || self.tunnels().is_empty())
            .with_context(|| format!("{:?}\n{}", self.tunnels(), self.journal("cugd")))
    }

    /// logind's sessions: their users.
    ///
    /// # Errors
    /// When logind does not answer.
    pub fn logind_users(&self) -> anyhow::Result<Vec<String>> {
        let listed = self.run("loginctl", &["list-sessions", "--no-legend", "--no-pager"])?.ok()?;
        Ok(listed.lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned).collect())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.run("journalctl", &["--no-pager", "-b", "-o", "short-precise"]).and_then(Finished::ok);
            let _ = fs::write(
                self.space.logs().join(format!("{}.journal", self.space.name())),
                journal.unwrap_or_default(),
            );
        }
        // The end of the container's process 1 is the end of all its processes; then its cgroups can be removed.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.leader), nix::sys::signal::Signal::SIGKILL);
        let gone = format!("/proc/{}", self.leader);
        let _ = wait::for_true("the end of the machine", BOOT_LIMIT, || !Path::new(&gone).exists());
        let cgroup = self.space.path(format!("/sys/fs/cgroup/{}", self.cgroup));
        let _ = wait::for_true("the end of its cgroups", Duration::from_secs(5), || remove_tree(&cgroup));
    }
}

/// Removes a cgroup and those below it; `true` when it is gone.
fn remove_tree(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
    !dir.exists()
}

/// What the packages install: built as, installed as.
const INSTALLED: [(&str, &str); 4] = [
    ("cugd", "/usr/sbin/cugd"),
    ("cugctl", "/usr/bin/cugctl"),
    ("libpam_cug.so", "/usr/lib/x86_64-linux-gnu/security/pam_cug.so"),
    ("libcug_ifd.so", "/usr/lib/cug-test/libcug_ifd.so"),
];

pub(crate) fn files(space: &Space, image: &str) -> anyhow::Result<()> {
    let image = find(image)?;
    let make = format!(
        "mkdir /run/machine && mount -t tmpfs -o mode=755 machine /run/machine && mkdir /run/machine/upper /run/machine/work {ROOT} && \
         mount -t overlay -o lowerdir={},upperdir=/run/machine/upper,workdir=/run/machine/work machine {ROOT}",
        image.display()
    );
    space.run("sh", &["-c", &make])?.ok().map(drop).context("the machine's file system")
}

/// The image, made by `make image`, or `make desktop` for the one with a greeter.
fn find(image: &str) -> anyhow::Result<PathBuf> {
    let image = paths::programs().parent().context("no target directory")?.join("images").join(image);
    ensure!(image.join("etc/os-release").exists(), "{} is missing; make it with `make image desktop`", image.display());
    Ok(image)
}

/// Root, a local user and the members, with a screen and a keyboard that a program can use, and one reader.
pub(crate) fn people(space: &Space) -> anyhow::Result<()> {
    let write = |path: &str, content: &str, mode| space.write(&format!("{ROOT}{path}"), content, mode);
    let read = |path: &str| fs::read_to_string(space.path(format!("{ROOT}{path}"))).with_context(|| path.to_owned());
    let (mut passwd, mut group, mut shadow) = (read("/etc/passwd")?, read("/etc/group")?, read("/etc/shadow")?);
    shadow = shadow.replace("root:*:", &format!("root:{}:", accounts::ROOT_HASH));
    for (name, number) in std::iter::once(accounts::LOCAL_USER.0).chain(accounts::USERS).zip(FIRST_UID..) {
        passwd += &format!("{name}:x:{number}:{number}::/home/{name}:/bin/bash\n");
        group += &format!("{name}:x:{number}:\n");
        let hash = if name == accounts::LOCAL_USER.0 { accounts::LOCAL_HASH } else { "!" };
        shadow += &format!("{name}:{hash}:19000:0:99999:7:::\n");
        let home = space.path(format!("{ROOT}/home/{name}"));
        fs::create_dir_all(&home)?;
        std::os::unix::fs::chown(&home, Some(number), Some(number))?;
    }
    write("/etc/passwd", &passwd, 0o644)?;
    write("/etc/group", &group, 0o644)?;
    write("/etc/shadow", &shadow, 0o640)?;
    write("/etc/hostname", &format!("{}\n", space.name()), 0o644)?;
    // An installer makes it; without it members have no names.
    write("/etc/hosts", &format!("127.0.0.1 localhost\n127.0.1.1 {}\n", space.name()), 0o644)?;
    // A screen that is read by a program.
    write("/etc/issue", "\n", 0o644)?;
    write("/etc/motd", "", 0o644)?;
    write("/etc/profile.d/plain.sh", "export SYSTEMD_COLORS=0 PAGER=cat SYSTEMD_PAGER=cat\nPS1='$ '\n", 0o644)?;
    write("/etc/inputrc", "set enable-bracketed-paste off\n", 0o644)?;
    write("/root/.bashrc", "PS1='# '\n", 0o644)?;

    let driver = Path::new("/usr/lib/cug-test/libcug_ifd.so");
    write("/etc/reader.conf.d/cug", &cug_cards::rig::reader_conf(driver, &[PathBuf::from(office::READER)]), 0o644)
}

/// What the administrator writes.
fn configure(space: &Space, trusts: &CaPin, lines: &str) -> anyhow::Result<()> {
    let pin: String = trusts.iter().map(|byte| format!("{byte:02x}")).collect();
    let server = format!("servers = [\"{}\"]\nca-pins = [\"{pin}\"]\n{lines}\n", ServerHost::address());
    space.write(&format!("{ROOT}/etc/cug/cugd.toml"), server, 0o644)
}

/// What the packages do, but for the programs: their places are there.
fn product(space: &Space) -> anyhow::Result<()> {
    let write = |path: &str, content: &str, mode| space.write(&format!("{ROOT}{path}"), content, mode);
    let shipped = |path: &str| {
        fs::read_to_string(paths::workspace().join("packaging").join(path)).with_context(|| path.to_owned())
    };
    let chroot = |program: &str, args: &[&str]| -> anyhow::Result<()> {
        let mut all = vec![ROOT, program];
        all.extend(args);
        space.run("chroot", &all)?.ok().map(drop).with_context(|| program.to_owned())
    };
    write("/usr/lib/systemd/system/cugd.service", &shipped("systemd/cugd.service")?, 0o644)?;
    // The tunnel's guard counts on the session's cgroup, so the session's part comes after pam_systemd.
    for profile in ["cug", "cug-session"] {
        write(&format!("/usr/share/pam-configs/{profile}"), &shipped(&format!("pam-configs/{profile}"))?, 0o644)?;
    }
    // The place of a bind mount in the module's directory.
    for (_, place) in INSTALLED {
        write(place, "", 0o755)?;
    }
    chroot("systemctl", &["enable", "--quiet", "cugd.service"])?;
    chroot("pam-auth-update", &["--package", "--enable", "cug", "cug-session"])
}

/// Process 1 of the container: the only one with number 1 in a PID namespace below the host's.
fn leader(space: &Space) -> Option<i32> {
    let network = fs::read_link(format!("/proc/{}/ns/net", space.pid())).ok()?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let numbers: Vec<&str> =
            status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().collect();
        let own = fs::read_link(entry.path().join("ns/net")).ok()?;
        (pid != space.pid() && numbers.last() == Some(&"1") && own == network).then_some(pid)
    })
}

/// The console: what is on the screen, and a keyboard.
pub struct Console {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
    read: usize,
    prompt: String,
}

impl Console {
    /// Starts a program whose screen and keyboard are its standard output and input; `name` is the host's in its login prompt.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, name: &str, log: &Path) -> anyhow::Result<Self> {
        let mut log = fs::File::create(log)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.try_clone()?).spawn()?;
        let (mut stdout, keys) = (child.stdout.take().context("stdout")?, child.stdin.take().context("stdin")?);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                let _ = log.write_all(&buffer[..length]);
                written.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..length]);
            }
        });
        Ok(Self { child, keys, screen, read: 0, prompt: format!("{name} login: ") })
    }

    fn unread(&self) -> String {
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(screen.get(self.read..).unwrap_or_default()).into_owned()
    }

    /// Waits for `text` after what was read last: everything up to its end.
    ///
    /// # Errors
    /// With the screen, when it does not come.
    pub fn expect(&mut self, text: &str, limit: Duration) -> anyhow::Result<String> {
        self.expect_any(&[text], limit).map(|(_, seen)| seen)
    }

    /// Waits for one of `texts`: which, and everything up to its end.
    ///
    /// # Errors
    /// With the screen, when none comes.
    pub fn expect_any(&mut self, texts: &[&str], limit: Duration) -> anyhow::Result<(usize, String)> {
        let wanted = texts.join("` or `");
        let found = wait::until(&format!("`{wanted}` on the console"), limit, || {
            let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
            let unread = screen.get(self.read..).unwrap_or_default();
            let hit = |(number, text): (usize, &&str)| {
                let at = unread.windows(text.len()).position(|part| part == text.as_bytes())?;
                Some((at + text.len(), number))
            };
            let (end, number) = texts.iter().enumerate().filter_map(hit).min()?;
            Some((end, number, String::from_utf8_lossy(&unread[..end]).into_owned()))
        });
        let (end, number, seen) = found.with_context(|| format!("on the screen: {}", self.unread()))?;
        self.read += end;
        Ok((number, seen))
    }

    /// Types a line.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn type_line(&mut self, line: &str) -> anyhow::Result<()> {
        self.keys.write_all(format!("{line}\n").as_bytes()).context("the machine is gone")
    }

    /// Types a user ID at the login prompt, then answers prompts as they come, until the shell's prompt. Everything that was on the screen.
    ///
    /// # Errors
    /// When a prompt does not come, or the login is refused.
    pub fn log_in(&mut self, user: &str, answers: &[(&str, &str)]) -> anyhow::Result<String> {
        self.type_line(user)?;
        let mut seen = String::new();
        for (prompt, answer) in answers {
            seen += &self.expect(prompt, CONSOLE_LIMIT)?;
            self.type_line(answer)?;
        }
        let prompt = self.prompt.clone();
        let (which, rest) = self.expect_any(&["\n$ ", "\n# ", "Login incorrect", &prompt], CONSOLE_LIMIT)?;
        ensure!(which < 2, "not logged in: {seen}{rest}");
        Ok(seen + &rest)
    }

    /// Runs a command in the shell of the person who is logged in: what it printed.
    ///
    /// # Errors
    /// When its end is not seen.
    pub fn shell(&mut self, command: &str) -> anyhow::Result<String> {
        // The quotes keep the echo of what is typed from being taken for the end.
        self.type_line(&format!("{command}; echo \"<\"$?\">\""))?;
        self.expect("\n", CONSOLE_LIMIT)?;
        let mut text = String::new();
        loop {
            text += &self.expect(">", CONSOLE_LIMIT)?;
            let status = text.trim_end_matches('>').rsplit_once('<').map(|(_, status)| status.to_owned());
            if let Some(status) = status.filter(|status| status.parse::<u8>().is_ok()) {
                let printed = text.rsplit_once('<').map(|(printed, _)| printed.replace('\r', "")).unwrap_or_default();
                ensure!(status == "0", "`{command}` ended with {status}: {printed}");
                return Ok(printed);
            }
        }
    }

    /// Logs out and waits for the next login prompt.
    ///
    /// # Errors
    /// When it does not come.
    pub fn log_out(&mut self) -> anyhow::Result<()> {
        self.type_line("exit")?;
        self.expect_login(CONSOLE_LIMIT)
    }

    /// Waits for the login prompt.
    ///
    /// # Errors
    /// With the screen, when it does not come.
    pub fn expect_login(&mut self, limit: Duration) -> anyhow::Result<()> {
        let prompt = self.prompt.clone();
        self.expect(&prompt, limit).map(drop)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
