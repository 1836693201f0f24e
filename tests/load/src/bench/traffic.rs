//! What goes through a member's tunnel. B7: TCP and pings, with the guard and without it, beside wireguard-go and a cable without tunnel.
//!
//! All three ways join the same two terminals over the same LAN, whose cards segment nothing; they are measured in turn, a second each, and compared
//! within each turn. What the guard costs is less than what one second differs from the next: for that the guard is taken away and put back many times
//! while the same streams or pings go on, and neighbours are compared. In between something stands in its place that does nothing: what a guard of any
//! kind costs there.

use super::Scale;
use super::unguarded::{Blank, Guard};
use anyhow::{Context, ensure};
use cug_load::figures::{Report, Row, Sample};
use cug_tests::lan::{self, CARD};
use cug_tests::process::{self, Daemon};
use cug_tests::space::{Logs, Space};
use cug_tests::terminal::Terminal;
use cug_tests::wait;
use cug_tests::world::World;
use serde_json::Value;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// For anything at all.
const LIMIT: Duration = Duration::from_secs(20);
/// Turns at full size: each takes some twelve seconds.
const TURNS: usize = 12;
/// How often the guard is taken away and put back at full size: each takes less than two seconds.
const ROUNDS: usize = 50;
/// Bytes that pass between a change of the guard and the measuring, and while it is measured.
const SETTLING: u64 = 8 << 20;
const MEASURED: u64 = 64 << 20;
/// Pings in a turn.
const PINGS: usize = 250;
/// Streams when there are several.
const SEVERAL: u32 = 4;
/// Interface and port of wireguard-go.
const OTHER: &str = "wgo0";
const OTHER_PORT: u16 = 51_999;
/// Ports of the measuring program: one server of the member, one of root.
const MEMBER_PORT: u16 = 5201;
const ROOT_PORT: u16 = 5202;

/// What joins the two terminals.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Cable,
    Other,
    Tunnel,
}

const WAYS: [Way; 3] = [Way::Cable, Way::Other, Way::Tunnel];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Cable => "cable",
            Self::Other => "wireguard-go",
            Self::Tunnel => "tunnel",
        }
    }
}

/// What was measured of one way, an entry for each turn; the pings are all of them.
#[derive(Default)]
struct Figures {
    /// Gbit/s.
    one: Vec<f64>,
    several: Vec<f64>,
    /// Milliseconds.
    pings: Vec<f64>,
    /// Median of a turn.
    ping: Vec<f64>,
}

/// What keeps the tunnel to its user while something is measured.
#[derive(Clone, Copy)]
enum Keeper {
    Nothing,
    Blank,
    Guard,
}

const KEEPERS: [Keeper; 3] = [Keeper::Nothing, Keeper::Blank, Keeper::Guard];

/// What was measured through the tunnel with each [`Keeper`], neighbours in time.
#[derive(Default)]
struct Neighbours {
    without: Vec<f64>,
    blank: Vec<f64>,
    with: Vec<f64>,
}

/// The values of one kind.
type Pick = fn(&Figures) -> &[f64];

/// Two terminals joined in all ways.
struct Link<'a> {
    one: &'a Terminal,
    two: &'a Terminal,
    overlay: IpAddr,
    /// The daemon that holds the second terminal's tunnel.
    receiver: i32,
    guards: [Guard<'a>; 2],
    _daemons: Vec<Daemon>,
}

/// B7.
pub(super) fn run(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    for program in ["iperf3", "wireguard-go", "wg", "ethtool"] {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output()?.status.success();
        ensure!(found, "{program} is not installed: `make bench` installs it");
    }
    let logs = Logs::new("bench-traffic")?;
    let mut world = World::new(logs.path(), 2)?;
    let cards = [world.card("USER-A")?, world.card("USER-B")?];
    let pids = [world.terminal_mut(1).cugd()?.pid()?, world.terminal_mut(2).cugd()?.pid()?];
    let (one, two) = (world.terminal(1), world.terminal(2));
    let [card_a, card_b] = cards;
    let _readers = [one.insert(card_a)?, two.insert(card_b)?];
    let _logins = [one.log_in("USER-A", "passwd1")?, two.log_in("USER-B", "passwd2")?];
    let mut link = Link::make(one, two, pids, logs.path())?;
    let mut figures: [Figures; 3] = Default::default();
    for turn in 0..scale.of(TURNS) {
        // Whoever comes first in a turn would always find the machine as the last one left it.
        for place in 0..WAYS.len() {
            let index = (turn + place) % WAYS.len();
            link.measure(WAYS[index], &mut figures[index])?;
        }
    }
    let rounds = scale.of(ROUNDS);
    let guard =
        [link.streams_in_turns(1, rounds)?, link.streams_in_turns(SEVERAL, rounds)?, link.pings_in_turns(rounds)?];
    tell(report, &figures);
    tell_of_guard(report, &guard);
    Ok(())
}

