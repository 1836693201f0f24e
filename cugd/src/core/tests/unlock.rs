//! Unlocking by a user's own process, and what such a process may try.

use std::time::Duration;

use cug_proto::{
    local::{Refusal, Reply},
    message::{ClearReason, Purpose},
    notice::Happening,
};

use super::stories::{only, up};
use super::world::*;
use crate::core::*;

/// USER-A's card was pulled; the OS session is still there.
fn suspended() -> World {
    let (mut world, number, link, _) = up();
    world.card_pulled(number);
    world.fall_all();
    world.answer(link);
    world
}

/// A delivery up to the point where the server is attached.
fn attached(world: &mut World) -> (Token, Number, LinkId) {
    let offer = world.prepare_unlock(UID, user(0)).unwrap();
    assert!(offer.purpose == Purpose::Open && offer.without_groups);
    let delivered = world.deliver_unlock(UID, offer.id, |_| {});
    let number = *world.searches.keys().next().expect("the card is found by the daemon itself");
    assert_eq!(world.searches[&number], [0; 32], "and it is the one of the login, whatever was delivered");
    world.card_found(number);
    assert!(!world.replies.contains_key(&delivered), "not before the card is watched");
    world.watch_starts(number);
    assert!(matches!(world.replies[&delivered], Reply::Delivered(false)));
    world.advance(ATTACH_DELAY);
    let link = *world.links.keys().last().unwrap();
    assert_eq!(world.links[&link].known, 1, "all of the former group is asked for");
    world.attach(link);
    assert!(world.tunnels.is_empty(), "nothing before the server has said its word");
    (delivered, number, link)
}

#[test]
fn card_and_password_bring_the_tunnel_back() {
    let mut world = suspended();
    let (_, number, link) = attached(&mut world);
    world.say(link, ChannelEvent::Group(group(GROUP, 3)));
    world.say(link, change(5, true, vec![peer(GROUP, 2, 50)], &[]));
    assert!(world.tunnels.is_empty());
    world.say(link, ChannelEvent::Synced);
    world.raise_all();
    world.answer(link);
    assert_eq!((only(&mut world).state.as_str(), only(&mut world).os_sessions), ("up", 1));
    assert_eq!(world.tunnels[&number].peers.len(), 1);
    assert_eq!(only(&mut world).card, "/media/y", "what the daemon found, not what was delivered");
    world.card_pulled(number);
    assert!(world.tunnels[&number].falling);
}

#[test]
fn a_group_that_was_joined_meanwhile_is_asked_for() {
    let mut world = suspended();
    let (_, number, link) = attached(&mut world);
    world.say(link, ChannelEvent::Group(group(GROUP, 1)));
    world.say(link, change(5, true, vec![], &[]));
    let unknown = cug_proto::message::Peers { group: 2, revision: 5, full: true, present: vec![], gone: vec![] };
    world.say(link, ChannelEvent::Peers(unknown));
    world.say(link, ChannelEvent::Synced);
    assert!(world.tunnels.is_empty(), "its policy may be closed");
    let link = *world.links.keys().last().unwrap();
    assert_eq!(world.links[&link].known, 2);
    world.attach(link);
    world.say(link, ChannelEvent::Group(group(2, 1)));
    world.say(link, change(5, true, vec![], &[]));
    world.say(link, ChannelEvent::Synced);
    assert_eq!(world.tunnels[&number].ordered.len(), 2);
}

#[test]
fn it_must_be_the_same_member() {
    let mut world = suspended();
    let (_, _, link) = attached(&mut world);
    let mut others = group(GROUP, 1);
    others.address4 = [100, 96, 1, 9].into();
    world.say(link, ChannelEvent::Group(others));
    world.say(link, change(5, true, vec![], &[]));
    world.say(link, ChannelEvent::Synced);
    assert!(world.tunnels.is_empty() && world.watches.is_empty());
    assert_eq!(world.links[&link].farewell, Some(ClearReason::NotOpened));
    assert_eq!(only(&mut world).state, "suspended");
    assert!(world.told.iter().any(|notice| matches!(notice.what, Happening::SessionDown { .. })), "they hear of it");
    let mut world = suspended();
    let (_, _, link) = attached(&mut world);
    world.say(link, ChannelEvent::Group(group(2, 1)));
    world.say(link, ChannelEvent::Synced);
    assert!(world.tunnels.is_empty() && only(&mut world).state == "suspended", "none of the former groups");
}

