//! What several tests ask for.

use anyhow::{Context, ensure};
use cug_tests::login::{Login, Refused, Script};
use cug_tests::probe::{self, ECHO_PORT, PATIENCE};
use cug_tests::space::Space;
use cug_tests::terminal::Terminal;
use cug_tests::wait;
use cug_tests::world::World;
use std::net::IpAddr;
use std::time::Duration;

/// How long anything may take that should happen at once.
pub const SOON: Duration = Duration::from_secs(10);

/// A user's overlay addresses in a group, as the server has them.
pub fn overlay(world: &World, user: &str, group: &str) -> anyhow::Result<[IpAddr; 2]> {
    let rows = world.server.sessions()?;
    let row = rows.iter().find(|row| row.user == user && row.group == group);
    let row = row.with_context(|| format!("{user} is not in the table under {group}: {rows:?}"))?;
    Ok([row.overlay4.parse()?, row.overlay6.parse()?])
}

/// `user` at `from` reaches these addresses, by ping and TCP.
pub fn reaches(from: &Space, user: &str, to: [IpAddr; 2]) -> anyhow::Result<()> {
    for address in to {
        probe::wait_ping(from, user, address, SOON)?;
        ensure!(
            probe::exchange(from, user, address, ECHO_PORT, "over-the-overlay", SOON)?,
            "no TCP from {} to {address}",
            from.name()
        );
    }
    Ok(())
}

/// `user` at `from` reaches these addresses, by ping.
pub fn reaches_by_ping(from: &Space, user: &str, to: [IpAddr; 2]) -> anyhow::Result<()> {
    to.into_iter().try_for_each(|address| probe::wait_ping(from, user, address, SOON))
}

/// `user` at `from` reaches none of these addresses.
pub fn does_not_reach(from: &Space, user: &str, to: [IpAddr; 2]) -> anyhow::Result<()> {
    for address in to {
        ensure!(!probe::ping(from, user, address, PATIENCE)?, "{} reaches {address} by ping", from.name());
        ensure!(
            !probe::exchange(from, user, address, ECHO_PORT, "should-not", PATIENCE)?,
            "{} reaches {address} by TCP",
            from.name()
        );
    }
    Ok(())
}

/// The server's table: user and terminal number of every row, in order.
pub fn seats(world: &World) -> anyhow::Result<Vec<(String, String)>> {
    let mut rows: Vec<_> = world.server.sessions()?.into_iter().map(|row| (row.user, row.terminal)).collect();
    rows.sort();
    rows.dedup();
    Ok(rows)
}

/// Waits until the server's table holds exactly these users at these terminals.
pub fn wait_seats(world: &World, wanted: &[(&str, usize)]) -> anyhow::Result<()> {
    let mut wanted: Vec<_> = wanted
        .iter()
        .map(|(user, number)| ((*user).to_owned(), world.terminal(*number).address().to_string()))
        .collect();
    wanted.sort();
    let mut last = Vec::new();
    wait::for_true(&format!("the server's table to be {wanted:?}"), SOON, || {
        last = seats(world).unwrap_or_default();
        last == wanted
    })
    .with_context(|| format!("it is {last:?}"))
}

/// A login that must be refused: one sentence with `said` in it, at `step`, and nothing stays behind.
pub fn refused(world: &World, number: usize, script: &Script, said: &str) -> anyhow::Result<Refused> {
    let terminal = world.terminal(number);
    let refused = refused_at(terminal, terminal.login(script)?, said)?;
    ensure!(seats(world)?.is_empty(), "the server has a session after a refused login: {:?}", seats(world)?);
    Ok(refused)
}

/// The same for a login that is under way, and without a look at the server.
pub fn refused_at(terminal: &Terminal, mut login: Login, said: &str) -> anyhow::Result<Refused> {
    let refused = login.refused()?;
    one_sentence(&login, said)?;
    terminal.wait_clean(SOON)?;
    ensure!(!terminal.space().syslog().is_empty(), "nothing in the log of {}", terminal.space().name());
    Ok(refused)
}

/// The person was told exactly one error, in one sentence that contains `part`.
pub fn one_sentence(login: &Login, part: &str) -> anyhow::Result<()> {
    let events = login.events();
    let errors: Vec<_> = events
        .iter()
        .filter(|event| event.event == "message" && event.style.as_deref() == Some("error"))
        .filter_map(|event| event.text.clone())
        .collect();
    ensure!(errors.len() == 1, "not one sentence: {errors:?} in\n{}", login.story());
    let text = &errors[0];
    ensure!(text.to_lowercase().contains(&part.to_lowercase()), "`{part}` is not in `{text}`");
    ensure!(text.ends_with('.') && !text.contains('\n') && text.len() < 200, "not a sentence: `{text}`");
    Ok(())
}

/// A member can log in and out: whatever was done before did no lasting harm.
pub fn still_works(
    world: &World,
    number: usize,
    user: &str,
    card: cug_tests::card::PivCard,
) -> anyhow::Result<cug_tests::card::PivCard> {
    let terminal = world.terminal(number);
    let card = terminal.insert(card)?;
    let login = terminal.log_in(user, cug_tests::world::password(user))?;
    wait_seats(world, &[(user, number)])?;
    login.close()?;
    terminal.wait_clean(SOON)?;
    wait_seats(world, &[])?;
    Ok(card.pull())
}
