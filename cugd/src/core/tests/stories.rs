//! What happens at a workstation, told once each.

use std::time::Duration;

use cug_proto::{
    local::{Refusal, Reply, SessionStatus},
    message::{ClearReason, ClientMessage, EndReason, KeyAck, Purpose},
    session::preshared_key,
};

use super::world::*;
use crate::core::*;

/// USER-A logged in and up, with two peers in group 1.
pub fn up() -> (World, Number, LinkId, Token) {
    up_in(World::new())
}

/// The same in a world with other settings.
pub fn up_in(mut world: World) -> (World, Number, LinkId, Token) {
    let (number, link) = granted(&mut world);
    let opened = world.open(user(0), leader(1));
    assert!(!world.replies.contains_key(&opened), "not before all is up");
    world.raise_all();
    world.answer(link);
    (world, number, link, opened)
}

pub fn granted(world: &mut World) -> (Number, LinkId) {
    assert_eq!(world.prepare(user(0)), Purpose::Open);
    let (offer, _) = world.offers.pop().unwrap();
    let delivered = world.deliver(offer, vec![group(GROUP, 1)]);
    assert!(!world.replies.contains_key(&delivered), "not before the card is watched");
    let number = *world.watches.keys().last().unwrap();
    world.watch_starts(number);
    assert!(world.links.is_empty(), "the server does not know the session yet");
    world.advance(ATTACH_DELAY);
    let link = *world.links.keys().last().unwrap();
    world.attach(link);
    world.say(link, change(1, true, vec![peer(GROUP, 2, 50), peer(GROUP, 3, 150)], &[]));
    world.say(link, ChannelEvent::Synced);
    (number, link)
}

pub fn only(world: &mut World) -> SessionStatus {
    let mut sessions = world.status();
    assert_eq!(sessions.len(), 1);
    sessions.remove(0)
}

/// root's `su`, a job of the user's: they neither open, nor use up, nor keep what a login with the card brought.
#[test]
fn a_session_without_a_login_holds_nothing() {
    let mut world = World::new();
    let (number, link) = granted(&mut world);
    let early = world.join(user(0), leader(7));
    assert!(matches!(world.replies[&early], Reply::NoGrant) && world.tunnels.is_empty());
    let opened = world.open(user(0), leader(1));
    let meanwhile = world.join(user(0), leader(7));
    assert!(matches!(world.replies[&meanwhile], Reply::NoGrant));
    world.raise_all();
    world.answer(link);
    assert!(matches!(world.replies[&opened], Reply::Opened(_)));
    let joined = world.join(user(0), leader(7));
    assert!(matches!(&world.replies[&joined], Reply::Opened(opened) if opened.groups.len() == 1));
    assert_eq!(only(&mut world).os_sessions, 1);
    let closed = world.ask(Request::Close(user(0), leader(7)));
    assert!(matches!(world.replies[&closed], Reply::Done) && !world.tunnels[&number].falling);
    world.join(user(0), leader(8));
    world.ask(Request::Close(user(0), leader(1)));
    assert!(world.tunnels[&number].falling, "the other session does not keep it");
}

#[test]
fn log_in_and_out() {
    let (mut world, number, link, opened) = up();
    assert!(matches!(&world.replies[&opened], Reply::Opened(opened) if opened.groups[0].interface.starts_with("cug")));
    assert_eq!(world.tunnels[&number].peers.len(), 2);
    assert!(matches!(world.links[&link].sent.as_slice(), [ClientMessage::Endpoints(_), ClientMessage::Heartbeat(_)]));
    assert_eq!(only(&mut world).state, "up");

    let closed = world.ask(Request::Close(user(0), leader(1)));
    assert!(world.watches.is_empty() && world.tunnels[&number].falling);
    assert!(!world.replies.contains_key(&closed) && world.links[&link].farewell.is_none(), "the tunnel first");
    world.lose_all();
    assert_eq!(world.links[&link].farewell, Some(ClearReason::LoggedOut), "the others wait for nothing more");
    assert!(!world.replies.contains_key(&closed), "but for the person it is over when all is gone");
    world.fall_all();
    assert!(matches!(world.replies[&closed], Reply::Done));
    world.answer(link);
    assert!(world.state.is_idle() && world.leaders.is_empty());
}

