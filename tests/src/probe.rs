//! Who reaches whom, and what a host has left over.

use crate::process::{self, Daemon};
use crate::space::Space;
use crate::{paths, wait};
use anyhow::Context;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

/// Port of the echo server of the harness.
pub const ECHO_PORT: u16 = 7;

/// How long to wait for an answer that should not come.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Everything in a host's network that a tunnel could leave behind, line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetState(BTreeSet<String>);

impl NetState {
    /// As it is now.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn of(space: &Space) -> anyhow::Result<Self> {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, text: &str| {
            lines.extend(
                text.lines().map(|line| format!("{kind}: {}", line.split_whitespace().collect::<Vec<_>>().join(" "))),
            );
        };
        for (kind, family, what) in [
            ("address", "-4", "address show"),
            ("address", "-6", "address show"),
            ("rule", "-4", "rule show"),
            ("rule", "-6", "rule show"),
            ("route", "-4", "route show table all"),
            ("route", "-6", "route show table all"),
        ] {
            let mut command = space.net_command("ip")?;
            command.args(["-o", family]).args(what.split(' '));
            add(kind, &process::run(command, b"", crate::space::RUN_LIMIT)?.ok()?);
        }
        // A machine without nft has no rules of it either.
        let mut nft = space.net_command("nft")?;
        nft.args(["list", "ruleset"]);
        if let Ok(Ok(rules)) = process::run(nft, b"", crate::space::RUN_LIMIT).map(process::Finished::ok) {
            add("nft", &rules);
        }
        for table in ["udp", "udp6"] {
            let sockets = fs::read_to_string(format!("/proc/{}/net/{table}", space.pid())).unwrap_or_default();
            // Local address and port: the second column.
            for address in sockets.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)) {
                add(table, address);
            }
        }
        let interfaces = fs::read_to_string(format!("/proc/{}/net/dev", space.pid())).unwrap_or_default();
        for name in interfaces.lines().skip(2).filter_map(|line| line.split(':').next()) {
            add("interface", name);
        }
        let resolver = fs::read_to_string(space.path("/etc/resolv.conf")).unwrap_or_default();
        add("resolver", &resolver);
        Ok(Self(lines))
    }

    /// What is here and not in `before`. Lifetimes and caches that change by themselves are left out.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).filter(|line| !line.contains("cache")).cloned().collect()
    }
}

/// A TCP echo server on a host.
pub struct Echo(Daemon);

impl Echo {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start(space: &Space) -> anyhow::Result<Self> {
        Self::start_as(space, "root", ECHO_PORT)
    }

    /// Starts one that belongs to `user`.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start_as(space: &Space, user: &str, port: u16) -> anyhow::Result<Self> {
        let mut command = space.command_as(user, paths::built("rig")?)?;
        command.args(["echo", &port.to_string()]);
        crate::card::detach(&mut command);
        let log = space.logs().join(format!("{}.echo-{user}-{port}-{}.log", space.name(), count()));
        let mut daemon = Daemon::spawn("echo", command, &log, true)?;
        daemon.wait_log("ready", Duration::from_secs(10))?;
        Ok(Self(daemon))
    }

    /// Lets it run on after this process.
    pub fn leave(self) {
        self.0.leave();
    }
}

fn count() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Whether one ping of `user` is answered within `limit`.
///
/// # Errors
/// When ping cannot be started.
pub fn ping(space: &Space, user: &str, to: IpAddr, limit: Duration) -> anyhow::Result<bool> {
    let mut command = space.command_as(user, "ping")?;
    let seconds = format!("{:.3}", limit.as_secs_f64());
    command.args(["-n", "-q", "-c", "1", "-W", &seconds, &to.to_string()]);
    Ok(process::run(command, b"", limit + Duration::from_secs(20))?.status.success())
}

/// Whether a TCP exchange of `payload` with the echo server at `to` succeeds within `limit`.
///
/// # Errors
/// When the client cannot be started.
pub fn exchange(
    space: &Space,
    user: &str,
    to: IpAddr,
    port: u16,
    payload: &str,
    limit: Duration,
) -> anyhow::Result<bool> {
    let mut command = space.command_as(user, paths::built("rig")?)?;
    let address = std::net::SocketAddr::new(to, port).to_string();
    command.args(["exchange", &address, &limit.as_millis().to_string(), payload]);
    Ok(process::run(command, b"", limit + Duration::from_secs(20))?.status.success())
}

/// Waits until a ping is answered.
///
/// # Errors
/// When none is within `limit`.
pub fn wait_ping(space: &Space, user: &str, to: IpAddr, limit: Duration) -> anyhow::Result<()> {
    let mut last = anyhow::Ok(false);
    wait::for_true(&format!("an answer of {to} to {}", space.name()), limit, || {
        last = ping(space, user, to, Duration::from_millis(500));
        matches!(last, Ok(true))
    })
    .with_context(|| format!("{last:?}"))
}
