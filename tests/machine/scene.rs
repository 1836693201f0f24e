//! The scene of these tests: USER-A's card at a machine with a real systemd, USER-B at a terminal, and the server.

use anyhow::{Context, ensure};
use cug_tests::card::{InReader, PIN};
use cug_tests::login::Login;
use cug_tests::machine::{Machine, Options, SUITE};
use cug_tests::memory::{self, Pattern};
use cug_tests::probe::NetState;
use cug_tests::wait;
use cug_tests::world::{World, password};
use std::path::Path;
use std::time::Duration;

/// Longest time from an event to its effect in these tests, which run beside others.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Everything.
pub struct Scene {
    /// USER-A's card, in the machine's reader.
    pub card: Option<InReader>,
    /// The machine.
    pub machine: Machine,
    other: String,
    _other_session: Login,
    _other_card: InReader,
    /// The rest.
    pub world: World,
}

impl Scene {
    /// Both cards are in their readers, USER-B is logged in, USER-A not yet.
    pub fn new(logs: &Path) -> anyhow::Result<Self> {
        Self::with(logs, "", true)
    }

    /// The same with more lines in the machine's cugd.toml, and with or without BPF.
    pub fn with(logs: &Path, lines: &str, bpf: bool) -> anyhow::Result<Self> {
        Self::on(SUITE, logs, lines, bpf, "")
    }

    /// The same with more lines in the server's configuration.
    pub fn with_server(logs: &Path, lines: &str, bpf: bool, server: &str) -> anyhow::Result<Self> {
        Self::on(SUITE, logs, lines, bpf, server)
    }

    /// The same on a machine of this image.
    pub fn on(image: &'static str, logs: &Path, lines: &str, bpf: bool, server: &str) -> anyhow::Result<Self> {
        let world = World::with_config(logs, 1, server)?;
        let (card, other_card) = (world.card("USER-A")?, world.card("USER-B")?);
        let terminal = world.terminal(1);
        let _other_card = terminal.insert(other_card)?;
        let _other_session = terminal.log_in("USER-B", password("USER-B"))?;
        let other = terminal.overlay("USER-B")?[0]["address4"].as_str().context("no address")?.to_owned();
        let lines = format!("card-wait-seconds = 2\n{lines}");
        let machine =
            Machine::boot_from(image, &world.lan, logs, 20, &world.server.ca_pin()?, &Options { lines: &lines, bpf })?;
        machine.wait_active("cugd")?;
        let card = Some(machine.insert(card)?);
        Ok(Self { card, machine, other, _other_session, _other_card, world })
    }

    /// USER-A logs in at the console: what the screen said.
    pub fn log_in(&mut self) -> anyhow::Result<String> {
        let said = self.machine.console().log_in("USER-A", &[("PIN: ", PIN), ("assword: ", password("USER-A"))]);
        let said = said.with_context(|| self.machine.journal("cugd"))?;
        ensure!(self.machine.tunnels().len() == 1, "{:?}\n{}", self.machine.tunnels(), self.machine.journal("cugd"));
        Ok(said)
    }

    /// USER-B's overlay address.
    pub fn other(&self) -> &str {
        &self.other
    }

    /// USER-A's shell reaches USER-B's overlay address.
    pub fn reaches_the_other(&mut self) -> anyhow::Result<()> {
        let ping = format!("ping -c 3 -i 0.2 -W 2 {}", self.other);
        let ping = self.machine.console().shell(&ping)?;
        ensure!(ping.contains(" 0% packet loss"), "{ping}");
        Ok(())
    }

    /// Waits until the tunnel is gone here and the server knows of no session of USER-A.
    pub fn closed(&self) -> anyhow::Result<()> {
        self.machine.wait_no_tunnel(LIMIT)?;
        self.unregistered()
    }

    /// Waits until logind knows of no session of USER-A.
    pub fn no_os_session(&self) -> anyhow::Result<()> {
        let none = || self.machine.logind_users().is_ok_and(|users| !users.contains(&"USER-A".to_owned()));
        wait::for_true("the end of the OS session", LIMIT, none).with_context(|| self.machine.journal("systemd-logind"))
    }

    /// All that a session can leave behind on the machine: in the network and in the files of the daemon and of names.
    pub fn residue(&self) -> anyhow::Result<(NetState, String)> {
        let files = self.machine.run("sh", &["-c", "ls -A /run/cugd; cat /etc/hosts /etc/resolv.conf"])?;
        Ok((NetState::of(self.machine.space())?, files.out))
    }

    /// Waits until nothing is there that was not `before`; then cugd and the card's service hold nothing of what was typed, either.
    pub fn nothing_left(&self, before: &(NetState, String)) -> anyhow::Result<()> {
        let mut left = String::new();
        wait::for_true("a clean machine", LIMIT, || {
            let Ok((network, files)) = self.residue() else { return false };
            let beyond = network.beyond(&before.0);
            left = format!("{beyond:?}\n{files}");
            beyond.is_empty() && files == before.1
        })
        .with_context(|| left)?;
        let status = self.machine.run("cugctl", &["status", "--json"])?;
        let status: serde_json::Value = serde_json::from_str(&status.out)?;
        ensure!(status["leftovers"] == 0, "{status}");
        let mut pin = PIN.as_bytes().to_vec();
        // As it goes to the card.
        pin.resize(8, 0xff);
        let typed = [Pattern::new("password", password("USER-A").as_bytes()), Pattern::new("PIN", &pin)];
        for program in ["cugd", "pcscd"] {
            let process = self.machine.process(program)?;
            let found = memory::find(process, &typed)?;
            ensure!(found.is_empty(), "{program} holds {found:#?}");
        }
        Ok(())
    }

    /// Whether the server has a session of USER-A.
    pub fn registered(&self) -> anyhow::Result<bool> {
        let sessions = self.world.server.json(&["session", "list"])?;
        Ok(sessions.as_array().context("not a list")?.iter().any(|session| session["user"] == "USER-A"))
    }

    /// Waits until the server has none.
    pub fn unregistered(&self) -> anyhow::Result<()> {
        wait::for_true("the server to clear USER-A", LIMIT, || self.registered().is_ok_and(|is| !is))
            .with_context(|| self.machine.journal("cugd"))
    }
}
