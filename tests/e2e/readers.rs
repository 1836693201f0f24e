//! Two people at one terminal, each with a card in a reader of their own.

use crate::support::{SOON, overlay, reaches_by_ping, wait_seats};
use anyhow::ensure;
use cug_tests::card::InReader;
use cug_tests::login::Login;
use cug_tests::probe::{PATIENCE, ping};
use cug_tests::space::scenario;
use cug_tests::world::{MEMBERS, World};
use std::net::IpAddr;

/// VPN3 = {A, B} and VPN4 = {E, F, C, D}, with one and the same network; A to D have no other group. E and F are never there: they have the
/// numbers that A and B have in the other group.
fn groups(world: &World) -> anyhow::Result<()> {
    for user in ["USER-E", "USER-F"] {
        world.server.add_user(user, "passwd-other")?;
    }
    let members: [(&str, &[&str]); 2] =
        [("VPN3", &["USER-A", "USER-B"]), ("VPN4", &["USER-E", "USER-F", "USER-C", "USER-D"])];
    for (group, members) in members {
        world.server.run(&["group", "add", group, "--prefix4", "100.127.0.0/24", "--prefix6", "fd7f::/64"])?;
        for member in members {
            world.server.run(&["group", "join", group, member])?;
        }
    }
    for (user, _, former) in MEMBERS {
        world.server.run(&["group", "leave", former, user])?;
    }
    Ok(())
}

fn cut_off(world: &World, user: &str, to: [IpAddr; 2]) -> anyhow::Result<()> {
    for address in to {
        ensure!(!ping(world.terminal(1).space(), user, address, PATIENCE)?, "{user} reaches {address}");
    }
    Ok(())
}

#[test]
fn two_readers_two_people_and_one_network_for_two_groups() {
    scenario("readers-two", |logs| {
        let mut world = World::new(logs, 3)?;
        groups(&world)?;
        let one = world.terminal_mut(1);
        one.stop_cugd()?;
        one.kill_pcscd()?;
        one.start_pcscd_with_two()?;
        one.start_cugd()?;
        let log_in = |number: usize, user: &str, second: bool| -> anyhow::Result<(Login, InReader)> {
            let (terminal, card) = (world.terminal(number), world.card(user)?);
            let in_reader = if second { terminal.insert_into_second(card)? } else { terminal.insert(card)? };
            Ok((terminal.log_in(user, cug_tests::world::password(user))?, in_reader))
        };
        let _b = log_in(2, "USER-B", false)?;
        let _d = log_in(3, "USER-D", false)?;
        let (login_a, card_a) = log_in(1, "USER-A", false)?;
        // A's card is in the first reader: it is not taken for C's.
        let (login_c, card_c) = log_in(1, "USER-C", true)?;
        wait_seats(&world, &[("USER-A", 1), ("USER-B", 2), ("USER-C", 1), ("USER-D", 3)])?;
        let at = |user, group| overlay(&world, user, group);
        let (at_a, at_b, at_c, at_d) =
            (at("USER-A", "VPN3")?, at("USER-B", "VPN3")?, at("USER-C", "VPN4")?, at("USER-D", "VPN4")?);
        let same = |address: IpAddr| address.to_string().starts_with("100.127.0.");
        ensure!([at_a, at_b, at_c, at_d].iter().all(|pair| same(pair[0])), "not one network");
        let here = world.terminal(1).space();
        reaches_by_ping(here, "USER-A", at_b)?;
        reaches_by_ping(here, "USER-C", at_d)?;
        reaches_by_ping(world.terminal(2).space(), "USER-B", at_a)?;
        reaches_by_ping(world.terminal(3).space(), "USER-D", at_c)?;
        cut_off(&world, "USER-A", at_d)?;
        cut_off(&world, "USER-C", at_b)?;
        let interfaces = |user: &str| -> anyhow::Result<Vec<String>> {
            let groups = world.terminal(1).overlay(user)?;
            Ok(groups.iter().filter_map(|group| group["interface"].as_str().map(str::to_owned)).collect())
        };
        let (of_a, of_c) = (interfaces("USER-A")?, interfaces("USER-C")?);
        ensure!(of_a.len() == 1 && of_c.len() == 1 && of_a != of_c, "{of_a:?} {of_c:?}");

        // A's card goes: A's interface with it, and nothing else.
        drop(card_a.pull());
        wait_seats(&world, &[("USER-B", 2), ("USER-C", 1), ("USER-D", 3)])?;
        world.terminal(1).wait_state("USER-A", "suspended", SOON)?;
        ensure!(world.terminal(1).tunnels() == of_c, "{:?} instead of {of_c:?}", world.terminal(1).tunnels());
        reaches_by_ping(here, "USER-C", at_d)?;
        reaches_by_ping(world.terminal(3).space(), "USER-D", at_c)?;
        cut_off(&world, "USER-A", at_b)?;
        drop(card_c.pull());
        wait_seats(&world, &[("USER-B", 2), ("USER-D", 3)])?;
        ensure!(world.terminal(1).tunnels().is_empty(), "{:?}", world.terminal(1).tunnels());
        cut_off(&world, "USER-C", at_d)?;
        login_a.close()?;
        login_c.close()?;
        world.terminal(1).wait_clean(SOON)
    });
}