#[test]
fn a_tunnel_is_expected_when_a_login_begins_that_may_open_one() {
    let (mut world, ..) = up();
    assert_eq!(world.expected, 1);
    assert_eq!(world.prepare(user(0)), Purpose::Verify);
    assert_eq!(world.expected, 1, "a mere check opens nothing");
}

#[test]
fn a_card_that_is_faster_than_the_channel_is_still_told_to_the_server() {
    let mut world = World::new();
    world.prepare(user(0));
    let (offer, _) = world.offers.pop().unwrap();
    world.deliver(offer, vec![group(GROUP, 1)]);
    world.watch_starts(Number(1));
    world.card_pulled(Number(1));
    let (&link, said) = world.links.iter().next().expect("a connection to say goodbye");
    assert_eq!(said.farewell, Some(ClearReason::CardRemoved));
    world.answer(link);
    assert!(world.links.is_empty(), "the connection was for that only");
}

#[test]
fn the_delivery_is_answered_when_the_card_is_watched() {
    let mut world = World::new();
    world.prepare(user(0));
    let (offer, _) = world.offers.pop().unwrap();
    let delivered = world.deliver(offer, vec![group(GROUP, 1)]);
    world.watch_starts(Number(1));
    assert!(matches!(world.replies[&delivered], Reply::Delivered(false)));
    assert!(world.tunnels.is_empty(), "nobody has opened it");
    let again = world.deliver(offer, vec![group(GROUP, 1)]);
    assert!(matches!(world.replies[&again], Reply::Refused(Refusal::UnknownOffer)), "an offer is used once");
}

#[test]
fn the_card_is_pulled_and_comes_back() {
    let (mut world, number, link, _) = up();
    world.card_pulled(number);
    assert!(world.tunnels[&number].falling, "at once");
    assert_eq!(only(&mut world).state, "suspended");
    world.fall_all();
    assert_eq!(world.links[&link].farewell, Some(ClearReason::CardRemoved));
    world.answer(link);

    // The screen locker logs in again; nothing is opened, the group is there with the answer.
    assert_eq!(world.prepare(user(0)), Purpose::Open);
    let (offer, _) = world.offers.pop().unwrap();
    let delivered = world.deliver(offer, vec![group(GROUP, 1)]);
    world.watch_starts(*world.watches.keys().last().unwrap());
    world.raise_all();
    assert!(matches!(world.replies[&delivered], Reply::Delivered(true)), "the server comes after that");
    world.advance(ATTACH_DELAY);
    let link = *world.links.keys().last().unwrap();
    world.attach(link);
    world.say(link, ChannelEvent::Synced);
    world.answer(link);
    assert_eq!((only(&mut world).state.as_str(), only(&mut world).os_sessions), ("up", 1));
}

#[test]
fn the_server_hears_of_the_login_late() {
    let mut world = World::new();
    world.prepare(user(0));
    let (offer, _) = world.offers.pop().unwrap();
    world.deliver(offer, vec![group(GROUP, 1)]);
    world.watch_starts(Number(1));
    let opened = world.open(user(0), leader(1));
    let link = *world.links.keys().next().expect("attached with Open at the latest");
    world.say(link, ChannelEvent::Ended(EndReason::Unknown));
    world.raise_all();
    world.advance(Duration::from_secs(1));
    let link = *world.links.keys().next().expect("tried again");
    world.attach(link);
    world.say(link, ChannelEvent::Synced);
    world.answer(link);
    assert!(matches!(world.replies[&opened], Reply::Opened(_)));
    // Later the same word is an end.
    world.say(link, ChannelEvent::Ended(EndReason::Unknown));
    assert!(world.tunnels[&Number(1)].falling);
}

