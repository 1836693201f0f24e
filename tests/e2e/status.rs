//! What a terminal says of itself: `cugctl status`, `watch` and `notify`.

use crate::support::{SOON, overlay, reaches, wait_seats};
use anyhow::{Context, ensure};
use cug_tests::paths;
use cug_tests::probe::Echo;
use cug_tests::process::{self, Daemon};
use cug_tests::space::{Space, scenario};
use cug_tests::wait;
use cug_tests::world::World;
use serde_json::Value;
use std::fs;

#[test]
fn status_tells_what_was_measured() {
    scenario("status-truth", |logs| {
        let mut world = World::new(logs, 2)?;
        let _echo = Echo::start(world.terminal(2).space())?;
        let _cards =
            [world.terminal(1).insert(world.card("USER-A")?)?, world.terminal(2).insert(world.card("USER-B")?)?];
        let _login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        reaches(world.terminal(1).space(), "USER-A", overlay(&world, "USER-B", "VPN1")?)?;
        let (code, status) = own_status(&world, "USER-A")?;
        ensure!(code == 0 && status["healthy"] == true, "{code}: {status}");
        let session = &status["sessions"][0];
        let member = &session["groups"][0]["members"][0];
        ensure!(member["user"] == "USER-B" && member["name"] == "user-b.vpn1.cug", "{status}");
        ensure!(member["handshake_ms"].as_u64().is_some_and(|ms| ms < 60_000), "{status}");
        ensure!(member["received"].as_u64() > Some(0), "{status}");
        let measured = session["lease_left_ms"].as_u64().is_some_and(|ms| ms > 1000)
            && session["card_watched"] == true
            && session["open"] == true
            && session["leaders"].as_array().is_some_and(|leaders| leaders.len() == 1);
        ensure!(measured, "{status}");
        let (_, others) = own_status(&world, "porter")?;
        ensure!(others["sessions"] == serde_json::json!([]), "another user's session: {others}");

        // The server goes: the tunnel stands, and the status says what is wrong.
        world.server.kill()?;
        let mut last = (0, Value::Null);
        wait::for_true("the status to say that the server is away", SOON, || {
            last = own_status(&world, "USER-A").unwrap_or_default();
            last.1["sessions"][0]["problems"].to_string().contains("the management server is away")
        })
        .with_context(|| last.1.to_string())?;
        ensure!(last.0 == 3 && last.1["healthy"] == false, "{last:?}");
        ensure!(
            last.1["sessions"][0]["channel_error"].is_string() && last.1["sessions"][0]["open"] == true,
            "{last:?}"
        );
        let text = world.terminal(1).space().run(paths::built("cugctl")?, &["status"])?.out;
        ensure!(text.contains("PROBLEM") && text.contains("AWAY") && text.contains("user-b.vpn1.cug"), "{text}");
        Ok(())
    });
}

/// `cugctl status --json` at terminal 1, as this user: exit status and answer.
fn own_status(world: &World, user: &str) -> anyhow::Result<(i32, Value)> {
    let mut command = world.terminal(1).space().command_as(user, paths::built("cugctl")?)?;
    command.args(["status", "--json"]);
    let finished = process::run(command, b"", SOON)?;
    let answer = serde_json::from_str(&finished.out).with_context(|| format!("{}{}", finished.out, finished.err))?;
    Ok((finished.status.code().unwrap_or(-1), answer))
}

/// A program of the product that runs on, as `user`.
fn follow(space: &Space, user: &str, args: &[&str], bus: Option<&str>) -> anyhow::Result<Daemon> {
    let mut command = space.command_as(user, paths::built("cugctl")?)?;
    command.args(args);
    if let Some(bus) = bus {
        command.env("DBUS_SESSION_BUS_ADDRESS", bus);
    }
    space.daemon(&format!("{}-{user}", args.join("-")), command)
}

