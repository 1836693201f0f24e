//! Logins that wait for a server.

use std::time::Duration;

use cug_proto::{
    local::{CardBinding, MediumBinding, Refusal, Reply, Wait},
    message::Purpose,
    notice::Happening,
    waiting::SERVICE,
};

use super::world::*;
use crate::core::*;

const MINUTE: Duration = Duration::from_secs(60);

fn card(inode: u64) -> CardBinding {
    CardBinding::Medium(MediumBinding { directory: "/media/x".into(), device: 1, inode, fingerprint: [0; 32] })
}

fn wait(world: &mut World, who: usize, by: Leader, leads: bool) -> Token {
    let wait = Wait { user: user(who), service: "login".into(), tty: "tty1".into(), card: card(2), leads };
    let os = world.os(by);
    world.ask(Request::Wait(Box::new(wait), by, UID, os))
}

fn tell(world: &mut World, number: Number, event: WaitingEvent) {
    world.event(Event::Waiting { number, event });
}

fn away(world: &mut World, number: Number) {
    tell(world, number, WaitingEvent::Away { cause: "silence".into(), jitter: 0 });
}

/// USER-A's session waits, the card is watched and password and PIN are where they belong.
fn waiting() -> (World, Number) {
    waiting_in(World::new())
}

fn waiting_in(mut world: World) -> (World, Number) {
    let token = wait(&mut world, 0, leader(1), true);
    assert!(matches!(world.replies[&token], Reply::Waiting(_)));
    let number = *world.processes.keys().next().unwrap();
    world.watch_starts(number);
    tell(&mut world, number, WaitingEvent::Ready);
    (world, number)
}

fn state(world: &mut World) -> String {
    world.status().first().map_or("none".into(), |session| session.state.clone())
}

/// Nothing of it is left, and the person was told this.
fn over(world: &World, said: Option<&str>) {
    assert!(world.processes.is_empty() && world.watches.is_empty());
    let mut ends = world.told.iter().filter_map(|notice| match &notice.what {
        Happening::WaitEnded { reason } => Some(reason.as_str()),
        _ => None,
    });
    match (ends.next_back(), said) {
        (None, None) => {}
        (Some(told), Some(said)) => assert!(told.contains(said), "{told}"),
        (told, said) => panic!("{told:?} and not {said:?}"),
    }
}

#[test]
fn it_tries_with_pauses_and_opens_by_itself() {
    let (mut world, number) = waiting();
    assert_eq!(state(&mut world), "waiting");
    assert!(matches!(world.told[0].what, Happening::WaitBegan { minutes: 60 }));
    assert_eq!(world.processes[&number], 0, "the person has just tried");
    world.advance(Duration::from_secs(1));
    assert_eq!(world.processes[&number], 1);
    world.advance(Duration::from_secs(10));
    assert_eq!(world.processes[&number], 1, "one at a time");
    away(&mut world, number);
    world.advance(Duration::from_secs(20));
    assert_eq!(world.processes[&number], 2, "nobody has answered the second");

    assert_eq!(world.prepare_for(user(0), SERVICE), Purpose::Open);
    let (offer, _) = world.offers.pop().unwrap();
    let delivered = world.deliver(offer, vec![group(GROUP, 1)]);
    let life = *world.watches.keys().find(|other| **other != number).unwrap();
    world.watch_starts(life);
    world.raise_all();
    assert!(matches!(world.replies[&delivered], Reply::Delivered(true)));
    assert!(world.processes.contains_key(&number), "it has to tell the server yet");
    tell(&mut world, number, WaitingEvent::LoggedIn);
    assert!(world.processes.is_empty() && !world.watches.contains_key(&number));
    assert_eq!(state(&mut world), "up");
}

#[test]
fn a_try_that_does_not_end_ends_it() {
    let (mut world, _) = waiting();
    world.advance(MINUTE);
    over(&world, Some("could not be kept"));
    assert_eq!(state(&mut world), "suspended");
}

#[test]
fn pauses_grow_to_half_a_minute() {
    let (mut world, number) = waiting();
    for _ in 0..20 {
        world.advance(Duration::from_secs(20));
        away(&mut world, number);
    }
    let before = world.processes[&number];
    assert_eq!(before, 20);
    world.advance(Duration::from_secs(14));
    assert_eq!(world.processes[&number], before);
    world.event(Event::Addresses(vec!["10.0.0.1/24".parse().unwrap()]));
    world.advance(Duration::from_millis(300));
    assert_eq!(world.processes[&number], before + 1, "the network has changed");
}

#[test]
fn whatever_ends_it_leaves_nothing() {
    type Ending = fn(&mut World, Number);
    let endings: [(Ending, Option<&str>); 8] = [
        (|world, number| tell(world, number, WaitingEvent::Refused("No.".into())), Some("No.")),
        (|world, number| tell(world, number, WaitingEvent::Ended("x".into())), Some("could not be kept")),
        (|world, number| world.card_pulled(number), Some("card was removed")),
        (|world, _| world.event(Event::LeaderDied(leader(1))), None),
        (
            |world, _| {
                world.ask(Request::Close(user(0), leader(1)));
            },
            None,
        ),
        (|world, _| world.event(Event::Shutdown), Some("was stopped")),
        (
            |world, number| {
                for _ in 0..200 {
                    world.advance(Duration::from_secs(20));
                    away(world, number);
                }
            },
            Some("too long"),
        ),
        (
            |world, _| {
                world.prepare(user(0));
                let (offer, _) = world.offers.pop().unwrap();
                world.deliver(offer, vec![group(GROUP, 1)]);
                let number = *world.watches.keys().last().unwrap();
                world.card_pulled(number);
            },
            None,
        ),
    ];
    for trying in [false, true] {
        for (at, (ending, said)) in endings.iter().enumerate().filter(|(at, _)| !(trying && *at == 7)) {
            let (mut world, number) = waiting();
            if trying {
                world.advance(Duration::from_secs(1));
                assert_eq!(world.prepare_for(user(0), SERVICE), Purpose::Open);
            }
            ending(&mut world, number);
            assert!(world.processes.is_empty() && world.watches.is_empty(), "ending {at}");
            over(&world, *said);
            if !world.exited && at != 6 {
                assert!(world.state.offers.is_empty(), "ending {at}: an offer outlives the login that it was for");
            }
        }
    }
}

