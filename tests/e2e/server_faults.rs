//! The server is down, slow, or another one.

use crate::support::{SOON, refused_at, still_works};
use anyhow::{Context, ensure};
use cug_proto::message::{SealedGroup, SealedOutcome, ServerMessage};
use cug_tests::lan::Lan;
use cug_tests::login::Script;
use cug_tests::script::authority::Authority;
use cug_tests::script::random;
use cug_tests::script::server::{GROUP, ScriptedServer, nobody};
use cug_tests::server::ServerHost;
use cug_tests::space::scenario;
use cug_tests::terminal::Terminal;
use cug_tests::world::World;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// The default `server-timeout-seconds`, and time for everything else of a login.
const TIMEOUT: Duration = Duration::from_secs(5 + 4);

#[test]
fn down_slow_and_cut_off() {
    scenario("server-down", |logs| {
        let mut world = World::new(logs, 1)?;
        let card = world.card("USER-A")?;
        let in_reader = world.terminal(1).insert(card)?;
        let script = Script::new("USER-A").password("passwd1");

        world.server.process()?.signal(Signal::SIGSTOP)?;
        let started = Instant::now();
        refused_at(world.terminal(1), world.terminal(1).login(&script)?, "management server").context("slow")?;
        ensure!(started.elapsed() < TIMEOUT, "a silent server held the login up for {:?}", started.elapsed());
        world.server.process()?.signal(Signal::SIGCONT)?;

        world.lan.set_cable(&world.server.cable, false)?;
        let started = Instant::now();
        refused_at(world.terminal(1), world.terminal(1).login(&script)?, "management server").context("cut off")?;
        ensure!(started.elapsed() < TIMEOUT, "a cut cable held the login up for {:?}", started.elapsed());
        world.lan.set_cable(&world.server.cable, true)?;

        world.server.kill()?;
        let started = Instant::now();
        refused_at(world.terminal(1), world.terminal(1).login(&script)?, "management server").context("down")?;
        ensure!(started.elapsed() < TIMEOUT, "a server that is down held the login up for {:?}", started.elapsed());
        world.terminal(1).locals_can_log_in()?;
        world.server.serve()?;
        still_works(&world, 1, "USER-A", in_reader.pull())?;
        Ok(())
    });
}

/// A LAN with the script's server and one terminal, and a card in its reader that trusts `of`.
struct Stage {
    server: ServerHost,
    terminal: Terminal,
    _lan: Lan,
}

fn stage(logs: &std::path::Path, trusts: &Authority) -> anyhow::Result<Stage> {
    let lan = Lan::new(logs)?;
    let server = ServerHost::new(&lan, logs)?;
    let terminal = Terminal::ready(&lan, logs, 1, &trusts.ca_pin()?)?;
    Ok(Stage { server, terminal, _lan: lan })
}

#[test]
fn another_server_gets_nothing() {
    scenario("server-other-key", |logs| {
        let authority = Authority::new()?;
        let Stage { server, terminal, _lan } = stage(logs, &authority)?;
        let (card, key) = authority.card()?;
        let impostor = ScriptedServer::start(server.space(), Authority::new()?, key)?;
        let _card = terminal.insert(card)?;
        let login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
        ensure!(impostor.accept().is_err(), "the terminal finished a TLS handshake with another organisation's server");
        let refusal = refused_at(&terminal, login, "not the one")?;
        ensure!(refusal.step == "authenticate", "{refusal:?}");
        terminal.locals_can_log_in()
    });
}

/// A card and a server of somebody's own, who would thus be let in as anybody.
#[test]
fn a_card_of_another_organisation_is_not_listened_to() {
    scenario("server-foreign-card", |logs| {
        let Stage { server, terminal, _lan } = stage(logs, &Authority::new()?)?;
        let foreign = Authority::new()?;
        let (card, key) = foreign.card()?;
        let impostor = ScriptedServer::start(server.space(), foreign, key)?;
        let _card = terminal.insert(card)?;
        let refusal = refused_at(&terminal, terminal.login(&Script::new("USER-A").password("passwd1"))?, "card")?;
        ensure!(refusal.step == "authenticate", "{refusal:?}");
        ensure!(!impostor.was_called()?, "the terminal talked to the server that a foreign card names");
        Ok(())
    });
}

