//! A terminal behind a router that translates addresses.

use crate::support::{SOON, overlay, reaches_by_ping};
use anyhow::{Context, ensure};
use cug_tests::lan::CARD;
use cug_tests::probe;
use cug_tests::space::{Space, scenario};
use cug_tests::wait;
use cug_tests::world::World;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Every connection gets another port, as from a router that serves many.
const MASQUERADE: &str = "table ip nat {\n chain out {\n  type nat hook postrouting priority srcnat; policy accept;\n  \
                          oifname \"eth0\" masquerade fully-random\n }\n}\n";

/// Terminal 1 moves behind the router, at 192.168.7.1.
fn behind_a_router(world: &World, logs: &Path) -> anyhow::Result<Space> {
    let router = Space::new("router", logs)?;
    world.lan.connect(&router, 250)?;
    router.ip(&[
        format!("link add inner type veth peer name nat0 netns {}", world.terminal(1).space().pid()),
        "addr add 192.168.7.254/24 dev inner".into(),
        "link set inner up".into(),
    ])?;
    router.write("/etc/nat", MASQUERADE, 0o644)?;
    router.run("nft", &["-f", "/etc/nat"])?.ok()?;
    let mut forward = router.net_command("sh")?;
    forward.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    cug_tests::process::run(forward, b"", SOON)?.ok()?;
    world.terminal(1).space().ip(&[
        format!("link set {CARD} down"),
        "addr add 192.168.7.1/24 dev nat0".into(),
        "link set nat0 up".into(),
        "route add default via 192.168.7.254".into(),
    ])?;
    Ok(router)
}

#[test]
fn a_terminal_behind_a_router_is_reached_from_outside() {
    scenario("nat-one", |logs| {
        let world = World::new(logs, 2)?;
        let _router = behind_a_router(&world, logs)?;
        let (inside, outside) = (world.terminal(1).space(), world.terminal(2).space());
        ensure!(probe::ping(inside, "root", "10.0.0.254".parse()?, SOON)?, "no way out");
        ensure!(!probe::ping(outside, "root", "192.168.7.1".parse()?, Duration::from_millis(300))?, "a way in");
        let _a = world.terminal(1).insert(world.card("USER-A")?)?;
        let _b = world.terminal(2).insert(world.card("USER-B")?)?;
        let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        let login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        // Nobody inside sends anything of their own; the first packet of a person comes from outside.
        let at_a = overlay(&world, "USER-A", "VPN1")?;
        reaches_by_ping(outside, "USER-B", at_a)?;
        let seen = world.server.sessions()?;
        ensure!(seen.iter().any(|row| row.user == "USER-A" && row.terminal == "10.0.0.250"), "{seen:?}");
        // The tunnel's port is another one outside, so it cannot have been guessed from what was announced.
        let announced = world.terminal(1).cugd_log();
        ensure!(announced.contains("a router translates its addresses"), "{announced}");
        let peers = world.terminal(2).cugctl("peers")?;
        let endpoint: SocketAddr = peers[0]["peers"][0]["endpoint"].as_str().context("no endpoint")?.parse()?;
        ensure!(endpoint.ip().to_string() == "10.0.0.250", "{peers}");
        let own = format!("port={}", endpoint.port());
        ensure!(!announced.contains(&own), "the router did not change the port {own}");
        reaches_by_ping(inside, "USER-A", overlay(&world, "USER-B", "VPN1")?)?;

        // A member who comes later is called, too.
        login_a.close()?;
        let login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        reaches_by_ping(outside, "USER-B", at_a)?;
        login_a.close()?;
        wait::for_true("the tunnel to be gone", SOON, || world.terminal(1).tunnels().is_empty())
    });
}
