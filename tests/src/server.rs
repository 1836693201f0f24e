//! A host that runs the management server.

use crate::lan::{self, Cable, Lan};
use crate::process::{self, Daemon, Finished};
use crate::space::{RUN_LIMIT, Space};
use crate::{accounts, paths, wait};
use anyhow::Context;
use cug_proto::trust::CaPin;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Number of the server's host on the LAN.
pub const NUMBER: u8 = 254;

/// Number of the standby's host on the LAN.
pub const STANDBY: u8 = 253;

/// Port of the management server.
pub const PORT: u16 = 7531;

/// Where the administrator's command finds the server.
const ADMIN_SOCKET: &str = "/run/cug-server/admin.sock";

/// Where the server keeps its state.
pub const STATE: &str = "/var/lib/cug-server";

/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A host with `cug-server`.
pub struct ServerHost {
    space: Space,
    serving: Option<Daemon>,
    /// Its cable.
    pub cable: Cable,
}

/// The patent's passwords are short and easy to guess.
const CONFIG: &str = "listen = [\"[::]:7531\"]\npassword.min-length = 6\npassword.blocklist = false\n";

impl ServerHost {
    /// Makes the host, not the server's state.
    ///
    /// # Errors
    /// As [`Space::new`].
    pub fn new(lan: &Lan, logs: &Path) -> anyhow::Result<Self> {
        Self::at(lan, logs, "server", NUMBER)
    }

    /// A second host, which takes over from the first one.
    ///
    /// # Errors
    /// As [`Space::new`].
    pub fn standby(lan: &Lan, logs: &Path) -> anyhow::Result<Self> {
        Self::at(lan, logs, "standby", STANDBY)
    }

    fn at(lan: &Lan, logs: &Path, name: &str, number: u8) -> anyhow::Result<Self> {
        let space = Space::new(name, logs)?;
        let cable = lan.connect(&space, number)?;
        accounts::make(&space)?;
        space.write("/etc/cug/server.toml", CONFIG, 0o600)?;
        Ok(Self { space, serving: None, cable })
    }

