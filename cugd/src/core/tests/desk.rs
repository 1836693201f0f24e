//! What becomes of the OS sessions, told once each.

use std::time::Duration;

use cug_proto::{
    local::{Open, Refusal, Reply},
    message::{ClearReason, EndReason, Lapse, Purpose},
};

use super::stories::{granted, only, up_in};
use super::world::*;
use crate::core::*;

fn search(world: &World) -> Number {
    *world.searches.keys().next().expect("the card is looked for")
}

#[test]
fn by_default_the_desk_is_left_alone() {
    let (mut world, number, ..) = up_in(World::new());
    world.card_pulled(number);
    world.advance(Duration::from_secs(600));
    assert!(world.deeds.is_empty() && world.searches.is_empty());
}

#[test]
fn the_card_is_pulled_and_the_desk_is_locked_or_ended_at_once() {
    for (removal, deed) in [(Removal::Lock, Deed::Lock), (Removal::Logout, Deed::Logout)] {
        let (mut world, number, ..) = up_in(World::with_removal(removal, 0));
        let second = world.open(user(0), leader(2));
        assert!(matches!(world.replies[&second], Reply::Opened(_)));
        world.card_pulled(number);
        assert!(world.tunnels[&number].falling);
        assert_eq!(world.deeds, [(deed, vec!["s101".to_owned(), "s102".to_owned()])], "both, in the same step");
    }
}

#[test]
fn the_card_is_back_within_the_grace() {
    let (mut world, number, ..) = up_in(World::with_removal(Removal::Logout, 10));
    world.card_pulled(number);
    assert!(world.tunnels[&number].falling, "the tunnel does not wait for the grace");
    world.fall_all();
    world.advance(Duration::from_secs(9));
    let back = search(&world);
    world.card_found(back);
    world.watch_starts(back);
    world.advance(Duration::from_secs(600));
    assert!(world.deeds.is_empty() && world.tunnels.is_empty(), "nothing comes back without the password");
    assert_eq!(only(&mut world).state, "suspended");
    // Its removal counts again, with a grace of its own.
    world.card_pulled(back);
    world.advance(Duration::from_secs(9));
    assert!(world.deeds.is_empty());
    world.advance(Duration::from_secs(1));
    assert_eq!(world.deeds, [(Deed::Logout, vec!["s101".to_owned()])]);
    assert!(world.searches.is_empty() && world.watches.is_empty());
    world.advance(Duration::from_secs(600));
    assert_eq!(world.deeds.len(), 1, "once");
}

#[test]
fn a_search_that_fails_finds_no_card() {
    let (mut world, number, ..) = up_in(World::with_removal(Removal::Lock, 10));
    world.card_pulled(number);
    let looking = search(&world);
    world.card_not_found(looking);
    assert!(world.deeds.is_empty(), "the grace is the person's");
    world.advance(Duration::from_secs(10));
    assert_eq!(world.deeds, [(Deed::Lock, vec!["s101".to_owned()])]);
}

#[test]
fn who_logs_in_again_within_the_grace_is_left_alone() {
    let (mut world, number, link, _) = up_in(World::with_removal(Removal::Logout, 10));
    world.card_pulled(number);
    world.fall_all();
    world.answer(link);
    granted(&mut world);
    assert!(world.searches.is_empty());
    world.raise_all();
    let link = *world.links.keys().last().unwrap();
    world.say(link, ChannelEvent::Synced);
    world.answer(link);
    world.advance(Duration::from_secs(60));
    assert!(world.deeds.is_empty());
    assert_eq!(only(&mut world).state, "up");
}

#[test]
fn who_logs_out_within_the_grace_is_gone() {
    let (mut world, number, ..) = up_in(World::with_removal(Removal::Lock, 10));
    world.card_pulled(number);
    world.ask(Request::Close(user(0), leader(1)));
    assert!(world.searches.is_empty() && world.status().is_empty());
    world.advance(Duration::from_secs(60));
    assert!(world.deeds.is_empty());
}

/// A word from elsewhere locks and never logs out; a fault of the network does neither.
#[test]
fn what_the_server_says_locks() {
    let ends = [
        (EndReason::Displaced("term9".parse().unwrap()), true),
        (EndReason::Disabled(None), true),
        (EndReason::Disabled(Some(Lapse::OutsideHours)), true),
        (EndReason::CardRevoked, true),
        (EndReason::Administrator, true),
        (EndReason::NoGroup, false),
        (EndReason::LeaseExpired, false),
    ];
    for (end, locks) in ends {
        let (mut world, _, link, _) = up_in(World::with_removal(Removal::Logout, 10));
        world.say(link, ChannelEvent::Ended(end.clone()));
        let expected = if locks { vec![(Deed::Lock, vec!["s101".to_owned()])] } else { vec![] };
        assert_eq!(world.deeds, expected, "{end:?}");
        assert!(world.searches.is_empty());
    }
    let (mut world, number, ..) = up_in(World::with_removal(Removal::Logout, 10));
    world.event(Event::Tunnel { number, event: TunnelEvent::Failed("broken".into()) });
    assert!(world.deeds.is_empty());
}