#[test]
fn a_grant_of_its_own_making_leads_nowhere() {
    let mut world = suspended();
    for (pin, server, refusal) in
        [([9; 32], "two:2", Refusal::ForeignCard), ([0; 32], "10.6.6.6:7531", Refusal::Malformed)]
    {
        let offer = world.prepare_unlock(UID, user(0)).unwrap();
        let delivered = world.deliver_unlock(UID, offer.id, |deliver| {
            (deliver.ca_pin, deliver.server) = (pin, server.into());
        });
        assert!(matches!(&world.replies[&delivered], Reply::Refused(why) if *why == refusal));
        assert!(world.searches.is_empty() && world.links.is_empty());
    }
    // Groups in it do not count, and a session that the server does not know ends.
    let offer = world.prepare_unlock(UID, user(0)).unwrap();
    world.deliver_unlock(UID, offer.id, |deliver| deliver.grant.groups = vec![group(GROUP, 1)]);
    let number = *world.searches.keys().next().unwrap();
    world.card_found(number);
    world.watch_starts(number);
    for _ in 0..40 {
        world.advance(Duration::from_secs(1));
        assert!(world.tunnels.is_empty());
        for link in world.links.keys().copied().collect::<Vec<_>>() {
            world.say(link, ChannelEvent::Ended(cug_proto::message::EndReason::Unknown));
        }
    }
    assert_eq!(only(&mut world).state, "suspended", "in bounded time, whatever the grant said");
}

#[test]
fn without_the_card_in_a_reader_there_is_nothing() {
    let mut world = suspended();
    let offer = world.prepare_unlock(UID, user(0)).unwrap();
    let delivered = world.deliver_unlock(UID, offer.id, |_| {});
    let number = *world.searches.keys().next().unwrap();
    world.card_not_found(number);
    assert!(matches!(world.replies[&delivered], Reply::Refused(Refusal::CardGone)));
    assert_eq!(only(&mut world).state, "suspended");
}

#[test]
fn only_ones_own_and_only_what_is_suspended() {
    let (mut world, ..) = up();
    assert_eq!(world.prepare_unlock(UID, user(0)).unwrap().purpose, Purpose::Verify, "it is up");
    assert_eq!(world.prepare_unlock(UID, user(1)).unwrap().purpose, Purpose::Verify, "there is none");
    let mut world = suspended();
    assert_eq!(world.prepare_unlock(UID + 1, user(0)).unwrap().purpose, Purpose::Verify, "of another account");
    let offer = world.prepare_unlock(UID, user(0)).unwrap();
    // Another user's process has found out the offer's name: it can neither use nor spoil it.
    let stolen = world.deliver_unlock(UID + 1, offer.id, |_| {});
    assert!(matches!(world.replies[&stolen], Reply::Refused(Refusal::UnknownOffer)));
    world.ask(Request::CancelUnlock(UID + 1, offer.id));
    world.ask(Request::Cancel(offer.id));
    let delivered = world.deliver_unlock(UID, offer.id, |_| {});
    assert!(!world.replies.contains_key(&delivered), "under way");
    // Nor can it take back what came of it.
    world.ask(Request::CancelUnlock(UID + 1, offer.id));
    assert_eq!(only(&mut world).state, "granted");
    world.ask(Request::CancelUnlock(UID, offer.id));
    assert_eq!(only(&mut world).state, "suspended");
    // Root's offers are not for users, and users' not for root.
    assert_eq!(world.prepare(user(0)), Purpose::Open);
    let (roots, _) = world.offers.pop().unwrap();
    let wrong = world.deliver_unlock(UID, roots, |_| {});
    assert!(matches!(world.replies[&wrong], Reply::Refused(Refusal::UnknownOffer)));
    let users = world.prepare_unlock(UID, user(0)).unwrap().id;
    let wrong = world.deliver(users, vec![group(GROUP, 1)]);
    assert!(matches!(world.replies[&wrong], Reply::Refused(Refusal::UnknownOffer)));
    let right = world.deliver(roots, vec![group(GROUP, 1)]);
    assert!(!world.replies.contains_key(&right));
    // Meanwhile it is not suspended any more.
    let late = world.deliver_unlock(UID, users, |_| {});
    assert!(matches!(world.replies[&late], Reply::Refused(Refusal::UnknownOffer)));
}

#[test]
fn a_user_who_asks_without_end_hurts_nobody() {
    let mut world = suspended();
    let asked = (0..100).filter(|_| world.prepare_unlock(UID, user(0)).is_some()).count();
    assert_eq!(asked, 10);
    assert_eq!(world.status().iter().filter(|session| session.state == "offered").count(), 0);
    assert!(world.prepare_unlock(UID + 1, user(1)).is_some(), "others are not concerned");
    assert_eq!(world.prepare(user(1)), Purpose::Open, "nor is root");
    world.advance(Duration::from_secs(3));
    assert!(world.prepare_unlock(UID, user(0)).is_some());
    assert!(world.prepare_unlock(UID, user(0)).is_none());
    // The two newest offers count.
    assert_eq!(world.keys.values().filter(|key| key.upgrade().is_some()).count(), 3, "and root's");
}
