//! A user with a one-time code enrols at a terminal, as an ordinary user there, and logs in.

use crate::support::{SOON, overlay, reaches, refused, wait_seats};
use crate::tools::Console;
use anyhow::{Context, ensure};
use cug_cards::OwnOptions;
use cug_tests::card::{InReader, Kind, PASSPHRASE, PIN, PivCard};
use cug_tests::login::Script;
use cug_tests::office::Office;
use cug_tests::probe::Echo;
use cug_tests::process::{self, Finished};
use cug_tests::space::scenario;
use cug_tests::terminal::MEDIUM;
use cug_tests::world::World;
use cug_tests::{paths, wait};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const PASSWORD: &str = "my very own";
const NEW_PIN: &str = "271828";

/// `cug-server user invite`: the code.
fn invite(world: &World, user: &str, options: &[&str]) -> anyhow::Result<String> {
    let mut args = vec!["user", "invite", user, "--group", "VPN1"];
    args.extend(options);
    let invited = world.server.json(&args)?;
    Ok(invited["code"].as_str().context("no code")?.to_owned())
}

fn state(world: &World) -> anyhow::Result<Option<String>> {
    let all = world.server.json(&["user", "invitations"])?;
    Ok(all[0]["state"].as_str().map(str::to_owned))
}

/// `cugctl enrol`, by the user and with these answers.
fn enrol(world: &World, number: usize, user: &str, options: &[&str], answers: &[&str]) -> anyhow::Result<Finished> {
    let mut command = world.terminal(number).space().command_as(user, paths::built("cugctl")?)?;
    command.args(["enrol", "--stdin", "--user", user]).args(options);
    process::run(command, format!("{}\n", answers.join("\n")).as_bytes(), LIMIT)
}

/// The same, left running.
fn start(world: &World, user: &str, options: &[&str], answers: &[&str]) -> anyhow::Result<Running> {
    let mut command = world.terminal(1).space().command_as(user, paths::built("cugctl")?)?;
    command.args(["enrol", "--stdin", "--user", user]).args(options);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(format!("{}\n", answers.join("\n")).as_bytes())?;
    Ok(Running(child))
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        process::kill_tree(self.0.id().cast_signed());
        let _ = self.0.wait();
    }
}

/// Failed with one sentence that has `part` in it.
fn fails(finished: Finished, part: &str) -> anyhow::Result<()> {
    ensure!(!finished.status.success(), "it succeeded: {}", finished.out);
    let last = finished.err.lines().last().unwrap_or_default();
    ensure!(last.contains(part), "`{part}` is not in `{}`", finished.err);
    Ok(())
}

fn script(user: &str, pin: &str) -> Script {
    Script::new(user).ask("pin").answer("pin", pin).password(PASSWORD)
}

/// The user logs in at terminal 1 and reaches USER-B, who sits at terminal 2.
fn logs_in_and_reaches(world: &World, user: &str, script: &Script) -> anyhow::Result<()> {
    let _echo = Echo::start(world.terminal(2).space())?;
    let _b = world.terminal(2).insert(world.card("USER-B")?)?;
    let _login_b = world.terminal(2).log_in("USER-B", "passwd2")?;
    let mut login = world.terminal(1).login(script)?;
    login.open()?;
    wait_seats(world, &[(user, 1), ("USER-B", 2)])?;
    reaches(world.terminal(1).space(), user, overlay(world, "USER-B", "VPN1")?)?;
    login.close()
}