/// `su` to a member in somebody else's session: that one is not locked for the member's card.
#[test]
fn anothers_session_is_left_alone() {
    let mut world = World::with_removal(Removal::Logout, 0);
    let (number, link) = granted(&mut world);
    let os = OsSession::Known(OsDesk { id: "s9".into(), class: "user".into(), uid: UID + 1 });
    let open = Open { user: user(0), service: "su".into(), tty: String::new(), holds: true };
    world.ask(Request::Open(open, leader(1), UID, os));
    world.raise_all();
    world.answer(link);
    world.card_pulled(number);
    assert!(world.tunnels[&number].falling && world.deeds.is_empty());
}

#[test]
fn the_machine_sleeps_when_everything_is_gone() {
    let (mut world, number, link, _) = up_in(World::new());
    world.prepare(user(1));
    world.logind(LogindEvent::Sleep(true));
    assert!(world.tunnels[&number].falling && world.let_go == 0);
    assert_eq!(world.prepare(user(1)), Purpose::Verify, "that is: refused; nobody logs in now");
    world.fall_all();
    assert_eq!(world.links[&link].farewell, Some(ClearReason::TerminalStopped));
    assert_eq!(world.let_go, 0, "the server is told first");
    world.answer(link);
    assert_eq!(world.let_go, 1);
    world.logind(LogindEvent::Sleep(false));
    assert_eq!(only(&mut world).state, "suspended");
    assert_eq!(world.prepare(user(0)), Purpose::Open, "card and password bring it back");
}

#[test]
fn a_server_that_is_away_does_not_keep_the_machine_awake() {
    let (mut world, ..) = up_in(World::new());
    world.logind(LogindEvent::Sleep(true));
    world.fall_all();
    world.advance(FAREWELL_TIME);
    assert_eq!(world.let_go, 1, "within logind's five seconds");
    let mut idle = World::new();
    idle.logind(LogindEvent::Sleep(true));
    assert_eq!(idle.let_go, 1, "at once");
}

#[test]
fn sleep_locks_and_waking_up_without_the_card_does_the_rest() {
    for back in [true, false] {
        let (mut world, _, link, _) = up_in(World::with_removal(Removal::Logout, 0));
        world.logind(LogindEvent::Sleep(true));
        assert_eq!(world.deeds, [(Deed::Lock, vec!["s101".to_owned()])]);
        world.fall_all();
        world.answer(link);
        world.logind(LogindEvent::Sleep(false));
        let looking = search(&world);
        if back {
            world.card_found(looking);
            world.watch_starts(looking);
            world.advance(Duration::from_secs(60));
            assert_eq!(world.deeds.len(), 1);
            world.card_pulled(looking);
        } else {
            world.advance(Duration::from_secs(9));
            assert_eq!(world.deeds.len(), 1, "USB takes its time");
            world.advance(Duration::from_secs(1));
        }
        assert_eq!(world.deeds.last(), Some(&(Deed::Logout, vec!["s101".to_owned()])));
    }
}

#[test]
fn logind_is_lost_while_it_prepares() {
    let mut world = World::new();
    world.logind(LogindEvent::Shutdown(true));
    assert_eq!(world.prepare(user(0)), Purpose::Verify);
    world.logind(LogindEvent::Lost);
    assert_eq!(world.prepare(user(0)), Purpose::Open);
}

#[test]
fn logind_ends_a_session_whose_leader_lives() {
    let (mut world, number, ..) = up_in(World::new());
    world.open(user(0), leader(2));
    world.logind(LogindEvent::SessionRemoved("s7".into()));
    world.logind(LogindEvent::SessionRemoved("s101".into()));
    assert_eq!(only(&mut world).os_sessions, 1);
    assert!(!world.tunnels[&number].falling);
    world.logind(LogindEvent::SessionRemoved("s102".into()));
    assert!(world.tunnels[&number].falling && world.leaders.is_empty());
}

#[test]
fn only_a_persons_session_gets_the_tunnel() {
    for class in ["greeter", "lock-screen", "background", "manager", ""] {
        let mut world = World::new();
        let (number, _) = granted(&mut world);
        world.class = Some(class);
        let opened = world.open(user(0), leader(1));
        assert!(matches!(world.replies[&opened], Reply::Refused(Refusal::NoDesk)), "{class}");
        assert!(world.tunnels.is_empty() && world.leaders.is_empty());
        world.class = Some("user");
        world.open(user(0), leader(1));
        assert!(world.tunnels.contains_key(&number), "the grant still waits for the session that it is for");
    }
    // What holds nothing may be told of what stands, and a login counts where logind knows of no session.
    let (mut world, number, ..) = up_in(World::new());
    world.class = Some("background");
    let joined = world.join(user(0), leader(7));
    assert!(matches!(world.replies[&joined], Reply::Opened(_)));
    world.class = None;
    let opened = world.open(user(0), leader(2));
    assert!(matches!(world.replies[&opened], Reply::Opened(_)));
    assert_eq!(only(&mut world).os_sessions, 2);
    // But nothing can be locked there.
    world.ask(Request::Close(user(0), leader(1)));
    world.state.settings.removal = Removal::Lock;
    world.card_pulled(number);
    assert!(world.deeds.is_empty());
}