    /// Adds lines to the configuration (before the start).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, lines: &str) -> anyhow::Result<()> {
        self.space.write("/etc/cug/server.toml", format!("{CONFIG}{lines}\n"), 0o600)
    }

    /// The host.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// `cug-server init` and `serve`.
    ///
    /// # Errors
    /// When the server does not come up.
    pub fn init_and_serve(&mut self) -> anyhow::Result<()> {
        self.run(&["init", "--name", "Example Hospital"])?;
        self.serve()
    }

    /// `serve`, on a copy of what one `cug-server init` has made for all tests: its four RSA keys take seconds.
    ///
    /// # Errors
    /// When the server does not come up.
    pub fn copy_and_serve(&mut self) -> anyhow::Result<()> {
        static MADE: Mutex<()> = Mutex::new(());
        let program = std::fs::metadata(paths::built("cug-server")?)?;
        // Another program may want another form of state.
        let name = format!("organisation-{}-{}", program.mtime(), program.len());
        let made = paths::log_base().join(name);
        {
            let _one_at_a_time = MADE.lock().unwrap_or_else(PoisonError::into_inner);
            if !made.exists() {
                for old in std::fs::read_dir(paths::log_base())?.flatten() {
                    if old.file_name().to_string_lossy().starts_with("organisation-") {
                        let _ = std::fs::remove_dir_all(old.path());
                    }
                }
                self.run(&["init", "--name", "Example Hospital"])?;
                let unfinished = made.with_extension(std::process::id().to_string());
                copy_all(&self.space.path(STATE), &unfinished)?;
                // Another test program may have been faster; one is as good as the other.
                let _ = std::fs::rename(&unfinished, &made);
                let _ = std::fs::remove_dir_all(&unfinished);
                return self.serve();
            }
        }
        copy_all(&made, &self.space.path(STATE))?;
        self.serve()
    }

    /// `cug-server serve`, until it listens.
    ///
    /// # Errors
    /// With the log, when it does not.
    pub fn serve(&mut self) -> anyhow::Result<()> {
        let mut command = self.space.command(paths::built("cug-server")?)?;
        command.arg("serve").env("RUST_LOG", "info,cug_server=debug");
        crate::card::detach(&mut command);
        // Each start has a log of its own: readiness is a line in it.
        let log = self.space.logs().join(format!("{}.cug-server.log", self.space.name()));
        if log.exists() {
            let number = (1..).find(|n| !log.with_extension(format!("{n}.log")).exists()).unwrap_or_default();
            std::fs::rename(&log, log.with_extension(format!("{number}.log")))?;
        }
        let mut serving = self.space.daemon("cug-server", command)?;
        serving.wait_log("listening on", START_LIMIT)?;
        // The administrator's socket comes after that line.
        wait::for_true("the administrator's socket", START_LIMIT, || self.space.listens(ADMIN_SOCKET))?;
        self.serving = Some(serving);
        Ok(())
    }

    /// Takes over the state of another server, which does not run: as an administrator would copy it.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn take_over(&self, from: &Self) -> anyhow::Result<()> {
        copy_all(&from.space.path(STATE), &self.space.path(STATE))
    }

    /// The running server.
    ///
    /// # Errors
    /// When it was not started.
    pub fn process(&mut self) -> anyhow::Result<&mut Daemon> {
        self.serving.as_mut().context("the server was not started")
    }

    /// Kills the server with SIGKILL.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.serving.take().context("the server was not started")?.kill()
    }

    /// Stops the server with SIGTERM.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        self.serving.take().context("the server was not started")?.stop()
    }

    /// `cug-server ARGS`: its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> anyhow::Result<String> {
        let name = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
        self.run_with(args, "")?.ok().with_context(|| format!("cug-server {name}"))
    }

    /// `cug-server ARGS` with `input` on standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_with<S: AsRef<OsStr>>(&self, args: &[S], input: &str) -> anyhow::Result<Finished> {
        let mut command = self.space.command(paths::built("cug-server")?)?;
        // Nobody is there to be asked.
        command.arg("--yes").args(args);
        process::run(command, input.as_bytes(), RUN_LIMIT)
    }

    /// `cug-server --json ARGS`: what it printed.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn json<S: AsRef<OsStr>>(&self, args: &[S]) -> anyhow::Result<Value> {
        let all: Vec<&OsStr> = [OsStr::new("--json")].into_iter().chain(args.iter().map(AsRef::as_ref)).collect();
        let text = self.run(&all)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// The organisation's CA, as `cugd.toml` wants it: from the CA's certificate.
    ///
    /// # Errors
    /// When there is none.
    pub fn ca_pin(&self) -> anyhow::Result<CaPin> {
        let pem = std::fs::read(self.space.path(format!("{STATE}/keys/ca.pem"))).context("the CA's certificate")?;
        Ok(cug_proto::trust::spki_sha256(&CertificateDer::from_pem_slice(&pem)?)?)
    }

    /// Adds a user, with this password.
    ///
    /// # Errors
    /// With what the command says.
    pub fn add_user(&self, user: &str, password: &str) -> anyhow::Result<()> {
        self.run_with(&["user", "add", user, "--password-stdin"], &format!("{password}\n"))?.ok().map(drop)
    }

    /// The server's table of sessions.
    ///
    /// # Errors
    /// As [`ServerHost::json`].
    pub fn sessions(&self) -> anyhow::Result<Vec<Session>> {
        let rows = self.json(&["session", "list"])?;
        let rows = rows.as_array().context("session list --json is no array")?;
        rows.iter().map(Session::from_row).collect()
    }

    /// The server's address for `cugd.toml`.
    pub fn address() -> String {
        format!("{}:{PORT}", lan::address4(NUMBER))
    }

    /// The standby's address for `cugd.toml`.
    pub fn standby_address() -> String {
        format!("{}:{PORT}", lan::address4(STANDBY))
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        self.serving.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Gives the parts away, for a server that outlives this process.
    #[must_use]
    pub fn into_parts(self) -> (Space, Option<Daemon>) {
        (self.space, self.serving)
    }
}

/// A row of the server's table (Fig. 8): one for each group of a session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Session {
    /// Group.
    pub group: String,
    /// User.
    pub user: String,
    /// Address of the terminal.
    pub terminal: String,
    /// Overlay address.
    pub overlay4: String,
    /// Overlay address.
    pub overlay6: String,
    /// What the server says of its state.
    pub state: String,
}

impl Session {
    fn from_row(row: &Value) -> anyhow::Result<Self> {
        // Keys as in the header of the table: with blanks, underscores or not at all.
        let text = |names: &[&str]| {
            let found =
                names.iter().find_map(|name| row.get(name)).with_context(|| format!("no {names:?} in {row}"))?;
            Ok::<_, anyhow::Error>(found.as_str().map_or_else(|| found.to_string(), str::to_owned))
        };
        let terminal = text(&["terminal", "terminal_address", "terminal address", "terminal-address", "address"])?;
        Ok(Self {
            group: text(&["group"])?,
            user: text(&["user"])?,
            terminal: terminal.strip_prefix("::ffff:").unwrap_or(&terminal).to_owned(),
            overlay4: text(&["overlay4"])?,
            overlay6: text(&["overlay6"])?,
            state: text(&["state"]).unwrap_or_default(),
        })
    }
}

/// Copies a directory with owners and modes.
fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to.parent().unwrap_or(to))?;
    let mut command = std::process::Command::new("cp");
    command.args(["-a", "--no-target-directory"]).arg(from).arg(to);
    process::run(command, b"", RUN_LIMIT)?.ok().map(drop)
}
