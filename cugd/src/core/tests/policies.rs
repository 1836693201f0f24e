//! A group's policy, and what is left over at the end.

use std::time::Duration;

use cug_proto::{
    local::Reply,
    message::{ClientMessage, GroupGrant, KeyAck},
    policy::Policy,
};

use super::world::*;
use crate::core::*;

fn closed(allowed: &[&str]) -> Policy {
    Policy::Closed(allowed.iter().map(|text| text.parse().unwrap()).collect())
}

fn with(epoch: u32, policy: &Policy) -> GroupGrant {
    GroupGrant { policy: policy.clone(), ..group(GROUP, epoch) }
}

/// USER-A granted and attached, not open.
fn granted(policy: &Policy) -> (World, Number, LinkId) {
    let mut world = World::new();
    world.prepare(user(0));
    let (offer, _) = world.offers.pop().unwrap();
    world.deliver(offer, vec![with(2, policy)]);
    let number = *world.watches.keys().last().unwrap();
    world.watch_starts(number);
    world.advance(ATTACH_DELAY);
    let link = *world.links.keys().last().unwrap();
    world.attach(link);
    world.say(link, ChannelEvent::Synced);
    (world, number, link)
}

fn acks(world: &World, link: LinkId) -> usize {
    let sent = &world.links[&link].sent;
    sent.iter().filter(|message| matches!(message, ClientMessage::KeyAck(KeyAck { group: GROUP, .. }))).count()
}

#[test]
fn a_policy_counts_from_the_first_packet() {
    let policy = closed(&["192.0.2.0/24:53"]);
    let (mut world, number, _) = granted(&policy);
    world.open(user(0), leader(1));
    assert_eq!(world.tunnels[&number].policies[&GROUP], policy);
}

#[test]
fn a_change_reaches_the_running_session_at_once_and_is_acknowledged() {
    let (mut world, number, link) = granted(&Policy::Open);
    world.open(user(0), leader(1));
    for (epoch, policy, holds) in [
        (2, closed(&[]), closed(&[])),
        (2, closed(&["192.0.2.7"]), closed(&["192.0.2.7"])),
        // A new key comes with a policy: that does not wait for the key's turn.
        (3, Policy::Open, Policy::Open),
        (2, closed(&["192.0.2.8"]), closed(&["192.0.2.8"])),
        // What belongs to an epoch that is over counts for nothing.
        (1, Policy::Open, closed(&["192.0.2.8"])),
    ] {
        world.say(link, ChannelEvent::Group(with(epoch, &policy)));
        assert_eq!(world.tunnels[&number].policies[&GROUP], holds, "epoch {epoch}");
    }
    assert_eq!(acks(&world, link), 4, "all but the old one");
}

#[test]
fn a_change_before_the_session_is_open_is_kept() {
    let (mut world, number, link) = granted(&Policy::Open);
    world.say(link, ChannelEvent::Group(with(2, &closed(&[]))));
    world.open(user(0), leader(1));
    assert_eq!(world.tunnels[&number].policies[&GROUP], closed(&[]));
}

#[test]
fn a_policy_that_makes_no_sense_lets_nothing_pass() {
    let (mut world, number, link) = granted(&Policy::Open);
    world.open(user(0), leader(1));
    world.say(link, ChannelEvent::Group(with(2, &senseless())));
    assert_eq!(world.tunnels[&number].policies[&GROUP], closed(&[]));
}

/// An IPv4 network with a prefix of 64 bits, as only the wire can carry it.
fn senseless() -> Policy {
    let sound = minicbor::to_vec(closed(&["192.0.2.0/24"])).unwrap();
    // The length is the one 24 (0x18 0x18) of the encoding.
    let at = sound.windows(2).rposition(|pair| pair == [0x18, 0x18]).unwrap();
    let mut bytes = sound;
    bytes[at + 1] = 64;
    minicbor::decode(&bytes).unwrap()
}

#[test]
fn what_is_left_over_is_counted() {
    let (mut world, number, _) = granted(&Policy::Open);
    world.open(user(0), leader(1));
    world.card_pulled(number);
    world.tunnels.remove(&number);
    let leftovers = vec!["interface cug0".to_owned(), "packet filter table inet cug".to_owned()];
    world.event(Event::Tunnel { number, event: TunnelEvent::Down { leftovers } });
    world.advance(Duration::from_millis(1));
    let token = world.ask(Request::Status(Viewer::All));
    let Some(Reply::Status(status)) = world.replies.remove(&token) else { panic!("no status") };
    assert_eq!((status.teardowns, status.leftovers), (1, 2));
}
