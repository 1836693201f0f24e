//! A cable that misbehaves: `rig wire` between a host and the LAN, for everything that passes, driven by a seed.

use crate::lan::{BRIDGE, Cable, Lan};
use crate::paths;
use crate::process::Daemon;
use anyhow::Context;
use std::time::Duration;

/// What happens to frames in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Of a thousand frames, lost.
    pub lost: u16,
    /// Of a thousand frames, delivered twice.
    pub twice: u16,
    /// Shortest and longest delay in milliseconds; frames overtake each other in between.
    pub delay: (u16, u16),
}

/// What happened to frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// That came in at either end.
    pub frames: u64,
    /// Lost.
    pub lost: u64,
    /// Delivered twice.
    pub twice: u64,
    /// Delivered after one that was sent later.
    pub overtaken: u64,
}

/// A host's cable, as long as it misbehaves.
pub struct Wire<'a> {
    lan: &'a Lan,
    port: String,
    daemon: Daemon,
}

impl<'a> Wire<'a> {
    /// Puts faults into a cable: `out` for what the host sends, `back` for what it gets.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn put(lan: &'a Lan, cable: &Cable, seed: u64, out: Faults, back: Faults) -> anyhow::Result<Self> {
        let port = cable.port.clone();
        let (near, far) = (format!("{port}a"), format!("{port}b"));
        lan.space().ip(&[format!("link add {near} type veth peer name {far}")])?;
        // The wire has no address and answers nobody.
        let quiet = [&port, &near, &far].map(|name| format!("echo 1 >/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
        lan.space().run("sh", &["-c", &quiet.join(" && ")])?.ok()?;
        lan.space().ip(&[format!("link set {near} up"), format!("link set {far} up")])?;
        let mut command = lan.space().command(paths::built("rig")?)?;
        command.args(["wire", &port, &near, &seed.to_string()]);
        for faults in [out, back] {
            let numbers = [faults.lost, faults.twice, faults.delay.0, faults.delay.1];
            command.args(numbers.map(|number| number.to_string()));
        }
        crate::card::detach(&mut command);
        let mut daemon = lan.space().daemon(&format!("wire-{port}"), command)?;
        daemon.wait_log("ready", Duration::from_secs(10))?;
        lan.space().ip(&[format!("link set {port} nomaster"), format!("link set {far} master {BRIDGE}")])?;
        Ok(Self { lan, port, daemon })
    }

    /// Mends the cable.
    ///
    /// # Errors
    /// When the wire did not do what it should.
    pub fn mend(mut self) -> anyhow::Result<Counts> {
        self.daemon.end_input();
        self.daemon.wait(Duration::from_secs(10))?;
        self.lan
            .space()
            .ip(&[format!("link del {}a", self.port), format!("link set {} master {BRIDGE}", self.port)])?;
        let log = self.daemon.log();
        let line = log.lines().find(|line| line.contains(" overtaken")).with_context(|| log.clone())?;
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [frames, lost, twice, overtaken] = numbers[..] else { anyhow::bail!("{line}") };
        Ok(Counts { frames, lost, twice, overtaken })
    }
}