impl<'a> Link<'a> {
    fn make(one: &'a Terminal, two: &'a Terminal, cugd: [i32; 2], logs: &Path) -> anyhow::Result<Self> {
        for space in [one.space(), two.space()] {
            let off = ["-K", CARD, "tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off"];
            space.run("ethtool", &off)?.ok()?;
        }
        let overlay = two.overlay("USER-B")?[0]["address4"].as_str().context("no overlay address")?.parse()?;
        let mut daemons = wireguard_go([one.space(), two.space()], logs)?;
        for (user, port) in [("USER-B", MEMBER_PORT), ("root", ROOT_PORT)] {
            let mut server = two.space().command_as(user, "iperf3")?;
            server.args(["-s", "-p", &port.to_string()]);
            daemons.push(two.space().daemon(&format!("iperf3-{user}"), server)?);
        }
        let guards = [Guard::of(one.space(), cugd[0])?, Guard::of(two.space(), cugd[1])?];
        let mut link = Self { one, two, overlay, receiver: cugd[1], guards, _daemons: daemons };
        // Sessions come about, and servers listen.
        for way in WAYS {
            wait::until(way.name(), LIMIT, || link.stream(way, 1).ok())?;
        }
        link.measure(Way::Tunnel, &mut Figures::default())?;
        Ok(link)
    }

    fn measure(&mut self, way: Way, figures: &mut Figures) -> anyhow::Result<()> {
        figures.one.push(self.stream(way, 1)?);
        figures.several.push(self.stream(way, SEVERAL)?);
        let pings = self.pings(way, PINGS)?;
        figures.ping.push(pings.iter().copied().collect::<Sample>().median());
        figures.pings.extend(pings);
        Ok(())
    }

    fn target(&self, way: Way) -> (&'static str, String, u16) {
        match way {
            Way::Cable => ("root", self.two.address().to_string(), ROOT_PORT),
            Way::Other => ("root", other_address(2), ROOT_PORT),
            Way::Tunnel => ("USER-A", self.overlay.to_string(), MEMBER_PORT),
        }
    }

