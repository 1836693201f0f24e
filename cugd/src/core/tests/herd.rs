//! All terminals lose the server at once: they must not all come back at once.

use super::{stories::up, world::*};
use crate::core::{ChannelEvent, Event, LinkId, SPREAD, Time, limits::backoff};
use proptest::prelude::*;
use std::time::Duration;

/// When the terminals are attached again, in milliseconds after the server was there again; it is away for `outage`.
fn back(terminals: usize, outage: Duration, mut draw: impl FnMut() -> u32) -> Vec<u64> {
    let there = Time::since_boot(Duration::ZERO) + outage;
    let mut times: Vec<u64> = (0..terminals)
        .map(|_| {
            let (mut at, mut failures) = (Time::since_boot(Duration::ZERO), 0);
            loop {
                at = backoff(at, failures, draw());
                failures += 1;
                if at >= there {
                    return u64::try_from(at.since(there).as_millis()).unwrap();
                }
            }
        })
        .collect();
    times.sort_unstable();
    times
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Whatever the outage: within any tenth of a second at most a quarter of them, of a minute or more at most one in forty; nobody waits
    /// longer than 45 s.
    #[test]
    fn terminals_come_back_spread(seed in any::<u64>(), outage in prop::sample::select(vec![1u64, 5, 20, 60, 600])) {
        let mut state = seed | 1;
        let draw = move || {
            // xorshift64: any spread of numbers does.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from(state >> 32).unwrap()
        };
        let times = back(10_000, Duration::from_secs(outage), draw);
        let crowd = times.iter().enumerate().map(|(i, t)| times[i..].iter().take_while(|o| **o < t + 100).count()).max().unwrap();
        let most = if outage >= 60 { 250 } else { 2_500 };
        prop_assert!(crowd <= most, "{crowd} of 10000 within 100 ms after {outage} s");
        prop_assert!(*times.last().unwrap() <= 45_000);
    }
}

fn network(address: &str) -> Event {
    Event::Addresses(vec![address.parse().unwrap()])
}

fn lose(world: &mut World, jitter: u32) {
    let link = newest(world);
    world.say(link, ChannelEvent::Closed { cause: "gone".into(), jitter });
}

fn newest(world: &World) -> LinkId {
    *world.links.keys().last().unwrap()
}

/// How long after its network came back a terminal attaches, when it has been without the server for as long as three attempts take.
fn after_an_outage(draw: u32) -> Duration {
    let (mut world, ..) = up();
    world.event(network("10.0.0.1/24"));
    lose(&mut world, draw);
    for _ in 0..3 {
        let due = world.state.deadline().unwrap();
        world.advance(due.since(world.now));
        lose(&mut world, draw);
    }
    let back = world.now;
    // A network comes back in several steps: the second one changes nothing.
    world.event(Event::Addresses(vec![]));
    world.event(network("10.0.0.1/24"));
    world.event(Event::Addresses(vec!["10.0.0.1/24".parse().unwrap(), "fd00:5::1/64".parse().unwrap()]));
    while world.links.is_empty() {
        let due = world.state.deadline().unwrap();
        world.advance(due.since(world.now));
    }
    world.now.since(back)
}

#[test]
fn a_switch_that_comes_back_does_not_bring_all_terminals_at_once() {
    let mut times: Vec<_> = (0..100).map(|n| after_an_outage(n * 40_503_637)).collect();
    times.sort_unstable();
    assert!(times.iter().all(|time| *time <= SPREAD), "{times:?}");
    let crowd = (0..times.len()).map(|i| times[i..].iter().take_while(|t| **t < times[i] + SPREAD / 20).count()).max();
    assert!(crowd.unwrap() <= 20, "{times:?}");
}

/// One terminal's own move: at once, whatever the draw, also when its first attempt is cut off by the next step of the same move.
#[test]
fn a_terminal_that_moves_alone_does_not_wait() {
    let (mut world, ..) = up();
    world.event(network("10.0.0.1/24"));
    // So that a pause would be seen.
    lose(&mut world, 1_999);
    let due = world.state.deadline().unwrap();
    world.advance(due.since(world.now));
    let first = newest(&world);
    world.attach(first);
    world.say(first, ChannelEvent::Synced);
    world.event(network("10.5.0.9/24"));
    let second = newest(&world);
    assert!(!world.links.contains_key(&first) && second != first, "not cut and made anew at once");
    world.event(network("10.5.0.10/24"));
    assert!(!world.links.contains_key(&second) && world.links.len() == 1);
    // Its channel was found dead, and the network changes before the first attempt.
    lose_attached(&mut world);
    assert!(world.links.is_empty());
    world.event(network("10.6.0.1/24"));
    assert_eq!(world.links.len(), 1);
}

fn lose_attached(world: &mut World) {
    let link = newest(world);
    world.attach(link);
    world.say(link, ChannelEvent::Synced);
    lose(world, 1_999);
}
