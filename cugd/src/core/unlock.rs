//! Unlocking by programs that run as the user: a screen locker authenticates in the user's own process, which is not trusted with anything
//! that is another's.
//!
//! A user's process may ask for an offer for its own account, and deliver a grant for a session of its own that is *Suspended*. Of what it
//! delivers only the session's name and secret are used, and they prove themselves:
//!
//! * whom to trust and which servers to ask is this daemon's configuration, whatever the delivery says;
//! * which card to watch: the one that the session had, found by this daemon itself, in the readers of the configuration;
//! * the groups, their keys, addresses and policies come from the server on the session channel, and until then there is no interface. So a process
//!   cannot put an address of its choice on this machine, nor open a group that is closed;
//! * the user must be who it was: the addresses in the groups, which are each user's own, must be the same as before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use cug_proto::{
    id::{GroupId, UserId},
    local::{Deliver, LOCAL_VERSION, OfferId, Prepare, Refusal, Reply},
    message::{Fingerprint, Known, Purpose},
};

use super::{
    Action, FreshKeys, Number, OFFER_TIME, Session, Stage, State, Time, Token,
    desk::fingerprint,
    end::End,
    life::{Life, Waiter},
};

/// Most offers of one user at a time; a newer one takes the place of the oldest.
const MAX_OF_ONE: usize = 2;
/// Most offers of users in all. Root's are counted by themselves.
const MAX_OF_ALL: usize = 32;
/// Questions of one user that may come at once.
const BURST: u32 = 10;
/// Then one in this time.
const PACE: Duration = Duration::from_secs(3);
/// How long a delivery may take to be proved by the server.
const PROOF_TIME: Duration = Duration::from_secs(30);
/// How long the card may take to be found by this daemon, too.
const FIND_TIME: Duration = Duration::from_secs(3);

/// A key pair that waits for a user's own grant.
pub(super) struct Unlock {
    uid: u32,
    user: UserId,
    keys: FreshKeys,
    pub expires: Time,
}

/// How often a user has asked: what is left, and from when the next is counted.
pub(super) struct Budget {
    left: u32,
    from: Time,
}

/// What is remembered of a session's last life: by it the same person with the same card is known.
#[derive(Clone)]
pub(super) struct Former {
    /// The card.
    pub card: Fingerprint,
    /// The user's addresses in the groups.
    pub addresses: BTreeMap<GroupId, (Ipv4Addr, Ipv6Addr)>,
}

impl Former {
    pub fn of(life: &Life) -> Self {
        let addresses =
            life.groups.values().map(|group| (group.grant.id, (group.grant.address4, group.grant.address6)));
        Self { card: fingerprint(&life.card), addresses: addresses.collect() }
    }
}

/// A delivery that the server has not confirmed yet.
pub(super) struct Proof {
    former: Former,
    /// Groups to ask the server for.
    wanted: Vec<GroupId>,
    /// Groups that it named on this channel.
    heard: BTreeSet<GroupId>,
}

impl State {
    /// A user's process begins to unlock; `uid` is its own and that of `prepare.user`'s account.
    pub(super) fn prepare_unlock(&mut self, now: Time, uid: u32, prepare: &Prepare, keys: FreshKeys) -> Reply {
        if prepare.version != LOCAL_VERSION {
            return Reply::Refused(Refusal::Version);
        }
        if self.stopping || self.leaving.is_some() || !self.may_ask(now, uid) {
            return Reply::Refused(Refusal::Busy);
        }
        let user = &prepare.user;
        let suspended = self.sessions.get(user).is_some_and(|session| session.awaits_unlock(uid));
        let purpose = if suspended { Purpose::Open } else { Purpose::Verify };
        let mut offer = self.offer(user, &keys, purpose);
        offer.without_groups = true;
        if suspended {
            let own = self.unlocks.iter().filter(|(_, unlock)| unlock.uid == uid);
            let mut own: Vec<(Time, OfferId)> = own.map(|(id, unlock)| (unlock.expires, *id)).collect();
            own.sort_unstable();
            while own.len() >= MAX_OF_ONE {
                self.unlocks.remove(&own.remove(0).1);
            }
            if self.unlocks.len() >= MAX_OF_ALL {
                return Reply::Refused(Refusal::Busy);
            }
            let unlock = Unlock { uid, user: user.clone(), keys, expires: now + OFFER_TIME };
            self.unlocks.insert(offer.id, unlock);
        }
        Reply::Offer(offer)
    }

    fn may_ask(&mut self, now: Time, uid: u32) -> bool {
        // Who has not asked for long has a whole budget again, and need not be remembered.
        self.budgets.retain(|_, budget| now.since(budget.from) < PACE * BURST);
        let budget = self.budgets.entry(uid).or_insert(Budget { left: BURST, from: now });
        let earned = u32::try_from(now.since(budget.from).as_secs() / PACE.as_secs()).unwrap_or(u32::MAX);
        if earned > 0 {
            budget.left = budget.left.saturating_add(earned).min(BURST);
            budget.from = now;
        }
        let may = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        may
    }

