//! Terminals that move, terminals with several addresses, servers that move. Each test prints what it measured.

use crate::support::{SOON, overlay};
use anyhow::{Context, ensure};
use cug_tests::card::InReader;
use cug_tests::flow::{Pings, Trickle, distribution, wall};
use cug_tests::lan::{BRIDGE, CARD};
use cug_tests::login::Login;
use cug_tests::probe::{self, Echo};
use cug_tests::space::{Space, scenario};
use cug_tests::wait;
use cug_tests::world::World;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// The server by both families.
const BOTH: &str = "servers = [\"10.0.0.254:7531\", \"[fd00:10::fe]:7531\"]";

/// A and B are logged in at terminals 1 and 2, whose cugd has these lines in its configuration.
struct Pair {
    world: World,
    held: Vec<(Login, InReader)>,
}

fn pair(logs: &Path, server: &str, lines: &str) -> anyhow::Result<Pair> {
    let mut world = World::with_config(logs, 2, server)?;
    for number in [1, 2] {
        world.terminal(number).configure(lines)?;
        world.terminal_mut(number).stop_cugd()?;
        world.terminal_mut(number).start_cugd()?;
    }
    Ok(Pair { world, held: Vec::new() })
}

impl Pair {
    fn log_in(&mut self) -> anyhow::Result<()> {
        for (number, user, password) in [(1, "USER-A", "passwd1"), (2, "USER-B", "passwd2")] {
            let card = self.world.terminal(number).insert(self.world.card(user)?)?;
            self.held.push((self.world.terminal(number).log_in(user, password)?, card));
        }
        Ok(())
    }

    /// The server has `user` at this address, verified, and the member at terminal `number` is told of it.
    fn wait_known(&self, user: &str, address: IpAddr, number: usize) -> anyhow::Result<()> {
        let mut last = Vec::new();
        wait::for_true(&format!("the server to have {user} at {address}"), SOON, || {
            last = self.world.server.sessions().unwrap_or_default();
            last.iter().any(|row| row.user == user && row.terminal == address.to_string())
        })
        .with_context(|| format!("{last:?}"))?;
        let mut peers = serde_json::Value::Null;
        wait::for_true(&format!("the other member to have {user} at {address}"), SOON, || {
            peers = self.world.terminal(number).cugctl("peers").unwrap_or_default();
            let endpoint: Option<SocketAddr> =
                peers[0]["peers"][0]["endpoint"].as_str().and_then(|endpoint| endpoint.parse().ok());
            endpoint.is_some_and(|endpoint| endpoint.ip() == address)
        })
        .with_context(|| peers.to_string())
    }

    /// Everybody leaves, and no tunnel stays behind; the test itself has changed addresses.
    fn leave(self) -> anyhow::Result<()> {
        for (login, card) in self.held {
            login.close()?;
            drop(card);
        }
        for terminal in &self.world.terminals {
            ensure!(terminal.tunnels().is_empty(), "a tunnel is left: {:?}", terminal.tunnels());
        }
        ensure!(self.world.server.sessions()?.is_empty(), "a session is left: {:?}", self.world.server.sessions()?);
        Ok(())
    }
}

/// A change of terminal 1's network: commands for `ip` there, and the address that it has afterwards.
type Move = (&'static str, Vec<String>, &'static str);

/// The terminal is moved as a network manager would: what is no longer valid goes, what is valid comes.
fn moves() -> Vec<Move> {
    let words = |all: &[&str]| all.iter().map(|line| line.replace("CARD", CARD)).collect();
    vec![
        ("another address", words(&["addr del 10.0.0.1/24 dev CARD", "addr add 10.0.0.11/24 dev CARD"]), "10.0.0.11"),
        (
            "another subnet",
            words(&[
                "addr flush dev CARD scope global",
                "addr add 10.0.1.1/24 dev CARD",
                "route add default via 10.0.1.250",
            ]),
            "10.0.1.1",
        ),
        (
            "Wi-Fi",
            words(&[
                "link set CARD down",
                "addr flush dev wlan0",
                "link set wlan0 up",
                "addr add 10.0.0.21/24 dev wlan0",
            ]),
            "10.0.0.21",
        ),
        (
            "IPv6 only",
            words(&[
                "link set wlan0 down",
                "link set CARD up",
                "addr flush dev CARD scope global",
                "addr add fd00:10::31/64 dev CARD nodad",
            ]),
            "fd00:10::31",
        ),
        ("IPv4 again", words(&["addr flush dev CARD scope global", "addr add 10.0.0.1/24 dev CARD"]), "10.0.0.1"),
    ]
}