    /// Gbit/s that arrived in a second.
    fn stream(&self, way: Way, streams: u32) -> anyhow::Result<f64> {
        let (user, address, port) = self.target(way);
        let mut client = self.one.space().command_as(user, "iperf3")?;
        client.args(["-J", "-t", "1", "--connect-timeout", "2000", "-c", &address, "-p", &port.to_string()]);
        client.args(["-P", &streams.to_string()]);
        let finished = process::run(client, b"", LIMIT)?;
        let told: Value = serde_json::from_str(&finished.out).with_context(|| finished.err.clone())?;
        let bits = told["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.with_context(|| format!("{}: {}", way.name(), told["error"]))? / 1e9)
    }

    /// Streams that go on while the guard comes and goes, in Gbit/s.
    fn streams_in_turns(&mut self, streams: u32, count: usize) -> anyhow::Result<Neighbours> {
        let (user, address, port) = self.target(Way::Tunnel);
        let mut client = self.one.space().command_as(user, "iperf3")?;
        client.args(["-t", "600", "--connect-timeout", "2000", "-c", &address, "-p", &port.to_string()]);
        client.args(["-P", &streams.to_string()]);
        let _until_the_end = self.one.space().daemon(&format!("iperf3-{streams}"), client)?;
        self.in_turns(count, Self::rate)
    }

    /// Medians of some pings, in milliseconds.
    fn pings_in_turns(&mut self, count: usize) -> anyhow::Result<Neighbours> {
        let median = |link: &Self| Ok(median(&link.pings(Way::Tunnel, PINGS / 4)?));
        median(self)?;
        self.in_turns(count, median)
    }

    /// Measures with each keeper, again and again; each comes first as often as the others.
    fn in_turns(&mut self, count: usize, measure: impl Fn(&Self) -> anyhow::Result<f64>) -> anyhow::Result<Neighbours> {
        let mut all = Neighbours::default();
        for turn in 0..count {
            for place in 0..KEEPERS.len() {
                match KEEPERS[(turn + place) % KEEPERS.len()] {
                    Keeper::Guard => all.with.push(measure(self)?),
                    Keeper::Nothing => {
                        self.guards.iter_mut().try_for_each(Guard::take_away)?;
                        all.without.push(measure(self)?);
                        self.guards.iter_mut().try_for_each(Guard::put_back)?;
                    }
                    Keeper::Blank => {
                        self.guards.iter_mut().try_for_each(Guard::take_away)?;
                        let blanks = [Blank::set_up(self.one.space())?, Blank::set_up(self.two.space())?];
                        all.blank.push(measure(self)?);
                        blanks.into_iter().try_for_each(Blank::take_down)?;
                        self.guards.iter_mut().try_for_each(Guard::put_back)?;
                    }
                }
            }
        }
        Ok(all)
    }

    /// Gbit/s that come out of the second terminal's tunnel.
    fn rate(&self) -> anyhow::Result<f64> {
        let arrived = |bytes: u64| {
            wait::until("a stream through the tunnel", LIMIT, || {
                self.received().ok().filter(|(received, _)| *received >= bytes)
            })
        };
        let (before, from) = arrived(self.received()?.0 + SETTLING)?;
        let (after, to) = arrived(before + MEASURED)?;
        Ok((after - before) as f64 * 8.0 / to.duration_since(from).as_secs_f64() / 1e9)
    }

    /// Bytes that the second terminal's interface has received, and when.
    fn received(&self) -> anyhow::Result<(u64, Instant)> {
        let table = std::fs::read_to_string(format!("/proc/{}/net/dev", self.receiver))?;
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix("cug")).context("no interface")?;
        let bytes = line.split_whitespace().nth(1).context("no count")?;
        Ok((bytes.parse()?, Instant::now()))
    }

    /// Round trips in milliseconds.
    fn pings(&self, way: Way, count: usize) -> anyhow::Result<Vec<f64>> {
        let (user, address, _) = self.target(way);
        let mut ping = self.one.space().command_as(user, "ping")?;
        ping.args(["-n", "-i", "0.003", "-c", &count.to_string(), &address]);
        let out = process::run(ping, b"", LIMIT)?.ok().with_context(|| way.name())?;
        let times = out.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok());
        Ok(times.collect())
    }
}

fn other_address(number: u8) -> String {
    format!("172.31.0.{number}")
}

/// A tunnel of wireguard-go between the two, with the same MTU.
fn wireguard_go(spaces: [&Space; 2], logs: &Path) -> anyhow::Result<Vec<Daemon>> {
    let mut daemons = Vec::new();
    let mut keys = Vec::new();
    for space in spaces {
        let mut command = space.command("wireguard-go")?;
        command.args(["--foreground", OTHER]);
        let log = logs.join(format!("{}.wireguard-go.log", space.name()));
        daemons.push(Daemon::spawn("wireguard-go", command, &log, true)?);
        let private = space.run("wg", &["genkey"])?.ok()?;
        space.write("/run/wgo.key", &private, 0o600)?;
        let mut public = space.command("wg")?;
        public.arg("pubkey");
        keys.push(process::run(public, private.as_bytes(), LIMIT)?.ok()?.trim().to_owned());
    }
    for (number, space) in (1_u8..).zip(spaces) {
        let peer = 3 - number;
        let key = keys.get(usize::from(peer) - 1).context("two keys")?;
        let (port, allowed) = (OTHER_PORT.to_string(), format!("{}/32", other_address(peer)));
        let endpoint = format!("{}:{OTHER_PORT}", lan::address4(peer));
        let set = ["set", OTHER, "private-key", "/run/wgo.key", "listen-port", &port, "peer", key];
        let set = [set.as_slice(), &["allowed-ips", &allowed, "endpoint", &endpoint]].concat();
        wait::until("wireguard-go", LIMIT, || space.run("wg", &set).ok()?.ok().ok())?;
        space.ip(&[
            format!("addr add {}/24 dev {OTHER}", other_address(number)),
            format!("link set {OTHER} mtu 1420 up"),
        ])?;
    }
    Ok(daemons)
}