#[test]
fn another_card_opens_nothing() {
    let (mut world, _) = waiting();
    world.advance(Duration::from_secs(1));
    world.prepare_for(user(0), SERVICE);
    let (offer, _) = world.offers.pop().unwrap();
    world.card_inode = 3;
    let delivered = world.deliver(offer, vec![group(GROUP, 1)]);
    assert!(matches!(world.replies[&delivered], Reply::Refused(Refusal::CardGone)));
    assert!(world.tunnels.is_empty());
}

#[test]
fn an_offer_is_for_a_login_that_is_being_tried() {
    let (mut world, number) = waiting();
    world.prepare_for(user(0), SERVICE);
    assert!(world.offers.is_empty(), "it was not told to try");
    world.prepare_for(user(1), SERVICE);
    assert!(world.offers.is_empty(), "nobody waits");
    world.card_pulled(number);
    world.prepare_for(user(0), SERVICE);
    assert!(world.offers.is_empty());
}

#[test]
fn without_a_card_that_is_watched_nothing_is_tried() {
    let mut world = World::new();
    wait(&mut world, 0, leader(1), true);
    let number = *world.processes.keys().next().unwrap();
    tell(&mut world, number, WaitingEvent::Ready);
    world.advance(5 * MINUTE);
    world.event(Event::Tick);
    assert_eq!(world.processes[&number], 0);
    world.watch_starts(number);
    assert_eq!(world.processes[&number], 1);
}

#[test]
fn who_never_says_what_was_typed_does_not_wait() {
    let mut world = World::new();
    wait(&mut world, 0, leader(1), true);
    world.advance(Duration::from_secs(11));
    over(&world, Some("could not be kept"));
}

#[test]
fn only_a_session_without_a_tunnel_waits() {
    let mut world = World::new();
    let refused = |world: &World, token: Token| matches!(world.replies[&token], Reply::NoGrant);
    let token = wait(&mut world, 0, leader(1), false);
    assert!(refused(&world, token), "a locker without a session");
    let (mut world, number) = waiting();
    let token = wait(&mut world, 0, leader(2), false);
    assert!(refused(&world, token) && world.processes.contains_key(&number), "sudo disturbs nothing");
    let token = wait(&mut world, 0, leader(2), true);
    assert!(matches!(world.replies[&token], Reply::Waiting(_)));
    assert!(!world.processes.contains_key(&number) && world.processes.len() == 1, "the latest login counts");
    world.ask(Request::Close(user(0), leader(2)));
    assert_eq!(world.processes.len(), 1, "the first session still waits");
    world.ask(Request::Close(user(0), leader(1)));
    assert!(world.processes.is_empty());
}

#[test]
fn an_unlocked_session_waits() {
    let (mut world, number) = waiting();
    tell(&mut world, number, WaitingEvent::Refused("No.".into()));
    assert_eq!(state(&mut world), "suspended");
    let token = wait(&mut world, 0, leader(9), false);
    assert!(matches!(world.replies[&token], Reply::Waiting(_)));
    assert_eq!(state(&mut world), "waiting");
}

#[test]
fn nobody_waits_where_that_is_not_configured() {
    let mut world = World::new();
    world.state.settings.offline_wait = None;
    let token = wait(&mut world, 0, leader(1), true);
    assert!(matches!(world.replies[&token], Reply::Refused(Refusal::ServerAway)));
    assert!(world.state.is_idle() && world.processes.is_empty());
}

#[test]
fn what_was_typed_does_not_sleep_with_the_machine() {
    let (mut world, _) = waiting();
    world.event(Event::Logind(LogindEvent::Sleep(true)));
    over(&world, Some("went to sleep"));
    assert_eq!(world.let_go, 1);
    let token = wait(&mut world, 0, leader(2), true);
    assert!(matches!(world.replies[&token], Reply::Refused(Refusal::Busy)), "not while it is on its way");
}

#[test]
fn a_card_that_goes_while_its_login_waits_is_a_card_that_goes() {
    for grace in [0, 10] {
        let (mut world, number) = waiting_in(World::with_removal(Removal::Lock, grace));
        world.card_pulled(number);
        over(&world, Some("removed"));
        assert_eq!(world.deeds, [(Deed::Lock, vec!["s101".to_owned()])], "nothing has to be cut before");
    }
}

#[test]
fn nothing_waits_for_a_greeter() {
    let mut world = World::new();
    world.class = Some("greeter");
    let token = wait(&mut world, 0, leader(1), true);
    assert!(matches!(world.replies[&token], Reply::Refused(Refusal::NoDesk)));
    assert!(world.state.is_idle() && world.processes.is_empty());
}
