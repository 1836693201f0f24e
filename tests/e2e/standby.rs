//! Another server takes the place of the first, without re-issuing a card.

use crate::support::{SOON, overlay, reaches, wait_seats};
use anyhow::{Context, ensure};
use cug_tests::probe::{self, Echo};
use cug_tests::process;
use cug_tests::server::{STATE, ServerHost};
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::World;
use std::net::IpAddr;
use std::time::Duration;

/// How long everybody may take to be attached elsewhere: the longest pause between attempts, and time on a busy machine.
const ELSEWHERE: Duration = Duration::from_secs(60);

/// Pings, 20 a second, while `work` goes on and at least for as long as it takes; answers with what ping says.
fn pinging(world: &World, to: IpAddr, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<String> {
    let log = world.terminal(1).space().logs().join("ping.log");
    let mut command = world.terminal(1).space().command_as("USER-A", "ping")?;
    command.args(["-n", "-q", "-i", "0.05", "-W", "2", &to.to_string()]);
    cug_tests::card::detach(&mut command);
    let mut ping = process::Daemon::spawn("ping", command, &log, true)?;
    let worked = work();
    ping.signal(nix::sys::signal::Signal::SIGINT)?;
    ping.wait(SOON)?;
    worked.with_context(|| ping.log()).map(|()| ping.log())
}

fn attached_to(world: &World, number: usize, server: &str) -> bool {
    let status = world.terminal(number).cugctl("status").unwrap_or_default();
    status["sessions"][0]["attached"] == true && status.to_string().contains(server)
}

#[test]
fn a_standby_takes_over_and_nobody_notices() {
    scenario("standby", |logs| {
        let mut world = World::new(logs, 2)?;
        let mut standby = ServerHost::standby(&world.lan, logs)?;
        let (first, second) = (ServerHost::address(), ServerHost::standby_address());
        for number in [1, 2] {
            world.terminal(number).configure(&format!("servers = [\"{first}\", \"{second}\"]"))?;
            world.terminal_mut(number).stop_cugd()?;
            world.terminal_mut(number).start_cugd()?;
        }
        let _echoes: Vec<_> =
            world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);
        let (_a, b) = (world.terminal(1).insert(a)?, world.terminal(2).insert(b)?);
        let (_login_a, login_b) =
            (world.terminal(1).log_in("USER-A", "passwd1")?, world.terminal(2).log_in("USER-B", "passwd2")?);
        let to = overlay(&world, "USER-B", "VPN1")?;
        reaches(world.terminal(1).space(), "USER-A", to)?;
        let tunnels = [world.terminal(1).tunnels(), world.terminal(2).tunnels()];
        let rows = world.server.sessions()?;

        world.server.stop()?;
        // The key of the CA stays where it is: the standby's own TLS key is certified there.
        standby.take_over(&world.server)?;
        std::fs::remove_file(standby.space().path(format!("{STATE}/keys/ca.key")))?;
        let request = standby.run(&["tls", "request"])?;
        let certificate = world.server.run_with(&["tls", "sign", "-"], &request)?.ok()?;
        standby.run_with(&["tls", "install", "-"], &certificate)?.ok()?;

        let said = pinging(&world, to[0], || {
            standby.serve()?;
            wait::for_true("both terminals to attach to the standby", ELSEWHERE, || {
                [1, 2].into_iter().all(|number| attached_to(&world, number, &second))
            })
        })?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        ensure!([world.terminal(1).tunnels(), world.terminal(2).tunnels()] == tunnels, "a tunnel was made again");
        let mut now = standby.sessions()?;
        now.sort();
        let mut before = rows;
        before.sort();
        ensure!(now == before, "sessions were lost or doubled: {before:?}, now {now:?}");

        // It does all that the first one did: keys, leaving, logging in with the same cards.
        standby.run(&["group", "rotate", "VPN1"])?;
        let card = b.pull();
        world.terminal(2).wait_clean(SOON)?;
        wait::for_true("A's terminal to drop B", SOON, || {
            world.terminal(1).cugctl("peers").is_ok_and(|peers| !peers.to_string().contains("USER-B"))
        })?;
        login_b.close()?;
        let _b = world.terminal(2).insert(card)?;
        let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        reaches(world.terminal(1).space(), "USER-A", to)
    });
}

#[test]
fn a_server_killed_again_and_again_stops_no_packet() {
    scenario("standby-killed", |logs| {
        let mut world = World::new(logs, 2)?;
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);
        let (_a, _b) = (world.terminal(1).insert(a)?, world.terminal(2).insert(b)?);
        let (_login_a, _login_b) =
            (world.terminal(1).log_in("USER-A", "passwd1")?, world.terminal(2).log_in("USER-B", "passwd2")?);
        wait_seats(&world, &[("USER-A", 1), ("USER-B", 2)])?;
        let to = overlay(&world, "USER-B", "VPN1")?;
        probe::wait_ping(world.terminal(1).space(), "USER-A", to[0], SOON)?;
        let before = world.server.sessions()?;
        let mut server = std::mem::replace(&mut world.server, ServerHost::standby(&world.lan, logs)?);
        let first = ServerHost::address();
        let said = pinging(&world, to[0], || {
            for _ in 0..4 {
                // In the middle of a rotation.
                server.run(&["group", "rotate", "VPN1"])?;
                server.kill()?;
                server.serve()?;
            }
            wait::for_true("both terminals to attach again", ELSEWHERE, || {
                [1, 2].into_iter().all(|number| attached_to(&world, number, &first))
            })
        })?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        ensure!(server.sessions()? == before, "{:?}", server.sessions()?);
        wait::for_true("the last of the keys to be used", SOON, || {
            let group = server.json(&["group", "show", "VPN1"]).unwrap_or_default();
            group["next_epoch"].is_null() && group["epoch"].as_u64().is_some_and(|epoch| epoch >= 5)
        })
    });
}
