//! How often codes may be tried: by one source, and for one user. Kept in memory, and the same for users who are invited and for names that nobody has.
//!
//! The code itself could stand any number of tries; this is so that nobody keeps the server busy, and that an administrator sees that somebody tries.
//! Nothing is locked for long: whoever tries codes for another user only makes that user wait.

use cug_proto::id::UserId;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Most sources and users that are remembered.
const MOST: usize = 10_000;

/// Wrong codes at once, and how long until one is forgotten.
struct Limit {
    burst: u32,
    forget: Duration,
}

const SOURCE: Limit = Limit { burst: 30, forget: Duration::from_secs(5) };
const USER: Limit = Limit { burst: 10, forget: Duration::from_secs(30) };

#[derive(Clone, PartialEq, Eq, Hash)]
enum Who {
    Source(IpAddr),
    User(UserId),
}

impl Who {
    fn limit(&self) -> &'static Limit {
        match self {
            Self::Source(_) => &SOURCE,
            Self::User(_) => &USER,
        }
    }
}

/// Wrong codes at some time.
struct Count {
    wrong: u32,
    at: Instant,
}

impl Count {
    fn left(&self, limit: &Limit, now: Instant) -> u32 {
        let forgotten = now.saturating_duration_since(self.at).as_secs() / limit.forget.as_secs().max(1);
        self.wrong.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }
}

/// The wrong codes of late.
#[derive(Default)]
pub(super) struct Tries(Mutex<HashMap<Who, Count>>);

impl Tries {
    /// May a code be tried? Else the seconds until then.
    pub(super) fn check(&self, source: IpAddr, user: &UserId, now: Instant) -> Result<(), u32> {
        let (counts, subjects) = (self.lock(), subjects(source, user));
        let wait = subjects.iter().filter_map(|who| {
            let (count, limit) = (counts.get(who)?, who.limit());
            let excess = count.left(limit, now).checked_sub(limit.burst)?.saturating_add(1);
            let since = now.saturating_duration_since(count.at).as_secs() % limit.forget.as_secs().max(1);
            Some(u64::from(excess).saturating_mul(limit.forget.as_secs()).saturating_sub(since).max(1))
        });
        wait.max().map_or(Ok(()), |seconds| Err(u32::try_from(seconds).unwrap_or(u32::MAX)))
    }

    /// A code was wrong.
    pub(super) fn wrong(&self, source: IpAddr, user: &UserId, now: Instant) {
        let mut counts = self.lock();
        for who in subjects(source, user) {
            make_room(&mut counts, now);
            let limit = who.limit();
            let count = counts.entry(who).or_insert(Count { wrong: 0, at: now });
            // Tries beyond the limit are not let through, but those that run side by side may come here: they wait no longer for it.
            let wrong = count.left(limit, now).saturating_add(1).min(limit.burst);
            *count = Count { wrong, at: now };
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Who, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An IPv6 network of 64 bits is one source: who has one address in it has them all.
fn subjects(source: IpAddr, user: &UserId) -> [Who; 2] {
    let source = match source {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        four @ IpAddr::V4(_) => four,
    };
    [Who::Source(source), Who::User(user.clone())]
}

/// Forgets what is over; when all of it is fresh, one of them.
fn make_room(counts: &mut HashMap<Who, Count>, now: Instant) {
    if counts.len() < MOST {
        return;
    }
    counts.retain(|who, count| count.left(who.limit(), now) > 0);
    if counts.len() >= MOST
        && let Some(one) = counts.keys().next().cloned()
    {
        counts.remove(&one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        name.parse().unwrap()
    }

    #[test]
    fn a_user_and_a_source_have_their_limits_and_get_over_them() {
        let (tries, start) = (Tries::default(), crate::clock::monotonic());
        let [one, other]: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        for _ in 0..10 {
            assert_eq!(tries.check(one, &user("A"), start), Ok(()));
            tries.wrong(one, &user("A"), start);
        }
        assert_eq!(tries.check(other, &user("A"), start), Err(30), "from wherever");
        assert_eq!(tries.check(one, &user("B"), start), Ok(()));
        assert_eq!(tries.check(one, &user("A"), start + Duration::from_secs(29)), Err(1));
        assert_eq!(tries.check(one, &user("A"), start + Duration::from_secs(30)), Ok(()));
        for n in 0..20 {
            tries.wrong(one, &user(&format!("U{n}")), start);
        }
        assert_eq!(tries.check(one, &user("C"), start), Err(5), "whoever it is for");
        assert_eq!(tries.check(other, &user("C"), start), Ok(()));
    }

    #[test]
    fn memory_is_bounded_and_a_network_is_one_source() {
        let (tries, start) = (Tries::default(), crate::clock::monotonic());
        for n in 0..6000_u32 {
            let source = IpAddr::from(Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(n)));
            tries.wrong(source, &user(&format!("U{n}")), start);
        }
        assert_eq!(tries.lock().len(), 6001);
        for n in 0..9000_u32 {
            tries.wrong(IpAddr::from(n.to_be_bytes()), &user(&format!("V{n}")), start);
        }
        assert!(tries.lock().len() <= MOST);
    }
}
