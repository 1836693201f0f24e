//! One working day with the kernel's WireGuard.

use crate::packages;
use crate::scene::{Clock, LIMIT, Scene, Tunnel, state, wait_clean};
use anyhow::{Context, ensure};
use cug_tests::guest::Guest;
use cug_tests::installed::{self, PASSWORDS};
use cug_tests::space::scenario;
use cug_tests::wait;
use std::time::{Duration, Instant};

/// Packages are installed and wait for their configuration. Both log in, one with the keyboard, one at the serial line; they reach each other and
/// nobody else does; the group's key is exchanged under their traffic; a card is pulled; the daemon is upgraded under a session; a daemon is killed;
/// the packages are purged. After each end nothing is left.
#[test]
fn two_terminals() {
    scenario("vm-kernel", |logs| {
        let mut clock = Clock::start("vm-kernel");
        let mut scene = Scene::new(logs, &mut clock)?;
        let unconfigured = state(&scene.two)?;
        scene.configure()?;
        clock.done("the configuration is written, the daemons start");
        let untouched = (state(&scene.one)?, state(&scene.two)?);
        let screen = scene.log_in_at_the_keyboard()?;
        clock.note(&format!("picture of the console: {}", scene.one.picture("console")?.display()));
        clock.done("USER-A logs in with the keyboard");
        scene.log_in_at_the_line()?;
        clock.done("USER-B logs in at the serial line");
        ensure!(screen.contains("PIN:") && !screen.contains("123456") && !screen.contains(PASSWORDS[0].1), "{screen}");
        let (one, two) = (Tunnel::of(&scene.one)?, Tunnel::of(&scene.two)?);

        members_reach_each_other(&mut scene, &one, &two)?;
        clock.done("ping both ways in the members' own shells, wg show");
        nobody_else(&scene.one, "USER-A", &one, &two.address)?;
        clock.done("the guard");
        clock.note(&rotation(&scene, &one, &two)?);
        clock.done("rotation under ping");
        clock.note(&the_card_is_pulled(&mut scene, &one, &two)?);
        wait_clean(&scene.one, &untouched.0)?;
        scene.unregistered("USER-A")?;
        clock.done("the card is pulled, all gone");
        packages::upgrade(&scene, &untouched.1)?;
        clock.done("an upgrade under USER-B's session");
        scene.two.console().log_out()?;
        scene.log_in_at_the_line()?;
        let two = Tunnel::of(&scene.two)?;
        the_daemon_is_killed(&scene.two, &two)?;
        wait_clean(&scene.two, &untouched.1)?;
        clock.done("USER-B again; the daemon is killed, its interface is guarded still, the next start removes it");
        packages::purge(&mut scene.two, &unconfigured)?;
        clock.done("purged; root logs in");
        Ok(())
    });
}

fn members_reach_each_other(scene: &mut Scene, one: &Tunnel, two: &Tunnel) -> anyhow::Result<()> {
    scene.one.type_line(&format!("clear; ping -c 3 -i 0.2 -W 5 {}; echo done", two.address))?;
    wait::for_true("the end of the ping", LIMIT, || scene.one.screen().is_ok_and(|shown| shown.contains("\ndone")))?;
    let shown = scene.one.screen()?;
    ensure!(shown.contains(" 0% packet loss"), "{shown}\n{}", scene.one.sh("wg show")?);
    let said = scene.two.console().shell(&format!("ping -c 3 -i 0.2 -W 5 {}", one.address))?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    for (guest, here, there) in [(&scene.one, one, two), (&scene.two, two, one)] {
        let age = here.peer(guest, "latest-handshakes", &there.public_key)?;
        ensure!(age.parse::<u64>()? > 0, "no handshake: {age}");
        ensure!(here.peer(guest, "preshared-keys", &there.public_key)?.len() == 44, "no preshared key");
        let allowed = here.peer(guest, "allowed-ips", &there.public_key)?;
        ensure!(allowed.contains(&format!("{}/32", there.address)), "{allowed}");
    }
    let (mine, theirs) = (
        one.peer(&scene.one, "preshared-keys", &two.public_key)?,
        two.peer(&scene.two, "preshared-keys", &one.public_key)?,
    );
    ensure!(mine == theirs, "different preshared keys");
    Ok(())
}

/// What the owner can, another user of the machine cannot: by its route, nor by binding to the interface, nor root.
fn nobody_else(guest: &Guest, owner: &str, here: &Tunnel, there: &str) -> anyhow::Result<()> {
    ensure!(guest.sh("ls /sys/fs/bpf/cug")?.contains("cug_ingress"), "the programs are not pinned");
    for (user, how, welcome) in [
        (owner, String::new(), true),
        (owner, format!("-I {}", here.name), true),
        ("porter", String::new(), false),
        ("porter", format!("-I {}", here.name), false),
        ("porter", format!("-I {}", here.address), false),
        ("root", format!("-I {}", here.name), false),
    ] {
        let ping = format!("runuser -u {user} -- ping -c 2 -i 0.2 -W 2 {how} {there}");
        let reached = guest.run("sh", &["-c", &ping])?;
        let said = format!("{}{}", reached.out, reached.err);
        ensure!(reached.status.success() == welcome, "{ping}: {said}");
    }
    Ok(())
}