#[test]
fn a_server_that_breaks_off_or_talks_nonsense() {
    scenario("server-nonsense", |logs| {
        let authority = Authority::new()?;
        let Stage { server, terminal, _lan } = stage(logs, &authority)?;
        let (card, key) = authority.card()?;
        let script_server = ScriptedServer::start(server.space(), authority, key)?;
        let _card = terminal.insert(card)?;
        let script = Script::new("USER-A").password("passwd1");
        // After the hello: nothing, an empty frame, one that is too long, noise, and a message that must not come now.
        let alive = [0, 0, 0, 4, 0x82, 11, 0x81, 0];
        let answers: [(&str, &[u8]); 6] = [
            ("closes", b""),
            ("empty frame", &[0; 4]),
            ("too long", &[0xff, 0xff, 0xff, 0xff, 1, 2, 3]),
            ("truncated", &[0, 0, 1, 0, 0x82, 0]),
            ("noise", &[0, 0, 0, 5, 0xff, 0xfe, 0xfd, 0x00, 0x17]),
            ("out of order", &alive),
        ];
        for (name, answer) in answers {
            let login = terminal.login(&script)?;
            let mut wire = script_server.accept().with_context(|| name.to_owned())?;
            wire.receive_raw()?;
            if !answer.is_empty() {
                wire.send_raw(answer)?;
            }
            drop(wire);
            refused_at(&terminal, login, "server").with_context(|| name.to_owned())?;
        }
        // After a right proof: an outcome that does not open.
        let login = terminal.login(&script)?;
        let mut heard = script_server.hear_login(script_server.accept()?)?;
        let sealed = random::<64>()?.to_vec();
        heard.wire.send(&ServerMessage::Outcome(SealedOutcome { sealed }))?;
        refused_at(&terminal, login, "server").context("forged outcome")?;
        // A silent one, after the handshake.
        let started = Instant::now();
        let login = terminal.login(&script)?;
        let wire = script_server.accept()?;
        refused_at(&terminal, login, "server").context("silent")?;
        ensure!(started.elapsed() < TIMEOUT, "{:?}", started.elapsed());
        drop(wire);
        terminal.wait_clean(SOON)?;
        terminal.locals_can_log_in()
    });
}

#[test]
fn nonsense_on_the_session_channel() {
    scenario("server-channel-nonsense", |logs| {
        let authority = Authority::new()?;
        let Stage { server, mut terminal, _lan } = stage(logs, &authority)?;
        let (card, key) = authority.card()?;
        let script_server = ScriptedServer::start(server.space(), authority, key)?;
        let in_reader = terminal.insert(card)?;
        let mut login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
        script_server.grant_login()?;
        let mut channel = script_server.attach(nobody())?;
        login.open()?;
        let before = terminal.tunnels();
        let forged = SealedGroup { group: GROUP, epoch: 2, sealed: random::<80>()?.to_vec(), nonce: random()? };
        let frames: [(&str, Vec<u8>); 5] = [
            ("too long", vec![0xff; 8]),
            ("noise", [&[0, 0, 0, 32][..], &random::<32>()?].concat()),
            ("login message", cug_proto::frame::encode(&ServerMessage::Rejected, 64)?.to_vec()),
            ("forged key", cug_proto::frame::encode(&ServerMessage::Group(forged), 512)?.to_vec()),
            ("closed", Vec::new()),
        ];
        for (name, bytes) in frames {
            channel.wire.send_raw(&bytes)?;
            if bytes.is_empty() {
                channel.wire.tcp().shutdown(std::net::Shutdown::Both)?;
            }
            // The terminal hangs up, and attaches again by itself.
            channel = script_server.attach(nobody()).with_context(|| name.to_owned())?;
            ensure!(terminal.tunnels() == before, "{name}: the tunnel was made again");
        }
        ensure!(
            terminal.cugd()?.exited().is_none() && !terminal.cugd_log().contains("panicked"),
            "cugd did not survive"
        );
        drop(in_reader);
        terminal.wait_clean(SOON)?;
        login.close()
    });
}

#[test]
fn a_grant_whose_channel_never_stands_opens_nothing() {
    scenario("server-no-channel", |logs| {
        let authority = Authority::new()?;
        let Stage { server, terminal, _lan } = stage(logs, &authority)?;
        let (card, key) = authority.card()?;
        let script_server = ScriptedServer::start(server.space(), authority, key)?;
        let _card = terminal.insert(card)?;
        let mut login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
        script_server.grant_login()?;
        let refusal = login.refused()?;
        ensure!(refusal.step == "open_session", "{refusal:?}");
        terminal.wait_clean(SOON)?;
        terminal.wait_state("USER-A", "gone", SOON)
    });
}
