//! Random sequences of everything that can happen.

use std::{collections::BTreeMap, time::Duration};

use cug_proto::{
    id::UserId,
    local::{OfferId, Reply},
    message::{EndReason, KeyAck, Purpose},
};
use proptest::prelude::*;

use super::world::*;
use crate::core::*;

/// `usize`s pick one of what is there.
#[derive(Debug, Clone)]
enum Happening {
    Prepare(usize),
    Deliver(usize, u32),
    Cancel(usize),
    Open(usize, u32),
    Close(usize, u32),
    Die(u32),
    WatchStarts(usize),
    CardPulled(usize),
    Raise,
    TunnelFails(usize),
    Lose,
    Fall,
    Attach(usize),
    Synced(usize),
    Answer(usize),
    Peers(usize, u64, bool, Vec<(u8, u8)>, Vec<u8>),
    Key(usize, u32, u32),
    Activate(usize, u32),
    Left(usize, u32),
    Ended(usize),
    Closed(usize, u32),
    Wait(u64),
    Moved(u8),
    CutOff,
    Seen(usize, u8, u64, u64),
    Look,
    OsSessionGone(u32),
    Sleep,
    Wake,
    CardFound(usize),
    CardNotFound(usize),
    Unlock(usize, bool),
    DeliverUnlock(usize),
    CancelUnlock(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let n = || 0usize..4;
    prop_oneof![
        3 => n().prop_map(Prepare),
        4 => (n(), 1u32..3).prop_map(|(n, groups)| Deliver(n, groups)),
        1 => n().prop_map(Cancel),
        5 => (n(), 0u32..4).prop_map(|(n, l)| Open(n, l)),
        2 => (n(), 0u32..4).prop_map(|(n, l)| Close(n, l)),
        1 => (0u32..4).prop_map(Die),
        6 => n().prop_map(WatchStarts),
        1 => n().prop_map(CardPulled),
        6 => Just(Raise),
        1 => n().prop_map(TunnelFails),
        2 => Just(Lose),
        4 => Just(Fall),
        5 => n().prop_map(Attach),
        5 => n().prop_map(Synced),
        6 => n().prop_map(Answer),
        4 => (n(), 0u64..9, any::<bool>(), prop::collection::vec((0u8..6, 90u8..110), 0..4), prop::collection::vec(0u8..6, 0..3))
            .prop_map(|(n, revision, full, present, gone)| Peers(n, revision, full, present, gone)),
        2 => (n(), 1u32..4, 1u32..4).prop_map(|(n, g, e)| Key(n, g, e)),
        2 => (n(), 1u32..4).prop_map(|(n, e)| Activate(n, e)),
        1 => (n(), 1u32..3).prop_map(|(n, g)| Left(n, g)),
        1 => n().prop_map(Ended),
        2 => (n(), any::<u32>()).prop_map(|(n, j)| Closed(n, j)),
        3 => (1u64..20_000).prop_map(Wait),
        2 => (1u8..4).prop_map(Moved),
        1 => Just(CutOff),
        3 => (n(), 90u8..110, 0u64..3, 0u64..3).prop_map(|(n, key, received, sent)| Seen(n, key, received, sent)),
        1 => Just(Look),
        1 => (0u32..4).prop_map(OsSessionGone),
        1 => Just(Sleep),
        2 => Just(Wake),
        4 => n().prop_map(CardFound),
        1 => n().prop_map(CardNotFound),
        4 => (n(), any::<bool>()).prop_map(|(n, own)| Unlock(n, own)),
        4 => n().prop_map(DeliverUnlock),
        1 => n().prop_map(CancelUnlock),
    ]
}

/// A world, and what each OS session is owed.
struct Run {
    world: World,
    opens: BTreeMap<Token, (UserId, Leader)>,
    held: BTreeMap<(UserId, Leader), u32>,
    unlocks: Vec<(u32, OfferId)>,
}

impl Run {
    fn new() -> Self {
        let world = World::with_removal(Removal::Logout, 7);
        Self { world, opens: BTreeMap::new(), held: BTreeMap::new(), unlocks: Vec::new() }
    }
}

impl Run {
    #[expect(clippy::too_many_lines, reason = "one line for each thing that can happen")]
    fn happen(&mut self, happening: Happening) {
        let world = &mut self.world;
        let pick = |n: usize, len: usize| if len == 0 { None } else { Some(n % len) };
        let number =
            |n: usize, world: &World| pick(n, world.watches.len()).and_then(|i| world.watches.keys().nth(i).copied());
        let link =
            |n: usize, world: &World| pick(n, world.links.len()).and_then(|i| world.links.keys().nth(i).copied());
        let say = |n: usize, event: ChannelEvent, world: &mut World| {
            if let Some(link) = link(n, world) {
                world.say(link, event);
            }
        };
        match happening {
            Happening::Prepare(n) => drop(world.prepare(user(n))),
            Happening::Deliver(n, groups) => {
                if let Some(i) = pick(n, world.offers.len()) {
                    let (offer, _) = world.offers.remove(i);
                    world.deliver(offer, (1..=groups).map(|id| group(id, 1)).collect());
                }
            }
            Happening::Cancel(n) => {
                let offers: Vec<_> = world.keys.keys().copied().collect();
                if let Some(i) = pick(n, offers.len()) {
                    world.ask(Request::Cancel(offers[offers.len() - 1 - i]));
                }
            }
            Happening::Open(n, l) => {
                let token = world.open(user(n), leader(l));
                self.opens.insert(token, (user(n), leader(l)));
            }
            Happening::Close(n, l) => {
                let opening = self.opens.values().any(|who| *who == (user(n), leader(l)));
                world.ask(Request::Close(user(n), leader(l)));
                self.settle();
                if !opening {
                    self.give_back(user(n), leader(l));
                }
            }
            Happening::Die(l) => {
                self.held.retain(|(_, own), _| *own != leader(l));
                // Nobody is told of a process that is not watched.
                if world.leaders.contains(&leader(l)) {
                    world.event(Event::LeaderDied(leader(l)));
                    self.settle();
                    self.held.retain(|(_, own), _| *own != leader(l));
                }
            }
            Happening::WatchStarts(n) => number(n, world).into_iter().for_each(|number| world.watch_starts(number)),
            Happening::CardPulled(n) => number(n, world).into_iter().for_each(|number| world.card_pulled(number)),
            Happening::Raise => world.raise_all(),
            Happening::TunnelFails(n) => {
                if let Some(number) = pick(n, world.tunnels.len()).and_then(|i| world.tunnels.keys().nth(i).copied()) {
                    world.event(Event::Tunnel { number, event: TunnelEvent::Failed("broken".into()) });
                }
            }
            Happening::Lose => world.lose_all(),
            Happening::Fall => world.fall_all(),
            Happening::Attach(n) => link(n, world).into_iter().for_each(|link| world.attach(link)),
            Happening::Synced(n) => say(n, ChannelEvent::Synced, world),
            Happening::Answer(n) => link(n, world).into_iter().for_each(|link| world.answer(link)),
            Happening::Peers(n, revision, full, present, gone) => {
                let present = present.into_iter().map(|(who, key)| peer(GROUP, who, key)).collect();
                say(n, change(revision, full, present, &gone), world);
            }
            Happening::Key(n, id, epoch) => say(n, ChannelEvent::Group(group(id, epoch)), world),
            Happening::Activate(n, epoch) => say(n, ChannelEvent::Activate(KeyAck { group: GROUP, epoch }), world),
            Happening::Left(n, group) => say(n, ChannelEvent::Left(group), world),
            Happening::Ended(n) => {
                if let Some(link) = link(n, world) {
                    world.say(link, ChannelEvent::Ended(EndReason::Administrator));
                    world.say(link, ChannelEvent::Closed { cause: "over".into(), jitter: 0 });
                }
            }
            Happening::Closed(n, jitter) => say(n, ChannelEvent::Closed { cause: "reset".into(), jitter }, world),
            Happening::Wait(ms) => world.advance(Duration::from_millis(ms)),
            Happening::Moved(n) => {
                // Sometimes behind a router.
                world.seen = [10, 0, 0, n / 2 * 2].into();
                world.event(Event::Addresses(vec![IpNet::new([10, 0, 0, n].into(), 24).unwrap()]));
            }
            Happening::CutOff => world.event(Event::Addresses(vec![])),
            Happening::Seen(n, key, received, sent) => {
                if let Some(number) = pick(n, world.tunnels.len()).and_then(|i| world.tunnels.keys().nth(i).copied()) {
                    let sight = Sight { received, sent, ..Sight::default() };
                    let event = TunnelEvent::Seen { group: GROUP, sights: vec![([key; 32], sight)] };
                    world.event(Event::Tunnel { number, event });
                }
            }
            Happening::OsSessionGone(l) => {
                world.logind(LogindEvent::SessionRemoved(format!("s{}", leader(l).pid)));
                self.settle();
                self.held.retain(|(_, own), _| *own != leader(l));
            }
            Happening::Sleep => world.logind(LogindEvent::Sleep(true)),
            Happening::Wake => world.logind(LogindEvent::Sleep(false)),
            Happening::CardFound(n) | Happening::CardNotFound(n) => {
                let search = pick(n, world.searches.len()).and_then(|i| world.searches.keys().nth(i).copied());
                match (search, happening) {
                    (Some(number), Happening::CardFound(_)) => world.card_found(number),
                    (Some(number), _) => world.card_not_found(number),
                    (None, _) => {}
                }
            }
            Happening::Unlock(n, own) => {
                let uid = if own { UID } else { UID + 1 };
                let offer = world.prepare_unlock(uid, user(n)).filter(|offer| offer.purpose == Purpose::Open);
                self.unlocks.extend(offer.map(|offer| (uid, offer.id)));
            }
            Happening::DeliverUnlock(n) => {
                if let Some(i) = pick(n, self.unlocks.len()) {
                    let (uid, offer) = self.unlocks.remove(i);
                    world.deliver_unlock(uid, offer, |_| {});
                }
            }
            Happening::CancelUnlock(n) => {
                if let Some((uid, offer)) = pick(n, self.unlocks.len()).map(|i| self.unlocks[i]) {
                    world.ask(Request::CancelUnlock(uid, offer));
                }
            }
            Happening::Look => drop(world.ask(Request::Peers(Viewer::All))),
        }
        self.settle();
        self.count();
    }

