//! Members by name, as the C library of a terminal finds them: through /etc/hosts, and through a real systemd-resolved.

use crate::support::{SOON, overlay, wait_seats};
use anyhow::{Context, ensure};
use cug_tests::gate::Gate;
use cug_tests::paths;
use cug_tests::process::Daemon;
use cug_tests::space::{Space, scenario};
use cug_tests::wait;
use cug_tests::world::World;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// What getent(1) finds, as `user`; empty when nothing.
fn getent(space: &Space, user: &str, args: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut command = space.command_as(user, "getent")?;
    command.args(args);
    let found = cug_tests::process::run(command, b"", SOON)?;
    let words = found.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(words.collect())
}

/// Waits until `name` leads to exactly these addresses.
fn wait_name(space: &Space, user: &str, name: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let mut last = Vec::new();
    let mut wanted: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    wanted.sort();
    wait::for_true(&format!("{name} to be {wanted:?} on {}", space.name()), SOON, || {
        let lines = getent(space, user, &["ahosts", name]).unwrap_or_default();
        last = lines.iter().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect::<Vec<_>>();
        last.sort();
        last.dedup();
        last == wanted
    })
    .with_context(|| format!("it is {last:?}"))
}

/// The file and who may do what with it.
fn hosts(space: &Space) -> anyhow::Result<(Vec<u8>, u32, u32, u32)> {
    let (at, seen) = (space.path("/etc/hosts"), fs::metadata(space.path("/etc/hosts"))?);
    Ok((fs::read(at)?, seen.mode(), seen.uid(), seen.gid()))
}

#[test]
fn members_are_found_by_name_while_they_are_there() {
    scenario("names-hosts", |logs| {
        let world = World::new(logs, 2)?;
        let host = world.terminal(1).space();
        // The administrator's own lines, the last one without an end.
        // Long enough that writing it takes as long as taking a tunnel down.
        let long = "# nobody reads this\n".repeat(400_000);
        host.write("/etc/hosts", format!("127.0.0.1 localhost\n{long}\n# ours\n10.9.8.7\tprinter"), 0o640)?;
        let before = hosts(host)?;
        let (a, b) =
            (world.terminal(1).insert(world.card("USER-A")?)?, world.terminal(2).insert(world.card("USER-B")?)?);
        let login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        wait_name(host, "root", "user-b.vpn1.cug", &[])?;
        let login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        let (at_a, at_b) = (overlay(&world, "USER-A", "VPN1")?, overlay(&world, "USER-B", "VPN1")?);
        wait_name(host, "root", "user-b.vpn1.cug", &at_b)?;
        wait_name(host, "root", "USER-A.VPN1.cug", &at_a)?;
        wait_name(world.terminal(2).space(), "USER-B", "user-a.vpn1.cug", &at_a)?;
        for address in at_b {
            let found = getent(host, "root", &["hosts", &address.to_string()])?;
            ensure!(found == [format!("{address} user-b.vpn1.cug")], "{found:?}");
        }
        ensure!(!getent(host, "root", &["ahosts", "printer"])?.is_empty(), "the administrator's line is gone");
        let (text, mode, uid, gid) = hosts(host)?;
        ensure!(text.starts_with(&before.0) && (mode, uid, gid) == (before.1, before.2, before.3));
        login_b.close()?;
        wait_name(host, "root", "user-b.vpn1.cug", &[])?;
        // Pulled or logged out: nothing is left when the session is over, not a moment later.
        login_a.close()?;
        ensure!(hosts(host)? == before, "the session is over and its names are not");
        let again = world.terminal(1).log_in("USER-A", "passwd1")?;
        wait_name(host, "root", "user-a.vpn1.cug", &at_a)?;
        drop((a, b));
        wait::for_true("the file as it was", SOON, || hosts(host).is_ok_and(|now| now == before))?;
        drop(again);
        world.terminal(1).wait_clean(SOON)
    });
}

/// The daemon's worker does not get to the file for a while: the tunnel is gone, and the session is not over before its names are.
#[test]
fn the_end_of_a_session_waits_for_its_names() {
    scenario("names-wait", |logs| {
        let mut world = World::new(logs, 1)?;
        let before = hosts(world.terminal(1).space())?;
        let cugd = world.terminal_mut(1).cugd()?.pid()?;
        let terminal = world.terminal(1);
        let _card = terminal.insert(world.card("USER-A")?)?;
        let login = terminal.log_in("USER-A", "passwd1")?;
        wait_name(terminal.space(), "root", "user-a.vpn1.cug", &overlay(&world, "USER-A", "VPN1")?)?;
        let gate = Gate::shut(&terminal.space().path("/etc/hosts"), cugd)?;
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| login.close());
            gate.wait_arrival(SOON)?;
            wait::for_true("the end of the tunnel", SOON, || terminal.tunnels().is_empty())?;
            let early = wait::for_true("the session to be over", Duration::from_secs(1), || closing.is_finished());
            ensure!(early.is_err(), "the session is over and its names are not");
            ensure!(hosts(terminal.space())? != before, "the names are gone, so this test shows nothing");
            drop(gate);
            closing.join().map_err(|_| anyhow::anyhow!("the login program"))??;
            ensure!(hosts(terminal.space())? == before, "the session is over and its names are not");
            Ok(())
        })
    });
}

