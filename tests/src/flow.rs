//! Traffic that goes on while something happens, and how long it was interrupted.

use crate::process::Daemon;
use crate::space::Space;
use crate::{paths, wait};
use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970, as ping prints them.
pub fn wall() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn log(space: &Space, kind: &str) -> std::path::PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    space.logs().join(format!("{}.{kind}-{}.flow", space.name(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Pings at a fixed interval.
pub struct Pings(Daemon);

/// What became of pings.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    /// Sent.
    pub sent: u32,
    /// Answered.
    pub answered: u32,
}

impl Pings {
    /// `user` at `from` pings `to` every ten milliseconds, from the first answer on.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn start(from: &Space, user: &str, to: IpAddr) -> anyhow::Result<Self> {
        let mut command = from.command_as(user, "ping")?;
        command.args(["-n", "-D", "-i", "0.01", &to.to_string()]);
        crate::card::detach(&mut command);
        let pings = Self(Daemon::spawn("ping", command, &log(from, "ping"), true)?);
        wait::for_true("the first answer to a ping", Duration::from_secs(15), || !pings.answers().is_empty())
            .with_context(|| pings.0.log())?;
        Ok(pings)
    }

    /// When answers came, in seconds since 1970.
    pub fn answers(&self) -> Vec<f64> {
        let log = self.0.log();
        let lines = log.lines().filter(|line| line.contains("bytes from"));
        lines.filter_map(|line| line.strip_prefix('[')?.split_once(']')?.0.parse().ok()).collect()
    }

    /// Waits for the first answer that came at or after `since` (as [`wall`]).
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn answer_after(&self, since: f64, limit: Duration) -> anyhow::Result<f64> {
        wait::until("an answer to a ping", limit, || self.answers().into_iter().find(|at| *at >= since))
    }

    /// Answers that came twice.
    pub fn doubled(&self) -> usize {
        self.0.log().matches("(DUP!)").count()
    }

    /// Ends them, and counts from the first answer to the last: what went out before there was a session, or is on its way now, says nothing.
    ///
    /// # Errors
    /// When ping cannot be ended.
    pub fn finish(mut self) -> anyhow::Result<Count> {
        self.0.signal(Signal::SIGINT)?;
        self.0.wait(Duration::from_secs(10))?;
        let log = self.0.log();
        let number = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse::<u32>().ok();
        let numbers: std::collections::BTreeSet<u32> =
            log.lines().filter(|line| line.contains("bytes from")).filter_map(number).collect();
        let (first, last) = numbers.first().zip(numbers.last()).context("no answer at all")?;
        Ok(Count { sent: last - first + 1, answered: u32::try_from(numbers.len())? })
    }
}

/// One TCP connection in use.
pub struct Trickle(Daemon);

impl Trickle {
    /// `user` at `from` sends to the echo server at `to` until [`Trickle::finish`].
    ///
    /// # Errors
    /// When the connection does not come about.
    pub fn start(from: &Space, user: &str, to: SocketAddr) -> anyhow::Result<Self> {
        let mut command = from.command_as(user, paths::built("rig")?)?;
        command.args(["trickle", &to.to_string()]);
        let mut daemon = Daemon::spawn("trickle", command, &log(from, "trickle"), true)?;
        daemon.wait_log("connected", Duration::from_secs(15))?;
        Ok(Self(daemon))
    }

    /// Ends it: how many bytes went there and back, in order.
    ///
    /// # Errors
    /// When the connection broke, or bytes are missing.
    pub fn finish(mut self) -> anyhow::Result<u64> {
        self.0.end_input();
        // What is on its way may take as long as a connection may stand still, and the answer again.
        let status = self.0.wait(Duration::from_secs(300))?;
        let log = self.0.log();
        ensure!(status.success(), "{status}: {log}");
        let bytes = log.lines().find_map(|line| line.strip_suffix(" bytes")).with_context(|| log.clone())?;
        Ok(bytes.parse()?)
    }
}

/// Median, 99th percentile and largest of some durations in seconds, for people, in milliseconds.
pub fn distribution(seconds: &[f64]) -> String {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let index = ((sorted.len() as f64 - 1.0) * part).round() as usize;
        sorted.get(index).map_or(f64::NAN, |value| value * 1000.0)
    };
    format!("n={} median {:.0} ms, p99 {:.0} ms, max {:.0} ms", sorted.len(), at(0.5), at(0.99), at(1.0))
}