#[test]
fn a_suspended_session_goes_with_its_leader() {
    let (mut world, number, ..) = up();
    world.card_pulled(number);
    world.fall_all();
    world.event(Event::LeaderDied(leader(1)));
    assert!(world.status().is_empty() && world.leaders.is_empty());
}

#[test]
fn the_card_is_pulled_before_the_session_is_opened() {
    let mut world = World::new();
    let (number, link) = granted(&mut world);
    world.card_pulled(number);
    assert_eq!(world.links[&link].farewell, Some(ClearReason::CardRemoved));
    let opened = world.open(user(0), leader(1));
    assert!(matches!(world.replies[&opened], Reply::Refused(Refusal::CardGone)), "not taken for a local user");
    assert!(world.leaders.is_empty());
}

#[test]
fn a_grant_that_nobody_opens_is_given_back() {
    let mut world = World::new();
    let (_, link) = granted(&mut world);
    world.advance(Duration::from_secs(59));
    assert_eq!(only(&mut world).state, "granted");
    world.advance(Duration::from_secs(1));
    assert_eq!(world.links[&link].farewell, Some(ClearReason::NotOpened));
    assert!(world.watches.is_empty());
    let opened = world.open(user(0), leader(1));
    assert!(matches!(world.replies[&opened], Reply::NoGrant));
}

#[test]
fn two_os_sessions_hold_one_tunnel() {
    let (mut world, number, ..) = up();
    assert_eq!(world.prepare(user(0)), Purpose::Verify);
    assert!(world.offers.is_empty());
    let second = world.open(user(0), leader(2));
    assert!(matches!(world.replies[&second], Reply::Opened(_)), "at once");
    assert_eq!(only(&mut world).os_sessions, 2);
    let closed = world.ask(Request::Close(user(0), leader(1)));
    assert!(matches!(world.replies[&closed], Reply::Done) && !world.tunnels[&number].falling);
    let foreign = world.ask(Request::Close(user(0), leader(3)));
    assert!(matches!(world.replies[&foreign], Reply::Done) && !world.tunnels[&number].falling);
    world.event(Event::LeaderDied(leader(2)));
    assert!(world.tunnels[&number].falling);
}

#[test]
fn a_server_that_is_away_does_not_end_a_session_before_its_lease() {
    let (mut world, number, link, _) = up();
    world.say(link, ChannelEvent::Closed { cause: "reset".into(), jitter: 0 });
    for _ in 0..100 {
        world.advance(Duration::from_millis(800));
        if let Some(link) = world.links.keys().next().copied() {
            assert_eq!(world.links[&link].known, 1, "changes only");
            world.say(link, ChannelEvent::Closed { cause: "refused".into(), jitter: 7 });
        }
        assert!(!world.tunnels[&number].falling);
    }
    let second = world.open(user(0), leader(2));
    assert!(matches!(world.replies[&second], Reply::Opened(_)), "P10");
    world.advance(Duration::from_secs(11));
    assert!(world.tunnels[&number].falling, "the lease is over");
    assert_eq!(only(&mut world).state, "suspended");
}

#[test]
fn attaching_again_renews_the_lease_and_brings_changes() {
    let (mut world, number, link, _) = up();
    world.say(link, ChannelEvent::Closed { cause: "reset".into(), jitter: 0 });
    world.advance(Duration::from_secs(2));
    let link = *world.links.keys().next().unwrap();
    world.attach(link);
    // A snapshot without PEER-2: gone only when it is complete.
    world.say(link, change(9, true, vec![peer(GROUP, 3, 150)], &[]));
    assert_eq!(world.tunnels[&number].peers.len(), 2);
    world.say(link, ChannelEvent::Synced);
    assert_eq!(world.tunnels[&number].peers.keys().collect::<Vec<_>>(), [&(GROUP, [150; 32])]);
    assert!(matches!(world.links[&link].sent[0], ClientMessage::Endpoints(_)), "announced anew");
}