fn whole_enrolment(logs: &Path, kind: Kind) -> anyhow::Result<()> {
    let world = World::new(logs, 2)?;
    let in_reader = world.terminal(1).insert(PivCard::blank(kind, logs)?)?;
    let code = invite(&world, "USER-E", &[])?;
    let log = world.server.log();
    ensure!(!log.contains(&code), "the code is in the server's log");
    // Typed as people type: small letters, blanks; and a mistake that its check character finds.
    let mistyped = code.replacen(&code[..1], if code.starts_with('0') { "1" } else { "0" }, 1);
    let typed = code.to_lowercase().replace('-', " ");
    let answers = [&mistyped, typed.as_str(), PIN, PIN, NEW_PIN, NEW_PIN, "short", "short", PASSWORD, PASSWORD];
    let done = enrol(&world, 1, "USER-E", &[], &answers)?;
    ensure!(done.err.contains("part 1 of the code"), "{}", done.err);
    let said = done.ok()?;
    ensure!(said.contains("The new password is too short") && said.contains("can log in now"), "{said}");
    let cards = world.server.json(&["card", "list", "USER-E"])?;
    ensure!(said.contains(cards[0]["fingerprint"].as_str().context("no card")?), "{said}");
    drop(enrol_again(&world, &code, in_reader)?);
    Ok(())
}

/// The code is used up; the card opens the group, with the new PIN only.
fn enrol_again(world: &World, code: &str, in_reader: InReader) -> anyhow::Result<InReader> {
    let again = enrol(world, 1, "USER-E", &["--yes"], &[code, NEW_PIN, PASSWORD, PASSWORD])?;
    fails(again, "does not take this user ID with this code")?;
    let refusal = world.terminal(1).login(&script("USER-E", PIN))?.refused()?;
    ensure!(refusal.said.first().is_some_and(|sentence| sentence.contains("Wrong PIN")), "{refusal:?}");
    ensure!(refusal.said.iter().all(|sentence| sentence.contains("PIN")), "{refusal:?}");
    logs_in_and_reaches(world, "USER-E", &script("USER-E", NEW_PIN))?;
    Ok(in_reader)
}

#[test]
fn with_our_own_card() {
    scenario("enrol-own", |logs| whole_enrolment(logs, Kind::Own));
}

#[test]
fn with_piv_authenticator() {
    scenario("enrol-piv-authenticator", |logs| whole_enrolment(logs, Kind::PivAuthenticator));
}

#[test]
fn with_a_medium() {
    scenario("enrol-medium", |logs| {
        let mut world = World::new(logs, 2)?;
        world.terminal(1).configure(&format!("media = [\"{MEDIUM}\"]"))?;
        world.terminal_mut(1).stop_cugd()?;
        world.terminal_mut(1).start_cugd()?;
        let host = world.terminal(1).space();
        std::fs::create_dir_all(host.path(MEDIUM))?;
        host.run("mount", &["-t", "tmpfs", "-o", "mode=0777", "stick", MEDIUM])?.ok()?;
        let options = ["--medium", MEDIUM];
        let files = || std::fs::read_dir(host.path(MEDIUM)).map(Iterator::count);
        // A wrong code leaves the medium as it was.
        let code = invite(&world, "USER-E", &[])?;
        let other = invite(&world, "USER-F", &[])?;
        fails(
            enrol(&world, 1, "USER-E", &options, &[&other, PASSPHRASE, PASSPHRASE, PASSWORD, PASSWORD])?,
            "with this code",
        )?;
        ensure!(files()? == 0, "a wrong code left files behind");
        // So does a password that the server refuses for good.
        let mut answers = vec![code.as_str(), PASSPHRASE, PASSPHRASE];
        answers.extend(["short"; 12]);
        fails(enrol(&world, 1, "USER-E", &options, &answers)?, "refused too often")?;
        ensure!(files()? == 0 && state(&world)?.as_deref() == Some("open"), "not undone");
        let answers = [code.as_str(), PASSPHRASE, PASSPHRASE, PASSWORD, PASSWORD];
        enrol(&world, 1, "USER-E", &options, &answers)?.ok()?;
        logs_in_and_reaches(&world, "USER-E", &Script::new("USER-E").password(PASSWORD))
    });
}

