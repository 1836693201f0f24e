//! Several groups, a second login, displacement, crashes and restarts.

use crate::support::{SOON, does_not_reach, overlay, reaches, wait_seats};
use anyhow::ensure;
use cug_tests::login::Script;
use cug_tests::probe::{self, Echo};
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::World;
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn one_login_opens_all_groups_of_the_user() {
    scenario("sessions-groups", |logs| {
        let world = World::new(logs, 3)?;
        // B is in both groups; A and C still do not meet.
        world.server.run(&["group", "join", "VPN2", "USER-B"])?;
        let _echoes: Vec<_> =
            world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
        let mut held = Vec::new();
        for (number, user, password) in [(1, "USER-A", "passwd1"), (2, "USER-B", "passwd2"), (3, "USER-C", "passwd3")] {
            let card = world.terminal(number).insert(world.card(user)?)?;
            held.push((world.terminal(number).log_in(user, password)?, card));
        }
        ensure!(world.terminal(2).tunnels().len() == 2, "{:?}", world.terminal(2).tunnels());
        ensure!(world.terminal(1).tunnels().len() == 1, "{:?}", world.terminal(1).tunnels());
        reaches(world.terminal(2).space(), "USER-B", overlay(&world, "USER-A", "VPN1")?)?;
        reaches(world.terminal(2).space(), "USER-B", overlay(&world, "USER-C", "VPN2")?)?;
        reaches(world.terminal(1).space(), "USER-A", overlay(&world, "USER-B", "VPN1")?)?;
        reaches(world.terminal(3).space(), "USER-C", overlay(&world, "USER-B", "VPN2")?)?;
        does_not_reach(world.terminal(1).space(), "USER-A", overlay(&world, "USER-C", "VPN2")?)?;
        does_not_reach(world.terminal(1).space(), "USER-A", overlay(&world, "USER-B", "VPN2")?)?;
        held.pop();
        held.remove(1).0.close()?;
        world.terminal(2).wait_clean(SOON)
    });
}

#[test]
fn the_latest_login_wins() {
    scenario("sessions-displaced", |logs| {
        let world = World::new(logs, 2)?;
        // Two cards of one person: one forgotten in the reader at terminal 1.
        let _first = world.terminal(1).insert(world.card("USER-A")?)?;
        let _second = world.terminal(2).insert(world.card("USER-A")?)?;
        let _one = world.terminal(1).log_in("USER-A", "passwd1")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        let _other = world.terminal(2).log_in("USER-A", "passwd1")?;
        wait_seats(&world, &[("USER-A", 2)])?;
        world.terminal(1).wait_clean(SOON)?;
        ensure!(!world.terminal(2).tunnels().is_empty());
        let log = world.terminal(1).cugd_log() + &world.terminal(1).space().syslog();
        ensure!(log.contains("terminal2"), "the log at terminal 1 does not say where the session went");
        Ok(())
    });
}

#[test]
fn a_second_login_at_the_terminal_shares_the_session() {
    scenario("sessions-second", |logs| {
        let world = World::new(logs, 1)?;
        let card = world.terminal(1).insert(world.card("USER-A")?)?;
        let first = world.terminal(1).log_in("USER-A", "passwd1")?;
        let before = world.terminal(1).tunnels();
        let second = world.terminal(1).log_in("USER-A", "passwd1")?;
        ensure!(world.terminal(1).tunnels() == before, "the second login made or broke a tunnel");
        let mut wrong = world.terminal(1).login(&Script::new("USER-A").password("wrong"))?;
        ensure!(wrong.refused()?.step == "authenticate");
        ensure!(world.terminal(1).tunnels() == before, "a wrong password broke the session that is up");
        first.close()?;
        ensure!(world.terminal(1).tunnels() == before, "the tunnel went with the first of two logins");
        wait_seats(&world, &[("USER-A", 1)])?;
        second.close()?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])?;
        drop(card);
        Ok(())
    });
}

#[test]
fn a_login_program_that_dies_counts_as_logged_out() {
    scenario("sessions-leader", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        login.kill()?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])
    });
}

