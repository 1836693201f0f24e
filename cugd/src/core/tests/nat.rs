//! A terminal behind a router that translates addresses: only it can make the first call, and it keeps the way open.

use std::time::Duration;

use super::{stories::up, world::*};
use crate::core::*;

fn sights(number: Number, ages: &[(u8, Option<u64>)]) -> Event {
    let sight = |age: &Option<u64>| Sight { handshake: age.map(Duration::from_secs), ..Sight::default() };
    let sights = ages.iter().map(|(key, age)| ([*key; 32], sight(age))).collect();
    Event::Tunnel { number, event: TunnelEvent::Seen { group: GROUP, sights } }
}

/// Up, and seen by the server at 198.51.100.1.
fn translated() -> (World, Number, LinkId) {
    let (mut world, number, ..) = up();
    world.event(Event::Addresses(vec!["192.168.7.1/24".parse().unwrap()]));
    let link = *world.links.keys().last().unwrap();
    world.event(Event::Channel {
        link,
        event: ChannelEvent::Attached {
            server: "two:2".into(),
            lease: Duration::from_secs(3600),
            local: Some([192, 168, 7, 1].into()),
            seen: Some([198, 51, 100, 1].into()),
        },
    });
    world.say(link, ChannelEvent::Synced);
    (world, number, link)
}

#[test]
fn every_member_is_reminded_while_a_router_translates() {
    let (mut world, number, link) = translated();
    assert_eq!(world.tunnels[&number].keepalives.len(), 2);
    world.say(link, change(2, false, vec![peer(GROUP, 4, 200)], &[]));
    assert_eq!(world.tunnels[&number].keepalives[&[200; 32]], Duration::from_secs(25), "who comes later too");

    // At home the server sees the terminal's own address.
    world.event(Event::Addresses(vec!["10.0.0.1/24".parse().unwrap()]));
    let link = *world.links.keys().last().unwrap();
    world.attach(link);
    assert!(world.tunnels[&number].keepalives.is_empty(), "nobody needs it any more");
}

#[test]
fn a_terminal_with_its_own_address_sends_nothing_for_nothing() {
    let (mut world, number, ..) = up();
    world.advance(Duration::from_secs(60));
    assert!(world.tunnels[&number].keepalives.is_empty() && world.tunnels[&number].calls.is_empty());
}

#[test]
fn who_does_not_answer_is_called_again_and_again_but_not_often() {
    let (mut world, number, link) = translated();
    world.tunnels.get_mut(&number).unwrap().calls.clear();
    world.answer(link);
    assert_eq!(world.tunnels[&number].calls, [([50; 32], None), ([150; 32], None)], "with the announcement");
    let mut calls = Vec::new();
    for second in 1..=120_u64 {
        world.tunnels.get_mut(&number).unwrap().calls.clear();
        // The first one has answered.
        world.event(sights(number, &[(50, Some(second)), (150, None)]));
        world.now = world.now + Duration::from_secs(1);
        let called = &world.tunnels[&number].calls;
        assert!(called.iter().all(|(key, _)| *key == [150; 32]) || second == 1, "{second}: {called:?}");
        if !called.is_empty() {
            calls.push(second);
        }
    }
    assert!((6..=10).contains(&calls.len()), "{calls:?}");
    world.event(sights(number, &[(50, Some(0)), (150, Some(0))]));
    world.tunnels.get_mut(&number).unwrap().calls.clear();
    world.event(sights(number, &[(50, Some(1)), (150, Some(1))]));
    assert!(world.tunnels[&number].calls.is_empty(), "both have answered");
}
