//! A workstation: card reader, pcscd, cugd and a PAM stack, on a host of its own.

use crate::card::{InReader, PivCard};
use crate::lan::{self, Cable, Lan};
use crate::login::{Login, Script};
use crate::probe::NetState;
use crate::process::Daemon;
use crate::server::ServerHost;
use crate::space::Space;
use crate::{paths, wait};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// PAM service of the login program of the harness; `login`, `su` and the rest have the same stack.
pub const SERVICE: &str = "cug-login";

/// A local account that is no member of anything, and its password.
pub const LOCAL_USER: (&str, &str) = ("porter", "local-passwd");

/// root's password.
pub const ROOT_PASSWORD: &str = "root-passwd";

/// `LOCAL_USER.1` and `ROOT_PASSWORD` for shadow(5), so that no crypt(3) is needed here (`openssl passwd -6`).
const LOCAL_HASH: &str =
    "$6$cugLocalSalt$NEl6KeRZM2xaB8jd5jl22iI52TEwnbEUbvzk4Rk88TyIVzxladF2J5IWk/cpRnEcqX15kTRwCxZ2KV6kFHR4j1";
const ROOT_HASH: &str =
    "$6$cugRootSalt$Bz5/cXS7VtiS.BpU0EnpyGmvgMm3PNd4MLJZ/Cg/agHhaEoz5NmX.7IObQOZ0cvOEK8ybiT9HEt0gNiDzON6M.";

/// The members of the patent's example, and some more; upper case as in the patent.
pub const USERS: [&str; 8] = ["USER-A", "USER-B", "USER-C", "USER-D", "USER-E", "USER-F", "USER-G", "USER-H"];

/// Where the first reader takes cards.
const READER: &str = "/run/reader0.sock";

/// How long a daemon may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A directory on the terminal that a medium is mounted at.
pub const MEDIUM: &str = "/run/media/stick";

/// A workstation.
pub struct Terminal {
    space: Space,
    /// Its cable.
    pub cable: Cable,
    number: u8,
    pcscd: Option<Daemon>,
    cugd: Option<Daemon>,
    untouched: NetState,
}

impl Terminal {
    /// Makes terminal number `number` (10.0.0.N) with an empty reader and pcscd; cugd is not started.
    ///
    /// # Errors
    /// As [`Space::new`], or when pcscd does not come up.
    pub fn new(lan: &Lan, logs: &Path, number: u8) -> anyhow::Result<Self> {
        let space = Space::new(&format!("terminal{number}"), logs)?;
        let cable = lan.connect(&space, number)?;
        accounts(&space)?;
        pam_stack(&space)?;
        let untouched = NetState::of(&space)?;
        let mut terminal = Self { space, cable, number, pcscd: None, cugd: None, untouched };
        terminal.configure("")?;
        terminal.start_pcscd()?;
        Ok(terminal)
    }

    /// The same with cugd running.
    ///
    /// # Errors
    /// As [`Terminal::new`], or when cugd does not come up.
    pub fn ready(lan: &Lan, logs: &Path, number: u8) -> anyhow::Result<Self> {
        let mut terminal = Self::new(lan, logs, number)?;
        terminal.start_cugd()?;
        Ok(terminal)
    }

    /// The host.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Its number on the LAN.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its address on the LAN.
    pub fn address(&self) -> std::net::Ipv4Addr {
        lan::address4(self.number)
    }