#[test]
fn the_server_does_not_answer_while_opening() {
    let mut world = World::new();
    world.prepare(user(0));
    let (offer, _) = world.offers.pop().unwrap();
    world.deliver(offer, vec![group(GROUP, 1)]);
    world.watch_starts(Number(1));
    let opened = world.open(user(0), leader(1));
    world.raise_all();
    world.advance(Duration::from_secs(5));
    assert!(matches!(world.replies[&opened], Reply::Refused(Refusal::ServerAway)));
    assert!(world.tunnels[&Number(1)].falling && world.leaders.is_empty() && world.status().is_empty());
}

#[test]
fn the_tunnel_fails_while_opening() {
    let mut world = World::new();
    let (number, link) = granted(&mut world);
    let opened = world.open(user(0), leader(1));
    world.event(Event::Tunnel { number, event: TunnelEvent::Failed("no /dev/net/tun".into()) });
    assert!(matches!(world.replies[&opened], Reply::Refused(Refusal::TunnelFailed)));
    world.fall_all();
    assert_eq!(world.links[&link].farewell, Some(ClearReason::TunnelFailed));
    assert!(world.leaders.is_empty());
}

#[test]
fn the_user_logs_in_elsewhere() {
    let (mut world, number, link, _) = up();
    world.say(link, ChannelEvent::Ended(EndReason::Displaced("term9".parse().unwrap())));
    assert!(world.tunnels[&number].falling && world.links.is_empty());
    assert_eq!(only(&mut world).state, "suspended");
}

#[test]
fn members_come_move_and_go() {
    let (mut world, number, link, _) = up();
    // PEER-2 logs in at another terminal: same address, another key.
    world.say(link, change(2, false, vec![peer(GROUP, 2, 51)], &[]));
    assert!(world.tunnels[&number].peers.contains_key(&(GROUP, [51; 32])));
    assert!(!world.tunnels[&number].peers.contains_key(&(GROUP, [50; 32])));
    world.say(link, change(3, false, vec![], &[2]));
    assert_eq!(world.tunnels[&number].peers.len(), 1);
}

#[test]
fn a_list_that_lies_harms_nobody() {
    let (mut world, number, link, _) = up();
    let mut outside = peer(GROUP, 4, 60);
    outside.address4 = "10.0.0.1".parse().unwrap();
    let mut thief = peer(GROUP, 5, 61);
    thief.address6 = peer(GROUP, 3, 150).address6;
    let us = peer(GROUP, 1, 62);
    let twin = peer(GROUP, 6, 100);
    world.say(link, change(2, false, vec![outside, thief, us, twin, peer(GROUP, 7, 63)], &[]));
    let keys: Vec<u8> = world.tunnels[&number].peers.keys().map(|(_, key)| key[0]).collect();
    assert_eq!(keys, [50, 63, 150]);
}

#[test]
fn the_key_turns() {
    let (mut world, number, link, _) = up();
    let psk =
        |epoch: u8, peer: u8| *preshared_key(&key(epoch), GROUP, u32::from(epoch), &[100; 32], &[peer; 32]).expose();
    assert_eq!(world.tunnels[&number].peers[&(GROUP, [150; 32])], psk(1, 150));
    world.say(link, ChannelEvent::Group(group(GROUP, 2)));
    assert!(matches!(world.links[&link].sent.last(), Some(ClientMessage::KeyAck(KeyAck { group: GROUP, epoch: 2 }))));
    assert_eq!(world.tunnels[&number].peers[&(GROUP, [150; 32])], psk(1, 150), "not before all have it");
    world.say(link, ChannelEvent::Activate(KeyAck { group: GROUP, epoch: 2 }));
    for peer in [50, 150] {
        assert_eq!(world.tunnels[&number].peers[&(GROUP, [peer; 32])], psk(2, peer));
    }
    assert_eq!(only(&mut world).groups[0].epoch, 2);
    // An old key changes nothing, an epoch that is not known is asked for by attaching again.
    world.say(link, ChannelEvent::Group(group(GROUP, 1)));
    world.say(link, ChannelEvent::Activate(KeyAck { group: GROUP, epoch: 1 }));
    assert_eq!(only(&mut world).groups[0].epoch, 2);
    world.say(link, ChannelEvent::Activate(KeyAck { group: GROUP, epoch: 3 }));
    assert!(world.links.is_empty() && !world.tunnels[&number].falling);
}