#[test]
fn watch_tells_what_happens_to_ones_own_session() {
    scenario("status-watch", |logs| {
        let world = World::new(logs, 2)?;
        let host = world.terminal(1).space();
        let card = world.terminal(1).insert(world.card("USER-A")?)?;
        let _other = world.terminal(2).insert(world.card("USER-B")?)?;
        let _login = world.terminal(1).log_in("USER-A", "passwd1")?;
        let mut own = follow(host, "USER-A", &["watch", "--json"], None)?;
        let mut root = follow(host, "root", &["watch"], None)?;
        let mut porter = follow(host, "porter", &["watch", "--json"], None)?;
        own.wait_log("watch-started", SOON)?;
        root.wait_log("USER-A: up", SOON)?;
        porter.wait_log("watch-started", SOON)?;
        let login = world.terminal(2).log_in("USER-B", "passwd2")?;
        own.wait_log("member-joined", SOON)?;
        root.wait_log("USER-B joined VPN1 at terminal2", SOON)?;
        world.server.run(&["group", "rotate", "VPN1"])?;
        own.wait_log("new-epoch", SOON)?;
        login.close()?;
        own.wait_log("member-left", SOON)?;
        drop(card);
        own.wait_log("session-down", SOON)?;
        root.wait_log("the session is over: the card was removed", SOON)?;
        let lines: Vec<Value> = own.log().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let joined = lines.iter().find(|line| line["event"] == "member-joined").context("no line")?;
        ensure!(joined["user"] == "USER-A" && joined["member"] == "USER-B" && joined["host_name"] == "terminal2");
        ensure!(joined["time"].as_u64() > Some(0) && joined["group"] == "VPN1", "{joined}");
        ensure!(porter.log().lines().count() == 1, "another user's session: {}", porter.log());
        wait_seats(&world, &[])
    });
}

/// A real session bus; what would be shown is read off it. Nobody there shows it, and that harms nobody.
#[test]
fn the_desktop_is_told() {
    scenario("status-notify", |logs| {
        let world = World::new(logs, 2)?;
        let host = world.terminal(1).space();
        let card = world.terminal(1).insert(world.card("USER-A")?)?;
        let _other = world.terminal(2).insert(world.card("USER-B")?)?;
        let mut nobody = follow(host, "USER-A", &["notify"], Some("unix:path=/run/none"))?;
        ensure!(nobody.wait(SOON)?.success(), "without a session there is nothing to wait for: {}", nobody.log());
        let _login = world.terminal(1).log_in("USER-A", "passwd1")?;
        fs::create_dir_all(host.path("/tmp/bus"))?;
        host.run("chown", &["USER-A", "/tmp/bus"])?.ok()?;
        let address = "unix:path=/tmp/bus/session";
        let mut command = host.command_as("USER-A", "dbus-daemon")?;
        command.args(["--session", "--nofork", "--address", address]);
        let _bus = host.daemon("session-bus", command)?;
        wait::for_true("the session bus", SOON, || host.listens("/tmp/bus/session"))?;
        let mut command = host.command_as("USER-A", "dbus-monitor")?;
        command.args(["--address", address]);
        let mut monitor = host.daemon("monitor", command)?;
        monitor.wait_log("NameAcquired", SOON)?;
        let mut notify = follow(host, "USER-A", &["notify"], Some(address))?;
        let asked = |what: &str| format!("string \"{what}");
        // It watches already when it greets the bus.
        monitor.wait_log("member=Hello", SOON)?;
        let login = world.terminal(2).log_in("USER-B", "passwd2")?;
        monitor.wait_log(&asked("USER-B joined VPN1"), SOON)?;
        login.close()?;
        monitor.wait_log(&asked("USER-B left VPN1"), SOON)?;
        drop(card);
        monitor.wait_log(&asked("The closed group is closed"), SOON)?;
        monitor.wait_log(&asked("The card was removed."), SOON)?;
        ensure!(notify.exited().is_none(), "{}", notify.log());
        Ok(())
    });
}
