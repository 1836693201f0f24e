//! The tunnel belongs to its user; two users of different groups at one terminal; what is left over is named.

use crate::support::{SOON, does_not_reach, one_sentence, overlay, reaches, wait_seats};
use anyhow::{Context, ensure};
use cug_tests::accounts::LOCAL_USER;
use cug_tests::lan;
use cug_tests::login::Script;
use cug_tests::probe::{ECHO_PORT, Echo, PATIENCE, exchange, ping};
use cug_tests::space::{Space, scenario};
use cug_tests::terminal::MEDIUM;
use cug_tests::wait;
use cug_tests::world::World;
use std::net::IpAddr;
use std::time::Duration;

#[test]
fn nobody_else_at_the_terminal_gets_into_the_tunnel() {
    scenario("guard-others", |logs| {
        let world = World::new(logs, 2)?;
        let _echoes: Vec<_> =
            world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
        let a = world.terminal(1).insert(world.card("USER-A")?)?;
        let _b = world.terminal(2).insert(world.card("USER-B")?)?;
        let _login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        let [at_a, at_b] = ["USER-A", "USER-B"].map(|user| overlay(&world, user, "VPN1"));
        let (at_a, at_b) = (at_a?, at_b?);
        reaches(world.terminal(1).space(), "USER-A", at_b)?;
        reaches(world.terminal(2).space(), "USER-B", at_a)?;
        for somebody in [LOCAL_USER.0, "USER-C"] {
            does_not_reach(world.terminal(1).space(), somebody, at_b)?;
            does_not_reach(world.terminal(1).space(), somebody, at_a)?;
        }
        let status = world.terminal(1).cugctl("status")?;
        let guard = &status["sessions"][0]["groups"][0]["guard"];
        ensure!(guard == "bpf+nft" && status["teardowns"] == 0, "{status}");

        drop(a.pull());
        world.terminal(1).wait_clean(SOON)?;
        wait::for_true("the look after the end", SOON, || {
            world.terminal(1).cugctl("status").is_ok_and(|status| status["teardowns"] == 1 && status["leftovers"] == 0)
        })
    });
}

/// There are places where people log in with numbers, and one of these may be another account's user ID.
#[test]
fn an_account_whose_name_is_the_members_number_is_not_taken_for_the_member() {
    scenario("guard-numbers", |logs| {
        let world = World::new(logs, 2)?;
        let _echoes: Vec<_> =
            world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
        let here = world.terminal(1).space();
        let accounts = std::fs::read_to_string(here.path("/etc/passwd"))?;
        let member = accounts.lines().find_map(|line| line.strip_prefix("USER-A:")).context("no account")?;
        let number = member.split(':').nth(1).context("no number")?;
        here.write("/etc/passwd", format!("{accounts}{number}:x:4999:65534::/:/bin/sh\n"), 0o644)?;
        let _a = world.terminal(1).insert(world.card("USER-A")?)?;
        let _b = world.terminal(2).insert(world.card("USER-B")?)?;
        let _login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        let at_b = overlay(&world, "USER-B", "VPN1")?;
        reaches(here, "USER-A", at_b)?;
        does_not_reach(here, number, at_b)
    });
}

#[test]
fn two_members_of_different_groups_sit_at_one_terminal() {
    scenario("guard-two", |logs| {
        let mut world = World::new(logs, 3)?;
        let _echoes: Vec<_> =
            world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
        world.terminal(1).configure(&format!("media = [\"{MEDIUM}\"]"))?;
        world.terminal_mut(1).stop_cugd()?;
        world.terminal_mut(1).start_cugd()?;
        // Two more groups, with one and the same network.
        for user in ["USER-E", "USER-F"] {
            world.server.add_user(user, "passwd-other")?;
        }
        for (group, members) in
            [("VPN3", ["USER-A", "USER-B"].as_slice()), ("VPN4", &["USER-E", "USER-F", "USER-C", "USER-D"])]
        {
            world.server.run(&["group", "add", group, "--prefix4", "100.127.0.0/24", "--prefix6", "fd7f::/64"])?;
            for member in members {
                world.server.run(&["group", "join", group, member])?;
            }
        }
        // C has a stick, A a card: two readers.
        world.medium("USER-C", 1)?;
        let login_c = world.terminal(1).log_in("USER-C", "passwd3")?;
        let a = world.terminal(1).insert(world.card("USER-A")?)?;
        let _login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        let _b = world.terminal(2).insert(world.card("USER-B")?)?;
        let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        let _d = world.terminal(3).insert(world.card("USER-D")?)?;
        let _login_d = world.terminal(3).log_in("USER-D", "passwd4")?;
        wait_seats(&world, &[("USER-A", 1), ("USER-B", 2), ("USER-C", 1), ("USER-D", 3)])?;
        let at = |user, group| overlay(&world, user, group);
        let (at_a, at_b) = (at("USER-A", "VPN3")?, at("USER-B", "VPN3")?);
        let (at_c, at_d) = (at("USER-C", "VPN4")?, at("USER-D", "VPN4")?);
        ensure!(at_a[0].to_string().starts_with("100.127.0.") && at_c[0].to_string().starts_with("100.127.0."));
        let here = world.terminal(1).space();
        reaches(here, "USER-A", at_b)?;
        reaches(here, "USER-C", at_d)?;
        reaches(world.terminal(2).space(), "USER-B", at_a)?;
        reaches(world.terminal(3).space(), "USER-D", at_c)?;
        for (who, to) in [("USER-A", at_d), ("USER-A", at_c), ("USER-C", at_b), ("USER-C", at_a)] {
            does_not_reach(here, who, to)?;
        }
        drop(a.pull());
        wait_seats(&world, &[("USER-B", 2), ("USER-C", 1), ("USER-D", 3)])?;
        reaches(here, "USER-C", at_d)?;
        login_c.close()?;
        world.terminal(1).wait_clean(SOON)
    });
}