#[test]
fn a_crash_leaves_names_until_the_next_start() {
    scenario("names-crash", |logs| {
        let mut world = World::new(logs, 1)?;
        let before = hosts(world.terminal(1).space())?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let _login = world.terminal(1).log_in("USER-A", "passwd1")?;
        let at_a = overlay(&world, "USER-A", "VPN1")?;
        wait_name(world.terminal(1).space(), "root", "user-a.vpn1.cug", &at_a)?;
        world.terminal_mut(1).kill_cugd()?;
        ensure!(hosts(world.terminal(1).space())? != before, "a crash cannot have cleaned up");
        world.terminal_mut(1).start_cugd()?;
        // It listens before it sweeps, so that it is known to be the only one.
        wait::for_true("the names to be swept", SOON, || {
            hosts(world.terminal(1).space()).is_ok_and(|now| now == before)
        })?;
        ensure!(world.terminal(1).cugd_log().contains("removed names that an earlier run left"));
        world.terminal(1).wait_clean(SOON)
    });
}

#[test]
fn a_file_that_cannot_be_replaced_costs_the_names_and_nothing_else() {
    scenario("names-mounted", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        let before = hosts(terminal.space())?;
        terminal.space().run("mount", &["--bind", "/etc/hosts", "/etc/hosts"])?.ok()?;
        let _card = terminal.insert(world.card("USER-A")?)?;
        let login = terminal.log_in("USER-A", "passwd1")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        let mut last = serde_json::Value::Null;
        wait::for_true("the status to say why there are no names", SOON, || {
            last = terminal.cugctl("status").unwrap_or_default();
            last["sessions"][0]["names"][0]["problem"].as_str().is_some_and(|why| why.contains("mounted by itself"))
        })
        .with_context(|| last.to_string())?;
        ensure!(last["healthy"] == true, "the tunnel is well: {last}");
        ensure!(terminal.cugd_log().contains("have no names"));
        ensure!(hosts(terminal.space())?.0 == before.0);
        login.close()?;
        terminal.wait_clean(SOON)
    });
}

/// systemd-resolved, taken from its package: `make e2e` unpacks it, because installing it would change the name service of this machine.
const RESOLVED: &str = "target/systemd-resolved";

/// A system bus and systemd-resolved on a host, and a C library that asks it.
fn resolved(space: &Space) -> anyhow::Result<[Daemon; 2]> {
    let package = paths::workspace().join(RESOLVED);
    let program = fs::read(package.join("lib/systemd/systemd-resolved")).context("run `make e2e`, which unpacks it")?;
    space.write("/usr/local/libexec/systemd-resolved", program, 0o755)?;
    let policy = "usr/share/dbus-1/system.d/org.freedesktop.resolve1.conf";
    space.write("/etc/dbus-1/system.d/resolve1.conf", fs::read(package.join(policy))?, 0o644)?;
    for (file, line) in
        [("passwd", "systemd-resolve:x:3999:3999::/:/usr/sbin/nologin"), ("group", "systemd-resolve:x:3999:")]
    {
        let text = fs::read_to_string(space.path(format!("/etc/{file}")))?;
        space.write(&format!("/etc/{file}"), format!("{text}{line}\n"), 0o644)?;
    }
    space.write("/etc/resolv.conf", "nameserver 127.0.0.53\n", 0o644)?;
    space.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n", 0o644)?;
    for directory in ["/run/dbus", "/run/systemd"] {
        fs::create_dir_all(space.path(directory))?;
    }
    let mut bus = space.command("dbus-daemon")?;
    bus.args(["--system", "--nofork", "--nopidfile", "--nosyslog"]);
    let bus = space.daemon("dbus", bus)?;
    wait::for_true("the system bus", SOON, || space.listens("/run/dbus/system_bus_socket"))?;
    let mut command = space.command("/usr/local/libexec/systemd-resolved")?;
    command.env("SYSTEMD_LOG_LEVEL", "debug").env("SYSTEMD_LOG_TARGET", "console");
    let mut daemon = space.daemon("resolved", command)?;
    daemon.wait_log("Successfully acquired requested service name", SOON)?;
    Ok([bus, daemon])
}

#[test]
fn systemd_resolved_is_told_and_forgets() {
    scenario("names-resolved", |logs| {
        let mut world = World::new(logs, 2)?;
        let _services = resolved(world.terminal(1).space())?;
        let before = hosts(world.terminal(1).space())?;
        let _cards =
            [world.terminal(1).insert(world.card("USER-A")?)?, world.terminal(2).insert(world.card("USER-B")?)?];
        let login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        let login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        let at_b = overlay(&world, "USER-B", "VPN1")?;
        let host = world.terminal(1).space();
        wait_name(host, "USER-A", "user-b.vpn1.cug", &at_b)?;
        for address in at_b {
            let found = getent(host, "USER-A", &["hosts", &address.to_string()])?;
            ensure!(found == [format!("{address} user-b.vpn1.cug")], "{found:?}");
        }
        let status = world.terminal(1).cugctl("status")?;
        ensure!(status["sessions"][0]["names"][0]["by"] == "systemd-resolved", "{status}");
        ensure!(hosts(host)? == before, "the file is left alone");
        login_b.close()?;
        wait_name(host, "USER-A", "user-b.vpn1.cug", &[])?;
        // kill -9: the sockets are gone at once, the rest with the interface.
        world.terminal_mut(1).kill_cugd()?;
        world.terminal_mut(1).start_cugd()?;
        drop(login_a);
        let host = world.terminal(1).space();
        wait_name(host, "root", "user-a.vpn1.cug", &[])?;
        let _again = world.terminal(1).log_in("USER-A", "passwd1")?;
        wait_name(host, "root", "user-a.vpn1.cug", &overlay(&world, "USER-A", "VPN1")?)
    });
}
