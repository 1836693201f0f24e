//! What those who watch are told, and what the members are called.

use std::time::Duration;

use cug_proto::{
    local::Reply,
    message::{EndReason, KeyAck},
    notice::{Happening, SessionEnd},
};

use super::{stories::up, world::*};
use crate::{core::*, names::Place};

/// What was told since the last time, in a word each.
fn told(world: &mut World) -> Vec<String> {
    let word = |what: Happening| match what {
        Happening::SessionUp => "up".to_owned(),
        Happening::SessionDown { reason, .. } => format!("down {reason:?}"),
        Happening::MemberJoined { seat, .. } => format!("{} joined", seat.member),
        Happening::MemberLeft { member, .. } => format!("{member} left"),
        Happening::MemberMoved { seat, .. } => format!("{} moved to {}", seat.member, seat.host_name),
        Happening::NewEpoch { epoch, .. } => format!("epoch {epoch}"),
        Happening::ChannelLost { cause } => format!("lost: {cause}"),
        Happening::ChannelBack { server } => format!("back: {server}"),
        Happening::GroupJoined { group } => format!("in {group}"),
        Happening::GroupLeft { group } => format!("out of {group}"),
        Happening::WaitBegan { .. } => "waits".to_owned(),
        Happening::WaitEnded { reason } => reason,
    };
    world.told.drain(..).map(|notice| word(notice.what)).collect()
}

fn names(world: &World, group: u32) -> Vec<String> {
    let zones = world.zones.iter().filter(|((_, of), _)| *of == group);
    zones.flat_map(|(_, zone)| zone.hosts.keys().cloned()).collect()
}

#[test]
fn members_are_named_and_told_of_as_they_come_and_go() {
    let (mut world, number, link, _) = up();
    assert_eq!(told(&mut world), ["up"], "who was there before is no news");
    assert_eq!(names(&world, GROUP), ["peer-2.vpn1.cug", "peer-3.vpn1.cug", "user-a.vpn1.cug"]);

    world.say(link, change(2, false, vec![peer(GROUP, 4, 60)], &[3]));
    assert_eq!(told(&mut world), ["PEER-3 left", "PEER-4 joined"]);
    assert_eq!(names(&world, GROUP), ["peer-2.vpn1.cug", "peer-4.vpn1.cug", "user-a.vpn1.cug"]);

    let mut moved = peer(GROUP, 4, 61);
    moved.host_name = "term9".parse().unwrap();
    world.say(link, change(3, false, vec![moved], &[]));
    assert_eq!(told(&mut world), ["PEER-4 moved to term9"], "the names are the same");

    let mut alike = peer(GROUP, 5, 70);
    alike.user = "peer-4".parse().unwrap();
    world.say(link, change(4, false, vec![alike], &[]));
    assert_eq!(names(&world, GROUP), ["peer-2.vpn1.cug", "user-a.vpn1.cug"], "nobody answers for another");
    told(&mut world);

    world.card_pulled(number);
    assert_eq!(told(&mut world), ["down CardRemoved"]);
    assert!(world.zones.is_empty());
}

#[test]
fn a_snapshot_that_says_the_same_is_no_news() {
    let (mut world, _, link, _) = up();
    told(&mut world);
    world.say(link, ChannelEvent::Closed { cause: "cut".into(), jitter: 0 });
    assert_eq!(told(&mut world), ["lost: cut"]);
    world.advance(Duration::from_secs(2));
    let link = *world.links.keys().last().unwrap();
    world.attach(link);
    assert_eq!(told(&mut world), ["back: two:2"]);
    world.say(link, change(9, true, vec![peer(GROUP, 2, 50)], &[]));
    assert_eq!(told(&mut world), Vec::<String>::new(), "who is missing may follow");
    world.say(link, ChannelEvent::Synced);
    assert_eq!(told(&mut world), ["PEER-3 left"]);
}

#[test]
fn groups_and_epochs_come_and_go() {
    let (mut world, number, link, _) = up();
    told(&mut world);
    world.say(link, ChannelEvent::Group(group(2, 1)));
    world.raise_all();
    assert_eq!(told(&mut world), ["in VPN2"]);
    assert_eq!(names(&world, 2), ["user-a.vpn2.cug"]);
    world.say(link, ChannelEvent::Group(group(GROUP, 2)));
    world.say(link, ChannelEvent::Activate(KeyAck { group: GROUP, epoch: 2 }));
    assert_eq!(told(&mut world), ["epoch 2"]);
    world.say(link, ChannelEvent::Left(2));
    assert_eq!(told(&mut world), ["out of VPN2"]);
    assert!(names(&world, 2).is_empty());
    world.say(link, ChannelEvent::Ended(EndReason::Displaced("term7".parse().unwrap())));
    let [notice] = world.told.as_slice() else { panic!("one notice") };
    let Happening::SessionDown { reason: SessionEnd::Displaced, elsewhere: Some(host), .. } = &notice.what else {
        panic!("{notice:?}")
    };
    assert_eq!(host.as_str(), "term7");
    assert!(world.tunnels[&number].falling);
}

#[test]
fn the_status_says_what_was_measured() {
    let (mut world, number, link, _) = up();
    let place = Place::Nobody("the disk is full".into());
    world.event(Event::Names { number, group: GROUP, place });
    world.now = world.now + Duration::from_secs(10);
    let session = world.status().remove(0);
    assert_eq!((session.lease_left_ms, session.channel_since_ms), (Some(80_000), Some(10_000)));
    assert_eq!((session.open, session.card_watched, session.channel_error), (Some(true), Some(true), None));
    assert_eq!(session.leaders.unwrap()[0].pid, 101);
    let names = session.names.unwrap();
    assert_eq!((names[0].domain.as_str(), names[0].problem.as_deref()), ("vpn1.cug", Some("the disk is full")));

    world.say(link, ChannelEvent::Closed { cause: "cut".into(), jitter: 0 });
    world.now = world.now + Duration::from_millis(1);
    let session = world.status().remove(0);
    assert!(!session.attached && session.open == Some(true), "the tunnel stands, the server is away");
    assert_eq!((session.channel_since_ms, session.channel_error.as_deref()), (Some(1), Some("cut")));

    let token = world.ask(Request::Watch(Viewer::User(user(1))));
    let Some(Reply::WatchStarted(status)) = world.replies.remove(&token) else { panic!("no start") };
    assert!(status.sessions.is_empty(), "another user's session");
}