/// A new group key while a ping runs. The kernel cannot be told to begin a handshake, so the running WireGuard session goes on; that the new key is
/// good shows when both sides begin anew.
fn rotation(scene: &Scene, one: &Tunnel, two: &Tunnel) -> anyhow::Result<String> {
    let key = || one.peer(&scene.one, "preshared-keys", &two.public_key);
    let handshake = |guest: &Guest| guest.sh(&format!("wg show {} latest-handshakes", one.name));
    // Job control, or a shell's background programs would not hear of an interrupt.
    let (before, shaken) = (key()?, handshake(&scene.one)?);
    let ping = format!(
        "set -m; setpriv --reuid=USER-A --regid=USER-A --clear-groups ping -i 0.1 -W 5 {} >/run/ping.log 2>&1 & echo $!",
        two.address
    );
    let ping = scene.one.sh(&ping)?;
    installed::shell(&scene.server, "cug-server group rotate VPN1")?;
    let mut after = before.clone();
    wait::for_true("the new key at both", LIMIT, || {
        after = key().unwrap_or_default();
        let theirs = two.peer(&scene.two, "preshared-keys", &one.public_key).unwrap_or_default();
        after != before && after == theirs
    })?;
    // A changed private key makes the kernel forget its sessions for sending; with the old one back it shakes hands with the same peer anew.
    let anew = format!(
        "umask 77; wg show {0} private-key >/run/key; wg genkey | wg set {0} private-key /dev/stdin; wg set {0} private-key /run/key; rm /run/key",
        one.name
    );
    scene.one.sh(&anew)?;
    wait::for_true("a handshake with the new key", LIMIT, || handshake(&scene.one).is_ok_and(|now| now != shaken))?;
    scene.one.sh(&format!("kill -INT {}; while kill -0 {0} 2>/dev/null; do :; done", ping.trim()))?;
    let said = scene.one.sh("tail -n 3 /run/ping.log")?;
    ensure!(said.contains(" 0% packet loss"), "{said}\n{}", scene.one.journal("cugd"));
    Ok(format!("the ping of the rotation: {}", said.lines().find(|line| line.contains("packets")).unwrap_or_default()))
}

/// How long from the card to the interface here and to the peer there, each seen inside of the machine that it is about.
fn the_card_is_pulled(scene: &mut Scene, one: &Tunnel, two: &Tunnel) -> anyhow::Result<String> {
    let card = scene.card.take().context("no card")?;
    let gone = format!("echo ready >/run/watches; while [ -e /sys/class/net/{} ]; do :; done", one.name);
    let dropped = format!(
        "echo ready >/run/watches; while wg show {} peers | grep -q '^{}$'; do :; done",
        two.name, one.public_key
    );
    let (here, there) = std::thread::scope(|scope| {
        let here = scope.spawn(|| scene.one.sh(&gone).map(|_| Instant::now()));
        let there = scope.spawn(|| scene.two.sh(&dropped).map(|_| Instant::now()));
        for guest in [&scene.one, &scene.two] {
            wait::for_true("the watch", LIMIT, || guest.sh("cat /run/watches").is_ok())?;
        }
        let pulled = Instant::now();
        let _card = card.pull();
        let ended = |watch: std::thread::ScopedJoinHandle<'_, anyhow::Result<Instant>>| {
            let seen = watch.join().map_err(|_| anyhow::anyhow!("the watch"))??;
            Ok::<_, anyhow::Error>(seen.duration_since(pulled))
        };
        Ok::<(Duration, Duration), anyhow::Error>((ended(here)?, ended(there)?))
    })?;
    Ok(format!(
        "card pulled: interface gone after {} ms, peer dropped at the other terminal after {} ms",
        here.as_millis(),
        there.as_millis()
    ))
}

/// After a crash the kernel's interface is there, and guarded, until systemd starts the daemon again.
fn the_daemon_is_killed(guest: &Guest, tunnel: &Tunnel) -> anyhow::Result<()> {
    guest.sh("mkdir -p /run/systemd/system/cugd.service.d; printf '[Service]\\nRestart=no\\n' >/run/systemd/system/cugd.service.d/no.conf; systemctl daemon-reload")?;
    guest.sh("systemctl kill -s KILL cugd; while systemctl -q is-active cugd; do :; done")?;
    ensure!(
        guest.tunnels()? == [tunnel.name.clone()],
        "the interface should have survived, or this test shows nothing"
    );
    ensure!(guest.sh("ls /sys/fs/bpf/cug")?.contains("cug_egress"), "the programs are gone");
    // The owner's packets still get to the interface, which counts them whether there is a member at the address or not; nobody else's do.
    let count =
        || guest.sh(&format!("cd /sys/class/net/{}/statistics && cat tx_packets tx_errors tx_dropped", tunnel.name));
    for (user, welcome) in [("porter", false), ("USER-B", true)] {
        let before = count()?;
        let to = guest_neighbour(&tunnel.address)?;
        guest.run("runuser", &["-u", user, "--", "ping", "-c", "1", "-W", "1", "-I", &tunnel.name, &to])?;
        ensure!((count()? != before) == welcome, "{user} after the crash: {before} {}", count()?);
    }
    guest.sh("rm -r /run/systemd/system/cugd.service.d; systemctl daemon-reload; systemctl reset-failed cugd; systemctl start cugd")?;
    ensure!(guest.tunnels()?.is_empty(), "the start did not sweep\n{}", guest.journal("cugd"));
    Ok(())
}

/// Another address in the group's network.
fn guest_neighbour(address: &str) -> anyhow::Result<String> {
    let (network, host) = address.rsplit_once('.').context("no address")?;
    Ok(format!("{network}.{}", host.parse::<u8>()? ^ 1))
}