#[test]
fn a_card_that_comes_back_unlocks_the_session() {
    scenario("sessions-unlock", |logs| {
        let world = World::new(logs, 2)?;
        let _echo = Echo::start(world.terminal(2).space())?;
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);
        let (a, _b) = (world.terminal(1).insert(a)?, world.terminal(2).insert(b)?);
        let session = world.terminal(1).log_in("USER-A", "passwd1")?;
        let _other = world.terminal(2).log_in("USER-B", "passwd2")?;
        let card = a.pull();
        world.terminal(1).wait_clean(SOON)?;
        world.terminal(1).wait_state("USER-A", "suspended", SOON)?;
        wait_seats(&world, &[("USER-B", 2)])?;
        let _card = world.terminal(1).insert(card)?;
        // A screen locker authenticates and opens no session.
        let mut locker = world.terminal(1).login(&Script::new("USER-A").password("passwd1").last("setcred"))?;
        ensure!(locker.result("setcred")? == 0);
        world.terminal(1).wait_state("USER-A", "up", SOON)?;
        reaches(world.terminal(1).space(), "USER-A", overlay(&world, "USER-B", "VPN1")?)?;
        session.close()?;
        world.terminal(1).wait_clean(SOON)
    });
}

#[test]
fn pcscd_dies_and_that_counts_as_a_removed_card() {
    scenario("sessions-pcscd", |logs| {
        let mut world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let _login = world.terminal(1).log_in("USER-A", "passwd1")?;
        ensure!(!world.terminal(1).tunnels().is_empty());
        world.terminal_mut(1).kill_pcscd()?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])
    });
}

#[test]
fn a_cugd_killed_while_up_leaves_nothing_after_its_restart() {
    scenario("sessions-cugd-killed", |logs| {
        let mut world = World::with_config(logs, 1, "lease-seconds = 6\nheartbeat-seconds = 2")?;
        let card = world.terminal(1).insert(world.card("USER-A")?)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        world.terminal_mut(1).kill_cugd()?;
        world.terminal(1).locals_can_log_in()?;
        // An embedded WireGuard goes with its process, one of the kernel stays: this is what it leaves.
        world.terminal(1).space().ip(&[
            "tuntap add dev cug0123456789 mode tun".into(),
            "addr add 100.96.9.9/20 dev cug0123456789".into(),
            "link set cug0123456789 up".into(),
        ])?;
        world.terminal_mut(1).start_cugd()?;
        world.terminal(1).wait_clean(SOON)?;
        // Closing a session that the new daemon does not know must not hang or fail the logout.
        login.close()?;
        wait::for_true("the lease to clear the row", Duration::from_secs(20), || {
            crate::support::seats(&world).is_ok_and(|rows| rows.is_empty())
        })?;
        crate::support::still_works(&world, 1, "USER-A", card.pull())?;
        Ok(())
    });
}

#[test]
fn a_cugd_that_is_stopped_cleans_up_and_clears_the_row() {
    scenario("sessions-cugd-stopped", |logs| {
        let mut world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let _login = world.terminal(1).log_in("USER-A", "passwd1")?;
        let status = world.terminal_mut(1).stop_cugd()?;
        ensure!(status.success(), "cugd: {status}");
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])
    });
}

#[test]
fn a_server_restart_drops_no_tunnel_and_loses_no_row() {
    scenario("sessions-server-restart", |logs| {
        let mut world = World::new(logs, 2)?;
        let _echoes: Vec<_> =
            world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);
        let (_a, b) = (world.terminal(1).insert(a)?, world.terminal(2).insert(b)?);
        let (_login_a, _login_b) =
            (world.terminal(1).log_in("USER-A", "passwd1")?, world.terminal(2).log_in("USER-B", "passwd2")?);
        let to = overlay(&world, "USER-B", "VPN1")?;
        reaches(world.terminal(1).space(), "USER-A", to)?;
        let before = world.terminal(1).tunnels();
        world.server.kill()?;
        ensure!(probe::ping(world.terminal(1).space(), "USER-A", to[0], SOON)?, "the tunnel stopped with the server");
        world.server.serve()?;
        wait_seats(&world, &[("USER-A", 1), ("USER-B", 2)])?;
        let heard = |number: usize| {
            let status = world.terminal(number).cugctl("status").unwrap_or_default();
            status["sessions"][0]["attached"] == true
        };
        wait::for_true("both terminals to attach again", Duration::from_secs(30), || heard(1) && heard(2))?;
        ensure!(world.terminal(1).tunnels() == before, "the tunnel was made again");
        ensure!(probe::ping(world.terminal(1).space(), "USER-A", to[0], SOON)?);
        // And the channel works: B leaves, A hears of it.
        drop(b);
        wait_seats(&world, &[("USER-A", 1)])?;
        wait::for_true("A's terminal to drop B", SOON, || {
            world.terminal(1).cugctl("peers").is_ok_and(|peers| !peers.to_string().contains("USER-B"))
        })
    });
}

