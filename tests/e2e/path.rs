//! A member logs in, talks, leaves; with every kind of card.

use crate::support::{SOON, does_not_reach, overlay, reaches, wait_seats};
use anyhow::ensure;
use cug_cards::{OwnOptions, PinPolicy};
use cug_tests::accounts::LOCAL_USER;
use cug_tests::capture::Capture;
use cug_tests::card::{Kind, PivCard};
use cug_tests::login::Script;
use cug_tests::probe::{self, Echo};
use cug_tests::space::scenario;
use cug_tests::terminal::MEDIUM;
use cug_tests::wait;
use cug_tests::world::World;
use std::path::Path;

/// A and B of VPN1 and C of VPN2 log in, talk, log out, and come back elsewhere.
fn whole_path(logs: &Path, kind: Kind) -> anyhow::Result<()> {
    let world = World::new(logs, 3)?;
    let capture = Capture::start(&world.lan, logs.join("lan.pcap"))?;
    let _echoes: Vec<_> =
        world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
    let [a, b, c] = ["USER-A", "USER-B", "USER-C"].map(|user| world.card_of(kind, user));
    let (a, b, c) = (world.terminal(1).insert(a?)?, world.terminal(2).insert(b?)?, world.terminal(3).insert(c?)?);

    let login_a = world.terminal(1).log_in("USER-A", "passwd1")?;
    wait_seats(&world, &[("USER-A", 1)])?;
    let mut login_b = world.terminal(2).login(&Script::new("USER-B").type_user().password("passwd2"))?;
    login_b.open()?;
    let login_c = world.terminal(3).log_in("USER-C", "passwd3")?;
    wait_seats(&world, &[("USER-A", 1), ("USER-B", 2), ("USER-C", 3)])?;
    let (at_a, at_b, at_c) =
        (overlay(&world, "USER-A", "VPN1")?, overlay(&world, "USER-B", "VPN1")?, overlay(&world, "USER-C", "VPN2")?);
    reaches(world.terminal(1).space(), "USER-A", at_b)?;
    reaches(world.terminal(2).space(), "USER-B", at_a)?;
    does_not_reach(world.terminal(3).space(), "USER-C", at_a)?;
    does_not_reach(world.terminal(1).space(), "USER-A", at_c)?;
    ensure!(!capture.saw(b"over-the-overlay"), "the payload crossed the LAN in clear");

    let peers = world.terminal(1).cugctl("peers")?.to_string();
    ensure!(peers.contains("USER-B") && peers.contains("terminal2") && !peers.contains("USER-C"), "{peers}");

    login_a.close()?;
    world.terminal(1).wait_clean(SOON)?;
    wait_seats(&world, &[("USER-B", 2), ("USER-C", 3)])?;
    wait::for_true("B's terminal to drop A", SOON, || {
        world.terminal(2).cugctl("peers").is_ok_and(|peers| !peers.to_string().contains("USER-A"))
    })?;
    let card_a = a.pull();

    // Fig. 9, then Fig. 2: C pulls the card; A sits down there.
    let card_c = c.pull();
    world.terminal(3).wait_clean(SOON)?;
    wait_seats(&world, &[("USER-B", 2)])?;
    login_c.close()?;
    let _a = world.terminal(3).insert(card_a)?;
    let _c = world.terminal(1).insert(card_c)?;
    let _login_a = world.terminal(3).log_in("USER-A", "passwd1")?;
    ensure!(overlay(&world, "USER-A", "VPN1")? == at_a, "the overlay address moved with the terminal");
    reaches(world.terminal(2).space(), "USER-B", at_a)?;
    drop(b);
    Ok(())
}

#[test]
fn with_our_own_card() {
    scenario("path-own", |logs| whole_path(logs, Kind::Own));
}

#[test]
fn with_piv_authenticator() {
    scenario("path-piv-authenticator", |logs| whole_path(logs, Kind::PivAuthenticator));
}

#[test]
fn with_a_medium() {
    scenario("path-medium", |logs| {
        let world = World::new(logs, 2)?;
        let _echo = Echo::start(world.terminal(1).space())?;
        for number in [1, 2] {
            world.terminal(number).configure(&format!("media = [\"{MEDIUM}\"]"))?;
        }
        let mut world = world;
        for number in [1, 2] {
            world.terminal_mut(number).stop_cugd()?;
            world.terminal_mut(number).start_cugd()?;
        }
        world.medium("USER-A", 1)?;
        world.medium("USER-B", 2)?;
        let _a = world.terminal(1).log_in("USER-A", "passwd1")?;
        let b = world.terminal(2).log_in("USER-B", "passwd2")?;
        ensure!(b.asked().iter().any(|prompt| prompt.to_lowercase().contains("passphrase")), "{:?}", b.asked());
        reaches(world.terminal(2).space(), "USER-B", overlay(&world, "USER-A", "VPN1")?)?;
        // The stick is pulled.
        world.terminal(1).space().run("umount", &[MEDIUM])?.ok()?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[("USER-B", 2)])?;
        world.terminal(2).space().run("umount", &["--lazy", MEDIUM])?.ok()?;
        world.terminal(2).wait_clean(SOON)
    });
}

