//! A workstation: card reader, pcscd, cugd and a PAM stack, on a host of its own.

use crate::card::{InReader, PivCard};
use crate::lan::{self, Cable, Lan};
use crate::login::{Login, Script};
use crate::probe::NetState;
use crate::process::Daemon;
use crate::server::ServerHost;
use crate::space::Space;
use crate::{accounts, office, paths, wait};
use anyhow::{Context, ensure};
use cug_proto::trust::CaPin;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    trusts: CaPin,
}

impl Terminal {
    /// Makes terminal number `number` (10.0.0.N) of the organisation with this CA, with an empty reader and pcscd; cugd is not started.
    ///
    /// # Errors
    /// As [`Space::new`], or when pcscd does not come up.
    pub fn new(lan: &Lan, logs: &Path, number: u8, trusts: &CaPin) -> anyhow::Result<Self> {
        let space = Space::new(&format!("terminal{number}"), logs)?;
        let cable = lan.connect(&space, number)?;
        accounts::make(&space)?;
        accounts::pam_stack(&space)?;
        let untouched = NetState::of(&space)?;
        let mut terminal = Self { space, cable, number, pcscd: None, cugd: None, untouched, trusts: *trusts };
        terminal.configure("")?;
        terminal.start_pcscd()?;
        Ok(terminal)
    }

    /// The same with cugd running.
    ///
    /// # Errors
    /// As [`Terminal::new`], or when cugd does not come up.
    pub fn ready(lan: &Lan, logs: &Path, number: u8, trusts: &CaPin) -> anyhow::Result<Self> {
        let mut terminal = Self::new(lan, logs, number, trusts)?;
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

    /// Writes cugd.toml: the one server, the organisation, and these lines.
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
        let pin: String = self.trusts.iter().map(|byte| format!("{byte:02x}")).collect();
        let trusts = format!("ca-pins = [\"{pin}\"]\n");
        self.space.write("/etc/cug/cugd.toml", format!("{server}{trusts}{wait}{lines}\n"), 0o644)
    }

    /// Starts pcscd with one reader.
    ///
    /// # Errors
    /// When the reader does not appear.
    pub fn start_pcscd(&mut self) -> anyhow::Result<()> {
        self.pcscd = Some(office::pcscd(&self.space)?.0);
        Ok(())
    }

    /// Starts pcscd with two readers.
    ///
    /// # Errors
    /// When they do not appear.
    pub fn start_pcscd_with_two(&mut self) -> anyhow::Result<()> {
        self.pcscd = Some(office::pcscd_with(&self.space, &[office::READER, office::SECOND_READER])?.0);
        Ok(())
    }

    /// Puts a card into the second reader.
    ///
    /// # Errors
    /// When it is occupied.
    pub fn insert_into_second(&self, card: PivCard) -> anyhow::Result<InReader> {
        InReader::insert(&self.space.path(office::SECOND_READER), card)
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
        self.space.path(office::READER)
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
        command.env("RUST_LOG", "info,cugd=debug,gotatun::noise=debug");
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

    /// `cugctl --json COMMAND`, as root. A status that something is not well (3) is an answer too.
    ///
    /// # Errors
    /// When it fails.
    pub fn cugctl(&self, command: &str) -> anyhow::Result<Value> {
        let finished = self.space.run(paths::built("cugctl")?, &[command, "--json"])?;
        let text = if finished.status.code() == Some(3) { finished.out } else { finished.ok()? };
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
        for (user, password) in [("root", accounts::ROOT_PASSWORD), accounts::LOCAL_USER] {
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
