//! Logins that must fail, with one sentence for the person.

use crate::support::{SOON, one_sentence, refused, still_works};
use anyhow::ensure;
use cug_cards::{Fault, OwnOptions};
use cug_proto::message::{ClientMessage, ServerMessage};
use cug_tests::card::{Kind, PivCard};
use cug_tests::login::Script;
use cug_tests::script::client::Member;
use cug_tests::script::random;
use cug_tests::space::scenario;
use cug_tests::world::World;
use std::time::{Duration, Instant};

/// `PAM_AUTH_ERR`.
const AUTH_ERR: i32 = 7;

#[test]
fn wrong_password_wrong_card_no_card_no_user() {
    scenario("refused-common", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);

        let no_card = refused(&world, 1, &Script::new("USER-A").password("passwd1"), "card")?;
        ensure!(no_card.step == "authenticate", "{no_card:?}");

        let b = terminal.insert(b)?;
        let other = refused(&world, 1, &Script::new("USER-A").password("passwd1"), "not right")?;
        let unknown = refused(&world, 1, &Script::new("USER-H").password("passwd1"), "not right")?;
        ensure!(other.code == AUTH_ERR && unknown.code == AUTH_ERR, "{other:?} {unknown:?}");
        ensure!(
            other.said.last() == unknown.said.last(),
            "an unknown user and a wrong card read differently: {other:?} {unknown:?}"
        );
        drop(b);

        let in_reader = terminal.insert(a)?;
        let wrong = refused(&world, 1, &Script::new("USER-A").password("not-it"), "password")?;
        ensure!(wrong.step == "authenticate" && wrong.code == AUTH_ERR, "{wrong:?}");
        refused(&world, 1, &Script::new("USER-A").password(""), "password")?;
        terminal.locals_can_log_in()?;
        still_works(&world, 1, "USER-A", in_reader.pull())?;
        Ok(())
    });
}

#[test]
fn wrong_and_blocked_pin() {
    scenario("refused-pin", |logs| {
        let world = World::new(logs, 1)?;
        let card = world.card("USER-A")?;
        let _card = world.terminal(1).insert(card)?;
        let wrong = Script::new("USER-A").ask("pin").answer("pin", "000000").password("passwd1");
        // One sentence for each wrong PIN, with the tries that are left. Whoever answers every question alike spends one try in a login.
        let mut said = Vec::new();
        for _ in 0..3 {
            let mut login = world.terminal(1).login(&wrong)?;
            ensure!(login.refused()?.step == "authenticate");
            said.extend(login.said());
            world.terminal(1).wait_clean(SOON)?;
        }
        ensure!(
            said[0].contains("2 tries are left")
                && said[1..3].iter().all(|text| text.contains("just refused"))
                && said[3].contains("one try is left"),
            "the tries left are not told: {said:?}"
        );
        ensure!(said.iter().all(|text| text.contains("PIN") || text.contains("block")), "{said:?}");
        // The right PIN does not help any more.
        refused(&world, 1, &Script::new("USER-A").password("passwd1"), "blocked")?;
        world.terminal(1).locals_can_log_in()
    });
}

#[test]
fn disabled_account_and_no_group() {
    scenario("refused-disabled", |logs| {
        let world = World::new(logs, 1)?;
        let card = world.card("USER-A")?;
        let in_reader = world.terminal(1).insert(card)?;
        let script = Script::new("USER-A").password("passwd1");
        world.server.run(&["user", "disable", "USER-A"])?;
        refused(&world, 1, &script, "disabled")?;
        world.server.run(&["user", "enable", "USER-A"])?;
        world.server.run(&["group", "leave", "VPN1", "USER-A"])?;
        refused(&world, 1, &script, "group")?;
        world.server.run(&["group", "join", "VPN1", "USER-A"])?;
        still_works(&world, 1, "USER-A", in_reader.pull())?;
        Ok(())
    });
}

#[test]
fn a_user_who_is_disabled_while_logged_in_loses_the_tunnel() {
    scenario("refused-disabled-while-up", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let _login = world.terminal(1).log_in("USER-A", "passwd1")?;
        world.server.run(&["user", "disable", "USER-A"])?;
        world.terminal(1).wait_clean(SOON)?;
        crate::support::wait_seats(&world, &[])
    });
}

#[test]
fn the_vpn_service_or_the_card_service_is_down() {
    scenario("refused-services", |logs| {
        let mut world = World::new(logs, 1)?;
        let card = world.card("USER-A")?;
        let script = Script::new("USER-A").password("passwd1");
        let in_reader = world.terminal(1).insert(card)?;
        world.terminal_mut(1).kill_cugd()?;
        let down = refused(&world, 1, &script, "service")?;
        ensure!(down.step == "authenticate", "{down:?}");
        world.terminal(1).locals_can_log_in()?;
        world.terminal_mut(1).start_cugd()?;
        let card = in_reader.pull();
        world.terminal_mut(1).kill_pcscd()?;
        refused(&world, 1, &script, "service")?;
        world.terminal(1).locals_can_log_in()?;
        world.terminal_mut(1).start_pcscd()?;
        still_works(&world, 1, "USER-A", card)?;
        Ok(())
    });
}