/// A setting of the host's IPv4. The file shows the network of whoever opens it, so that is done there.
fn set(host: &Space, name: &str, value: &str) -> anyhow::Result<()> {
    let mut command = host.net_command("sh")?;
    command.args(["-c", &format!("echo {value} > /proc/sys/net/ipv4/{name}")]);
    cug_tests::process::run(command, b"", SOON)?.ok().map(drop)
}

/// A router with a leg in 10.0.1.0/24, a second network card in terminal 1, and its way into the LAN.
fn surroundings(world: &World, router: &Space) -> anyhow::Result<()> {
    world.lan.connect(router, 250)?;
    router.ip(&[format!("addr add 10.0.1.250/24 dev {CARD}")])?;
    // Its one leg stands for two: nobody may be told to do without it.
    set(router, "ip_forward", "1")?;
    for conf in ["all", CARD] {
        set(router, &format!("conf/{conf}/send_redirects"), "0")?;
    }
    // Two cards in one LAN: each answers for, and asks with, its own address only, as on machines that are set up for that.
    set(world.terminal(1).space(), "conf/all/arp_ignore", "1")?;
    set(world.terminal(1).space(), "conf/all/arp_announce", "2")?;
    for host in [world.server.space(), world.terminal(2).space()] {
        host.ip(&["route add 10.0.1.0/24 via 10.0.0.250".into()])?;
    }
    world.lan.space().ip(&[
        format!("link add wifi type veth peer name wlan0 netns {}", world.terminal(1).space().pid()),
        format!("link set wifi master {BRIDGE} up"),
    ])?;
    Ok(())
}

/// Only the member who stays sends: the one who moves would be found by its own packets at once.
#[test]
fn a_terminal_that_moves_is_found_again() {
    scenario("roaming-moves", |logs| {
        let mut pair = pair(logs, "", BOTH)?;
        let router = Space::new("router", logs)?;
        surroundings(&pair.world, &router)?;
        pair.log_in()?;
        let (from_a, from_b) = (pair.world.terminal(1).space(), pair.world.terminal(2).space());
        let _echo = Echo::start_as(from_a, "USER-A", 7007)?;
        let a = overlay(&pair.world, "USER-A", "VPN1")?[0];
        let stream = Trickle::start(from_b, "USER-B", SocketAddr::new(a, 7007))?;
        let pings = Pings::start(from_b, "USER-B", a)?;
        let tunnels = pair.world.terminal(1).tunnels();
        let (mut gaps, mut story) = (Vec::new(), String::new());
        for round in 0..4 {
            for (name, commands, address) in moves() {
                let start = wall();
                from_a.ip(&commands)?;
                // The move itself takes a moment: what counts is the time from its end.
                let moved = wall();
                let back = pings.answer_after(moved, SOON).with_context(|| format!("round {round}: {name}"))?;
                gaps.push(back - moved);
                story +=
                    &format!("{name}: {:.0} ms (the move took {:.0}); ", (back - moved) * 1e3, (moved - start) * 1e3);
                pair.wait_known("USER-A", address.parse()?, 2).with_context(|| format!("round {round}: {name}"))?;
            }
        }
        let bytes = stream.finish().context("the TCP connection over the overlay")?;
        let count = pings.finish()?;
        println!("roaming: from the end of a move to the first answer: {}", distribution(&gaps));
        println!("roaming: {story}");
        println!("roaming: {bytes} bytes through one TCP connection, {count:?}");
        ensure!(pair.world.terminal(1).tunnels() == tunnels, "the tunnel was made again");
        ensure!(gaps.iter().all(|gap| *gap < 5.0), "{gaps:?}");
        pair.leave()
    });
}

