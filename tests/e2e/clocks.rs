//! A wall clock that is wrong, or is set while people work. Sessions and leases go by clocks that nobody sets; certificates cannot.

use crate::support::{SOON, overlay, reaches_by_ping, refused, still_works};
use anyhow::{Context, ensure};
use cug_tests::flow::Pings;
use cug_tests::login::Script;
use cug_tests::space::{Space, scenario};
use cug_tests::wait;
use cug_tests::world::World;
use std::time::{Duration, Instant};

/// The year that programs on this host believe to be in, and whether it is another one than here.
fn far_off(host: &Space) -> anyhow::Result<bool> {
    let year = |text: String| text.trim().parse::<i32>();
    let there = year(host.run("date", &["-u", "+%Y"])?.ok()?)?;
    let here = year(cug_tests::process::run(command("date", &["-u", "+%Y"]), b"", SOON)?.ok()?)?;
    Ok(there != here)
}

fn command(program: &str, args: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.args(args);
    command
}

#[test]
fn a_step_of_the_wall_clock_ends_nothing() {
    scenario("clocks-step", |logs| {
        let mut world = World::with_config(logs, 2, "heartbeat-seconds = 1\nlease-seconds = 3")?;
        world.terminal(1).space().set_clock("+0")?;
        world.server.space().set_clock("+0")?;
        world.server.stop()?;
        world.server.serve()?;
        world.terminal_mut(1).stop_cugd()?;
        world.terminal_mut(1).start_cugd()?;
        let _a = world.terminal(1).insert(world.card("USER-A")?)?;
        let _b = world.terminal(2).insert(world.card("USER-B")?)?;
        let login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
        let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
        let to = overlay(&world, "USER-A", "VPN1")?;
        reaches_by_ping(world.terminal(2).space(), "USER-B", to)?;
        let tunnels = world.terminal(1).tunnels();
        // From where the clock is right: ping itself goes by the wall clock.
        let pings = Pings::start(world.terminal(2).space(), "USER-B", to[0])?;
        let answered = || pings.answers().len();
        // The server's by less: it would renew its certificate, as it should.
        for (terminal, server) in [("+800d", "-3d"), ("-800d", "+3d"), ("+0", "+0")] {
            world.terminal(1).space().set_clock(terminal)?;
            // Asked at once: the next heartbeat would renew a lease that had run out.
            let status = world.terminal(1).cugctl("status")?;
            ensure!(status["sessions"][0]["state"] == "up", "{terminal}: {status}");
            world.server.space().set_clock(server)?;
            ensure!(far_off(world.terminal(1).space())? == (terminal != "+0"), "the clock is not set to {terminal}");
            // Longer than a lease, also by the number of pings.
            let (before, since) = (answered(), Instant::now());
            wait::for_true("traffic to go on", Duration::from_secs(30), || {
                answered() > before + 100 && since.elapsed() > Duration::from_millis(3500)
            })?;
            let status = world.terminal(1).cugctl("status")?;
            ensure!(status["sessions"][0]["attached"] == true, "{terminal} {server}: {status}");
        }
        ensure!(world.terminal(1).tunnels() == tunnels, "the tunnel was made again");
        let log = world.terminal(1).cugd_log();
        ensure!(!log.contains("session channel of USER-A"), "the channel was made again: {log}");
        let count = pings.finish()?;
        println!("clocks: three steps: {count:?}");
        ensure!(count.sent - count.answered <= 1, "{count:?}");
        world.server.run(&["session", "end", "USER-A"])?;
        world.terminal(1).wait_clean(SOON)?;
        login_a.close()
    });
}

/// Certificates are judged by the workstation's clock: the person is told what is wrong, and when the clock is right the login works.
#[test]
fn a_login_with_a_clock_that_is_years_off_says_so() {
    scenario("clocks-login", |logs| {
        let world = World::new(logs, 1)?;
        let host = world.terminal(1).space();
        let in_reader = world.terminal(1).insert(world.card("USER-A")?)?;
        for offset in ["+800d", "-800d"] {
            host.set_clock(offset)?;
            ensure!(far_off(host)?, "the clock is not set");
            refused(&world, 1, &Script::new("USER-A").password("passwd1"), "clock")
                .with_context(|| offset.to_owned())?;
        }
        host.set_clock("+0")?;
        still_works(&world, 1, "USER-A", in_reader.pull()).map(drop)
    });
}
