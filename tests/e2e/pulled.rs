//! The card goes at each step of a login. However far it got: no tunnel, no row, one sentence, and the next login works.

use crate::support::{SOON, one_sentence, seats, wait_seats};
use anyhow::{Context, ensure};
use cug_cards::Fault;
use cug_tests::card::Kind;
use cug_tests::login::Script;
use cug_tests::space::scenario;
use cug_tests::world::World;

#[test]
fn between_any_two_apdus() {
    scenario("pulled-apdus", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        // How many does a login take?
        let in_reader = terminal.insert(world.card("USER-A")?)?;
        let login = terminal.log_in("USER-A", "passwd1")?;
        let all = in_reader.control().apdu_count();
        login.close()?;
        let mut card = in_reader.pull();
        ensure!((3..=16).contains(&all), "{all} APDUs for one login");
        for after in 1..all {
            for fault in [Fault::PullAfter, Fault::Pull] {
                let in_reader = terminal.insert(card)?;
                in_reader.control().fail_at(after - 1, fault.clone());
                let mut login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
                login.refused().with_context(|| format!("{fault:?} at APDU {after} of {all}"))?;
                one_sentence(&login, "card").with_context(|| format!("{fault:?} at APDU {after} of {all}"))?;
                terminal.wait_clean(SOON)?;
                card = in_reader.pull();
            }
        }
        wait_seats(&world, &[])?;
        crate::support::still_works(&world, 1, "USER-A", card)?;
        terminal.locals_can_log_in()
    });
}

#[test]
fn while_the_person_is_asked() {
    scenario("pulled-prompts", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        let mut card = world.card("USER-A")?;
        for prompt in ["pin", "password"] {
            let in_reader = terminal.insert(card)?;
            let script = Script::new("USER-A");
            let script = if prompt == "pin" { script.ask("pin").password("passwd1") } else { script };
            let mut login = terminal.login(&script)?;
            login.wait_prompt(prompt)?;
            card = in_reader.pull();
            login.type_answer(if prompt == "pin" { cug_tests::card::PIN } else { "passwd1" })?;
            login.refused().with_context(|| format!("pulled at the prompt for the {prompt}"))?;
            one_sentence(&login, "card")?;
            terminal.wait_clean(SOON)?;
            ensure!(seats(&world)?.is_empty(), "{:?}", seats(&world)?);
        }
        crate::support::still_works(&world, 1, "USER-A", card)?;
        Ok(())
    });
}

#[test]
fn between_the_grant_and_the_session() {
    scenario("pulled-granted", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        let in_reader = terminal.insert(world.card("USER-A")?)?;
        let mut login = terminal.login(&Script::new("USER-A").password("passwd1").last("acct_mgmt"))?;
        ensure!(login.result("acct_mgmt")? == 0);
        let card = in_reader.pull();
        wait_seats(&world, &[])?;
        terminal.wait_clean(SOON)?;
        drop(login);
        crate::support::still_works(&world, 1, "USER-A", card)?;
        Ok(())
    });
}

#[test]
fn exchanged_for_another_card_or_unplugged_with_its_reader() {
    scenario("pulled-exchanged", |logs| {
        let world = World::new(logs, 1)?;
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);
        let in_reader = world.terminal(1).insert(a)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        // Within a millisecond: only the event count tells.
        let a = in_reader.pull();
        let in_reader = world.terminal(1).insert(b)?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])?;
        login.close()?;
        drop(in_reader);

        let in_reader = world.terminal(1).insert(a)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        cug_cards::rig::unplug(&world.terminal(1).reader())?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])?;
        login.close()?;
        let card = in_reader.pull();
        cug_cards::rig::plug(&world.terminal(1).reader())?;
        let socket = world.terminal(1).reader();
        cug_tests::wait::for_true("the reader to come back", SOON, || socket.exists())?;
        crate::support::still_works(&world, 1, "USER-A", card)?;
        Ok(())
    });
}

#[test]
fn with_piv_authenticator_too() {
    scenario("pulled-piv-authenticator", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        let mut card = world.card_of(Kind::PivAuthenticator, "USER-A")?;
        for after in [1, 2, 4, 6] {
            let in_reader = terminal.insert(card)?;
            in_reader.control().pull_after_apdus(after);
            let mut login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
            login.refused().with_context(|| format!("pulled after {after} APDUs"))?;
            one_sentence(&login, "card")?;
            terminal.wait_clean(SOON)?;
            card = in_reader.pull();
        }
        crate::support::still_works(&world, 1, "USER-A", card)?;
        Ok(())
    });
}