#[test]
fn only_the_smaller_key_begins_the_handshake() {
    let (mut world, _, link, _) = up();
    world.say(link, ChannelEvent::Group(group(GROUP, 2)));
    let order = ChannelEvent::Activate(KeyAck { group: GROUP, epoch: 2 });
    let now = world.now;
    let actions = step(&mut world.state, now, Event::Channel { link, event: order });
    let begin = actions.into_iter().find_map(|action| match action {
        Action::Rekey { begin, .. } => Some(begin),
        _ => None,
    });
    assert_eq!(begin, Some(vec![[150; 32]]));
}

#[test]
fn groups_are_joined_and_left_during_the_session() {
    let (mut world, number, link, _) = up();
    world.say(link, ChannelEvent::Group(group(2, 1)));
    world.raise_all();
    assert_eq!(world.tunnels[&number].raised.len(), 2);
    assert!(world.links[&link].sent.iter().any(|m| matches!(m, ClientMessage::Endpoints(e) if e.ports.len() == 2)));
    world.say(link, ChannelEvent::Left(GROUP));
    assert_eq!(world.tunnels[&number].ordered.iter().collect::<Vec<_>>(), [&2]);
    world.say(link, ChannelEvent::Left(2));
    assert!(world.tunnels[&number].falling);
}

#[test]
fn a_login_is_taken_back() {
    let mut world = World::new();
    world.prepare(user(0));
    let (offer, _) = world.offers.pop().unwrap();
    world.deliver(offer, vec![group(GROUP, 1)]);
    world.watch_starts(Number(1));
    let cancelled = world.ask(Request::Cancel(offer));
    assert!(world.watches.is_empty() && world.status().is_empty());
    assert!(!world.replies.contains_key(&cancelled), "the guard still stands");
    world.fall_all();
    assert!(matches!(world.replies[&cancelled], Reply::Done));
}

#[test]
fn the_service_stops() {
    let (mut world, _, link, _) = up();
    world.event(Event::Shutdown);
    assert!(!world.exited && world.leaders.is_empty());
    world.fall_all();
    assert_eq!(world.links[&link].farewell, Some(ClearReason::TerminalStopped));
    world.advance(FAREWELL_TIME);
    assert!(world.exited && world.state.is_idle(), "the server has two seconds");
}

#[test]
fn nonsense_from_the_server_is_refused() {
    let mut world = World::new();
    let mut outside = group(GROUP, 1);
    outside.address4 = "10.0.0.1".parse().unwrap();
    for groups in [vec![], vec![outside], vec![group(1, 1), group(1, 2)], (0..33).map(|id| group(id, 1)).collect()] {
        world.prepare(user(0));
        let (offer, _) = world.offers.pop().unwrap();
        let delivered = world.deliver(offer, groups);
        assert!(matches!(world.replies[&delivered], Reply::Refused(Refusal::Malformed)));
    }
    assert!(world.state.is_idle());
}

#[test]
fn a_user_sees_only_their_own_session() {
    let (mut world, ..) = up();
    for (viewer, seen) in
        [(Viewer::User(user(0)), 1), (Viewer::User(user(1)), 0), (Viewer::Nobody, 0), (Viewer::All, 1)]
    {
        let token = world.ask(Request::Status(viewer));
        assert!(matches!(&world.replies[&token], Reply::Status(status) if status.sessions.len() == seen));
    }
}

#[test]
fn one_process_may_lead_sessions_of_two_users() {
    let mut world = World::new();
    for n in 0..2 {
        world.prepare(user(n));
        let (offer, _) = world.offers.pop().unwrap();
        world.deliver(offer, vec![group(GROUP, 1)]);
        world.watch_starts(*world.watches.keys().last().unwrap());
        world.open(user(n), leader(1));
    }
    world.raise_all();
    for link in world.links.keys().copied().collect::<Vec<_>>() {
        world.attach(link);
        world.say(link, ChannelEvent::Synced);
        world.answer(link);
    }
    assert_eq!(world.status().len(), 2);
    world.event(Event::Shutdown);
    assert!(world.leaders.is_empty());
}