#[test]
fn what_is_left_over_is_named_and_removed_later() {
    scenario("guard-leftover", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        let card = terminal.insert(world.card("USER-A")?)?;
        let _login = terminal.log_in("USER-A", "passwd1")?;
        terminal.space().run("nft", &["add", "table", "inet", "cug_stray"])?.ok()?;
        drop(card.pull());
        wait::for_true("a leftover that is counted", SOON, || {
            terminal.cugctl("status").is_ok_and(|status| status["leftovers"] == 1)
        })?;
        let log = terminal.cugd_log();
        ensure!(log.contains("left over of a session: packet filter table inet cug_stray"), "{log}");
        wait::for_true("its removal", SOON, || terminal.cugd_log().contains("is gone now"))?;
        terminal.wait_clean(SOON)
    });
}

#[test]
fn without_a_packet_filter_no_group_is_opened() {
    scenario("guard-no-nft", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        terminal.space().run("rm", &["/usr/sbin/nft"])?.ok()?;
        let card = terminal.insert(world.card("USER-A")?)?;
        let mut login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
        let refused = login.refused()?;
        ensure!(refused.step == "open_session", "{refused:?}");
        one_sentence(&login, "the closed group could not be opened")?;
        let log = terminal.cugd_log();
        ensure!(log.contains("the nft program is missing"), "{log}");
        terminal.wait_clean(SOON)?;
        terminal.locals_can_log_in()?;
        drop(card);
        Ok(())
    });
}

/// What the administrator says about a group holds at once at the terminals of members who are logged in, and only for their programs.
#[test]
fn a_closed_group_by_the_administrators_word() {
    scenario("guard-policy", |logs| {
        let world = World::new(logs, 3)?;
        let _echoes: Vec<_> =
            world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
        let _a = world.terminal(1).insert(world.card("USER-A")?)?;
        let _b = world.terminal(2).insert(world.card("USER-B")?)?;
        let login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        let at_b = overlay(&world, "USER-B", "VPN1")?;
        let outside: [IpAddr; 2] = [lan::address4(3).into(), lan::address6(3).into()];
        let here = world.terminal(1).space();
        reaches(here, "USER-A", outside)?;

        world.server.run(&["group", "set", "VPN1", "--policy", "closed"])?;
        wait::for_true("the closed group", SOON, || does_not_reach(here, "USER-A", outside).is_ok())?;
        reaches(here, "USER-A", at_b)?;
        reaches(here, LOCAL_USER.0, outside)?;

        world.server.run(&["group", "set", "VPN1", "--allow", "10.0.0.3:7", "--allow", "[fd00:10::3]:7"])?;
        wait::for_true("the exception", SOON, || reaches_by_tcp(here, outside))?;
        ensure!(!ping(here, "USER-A", outside[0], PATIENCE)?, "only the port is allowed");
        world.server.run(&[
            "group",
            "set",
            "VPN1",
            "--remove-allow",
            "10.0.0.3:7",
            "--remove-allow",
            "[fd00:10::3]:7",
        ])?;
        wait::for_true("the end of the exception", SOON, || does_not_reach(here, "USER-A", outside).is_ok())?;
        // The session goes on: it is attached, and its channel to the server is not the member's.
        ensure!(world.terminal(1).cugctl("status")?["sessions"][0]["attached"] == true);

        // A session that begins in a closed group is confined from the start, and its account is free again after the end.
        login_a.close()?;
        world.terminal(1).wait_clean(SOON)?;
        reaches(here, "USER-A", outside)?;
        let _login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        does_not_reach(here, "USER-A", outside)?;
        reaches(here, "USER-A", at_b)?;
        world.server.run(&["group", "set", "VPN1", "--policy", "open"])?;
        wait::for_true("the open group", SOON, || reaches(here, "USER-A", outside).is_ok())
    });
}

fn reaches_by_tcp(from: &Space, to: [IpAddr; 2]) -> bool {
    to.iter().all(|to| exchange(from, "USER-A", *to, ECHO_PORT, "hello", PATIENCE).unwrap_or(false))
}

/// A login that nobody opens: how often the guard was seen before it was given up.
fn guarded_while_granted(world: &World) -> anyhow::Result<bool> {
    let terminal = world.terminal(1);
    let mut login = terminal.login(&Script::new("USER-A").password("passwd1").last("authenticate"))?;
    login.result("authenticate")?;
    let table = || terminal.space().run("nft", &["list", "tables"]).is_ok_and(|out| out.out.contains("inet cug"));
    let mut seen = false;
    wait::for_true("the end of the grant", SOON, || {
        seen |= table();
        terminal.wait_state("USER-A", "gone", Duration::from_millis(200)).is_ok()
    })?;
    ensure!(terminal.tunnels().is_empty(), "an interface without a session");
    terminal.wait_clean(SOON)?;
    Ok(seen)
}

#[test]
fn the_guard_comes_before_the_session_but_confines_nobody_before_it() {
    scenario("guard-before", |logs| {
        let mut world = World::new(logs, 1)?;
        let terminal = world.terminal_mut(1);
        terminal.configure("grant-seconds = 2")?;
        terminal.stop_cugd()?;
        terminal.start_cugd()?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        ensure!(guarded_while_granted(&world)?, "the guard of an open group waits for the session");
        world.server.run(&["group", "set", "VPN1", "--policy", "closed"])?;
        ensure!(!guarded_while_granted(&world)?, "a login that nobody opened confined the user's programs");
        Ok(())
    });
}
