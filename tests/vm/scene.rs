//! The scene of these tests: two virtual machines with a card in each reader, and the server in a container on the same LAN; all from packages.

use anyhow::{Context, ensure};
use cug_tests::card::{InReader, PIN};
use cug_tests::guest::Guest;
use cug_tests::installed::{self, PASSWORDS};
use cug_tests::lan::Lan;
use cug_tests::machine::{Machine, SUITE};
use cug_tests::wait;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest time from an event to its effect, on processors that are emulated and beside other tests.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The kernel's WireGuard and programs or nothing, and time for slow machines.
const LINES: &str = "backend = \"kernel\"\nguard = \"bpf\"\ncard-wait-seconds = 10\nserver-timeout-seconds = 30\n";

/// How long each part of a test took, for people.
pub struct Clock {
    name: &'static str,
    since: Instant,
    lines: String,
}

impl Clock {
    /// Starts.
    pub fn start(name: &'static str) -> Self {
        Self { name, since: Instant::now(), lines: String::new() }
    }

    /// What was done since the last call.
    pub fn done(&mut self, what: &str) {
        let took = self.since.elapsed();
        self.since = Instant::now();
        self.note(&format!("{what}: {:.1} s", took.as_secs_f64()));
    }

    /// Something else worth knowing.
    pub fn note(&mut self, what: &str) {
        let line = format!("{}: {what}\n", self.name);
        eprint!("{line}");
        self.lines += &line;
    }
}

impl Drop for Clock {
    /// Into a file, because nobody sees what a test prints that passes.
    fn drop(&mut self) {
        let file = cug_tests::paths::log_base().join(format!("{}.times", self.name));
        let _ = std::fs::File::create(file).and_then(|mut file| file.write_all(self.lines.as_bytes()));
    }
}

/// Everything.
pub struct Scene {
    /// USER-A's card, in the first machine's reader.
    pub card: Option<InReader>,
    /// Where USER-A sits.
    pub one: Guest,
    /// Where USER-B sits.
    pub two: Guest,
    _other_card: InReader,
    /// The server.
    pub server: Machine,
    _lan: Lan,
}

impl Scene {
    /// Both machines have booted and wait for their configuration; both cards are issued.
    pub fn new(logs: &Path, clock: &mut Clock) -> anyhow::Result<Self> {
        let lan = Lan::new(logs)?;
        let (server, one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| Guest::boot(&lan, logs, 21));
            let two = scope.spawn(|| Guest::boot(&lan, logs, 22));
            (installed::server(&lan, logs, SUITE), one.join(), two.join())
        });
        let boots = "a machine's boot";
        let one = one.map_err(|_| anyhow::anyhow!(boots))??;
        let two = two.map_err(|_| anyhow::anyhow!(boots))??;
        let server = server?;
        clock.done("two machines boot with the packages, and the server is installed");
        let [(user_a, _), (user_b, _)] = PASSWORDS;
        let card = Some(one.insert(installed::card(&server, user_a)?)?);
        let _other_card = two.insert(installed::card(&server, user_b)?)?;
        clock.done("cards issued and inserted");
        Ok(Self { card, one, two, _other_card, server, _lan: lan })
    }

    /// The first run: the daemons wait without a failure, and start when the administrator's lines are written.
    pub fn configure(&self) -> anyhow::Result<()> {
        let config = format!("{}{LINES}", installed::terminal_config(&self.server)?);
        for guest in [&self.one, &self.two] {
            guest.sh(
                "! systemctl -q is-active cugd && ! systemctl -q is-failed cugd && systemctl -q is-active cugd.path",
            )?;
            guest.write("/etc/cug/cugd.toml", &config)?;
        }
        [&self.one, &self.two].into_iter().try_for_each(|guest| guest.wait_active("cugd"))
    }

    /// USER-A logs in with the keyboard, at the first virtual terminal: all that the screen shows.
    pub fn log_in_at_the_keyboard(&self) -> anyhow::Result<String> {
        self.one.expect_screen("guest21 login:")?;
        let [(user, password), _] = PASSWORDS;
        for (answer, prompt) in [(user, "PIN:"), (PIN, "assword:"), (password, "$")] {
            self.one.type_line(answer)?;
            self.one.expect_screen(prompt).with_context(|| self.one.journal("cugd"))?;
        }
        self.one.screen()
    }

    /// USER-B logs in at the serial line.
    pub fn log_in_at_the_line(&mut self) -> anyhow::Result<String> {
        let [_, (user, password)] = PASSWORDS;
        let said = self.two.console().log_in(user, &[("PIN: ", PIN), ("assword: ", password)]);
        said.with_context(|| self.two.journal("cugd"))
    }

    /// Waits until the server's table has no session of `user`.
    pub fn unregistered(&self, user: &str) -> anyhow::Result<()> {
        let none = || installed::shell(&self.server, "cug-server session list").is_ok_and(|list| !list.contains(user));
        wait::for_true("the server to clear the session", LIMIT, none)
    }
}