fn at(address: &str) -> Event {
    Event::Addresses(vec![address.parse().unwrap()])
}

#[test]
fn a_terminal_that_moves_attaches_at_once_and_calls_those_it_talks_to() {
    let (mut world, number, link, _) = up();
    let talks = Sight { handshake: Some(Duration::from_secs(3)), received: 900, sent: 900, endpoint: None };
    let sights = vec![([50; 32], talks), ([150; 32], Sight::default())];
    world.event(Event::Tunnel { number, event: TunnelEvent::Seen { group: GROUP, sights } });
    // The channel's own address is still there: it is only asked.
    world.event(Event::Addresses(vec!["10.0.0.1/24".parse().unwrap(), "10.9.0.1/24".parse().unwrap()]));
    assert_eq!(world.links[&link].checks, 1);
    assert!(
        matches!(world.links[&link].sent.last_chunk(), Some([ClientMessage::Endpoints(told), _]) if told.addresses.len() == 2)
    );
    assert_eq!(world.tunnels[&number].calls, [([50; 32], None)], "nobody else is called");
    // Cut off: nothing is torn down, and nothing is tried without an address.
    world.event(Event::Addresses(vec![]));
    assert!(world.links.contains_key(&link));
    world.event(at("10.9.0.1/24"));
    assert!(!world.links.contains_key(&link), "its address is gone");
    let next = *world.links.keys().next().expect("attached anew in the same step");
    world.attach(next);
    world.say(next, ChannelEvent::Synced);
    assert!(matches!(world.links[&next].sent.as_slice(), [ClientMessage::Endpoints(_), ClientMessage::Heartbeat(_)]));
    assert_eq!(only(&mut world).state, "up");
}

#[test]
fn a_network_that_comes_back_ends_the_pause() {
    let (mut world, _, link, _) = up();
    for _ in 0..9 {
        let link = world.links.keys().next().copied().unwrap_or(link);
        world.say(link, ChannelEvent::Closed { cause: "unreachable".into(), jitter: u32::MAX });
        world.advance(Duration::from_secs(6));
    }
    assert!(world.links.is_empty(), "the pause is long by now");
    world.event(at("10.0.0.1/24"));
    world.advance(SPREAD);
    assert_eq!(world.links.len(), 1);
}

#[test]
fn a_member_moves_and_only_then_its_endpoint_is_changed() {
    let (mut world, number, link, _) = up();
    let mut moved = peer(GROUP, 2, 50);
    moved.endpoints.insert(0, "10.5.0.2:51820".parse().unwrap());
    world.say(link, change(2, false, vec![moved.clone()], &[]));
    assert_eq!(world.tunnels[&number].endpoints[&[50; 32]], "10.0.0.2:51820".parse().unwrap(), "it works: it stays");
    moved.endpoints.truncate(1);
    world.say(link, change(3, false, vec![moved], &[]));
    assert_eq!(world.tunnels[&number].endpoints[&[50; 32]], "10.5.0.2:51820".parse().unwrap());
}

#[test]
fn the_next_endpoint_is_tried_when_the_first_is_silent() {
    let (mut world, number, link, _) = up();
    let mut both = peer(GROUP, 2, 51);
    both.endpoints.push("[fd00:9::2]:51820".parse().unwrap());
    world.say(link, change(2, false, vec![both], &[]));
    world.advance(Duration::from_secs(2));
    let looks = world.tunnels[&number].looks;
    assert!(looks > 0);
    for sent in [148, 148, 148] {
        let sight = Sight { sent, ..Sight::default() };
        let sights = vec![([51; 32], sight)];
        world.event(Event::Tunnel { number, event: TunnelEvent::Seen { group: GROUP, sights } });
        world.advance(Duration::from_secs(1));
    }
    assert_eq!(world.tunnels[&number].calls, [([51; 32], Some("[fd00:9::2]:51820".parse().unwrap()))]);
}
