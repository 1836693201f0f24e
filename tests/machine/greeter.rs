//! A display manager: lightdm with its GTK greeter, on an X server without a screen, whose pictures are for people to look at.

use crate::desktop::{Desktop, START_LIMIT, TERMINAL};
use anyhow::{Context, ensure};
use cug_tests::card::PIN;
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::password;

/// The greeter asks for PIN and password, shows why it refuses, opens the session with its tunnel, and has none itself; the end of the desktop is the
/// end of the tunnel.
#[test]
fn a_member_logs_in_at_the_greeter() {
    scenario("machine-greeter", |logs| {
        let mut desktop = Desktop::new(logs, "", TERMINAL)?;
        let sessions = desktop.scene.machine.logind_users()?;
        ensure!(
            sessions.contains(&"lightdm".to_owned()),
            "the greeter has no session of its own: {sessions:?}\n{}\n{}",
            desktop.log(),
            desktop.scene.machine.journal("systemd-logind")
        );
        desktop.no_tunnel()?;

        desktop.ready()?;
        desktop.answer("USER-A")?;
        desktop.picture("greeter-name")?;
        // What the first field is for, and the field.
        desktop.hears(2)?;
        desktop.picture("greeter-pin")?;
        desktop.answer(PIN)?;
        desktop.hears(1)?;
        desktop.picture("greeter-password")?;
        // The greeter itself was let in by PAM, too.
        let over = "Authentication complete with return value";
        let before = desktop.count(over);
        desktop.answer("wrong")?;
        // The reason stands there for some seconds before the greeter begins again, with the same user.
        desktop.hears(1)?;
        desktop.picture("greeter-refused")?;
        ensure!(desktop.count(over) == before, "the greeter began again before anybody could have read the reason");
        wait::for_true("the refusal", START_LIMIT, || desktop.count(over) > before).with_context(|| desktop.log())?;
        desktop.no_tunnel()?;

        desktop.hears(2)?;
        desktop.answer(PIN)?;
        desktop.hears(1)?;
        desktop.answer(password("USER-A"))?;
        desktop.opened()?;
        desktop.in_the_terminal("cugctl status; ping -c 3 -i 0.2", "reached")?;
        desktop.picture("greeter-session")?;
        desktop.answer("exit")?;
        desktop.scene.closed()
    });
}

/// The X server is killed under a member's desktop: the OS session ends and with it the tunnel, nothing is left of it, the greeter comes back, and
/// the next login works.
#[test]
fn the_display_server_is_killed() {
    scenario("machine-display", |logs| {
        let mut desktop = Desktop::new(logs, "", TERMINAL)?;
        let untouched = desktop.scene.residue()?;
        desktop.log_in()?;
        desktop.in_the_terminal("ping -c 3 -i 0.2", "reached")?;
        let pids = || -> anyhow::Result<String> { desktop.scene.machine.run("pgrep", &["-x", "Xvfb"])?.ok() };
        let server = pids()?;
        ensure!(server.lines().count() == 1, "not one X server: {server}");
        desktop.scene.machine.run("kill", &["-9", server.trim()])?.ok()?;
        desktop.scene.closed()?;
        desktop.scene.no_os_session()?;
        desktop.scene.nothing_left(&untouched)?;

        // lightdm starts another server with another greeter.
        wait::for_true("another X server", START_LIMIT, || pids().is_ok_and(|now| now.trim() != server.trim()))?;
        desktop.hears(1)?;
        desktop.no_tunnel()?;
        desktop.log_in()?;
        desktop.in_the_terminal("ping -c 3 -i 0.2", "reached-again")?;
        desktop.answer("exit")?;
        desktop.scene.closed()?;
        desktop.scene.no_os_session()
    });
}
