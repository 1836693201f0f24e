//! How long one APDU may be: cards and readers that take long ones, that do not, and that do not keep their word.

use crate::support::SOON;
use anyhow::ensure;
use cug_cards::{Exchange, Fault, OwnOptions};
use cug_tests::card::PivCard;
use cug_tests::login::Script;
use cug_tests::space::scenario;
use cug_tests::world::World;

/// Longest short APDU: header, length, 255 bytes of data, expected length.
const SHORT: usize = 261;

/// Logs in with a fault at the `n`-th APDU, and gives the APDUs.
fn log_in(world: &World, card: PivCard, fault: Option<(u64, Fault)>) -> anyhow::Result<(PivCard, Vec<Exchange>)> {
    let terminal = world.terminal(1);
    let in_reader = terminal.insert(card)?;
    if let Some((at, fault)) = fault {
        in_reader.control().fail_at(at, fault);
    }
    let mut login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
    login.open()?;
    let log = in_reader.control().apdu_log();
    login.close()?;
    terminal.wait_clean(SOON)?;
    Ok((in_reader.pull(), log))
}

fn operations(log: &[Exchange]) -> usize {
    log.iter().filter(|exchange| matches!(exchange.command.as_slice(), [0, 0x87, ..])).count()
}

#[test]
fn a_login_takes_six_apdus_where_they_may_be_long() {
    scenario("lengths", |logs| {
        let world = World::new(logs, 1)?;
        let own = |extended| PivCard::own(OwnOptions { extended, ..OwnOptions::default() });
        let card = world.issue(own(true)?, "USER-A", &["--generate"])?;
        let (card, log) = log_in(&world, card, None)?;
        ensure!((log.len(), operations(&log)) == (6, 1), "{} APDUs", log.len());
        ensure!(log.iter().any(|exchange| exchange.command.len() > SHORT));

        // What comes of the first long one is nothing, although the reader says that it carries them: short ones from then on.
        let (card, log) = log_in(&world, card, Some((1, Fault::Garbage(Vec::new()))))?;
        let rest = log.get(2..).unwrap_or_default();
        ensure!(!rest.is_empty() && rest.iter().all(|exchange| exchange.command.len() <= SHORT));
        ensure!(operations(&log) == 1);

        // The card takes none of them, although it says so.
        let (card, log) = log_in(&world, card, Some((1, Fault::Status(0x6700))))?;
        ensure!(operations(&log) == 1 && log.len() > 6);
        drop(card);

        let card = world.issue(own(false)?, "USER-A", &["--generate"])?;
        let (_, log) = log_in(&world, card, None)?;
        ensure!(log.len() > 6 && operations(&log) == 1, "{} APDUs", log.len());
        ensure!(log.iter().all(|exchange| exchange.command.len() <= SHORT));
        Ok(())
    });
}