    /// Writes cugd.toml: the one server, and these lines.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, lines: &str) -> anyhow::Result<()> {
        let server = if lines.contains("servers") {
            String::new()
        } else {
            format!("servers = [\"{}\"]\n", ServerHost::address())
        };
        let wait = if lines.contains("card-wait-seconds") { "" } else { "card-wait-seconds = 3\n" };
        self.space.write("/etc/cug/cugd.toml", format!("{server}{wait}{lines}\n"), 0o644)
    }

    /// Starts pcscd with one reader.
    ///
    /// # Errors
    /// When the reader does not appear.
    pub fn start_pcscd(&mut self) -> anyhow::Result<()> {
        self.pcscd = Some(pcscd(&self.space)?.0);
        Ok(())
    }

    /// The running pcscd.
    ///
    /// # Errors
    /// When it was not started.
    pub fn pcscd(&mut self) -> anyhow::Result<&mut Daemon> {
        self.pcscd.as_mut().context("pcscd was not started")
    }

    /// Ends pcscd with SIGKILL.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill_pcscd(&mut self) -> anyhow::Result<()> {
        self.pcscd.take().context("pcscd was not started")?.kill()
    }

    /// The reader's socket, for cards.
    pub fn reader(&self) -> PathBuf {
        self.space.path(READER)
    }

    /// Name of the reader in PC/SC.
    pub fn reader_name(&self) -> String {
        cug_cards::rig::reader_name(0)
    }

    /// Puts a card into the reader.
    ///
    /// # Errors
    /// When it is occupied.
    pub fn insert(&self, card: PivCard) -> anyhow::Result<InReader> {
        InReader::insert(&self.reader(), card)
    }

    /// Starts cugd and waits until it listens.
    ///
    /// # Errors
    /// With its log, when it does not.
    pub fn start_cugd(&mut self) -> anyhow::Result<()> {
        let mut command = self.space.command(paths::built("cugd")?)?;
        command.env("RUST_LOG", "info,cugd=debug");
        crate::card::detach(&mut command);
        let mut cugd = self.space.daemon("cugd", command)?;
        wait::until("cugd's socket", START_LIMIT, || {
            if self.space.listens(cug_proto::local::SOCKET_PATH) {
                return Some(Ok(()));
            }
            cugd.exited().map(|status| Err(anyhow::anyhow!("cugd ended: {status}")))
        })
        .and_then(|up| up)
        .with_context(|| cugd.log())?;
        self.cugd = Some(cugd);
        Ok(())
    }

    /// The running cugd.
    ///
    /// # Errors
    /// When it was not started.
    pub fn cugd(&mut self) -> anyhow::Result<&mut Daemon> {
        self.cugd.as_mut().context("cugd was not started")
    }

    /// Kills cugd with SIGKILL.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill_cugd(&mut self) -> anyhow::Result<()> {
        self.cugd.take().context("cugd was not started")?.kill()
    }

    /// Stops cugd with SIGTERM.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_cugd(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        self.cugd.take().context("cugd was not started")?.stop()
    }

    /// What cugd logged.
    pub fn cugd_log(&self) -> String {
        self.cugd.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// `cugctl --json COMMAND`, as root.
    ///
    /// # Errors
    /// When it fails.
    pub fn cugctl(&self, command: &str) -> anyhow::Result<Value> {
        let text = self.space.run(paths::built("cugctl")?, &[command, "--json"])?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Starts a login.
    ///
    /// # Errors
    /// When the login program cannot be started.
    pub fn login(&self, script: &Script) -> anyhow::Result<Login> {
        Login::start(&self.space, script)
    }

    /// Starts a login with a password and waits until the session is open.
    ///
    /// # Errors
    /// When it is refused.
    pub fn log_in(&self, user: &str, password: &str) -> anyhow::Result<Login> {
        let mut login = self.login(&Script::new(user).password(password))?;
        login.open()?;
        Ok(login)
    }

    /// What a session has left behind in the network: nothing, once it is over.
    ///
    /// # Errors
    /// When the network cannot be looked at.
    pub fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        Ok(NetState::of(&self.space)?.beyond(&self.untouched))
    }

    /// Waits until nothing is left over.
    ///
    /// # Errors
    /// With what is still there after `limit`.
    pub fn wait_clean(&self, limit: Duration) -> anyhow::Result<()> {
        let mut left = Vec::new();
        wait::for_true("a clean terminal", limit, || {
            left = self.leftovers().unwrap_or_else(|error| vec![error.to_string()]);
            left.is_empty()
        })
        .with_context(|| left.join("\n"))
    }

    /// The interfaces of a session's tunnel.
    pub fn tunnels(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.space.pid())).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split(':').next())
            .map(str::trim)
            .filter(|name| name.starts_with("cug"))
            .map(str::to_owned)
            .collect()
    }

    /// Root and the local user log in here, whatever is broken.
    ///
    /// # Errors
    /// When one of them cannot.
    pub fn locals_can_log_in(&self) -> anyhow::Result<()> {
        for (user, password) in [("root", ROOT_PASSWORD), LOCAL_USER] {
            self.log_in(user, password).with_context(|| format!("{user} cannot log in"))?.close()?;
        }
        Ok(())
    }

    /// The user's overlay addresses at this terminal, from `cugctl status`.
    ///
    /// # Errors
    /// When there is no such session.
    pub fn overlay(&self, user: &str) -> anyhow::Result<Vec<Value>> {
        let status = self.cugctl("status")?;
        let sessions = status["sessions"].as_array().context("no sessions in the status")?;
        let session = sessions
            .iter()
            .find(|session| session["user"] == user)
            .with_context(|| format!("no session of {user}: {status}"))?;
        let groups = session["groups"].as_array().cloned().unwrap_or_default();
        ensure!(!groups.is_empty(), "a session without groups: {status}");
        Ok(groups)
    }

    /// Waits until the session of `user` is in `state` according to `cugctl status` (`gone` for no session).
    ///
    /// # Errors
    /// With the last status, when it does not come to that.
    pub fn wait_state(&self, user: &str, state: &str, limit: Duration) -> anyhow::Result<()> {
        let mut last = Value::Null;
        wait::for_true(&format!("session of {user}: {state}"), limit, || {
            last = self.cugctl("status").unwrap_or_default();
            let found = last["sessions"].as_array().and_then(|all| all.iter().find(|session| session["user"] == user));
            match found {
                Some(session) => session["state"] == state,
                None => state == "gone" && last["sessions"].is_array(),
            }
        })
        .with_context(|| last.to_string())
    }

    /// Gives the parts away, for a terminal that outlives this process.
    #[must_use]
    pub fn into_parts(self) -> (Space, Vec<Daemon>) {
        (self.space, self.pcscd.into_iter().chain(self.cugd).collect())
    }
}