/// The members share two networks; in the one that the server sees, they do not reach each other.
#[test]
fn the_second_address_is_used_when_the_first_leads_nowhere() {
    scenario("roaming-second", |logs| {
        let mut pair = pair(logs, "", "")?;
        let (one, two) = (pair.world.terminal(1).space().pid(), pair.world.terminal(2).space().pid());
        let holder = pair.world.lan.space();
        holder.ip(&[format!("link add side0 netns {one} type veth peer name side0 netns {two}")])?;
        for number in [1_usize, 2] {
            let host = pair.world.terminal(number).space();
            host.ip(&[
                format!("addr add 192.168.50.{number}/24 dev side0"),
                "link set side0 up".into(),
                format!("route add blackhole 10.0.0.{}/32", 3 - number),
                format!("route add blackhole fd00:10::{}/128", 3 - number),
            ])?;
        }
        pair.log_in()?;
        let (host, to) = (pair.world.terminal(1).space(), overlay(&pair.world, "USER-B", "VPN1")?[0]);
        ensure!(
            !probe::ping(host, "root", "10.0.0.2".parse()?, Duration::from_millis(300))?,
            "the first address works"
        );
        let start = wall();
        probe::wait_ping(host, "USER-A", to, Duration::from_secs(20))?;
        println!("roaming: the second address was found in {:.1} s", wall() - start);
        // A path that works stays: the server's word of the first address changes nothing.
        let pings = Pings::start(host, "USER-A", to)?;
        let calm = wall();
        pair.world.terminal(2).space().ip(&["addr add 192.168.77.1/24 dev side0".into()])?;
        pair.world.terminal(2).space().ip(&["addr del 192.168.77.1/24 dev side0".into()])?;
        pings.answer_after(calm + 3.0, SOON)?;
        let count = pings.finish()?;
        ensure!(count.sent - count.answered <= 1, "a working path was disturbed: {count:?}");
        Ok(())
    });
}

#[test]
fn one_family_is_enough() {
    for (name, keep) in [("roaming-ipv6", "-6"), ("roaming-ipv4", "-4")] {
        scenario(name, |logs| {
            let mut pair = pair(logs, "", BOTH)?;
            let drop = if keep == "-6" { "-4" } else { "-6" };
            for host in [pair.world.server.space(), pair.world.terminal(1).space(), pair.world.terminal(2).space()] {
                host.run("ip", &[drop, "addr", "flush", "dev", CARD, "scope", "global"])?.ok()?;
            }
            pair.log_in()?;
            let to = overlay(&pair.world, "USER-B", "VPN1")?;
            crate::support::reaches_by_ping(pair.world.terminal(1).space(), "USER-A", to)?;
            let peers = pair.world.terminal(1).cugctl("peers")?;
            let endpoint = peers[0]["peers"][0]["endpoint"].as_str().unwrap_or_default().to_owned();
            ensure!(endpoint.starts_with('[') == (keep == "-6"), "{peers}");
            Ok(())
        });
    }
}

/// The name leads elsewhere: tunnels stay, and the channels follow.
#[test]
fn a_server_that_moves_is_found_by_its_name() {
    scenario("roaming-server", |logs| {
        let servers = "servers = [\"10.0.0.254:9\", \"vpn.example:7531\"]";
        let mut pair = pair(logs, "heartbeat-seconds = 2\nlease-seconds = 40", servers)?;
        let name = |world: &World, address: &str| {
            for number in [1, 2] {
                let line = format!("127.0.0.1 localhost\n{address} vpn.example\n");
                world.terminal(number).space().write("/etc/hosts", line, 0o644)?;
            }
            anyhow::Ok(())
        };
        name(&pair.world, "10.0.0.254")?;
        pair.log_in()?;
        let host = pair.world.terminal(1).space();
        let to = overlay(&pair.world, "USER-B", "VPN1")?[0];
        let pings = Pings::start(host, "USER-A", to)?;
        let tunnels = pair.world.terminal(1).tunnels();
        name(&pair.world, "10.0.0.244")?;
        let moved = wall();
        pair.world
            .server
            .space()
            .ip(&[format!("addr del 10.0.0.254/24 dev {CARD}"), format!("addr add 10.0.0.244/24 dev {CARD}")])?;
        let attached_anew = |number: usize| {
            let log = pair.world.terminal(number).cugd_log();
            let status = pair.world.terminal(number).cugctl("status").unwrap_or_default();
            log.contains("the server does not answer") && status["sessions"][0]["attached"] == true
        };
        wait::for_true("both to attach at the new address", Duration::from_secs(30), || {
            attached_anew(1) && attached_anew(2)
        })?;
        println!("roaming: attached to a server that moved in {:.1} s", wall() - moved);
        ensure!(pair.world.terminal(1).tunnels() == tunnels, "the tunnel was made again");
        let count = pings.finish()?;
        ensure!(count.sent - count.answered <= 1, "the tunnel suffered: {count:?}");
        // And the channel works: the end of a session is heard.
        pair.world.server.run(&["session", "end", "USER-A"])?;
        pair.world.terminal(1).wait_clean(SOON)?;
        Ok(())
    });
}