#[test]
fn an_ordinary_terminal_session() {
    scenario("enrol-console", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(PivCard::blank(Kind::usual(), logs)?)?;
        let code = invite(&world, "USER-E", &[])?;
        let cugctl = paths::built("cugctl")?;
        let mut screen = Console::start_as(world.terminal(1).space(), "USER-E", &[&cugctl.to_string_lossy(), "enrol"])?;
        screen.answer("User ID: ", "USER-E")?;
        screen.answer("Code: ", &code)?;
        screen.answer("PIN of the card", PIN)?;
        screen.answer("New PIN", NEW_PIN)?;
        screen.answer("Once more: ", NEW_PIN)?;
        screen.answer("New password of USER-E: ", PASSWORD)?;
        screen.answer("Once more: ", PASSWORD)?;
        screen.wait("can log in now")?;
        let shown = screen.shown();
        ensure!(!shown.contains(PASSWORD) && !shown.contains(NEW_PIN), "a secret was echoed: {shown}");
        let mut login = world.terminal(1).login(&script("USER-E", NEW_PIN))?;
        login.open()?;
        login.close()
    });
}

#[test]
fn an_enrolment_that_must_be_approved() {
    scenario("enrol-approval", |logs| {
        let world = World::new(logs, 2)?;
        let _card = world.terminal(1).insert(PivCard::blank(Kind::usual(), logs)?)?;
        let code = invite(&world, "USER-E", &["--approve"])?;
        let answers = [code.as_str(), PIN, NEW_PIN, NEW_PIN, PASSWORD, PASSWORD];
        let said = enrol(&world, 1, "USER-E", &[], &answers)?.ok()?;
        ensure!(said.contains("has to approve"), "{said}");
        refused(&world, 1, &script("USER-E", NEW_PIN), "not right")?;
        let waiting = world.server.run(&["user", "invitations"])?;
        let waiting_json = world.server.json(&["user", "invitations"])?;
        let fingerprint = waiting_json[0]["fingerprint"].as_str().context("no fingerprint")?;
        ensure!(said.contains(fingerprint) && waiting.contains(fingerprint), "{waiting}");
        ensure!(
            waiting.contains("terminal1") && waiting.contains("10.0.0.1") && waiting.contains("waiting"),
            "{waiting}"
        );
        let other = world.server.run_with(&["user", "approve", "USER-E", "--card", "ffffffffff"], "")?;
        fails(other, "another one")?;
        world.server.run(&["user", "approve", "USER-E", "--card", &fingerprint[..12]])?;
        logs_in_and_reaches(&world, "USER-E", &script("USER-E", NEW_PIN))
    });
}

#[test]
fn what_is_wrong_is_said_and_changes_nothing() {
    scenario("enrol-refused", |logs| {
        let mut world = World::new(logs, 1)?;
        let answers = |code: &str| {
            [code.to_owned(), PIN.into(), NEW_PIN.into(), NEW_PIN.into(), PASSWORD.into(), PASSWORD.into()]
        };
        let attempt = |world: &World, user: &str, code: &str| {
            let answers = answers(code);
            enrol(world, 1, user, &[], &answers.each_ref().map(String::as_str))
        };
        let code = invite(&world, "USER-E", &[])?;
        let in_reader = world.terminal(1).insert(PivCard::blank(Kind::Own, logs)?)?;
        let before = in_reader.control().apdu_count();
        fails(
            enrol(&world, 1, "USER-E", &[], &["AAAAA", "BBBBB", "CCCCC", "DDDDD", "EEEEE"])?,
            "25 letters and digits",
        )?;
        ensure!(in_reader.control().apdu_count() == before, "the card was touched before there was a code");
        // A user who was not invited, another user's code, and one that has expired: the same sentence, and the card has its old PIN.
        for user in ["USER-F", "USER-A"] {
            fails(attempt(&world, user, &code)?, "does not take this user ID with this code")?;
        }
        let brief = invite(&world, "USER-G", &["--expires", "1m"])?;
        world.server.stop()?;
        expire(&world)?;
        world.server.serve()?;
        fails(attempt(&world, "USER-G", &brief)?, "does not take this user ID with this code")?;
        // No server, no card, no daemon.
        world.server.kill()?;
        fails(attempt(&world, "USER-E", &code)?, "cannot be reached")?;
        world.server.serve()?;
        world.terminal_mut(1).kill_cugd()?;
        fails(attempt(&world, "USER-E", &code)?, "not running")?;
        world.terminal_mut(1).start_cugd()?;
        let card = in_reader.pull();
        fails(enrol(&world, 1, "USER-E", &[], &[&code])?, "no more answers")?;
        let _card = world.terminal(1).insert(card)?;
        // After all of that the code works, and so does the factory's PIN.
        let code = invite(&world, "USER-E", &[])?;
        attempt(&world, "USER-E", &code)?.ok()?;
        Ok(())
    });
}