#[test]
fn the_pin_is_asked_for_when_the_card_wants_it() {
    scenario("path-pin", |logs| {
        let world = World::new(logs, 1)?;
        for (user, policy, wants) in [
            ("USER-A", PinPolicy::Never, false),
            ("USER-B", PinPolicy::Once, true),
            ("USER-C", PinPolicy::Always, true),
        ] {
            let blank = PivCard::own(OwnOptions { pin_policy: policy, ..OwnOptions::default() })?;
            let card = world.terminal(1).insert(world.issue(blank, user, &["--generate"])?)?;
            let login = world.terminal(1).log_in(user, cug_tests::world::password(user))?;
            let asked = login.asked().iter().any(|prompt| prompt.contains("PIN"));
            ensure!(asked == wants, "{policy:?}: {:?}", login.asked());
            login.close()?;
            drop(card);
        }
        Ok(())
    });
}

#[test]
fn keys_of_other_sizes_and_imported_ones() {
    scenario("path-keys", |logs| {
        let world = World::new(logs, 1)?;
        for (user, options) in [
            ("USER-A", ["--generate", "--bits", "3072"]),
            ("USER-B", ["--import", "--bits", "2048"]),
            ("USER-C", ["--import", "--bits", "4096"]),
        ] {
            let card = world.issue(PivCard::blank(Kind::Own, logs)?, user, &options)?;
            crate::support::still_works(&world, 1, user, card)?;
        }
        Ok(())
    });
}

#[test]
fn the_card_may_come_after_the_login_has_begun() {
    scenario("path-late-card", |logs| {
        let world = World::new(logs, 1)?;
        let card = world.card("USER-A")?;
        let mut login = world.terminal(1).login(&Script::new("USER-A").password("passwd1"))?;
        login.wait_message("card")?;
        let _card = world.terminal(1).insert(card)?;
        login.open()?;
        wait_seats(&world, &[("USER-A", 1)])
    });
}

#[test]
fn local_users_and_root_need_no_card() {
    scenario("path-local", |logs| {
        let mut world = World::new(logs, 1)?;
        world.terminal(1).locals_can_log_in()?;
        let login = world.terminal(1).log_in(LOCAL_USER.0, LOCAL_USER.1)?;
        ensure!(world.terminal(1).leftovers()?.is_empty());
        login.close()?;
        // Whatever is broken.
        world.terminal_mut(1).kill_pcscd()?;
        world.terminal(1).locals_can_log_in()?;
        world.server.kill()?;
        world.terminal(1).locals_can_log_in()?;
        world.terminal_mut(1).kill_cugd()?;
        world.terminal(1).locals_can_log_in()?;
        world.terminal(1).configure("this is not TOML")?;
        world.terminal(1).locals_can_log_in()
    });
}

#[test]
fn other_local_users_and_the_lan_see_nothing_in_clear() {
    scenario("path-clear", |logs| {
        let world = World::new(logs, 2)?;
        let capture = Capture::start(&world.lan, logs.join("lan.pcap"))?;
        let _echo = Echo::start(world.terminal(2).space())?;
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);
        let (_a, _b) = (world.terminal(1).insert(a)?, world.terminal(2).insert(b)?);
        let (_login_a, _login_b) =
            (world.terminal(1).log_in("USER-A", "passwd1")?, world.terminal(2).log_in("USER-B", "passwd2")?);
        let to = overlay(&world, "USER-B", "VPN1")?;
        reaches(world.terminal(1).space(), "USER-A", to)?;
        let plain = world.terminal(2).address().into();
        ensure!(probe::exchange(world.terminal(1).space(), "root", plain, probe::ECHO_PORT, "said-in-clear", SOON)?);
        wait::for_true("what was said in clear", SOON, || capture.saw(b"said-in-clear"))?;
        for hidden in ["over-the-overlay", "passwd1", "USER-A", "VPN1"] {
            ensure!(!capture.saw(hidden.as_bytes()), "`{hidden}` crossed the LAN in clear");
        }
        Ok(())
    });
}