    /// An `Open` that was answered with `Opened` holds the session.
    fn settle(&mut self) {
        let answered: Vec<Token> =
            self.opens.keys().filter(|token| self.world.replies.contains_key(token)).copied().collect();
        for token in answered {
            let who = self.opens.remove(&token).unwrap();
            if matches!(self.world.replies[&token], Reply::Opened(_)) {
                *self.held.entry(who).or_default() += 1;
            }
        }
    }

    fn give_back(&mut self, user: UserId, leader: Leader) {
        let who = (user, leader);
        if let Some(count) = self.held.get_mut(&who) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&who);
            }
        }
    }

    /// The core counts as the model does, where no answer is on its way.
    fn count(&mut self) {
        for session in self.world.status() {
            let on_its_way = self.opens.values().any(|(user, _)| *user == session.user);
            if !on_its_way && session.state != "offered" {
                let held: u32 =
                    self.held.iter().filter(|((user, _), _)| *user == session.user).map(|(_, count)| count).sum();
                assert_eq!(session.os_sessions, held, "{}", session.user);
            }
        }
    }

    /// Everything that was begun comes to its end by itself: processes end, time passes.
    fn run_out(&mut self) {
        self.happen(Happening::Wake);
        for l in 0..4 {
            self.happen(Happening::Die(l));
        }
        for _ in 0..400 {
            self.world.fall_all();
            self.world.advance(Duration::from_secs(1));
        }
    }

    fn assert_nothing_left(&self) {
        let world = &self.world;
        assert!(world.state.is_idle() && world.state.deadline().is_none());
        assert!(
            world.watches.is_empty()
                && world.searches.is_empty()
                && world.tunnels.is_empty()
                && world.links.is_empty()
                && world.leaders.is_empty()
        );
        assert!(world.outstanding.is_empty(), "a request without an answer");
        assert!(world.keys.values().all(|key| key.upgrade().is_none()), "a private key is left");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_left_when_all_have_gone(happenings in prop::collection::vec(happening(), 0..120)) {
        let mut run = Run::new();
        happenings.into_iter().for_each(|happening| run.happen(happening));
        run.run_out();
        run.assert_nothing_left();
    }

    #[test]
    fn nothing_is_left_after_a_stop(happenings in prop::collection::vec(happening(), 0..120)) {
        let mut run = Run::new();
        happenings.into_iter().for_each(|happening| run.happen(happening));
        run.world.event(Event::Shutdown);
        run.world.fall_all();
        run.world.advance(FALL_TIME);
        assert!(run.world.exited);
        run.assert_nothing_left();
    }
}