/// Lets USER-G's invitation expire, as time would; the server must not run.
fn expire(world: &World) -> anyhow::Result<()> {
    let statement = "UPDATE invitation SET expires = 1 WHERE user = 'USER-G'";
    let program =
        format!("import sqlite3\nwith sqlite3.connect('/var/lib/cug-server/cug.db') as d: d.execute(\"{statement}\")");
    world.server.space().run("python3", &["-c", &program])?.ok().map(drop)
}

#[test]
fn killed_in_the_middle() {
    scenario("enrol-killed", |logs| {
        let mut world = World::new(logs, 2)?;
        // With short APDUs, which are counted here.
        let options = OwnOptions { pin: NEW_PIN.into(), extended: false, ..OwnOptions::default() };
        let in_reader = world.terminal(1).insert(PivCard::own(options)?)?;
        let code = invite(&world, "USER-E", &[])?;
        let answers = [code.as_str(), NEW_PIN, PASSWORD, PASSWORD];
        // The terminal dies early, while the card is written, and while the card answers the challenge.
        in_reader.control().set_rsa_delay(Duration::from_secs(3));
        for ends_after in [4, 14, 22] {
            let from = in_reader.control().apdu_count();
            let running = start(&world, "USER-E", &["--yes"], &answers)?;
            ensure!(in_reader.control().wait_for_apdus(from + ends_after, LIMIT), "the card was not used");
            drop(running);
            ensure!(state(&world)?.as_deref() == Some("open"), "registered or used up after {ends_after} APDUs");
            ensure!(world.server.json(&["card", "list"])?.as_array().is_some_and(Vec::is_empty));
        }
        // The server dies while the card answers.
        let from = in_reader.control().apdu_count();
        let mut running = start(&world, "USER-E", &["--yes"], &answers)?;
        ensure!(in_reader.control().wait_for_apdus(from + 22, LIMIT), "the card was not used");
        world.server.kill()?;
        let status = wait::until("the end of cugctl", LIMIT, || running.0.try_wait().ok().flatten())?;
        ensure!(!status.success(), "it succeeded without a server");
        world.server.serve()?;
        ensure!(state(&world)?.as_deref() == Some("open"));
        in_reader.control().set_rsa_delay(Duration::ZERO);
        enrol(&world, 1, "USER-E", &["--yes"], &answers)?.ok()?;
        logs_in_and_reaches(&world, "USER-E", &script("USER-E", NEW_PIN))
    });
}

#[test]
fn a_lost_card_is_replaced_and_a_password_is_forgotten() {
    scenario("enrol-replace", |logs| {
        let world = World::new(logs, 1)?;
        let old = world.card("USER-A")?;
        // The password only, with the card in the pocket.
        let code = invite(&world, "USER-A", &[])?;
        enrol(&world, 1, "USER-A", &["--password-only"], &[&code, PASSWORD, PASSWORD])?.ok()?;
        let in_reader = world.terminal(1).insert(old)?;
        let mut login = world.terminal(1).login(&script("USER-A", PIN))?;
        login.open()?;
        login.close()?;
        let old = in_reader.pull();
        // Another card, whose key the user's own office made and that is imported; the old one is worth nothing from then on.
        let in_reader = world.terminal(1).insert(PivCard::blank(Kind::Own, logs)?)?;
        let code = invite(&world, "USER-A", &["--replace"])?;
        let answers = [code.as_str(), PIN, NEW_PIN, NEW_PIN, PASSWORD, PASSWORD];
        enrol(&world, 1, "USER-A", &["--import", "--bits", "3072"], &answers)?.ok()?;
        let mut login = world.terminal(1).login(&script("USER-A", NEW_PIN))?;
        login.open()?;
        login.close()?;
        world.terminal(1).wait_clean(SOON)?;
        let _new = in_reader.pull();
        let _old = world.terminal(1).insert(old)?;
        refused(&world, 1, &script("USER-A", PIN), "revoked")?;
        Ok(())
    });
}