    /// A user's process delivers.
    pub(super) fn deliver_unlock(
        &mut self,
        now: Time,
        token: Token,
        uid: u32,
        deliver: Deliver,
        out: &mut Vec<Action>,
    ) {
        let refuse = |why, out: &mut Vec<Action>| out.push(Action::Reply { token, reply: Reply::Refused(why) });
        // Another's offer is not to be had, nor to be spoilt.
        if self.unlocks.get(&deliver.offer).is_none_or(|unlock| unlock.uid != uid || unlock.expires <= now) {
            return refuse(Refusal::UnknownOffer, out);
        }
        let Some(unlock) = self.unlocks.remove(&deliver.offer) else { return refuse(Refusal::UnknownOffer, out) };
        let user = unlock.user;
        if !self.settings.ca_pins.contains(&deliver.ca_pin) {
            out.push(Action::error(&format!("the unlocking of {user} came with a card of another organisation")));
            return refuse(Refusal::ForeignCard, out);
        }
        if !self.settings.servers.contains(&deliver.server) {
            out.push(Action::error(&format!("the unlocking of {user} came from a server that is not configured here")));
            return refuse(Refusal::Malformed, out);
        }
        let number = Number(self.next());
        let taken = self.taken(&user);
        let former = self.sessions.get(&user).filter(|session| session.awaits_unlock(uid));
        let Some(former) = former.and_then(|session| session.former.clone()) else {
            return refuse(Refusal::UnknownOffer, out);
        };
        self.stand_down(&user, out);
        let Some(session) = self.sessions.get_mut(&user) else { return refuse(Refusal::UnknownOffer, out) };
        let fingerprint = former.card;
        let proof = Proof { wanted: former.addresses.keys().copied().collect(), heard: BTreeSet::new(), former };
        let mut life = Life::unproven(now, number, unlock.keys, deliver, proof, &self.settings);
        life.channel.lease_until = now + life.channel.lease.min(PROOF_TIME);
        life.wait(token, Waiter::Delivered);
        out.push(Action::AwaitCard { number, fingerprint, taken, within: FIND_TIME });
        out.push(Action::info(&format!("{user} unlocks (user {uid}); the server is asked")));
        session.stage = Stage::Granted(Box::new(life));
    }

    /// A user's process gives up.
    pub(super) fn cancel_unlock(&mut self, now: Time, token: Token, uid: u32, offer: OfferId, out: &mut Vec<Action>) {
        if self.unlocks.get(&offer).is_some_and(|unlock| unlock.uid == uid) {
            self.unlocks.remove(&offer);
        }
        let own = |session: &Session| session.uid == Some(uid);
        let user = self.find(|life| life.offer == Some(offer) && life.by_user).map(|(user, _)| user);
        match user.filter(|user| self.sessions.get(user).is_some_and(own)) {
            Some(user) => self.end(now, &user, &End::Cancelled, Some(token), out),
            None => out.push(Action::Reply { token, reply: Reply::Done }),
        }
    }

    /// The server has said all it knows. `true`: the delivery is proved, or never had to be.
    pub(super) fn prove(&mut self, now: Time, user: &UserId, out: &mut Vec<Action>) -> bool {
        let Some(life) = self.sessions.get_mut(user).and_then(|session| session.stage.life_mut()) else { return false };
        let Some(mut proof) = life.proof.take() else { return true };
        match proof.verdict(life) {
            Verdict::Same => true,
            Verdict::AskFor(groups) => {
                proof.wanted.extend(groups);
                proof.heard.clear();
                life.proof = Some(proof);
                if let Some(link) = life.channel.link {
                    out.push(Action::Disconnect { link });
                }
                life.detached(now, 0);
                life.channel.retry_at = Some(now);
                false
            }
            Verdict::Other(why) => {
                life.proof = Some(proof);
                self.end(now, user, &End::NotTheSame(why), None, out);
                false
            }
        }
    }
}

impl Session {
    /// It lost its tunnel while OS sessions of this user went on.
    fn awaits_unlock(&self, uid: u32) -> bool {
        matches!(self.stage, Stage::Suspended)
            && self.uid == Some(uid)
            && !self.leaders.is_empty()
            && self.former.is_some()
    }
}

/// What comes of a proof.
enum Verdict {
    /// The same user, and all groups are here.
    Same,
    /// There are groups of which nobody knew here.
    AskFor(Vec<GroupId>),
    /// Not what it claims to be, and why.
    Other(&'static str),
}

impl Proof {
    fn verdict(&self, life: &Life) -> Verdict {
        let missing = || self.heard.iter().filter(|group| !life.groups.contains_key(group));
        if missing().next().is_some() {
            let groups: Vec<GroupId> = missing().filter(|group| !self.wanted.contains(group)).copied().collect();
            return if groups.is_empty() {
                Verdict::Other("the server withholds a group")
            } else {
                Verdict::AskFor(groups)
            };
        }
        let own = |group: &super::groups::Group| (group.grant.address4, group.grant.address6);
        let before = |group: &super::groups::Group| self.former.addresses.get(&group.grant.id);
        let known = || life.groups.values().filter(|group| before(group).is_some());
        if known().any(|group| before(group) != Some(&own(group))) {
            Verdict::Other("it is another member's session")
        } else if known().next().is_none() {
            Verdict::Other("it has none of the groups that the session had")
        } else {
            Verdict::Same
        }
    }

    /// What the server is told that is known here: the groups by name, and nothing of them, so that it sends everything.
    pub fn known(&self) -> Vec<Known> {
        self.wanted.iter().map(|group| Known { group: *group, revision: 0, epoch: 0 }).collect()
    }

    /// The server has named this group.
    pub fn heard_of(&mut self, group: GroupId) {
        self.heard.insert(group);
    }
}