/// The desk where cards are issued: a pcscd and a reader on the server's host, for as long as this lives.
pub struct Office {
    _pcscd: Daemon,
    reader: PathBuf,
}

impl Office {
    /// Opens it.
    ///
    /// # Errors
    /// When pcscd does not come up.
    pub fn open(server: &ServerHost) -> anyhow::Result<Self> {
        let (pcscd, reader) = pcscd(server.space())?;
        Ok(Self { _pcscd: pcscd, reader })
    }

    /// The reader's socket, for cards.
    pub fn reader(&self) -> PathBuf {
        self.reader.clone()
    }

    /// Name of the reader in PC/SC.
    pub fn reader_name(&self) -> String {
        cug_cards::rig::reader_name(0)
    }
}

/// Starts pcscd with one reader on a host: it, and the reader's socket.
fn pcscd(space: &Space) -> anyhow::Result<(Daemon, PathBuf)> {
    let readers = cug_cards::rig::reader_conf(&paths::built("libcug_ifd.so")?, &[PathBuf::from(READER)]);
    space.write("/etc/cug-readers/reader.conf", readers, 0o644)?;
    for old in [READER, "/run/pcscd/pcscd.comm", "/run/pcscd/pcscd.pid"] {
        let _ = fs::remove_file(space.path(old));
    }
    let mut command = space.command("pcscd")?;
    command.args(["--foreground", "--config", "/etc/cug-readers"]);
    if knows_polkit() {
        command.arg("--disable-polkit");
    }
    crate::card::detach(&mut command);
    let mut daemon = space.daemon("pcscd", command)?;
    let reader = space.path(READER);
    wait::until("pcscd and its reader", START_LIMIT, || {
        if reader.exists() && space.listens("/run/pcscd/pcscd.comm") {
            return Some(Ok(()));
        }
        daemon.exited().map(|status| Err(anyhow::anyhow!("pcscd ended: {status}")))
    })
    .and_then(|up| up)
    .with_context(|| daemon.log())?;
    Ok((daemon, reader))
}