#[test]
fn a_new_group_key_loses_no_packet() {
    scenario("sessions-rotate", |logs| {
        let world = World::new(logs, 2)?;
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);
        let (_a, _b) = (world.terminal(1).insert(a)?, world.terminal(2).insert(b)?);
        let (_login_a, _login_b) =
            (world.terminal(1).log_in("USER-A", "passwd1")?, world.terminal(2).log_in("USER-B", "passwd2")?);
        let to = overlay(&world, "USER-B", "VPN1")?;
        probe::wait_ping(world.terminal(1).space(), "USER-A", to[0], SOON)?;
        let epoch = |number: usize| {
            world
                .terminal(number)
                .overlay("USER-A")
                .or_else(|_| world.terminal(number).overlay("USER-B"))
                .map(|groups| groups[0]["epoch"].clone())
        };
        let before = (epoch(1)?, epoch(2)?);
        let lost = std::thread::scope(|scope| {
            let pings = scope.spawn(|| {
                let mut command = world.terminal(1).space().command_as("USER-A", "ping")?;
                command.args(["-n", "-q", "-i", "0.02", "-c", "300", "-W", "2", &to[0].to_string()]);
                cug_tests::process::run(command, b"", Duration::from_secs(60))?.ok()
            });
            for _ in 0..3 {
                world.server.run(&["group", "rotate", "VPN1"])?;
            }
            pings.join().map_err(|_| anyhow::anyhow!("panic"))?
        })?;
        ensure!(lost.contains(" 0% packet loss"), "{lost}");
        wait::for_true("the new epoch at both terminals", SOON, || {
            epoch(1).is_ok_and(|now| now != before.0) && epoch(2).is_ok_and(|now| now != before.1)
        })?;
        ensure!(epoch(1)? == epoch(2)?, "{:?} {:?}", epoch(1)?, epoch(2)?);
        reaches_by_ping(&world, to)
    });
}

fn reaches_by_ping(world: &World, to: [std::net::IpAddr; 2]) -> anyhow::Result<()> {
    to.into_iter().try_for_each(|address| probe::wait_ping(world.terminal(1).space(), "USER-A", address, SOON))
}

#[test]
fn the_tunnel_goes_although_the_server_cannot_be_told() {
    scenario("sessions-untold", |logs| {
        let mut world = World::with_config(logs, 1, "lease-seconds = 6\nheartbeat-seconds = 2")?;
        let card = world.terminal(1).insert(world.card("USER-A")?)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        world.server.process()?.signal(Signal::SIGSTOP)?;
        drop(card);
        world.terminal(1).wait_clean(SOON)?;
        login.close()?;
        world.server.process()?.signal(Signal::SIGCONT)?;
        wait::for_true("the row to go", Duration::from_secs(20), || {
            crate::support::seats(&world).is_ok_and(|rows| rows.is_empty())
        })
    });
}

#[test]
fn the_administrator_ends_a_session() {
    scenario("sessions-end", |logs| {
        let world = World::new(logs, 1)?;
        let card = world.terminal(1).insert(world.card("USER-A")?)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        world.server.run(&["session", "end", "USER-A"])?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])?;
        login.close()?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        // A revoked card loses its session, and gets no other.
        let cards = world.server.json(&["card", "list", "USER-A"])?;
        let fingerprint = cards[0]["fingerprint"].as_str().map(str::to_owned);
        world.server.run(&[
            "card",
            "revoke",
            &fingerprint.ok_or_else(|| anyhow::anyhow!("no fingerprint in {cards}"))?,
        ])?;
        world.terminal(1).wait_clean(SOON)?;
        login.close()?;
        crate::support::refused(&world, 1, &Script::new("USER-A").password("passwd1"), "revoked")?;
        drop(card);
        Ok(())
    });
}