#[test]
fn cards_that_do_not_work() {
    scenario("refused-cards", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        let script = Script::new("USER-A").password("passwd1");
        // Never issued.
        let blank = terminal.insert(PivCard::blank(Kind::usual(), logs)?)?;
        refused(&world, 1, &script, "card")?;
        drop(blank);
        // Behind long APDUs a single fault is overcome: see `lengths`.
        let blank = match Kind::usual() {
            Kind::Own => PivCard::own(OwnOptions { extended: false, ..OwnOptions::default() })?,
            kind => PivCard::blank(kind, logs)?,
        };
        let mut card = world.issue(blank, "USER-A", &["--generate"])?;
        for (at, fault) in [
            (0, Fault::Status(0x6A82)),
            (1, Fault::Garbage(vec![0x53, 0x82])),
            (1, Fault::Status(0x6F00)),
            (2, Fault::Garbage(vec![0x90])),
            (3, Fault::Status(0x6982)),
        ] {
            let in_reader = terminal.insert(card)?;
            in_reader.control().fail_at(at, fault.clone());
            let mut login = terminal.login(&script)?;
            login.refused().map_err(|error| error.context(format!("{fault:?} at {at}")))?;
            one_sentence(&login, "")?;
            terminal.wait_clean(SOON)?;
            card = in_reader.pull();
        }
        still_works(&world, 1, "USER-A", card)?;
        Ok(())
    });
}

#[test]
fn remote_logins_do_not_use_the_local_card() {
    scenario("refused-remote", |logs| {
        let world = World::new(logs, 1)?;
        let in_reader = world.terminal(1).insert(world.card("USER-A")?)?;
        let before = in_reader.control().apdu_count();
        let mut login = world.terminal(1).login(&Script::new("USER-A").password("passwd1").from_host("10.0.0.99"))?;
        let refusal = login.refused()?;
        // pam_cug steps aside; pam_unix knows no password of a member.
        ensure!(refusal.step == "authenticate", "{refusal:?}");
        ensure!(in_reader.control().apdu_count() == before, "the local card was used for a remote login");
        world.terminal(1).wait_clean(SOON)
    });
}

#[test]
fn the_environment_cannot_bring_in_another_reader() {
    scenario("refused-environment", |logs| {
        let world = World::new(logs, 1)?;
        let in_reader = world.terminal(1).insert(world.card("USER-A")?)?;
        // A fake card service of a local user, and a set-uid program.
        let space = world.terminal(1).space();
        let mut su = space.command_as("porter", "su")?;
        su.env("PCSCLITE_CSOCK_NAME", "/run/home/porter/fake.comm").args(["-c", "true", "USER-A"]);
        let listener = std::os::unix::net::UnixListener::bind(space.path("/run/home/porter/fake.comm"))?;
        listener.set_nonblocking(true)?;
        let finished = cug_tests::process::run(
            su,
            format!("{}\npasswd1\n", cug_tests::card::PIN).as_bytes(),
            Duration::from_secs(40),
        )?;
        ensure!(listener.accept().is_err(), "su talked to the fake card service: {}{}", finished.out, finished.err);
        drop(in_reader);
        Ok(())
    });
}

/// P4: without the card nobody learns whether a user exists, not by the answer, its size or its time.
#[test]
fn an_unknown_user_looks_like_a_wrong_card() {
    scenario("refused-oracle", |logs| {
        let world = World::new(logs, 0)?;
        let known = Member::register(&world.server, "USER-A")?;
        let host = world.server.space();
        let unregistered = cug_tests::script::authority::rsa_key(2048)?;
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..25 {
            // An unknown user and a registered card of somebody else; a known user and that card; each with a card that nobody registered.
            let member = |user: &str, key: &rsa::RsaPrivateKey| Member {
                user: user.into(),
                key: key.clone(),
                server_object: known.server_object.clone(),
            };
            let tries = [
                member("USER-H", &known.key),
                member("USER-B", &known.key),
                member("USER-H", &unregistered),
                member("USER-B", &unregistered),
            ];
            for ((member, times), registered) in tries.iter().zip(&mut times).zip([true, true, false, false]) {
                let wire = member.connect(host)?;
                let started = Instant::now();
                let mut challenged = member.challenge(wire)?;
                ensure!(challenged.size == 256, "a challenge of {} bytes for {}", challenged.size, member.user);
                ensure!(challenged.opened == registered, "{}: opened {}", member.user, challenged.opened);
                let (login, _) = member.login(&challenged, "passwd1", random()?)?;
                challenged.wire.send(&ClientMessage::Login(login))?;
                let ServerMessage::Rejected = challenged.wire.receive()? else { anyhow::bail!("not rejected") };
                challenged.wire.expect_close()?;
                times.push(started.elapsed());
            }
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2].as_secs_f64() * 1000.0
        };
        let [unknown, known, unknown_both, known_user] = times.each_mut().map(median);
        // Machines are noisy; a password hash (tens of ms) or an RSA operation more would show.
        let alike = |one: f64, other: f64| (one - other).abs() < 5.0;
        ensure!(
            alike(unknown, known) && alike(unknown_both, known_user),
            "medians in ms: {unknown} {known} {unknown_both} {known_user}"
        );
        let sessions = world.server.sessions()?;
        ensure!(sessions.is_empty());
        Ok(())
    });
}

#[test]
fn many_wrong_passwords_slow_down_but_do_not_lock_for_ever() {
    scenario("refused-throttle", |logs| {
        let world = World::new(logs, 1)?;
        let in_reader = world.terminal(1).insert(world.card("USER-A")?)?;
        let wrong = Script::new("USER-A").password("wrong");
        let mut told = String::new();
        for _ in 0..12 {
            told = refused(&world, 1, &wrong, "password")?.said.join(" ");
            if told.contains("Too many") {
                break;
            }
        }
        ensure!(told.contains("Too many") && told.contains("try again in"), "{told}");
        // Somebody else is not affected.
        let card = in_reader.pull();
        still_works(&world, 1, "USER-B", world.card("USER-B")?)?;
        drop(card);
        Ok(())
    });
}