/// Debian 13's pcscd asks polkit, which these hosts do not have; Debian 12's does not know the option.
fn knows_polkit() -> bool {
    static KNOWS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *KNOWS.get_or_init(|| {
        let help = std::process::Command::new("pcscd").arg("--help").output();
        help.is_ok_and(|help| {
            [help.stdout, help.stderr].iter().any(|text| crate::memory::contains(text, b"--disable-polkit"))
        })
    })
}

/// The host's own accounts: the machine's system accounts, root, a local user, and the members without a password.
///
/// # Errors
/// When the files cannot be written.
pub fn accounts(space: &Space) -> anyhow::Result<()> {
    let system = fs::read_to_string("/etc/passwd")?;
    let id = |line: &str| line.split(':').nth(2).and_then(|id| id.parse::<u32>().ok());
    let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
    let mut shadow = format!("root:{ROOT_HASH}:19000:0:99999:7:::\n");
    for line in system.lines().filter(|line| id(line).is_some_and(|id| id != 0 && (id < 1000 || id == 65_534))) {
        passwd += &format!("{line}\n");
        shadow += &format!("{}:*:19000:0:99999:7:::\n", line.split(':').next().unwrap_or_default());
    }
    let mut group = fs::read_to_string("/etc/group")?;
    let members = std::iter::once(LOCAL_USER.0).chain(USERS).zip(3001..);
    for (name, number) in members {
        let home = format!("/run/home/{name}");
        passwd += &format!("{name}:x:{number}:{number}::{home}:/bin/sh\n");
        group += &format!("{name}:x:{number}:\n");
        let hash = if name == LOCAL_USER.0 { LOCAL_HASH } else { "!" };
        shadow += &format!("{name}:{hash}:19000:0:99999:7:::\n");
        fs::create_dir_all(space.path(&home))?;
        std::os::unix::fs::chown(space.path(&home), Some(number), Some(number))?;
    }
    space.write("/etc/passwd", passwd, 0o644)?;
    space.write("/etc/group", group, 0o644)?;
    space.write("/etc/shadow", shadow, 0o640)
}

/// Every service has the stack that the packages install: members by card, root and local users by password.
fn pam_stack(space: &Space) -> anyhow::Result<()> {
    let module = paths::pam_modules()?.join("pam_cug.so");
    space.write(&module.to_string_lossy(), "", 0o644)?;
    let built = paths::built("libpam_cug.so")?;
    let (from, to) = (built.to_string_lossy(), module.to_string_lossy());
    space.run("mount", &["--bind", &from, &to])?.ok().context("pam_cug.so")?;
    let stack = format!(
        "auth     [success=done new_authtok_reqd=done ignore=ignore default=die] pam_cug.so exempt={local}\n\
         auth     required pam_unix.so\n\
         account  [success=ok new_authtok_reqd=ok ignore=ignore default=bad] pam_cug.so exempt={local}\n\
         account  required pam_unix.so\n\
         session  [success=ok ignore=ignore default=bad] pam_cug.so exempt={local}\n\
         session  required pam_unix.so\n\
         password required pam_unix.so\n",
        local = LOCAL_USER.0
    );
    for service in [SERVICE, "login", "su", "su-l", "sudo", "other", "pamtester"] {
        space.write(&format!("/etc/pam.d/{service}"), &stack, 0o644)?;
    }
    Ok(())
}
