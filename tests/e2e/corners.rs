//! Hosts of PAM that do what hosts may do and rarely do, with real libpam (`pam-corners`). After each: the codes, and nothing left at the daemon, no file and no thread.

use crate::support::SOON;
use anyhow::{Context, ensure};
use cug_tests::accounts::SERVICE;
use cug_tests::card::PIN;
use cug_tests::paths;
use cug_tests::space::scenario;
use cug_tests::world::World;
use serde_json::Value;

/// `PAM_AUTH_ERR`.
const REFUSED: i64 = 7;

fn run(world: &World, scenario: &str) -> anyhow::Result<(Vec<i64>, Value)> {
    let terminal = world.terminal(1);
    let args = [scenario, SERVICE, PIN, "passwd1"];
    let said = terminal.space().run(paths::built("pam-corners")?, &args)?.ok().with_context(|| scenario.to_owned())?;
    let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    for what in ["fds", "threads"] {
        ensure!(seen[what][0] == seen[what][1], "{scenario}: {what} before and after: {seen}");
    }
    terminal.wait_clean(SOON).with_context(|| scenario.to_owned())?;
    terminal.wait_state("USER-A", "gone", SOON).with_context(|| format!("{scenario}: {seen}"))?;
    let steps = seen["steps"].as_array().context("no steps")?.iter().filter_map(|step| step[1].as_i64()).collect();
    Ok((steps, seen))
}

#[test]
fn unusual_hosts() {
    scenario("corners", |logs| {
        let mut world = World::new(logs, 1)?;
        let card = world.card("USER-A")?;
        // A grant that nobody opens is not to be waited for.
        let terminal = world.terminal_mut(1);
        terminal.configure("grant-seconds = 2")?;
        terminal.stop_cugd()?;
        terminal.start_cugd()?;
        let _card = terminal.insert(card)?;

        let (steps, seen) = run(&world, "retry")?;
        ensure!(steps == [REFUSED, REFUSED, 0, 0, 0], "{seen}");
        ensure!(seen["env"][0][1] == "VPN1", "{seen}");
        ensure!(seen["env"][1][1].as_str().is_some_and(|address| address.starts_with("100.")), "{seen}");
        let (steps, seen) = run(&world, "lives-on")?;
        ensure!(steps == [0, 0, 0, 0], "{seen}");
        let (steps, seen) = run(&world, "threads")?;
        ensure!(steps == [0, 0, 0], "{seen}");
        let (steps, seen) = run(&world, "flags")?;
        ensure!(steps == [0, 0, 0, 0, 0, 0, 0], "{seen}");
        let (steps, seen) = run(&world, "silent")?;
        ensure!(steps == [REFUSED] && seen["messages"] == 0, "{seen}");
        // Root's own conversation has no answer, which is pam_unix's business; it must not disturb the other handle.
        let (steps, seen) = run(&world, "two-handles")?;
        ensure!(steps.first() == Some(&0) && steps.get(1) != Some(&0) && steps.get(2..) == Some(&[0, 0]), "{seen}");
        let (steps, seen) = run(&world, "open-in-child")?;
        ensure!(steps == [0, 0], "{seen}");
        // The parent knows of no login: its session begins without the group, and nobody is hindered.
        let (steps, seen) = run(&world, "authenticate-in-child")?;
        ensure!(steps == [0, 0, 0] && seen["env"] == serde_json::json!([]), "{seen}");
        for odd in ["error", "null", "nothing", "empty", "long"] {
            let (steps, seen) = run(&world, odd)?;
            ensure!(steps == [REFUSED, REFUSED], "{odd}: {seen}");
        }
        ensure!(!world.terminal(1).space().syslog().contains("internal error"), "a panic: see the syslog");
        Ok(())
    });
}