/// Median over the turns of what `of` says in a turn, by what `by` says in it.
fn ratio(of: &[f64], by: &[f64]) -> f64 {
    of.iter().zip(by).map(|(of, by)| of / by).collect::<Sample>().median()
}

fn median(values: &[f64]) -> f64 {
    values.iter().copied().collect::<Sample>().median()
}

fn tell(report: &mut Report, figures: &[Figures; 3]) {
    for (way, figures) in WAYS.iter().zip(figures) {
        for (what, unit, values) in [
            ("one stream", "Gbit/s", &figures.one),
            ("several streams", "Gbit/s", &figures.several),
            ("pings", "ms", &figures.pings),
        ] {
            report.keep(format!("B7 {}, {what} [{unit}]", way.name()), &values.iter().copied().collect());
        }
    }
    let [cable, other, tunnel] = figures;
    let several = format!("{SEVERAL} TCP streams");
    let streams: [(&str, Pick); 2] = [("one TCP stream", |f| &f.one), (&several, |f| &f.several)];
    for (what, of) in streams {
        let (turns, share) = (of(tunnel).len(), |figures: &Figures| ratio(of(figures), of(cable)));
        let slower = ratio(of(other), of(tunnel));
        report.row(Row {
            bench: "B7",
            what: format!("{what} through a member's tunnel, {turns} times a second"),
            figure: format!("median {:.2} Gbit/s, {:.2} of the cable", median(of(tunnel)), share(tunnel)),
            beside: format!("wireguard-go: {:.2} Gbit/s, {:.2} of it", median(of(other)), share(other)),
            ratio: Some(slower),
            aim: "<= 1".into(),
            reached: Some(slower <= 1.0),
        });
    }
    let told = |figures: &Figures| {
        let pings: Sample = figures.pings.iter().copied().collect();
        format!("median {:.3} ms, p99 {:.3} ms", pings.median(), pings.p99())
    };
    let longer = ratio(&tunnel.ping, &other.ping);
    report.row(Row {
        bench: "B7",
        what: format!("round trip of a ping through a member's tunnel ({} of them)", tunnel.pings.len()),
        figure: told(tunnel),
        beside: format!("wireguard-go: {}; cable: {}", told(other), told(cable)),
        ratio: Some(longer),
        aim: "<= 1".into(),
        reached: Some(longer <= 1.0),
    });
}

fn tell_of_guard(report: &mut Report, [one, several, pings]: &[Neighbours; 3]) {
    /// By the time that something takes: what `with` is of `without`.
    type Cost = fn(&[f64], &[f64]) -> f64;
    let (slower, longer): (Cost, Cost) = (|with, without| ratio(without, with), ratio);
    for (what, unit, all, cost) in [
        ("one TCP stream".to_owned(), "Gbit/s", one, slower),
        (format!("{SEVERAL} TCP streams"), "Gbit/s", several, slower),
        ("round trip of a ping".to_owned(), "ms", pings, longer),
    ] {
        for (values, name) in [
            (&all.without, "without a guard"),
            (&all.blank, "with one that does nothing"),
            (&all.with, "with the guard"),
        ] {
            report.keep(format!("B7 {what}, in turn {name} [{unit}]"), &values.iter().copied().collect());
        }
        let beside = || format!("the tunnel without it: {:.3} {unit}", median(&all.without));
        let (guard, blank) = (cost(&all.with, &all.without), cost(&all.blank, &all.without));
        report.row(Row {
            bench: "B7",
            what: format!("the guard, {what}; taken away and put back {} times", all.with.len()),
            figure: format!("median {:.3} {unit}", median(&all.with)),
            beside: beside(),
            ratio: Some(guard),
            aim: "<= 1.03".into(),
            reached: Some(guard <= 1.03),
        });
        report.row(Row {
            bench: "B7",
            what: format!("one that does nothing (a program that lets all pass, chains without rules), {what}"),
            figure: format!("median {:.3} {unit}", median(&all.blank)),
            beside: beside(),
            ratio: Some(blank),
            aim: "the least that any guard at these places costs".into(),
            reached: None,
        });
    }
}