/// Key and certificate were made with Yubico's tool; the key stays, and the card learns whom to trust.
#[test]
fn a_card_from_a_third_party() {
    scenario("enrol-third-party", |logs| {
        let world = World::new(logs, 2)?;
        let in_reader = world.terminal(1).insert(PivCard::blank(Kind::Own, logs)?)?;
        let host = world.terminal(1).space();
        let tool = |arguments: &str| {
            let arguments: Vec<&str> = ["-r", "Cug"].into_iter().chain(arguments.split(' ')).collect();
            host.run("yubico-piv-tool", &arguments)?.ok()
        };
        tool("-a generate -s 9d -A RSA2048 -o /run/key.pem")?;
        // Signed by a CA that is nothing to us.
        host.run("openssl", &["genrsa", "-out", "/run/ca.key", "2048"])?.ok()?;
        let certify = "x509 -new -subj /CN=third-party -days 9 -force_pubkey /run/key.pem -signkey /run/ca.key -out /run/card.pem";
        host.run("openssl", &certify.split(' ').collect::<Vec<_>>())?.ok()?;
        tool("-a import-certificate -s 9d -i /run/card.pem")?;
        let before = tool("-a read-certificate -s 9d")?;
        let code = invite(&world, "USER-E", &[])?;
        let answers = [code.as_str(), PIN, NEW_PIN, NEW_PIN, PASSWORD, PASSWORD];
        enrol(&world, 1, "USER-E", &["--keep-key"], &answers)?.ok()?;
        ensure!(tool("-a read-certificate -s 9d")? == before, "the third party's certificate was replaced");
        let cards = world.server.json(&["card", "list", "USER-E"])?;
        ensure!(cards[0]["kind"] == "registered", "{cards}");
        logs_in_and_reaches(&world, "USER-E", &script("USER-E", NEW_PIN))?;
        drop(in_reader);
        Ok(())
    });
}

#[test]
fn issuing_waits_for_the_card_and_can_set_a_management_key() {
    scenario("enrol-issue", |logs| {
        let world = World::new(logs, 0)?;
        let office = Office::open(&world.server)?;
        let reader = office.reader_name();
        let issue = |options: &[&str]| {
            let mut args = vec!["card", "issue", "USER-A", "--reader", &reader, "--pin-stdin"];
            args.extend(options);
            world.server.run_with(&args, &format!("{PIN}\n"))
        };
        let started = Instant::now();
        fails(issue(&[])?, "no card was found")?;
        ensure!(started.elapsed() > Duration::from_secs(2), "it did not wait for the card");
        world.server.space().write("/run/management", "00112233445566778899AABBCCDDEEFF0011223344556677\n", 0o600)?;
        std::thread::scope(|scope| -> anyhow::Result<InReader> {
            let issued = scope.spawn(|| issue(&["--new-management-key-file", "/run/management"]));
            let card = InReader::insert(&office.reader(), PivCard::blank(Kind::Own, logs)?)?;
            issued.join().map_err(|_| anyhow::anyhow!("panicked"))??.ok()?;
            // The factory's key opens it no more, the new one does.
            fails(issue(&[])?, "management key")?;
            issue(&["--management-key-file", "/run/management"])?.ok()?;
            Ok(card)
        })
        .map(drop)
    });
}