/// A tunnel of a machine, as the kernel tells it.
pub struct Tunnel {
    /// Its interface.
    pub name: String,
    /// This machine's address in the group.
    pub address: String,
    /// The interface's own public key.
    pub public_key: String,
}

impl Tunnel {
    /// The one tunnel of `guest`.
    ///
    /// # Errors
    /// When there is none, or it is not the kernel's, or its guard is not complete.
    pub fn of(guest: &Guest) -> anyhow::Result<Self> {
        let tunnels = guest.tunnels()?;
        let [name] = tunnels.as_slice() else { anyhow::bail!("{tunnels:?}\n{}", guest.journal("cugd")) };
        // Three witnesses: the kernel's kind of link, `wg`, and what the daemon says of itself.
        let link = guest.sh(&format!("ip -d link show {name}"))?;
        ensure!(link.contains("\n    wireguard "), "not the kernel's WireGuard: {link}");
        ensure!(guest.sh("wg show interfaces")?.trim() == name, "not known to wg");
        let status: serde_json::Value = serde_json::from_str(&guest.sh("cugctl status --json")?)?;
        ensure!(status["backend"] == "kernel" && status["sessions"][0]["groups"][0]["guard"] == "bpf+nft", "{status}");
        let address = guest.sh(&format!("ip -4 -o address show dev {name} | sed -E 's/.*inet ([0-9.]+).*/\\1/'"))?;
        let public_key = guest.sh(&format!("wg show {name} public-key"))?;
        Ok(Self { name: name.clone(), address: address.trim().to_owned(), public_key: public_key.trim().to_owned() })
    }

    /// A column of `wg show` for one peer.
    pub fn peer(&self, guest: &Guest, what: &str, key: &str) -> anyhow::Result<String> {
        let shown = guest.sh(&format!("wg show {} {what}", self.name))?;
        let line =
            shown.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}: {shown}"))?;
        Ok(line.trim().to_owned())
    }
}

/// Everything that a session could leave behind on a machine, line by line.
pub fn state(guest: &Guest) -> anyhow::Result<Vec<String>> {
    let all = "ip -o link | sed 's/^[0-9]*: //'; ip -o address; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
               nft list ruleset; ls -R /sys/fs/bpf; ls -A /run/cugd 2>/dev/null; cat /etc/hosts /etc/resolv.conf; ss -Huln";
    let mut lines: Vec<_> = guest.sh(all)?.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    Ok(lines)
}

/// Waits until nothing is on a machine that was not there `before`.
pub fn wait_clean(guest: &Guest, before: &[String]) -> anyhow::Result<()> {
    let mut left = Vec::new();
    wait::for_true("a clean machine", LIMIT, || {
        left = state(guest).unwrap_or_else(|error| vec![error.to_string()]);
        left.retain(|line| !before.contains(line));
        left.is_empty()
    })
    .with_context(|| format!("{}\n{}", left.join("\n"), guest.journal("cugd")))
}
