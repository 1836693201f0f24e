//! Rotations of group keys by the clock.
//!
//! When a group's turn comes follows from what the store says: it survives restarts, and of several servers one does it
//! ([`crate::store::Store::rotate_if`]).

use super::HubHandle;
use crate::{
    clock::{self, UnixTime},
    keys::Keys,
    service::blocking,
    store::{By, KeyAge, Result, Store},
};
use cug_proto::id::GroupId;
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Between two rotations: after a long time without a server all groups are due, and their terminals need not hear of it at once.
const BREATH: Duration = Duration::from_millis(500);

/// How often the store is asked at least: other servers and administrators rotate too, and groups are added.
const LOOK: UnixTime = 300;

/// After an error.
const RETRY: Duration = Duration::from_secs(30);

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
enum Turn<'a> {
    /// This group's key is due.
    Rotate(&'a KeyAge),
    /// None is for so many seconds.
    Wait(UnixTime),
}

/// The group that is due longest, or how long nobody is.
fn turn(ages: &[KeyAge], every: UnixTime, now: UnixTime) -> Turn<'_> {
    // One that is being distributed is new enough.
    let first = ages.iter().filter(|age| !age.pending).min_by_key(|age| due(age, every, now));
    match first {
        Some(age) if due(age, every, now) <= now => Turn::Rotate(age),
        Some(age) => Turn::Wait((due(age, every, now) - now).clamp(1, LOOK)),
        None => Turn::Wait(LOOK.min(every)),
    }
}

/// Between three quarters of the interval and all of it, another time for each group and epoch: groups that were made together do not stay
/// together, and no key becomes older than the interval.
fn due(age: &KeyAge, every: UnixTime, now: UnixTime) -> UnixTime {
    // A clock that was set back must not keep a key in use for as long as it was wrong.
    if age.since > now {
        return now;
    }
    let early = share(age.group, age.epoch, every / 4);
    age.since + every - early
}

/// A number from 0 to `most`, the same one for the same group and epoch.
fn share(group: GroupId, epoch: u32, most: UnixTime) -> UnixTime {
    let hash = Sha256::new().chain_update(group.to_be_bytes()).chain_update(epoch.to_be_bytes()).finalize();
    let drawn = hash.iter().take(4).fold(0, |sum, byte| sum << 8 | UnixTime::from(*byte));
    drawn % (most + 1)
}

/// Rotates keys that are due, until the server stops.
pub async fn run(
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
    hub: HubHandle,
    every: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let every = UnixTime::try_from(every.as_secs()).unwrap_or(UnixTime::MAX / 4);
    loop {
        let pause = match step(&store, &keys, every).await {
            Ok(Some(wait)) => Duration::from_secs(u64::try_from(wait).unwrap_or(1)),
            Ok(None) => {
                hub.poke();
                BREATH
            }
            Err(error) => {
                tracing::error!(%error, "group keys cannot be rotated now");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Rotates one key if one is due; else answers with how many seconds none is.
async fn step(store: &Arc<dyn Store>, keys: &Arc<Keys>, every: UnixTime) -> Result<Option<UnixTime>> {
    let keys = keys.clone();
    blocking(store.clone(), move |s| {
        let (ages, now) = (s.key_ages()?, clock::unix_now());
        match turn(&ages, every, now) {
            Turn::Wait(seconds) => Ok(Some(seconds)),
            Turn::Rotate(age) => {
                s.rotate_if(By { actor: "schedule", now }, age, &|group, epoch| keys.mint(group, epoch))?;
                Ok(None)
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: UnixTime = 86_400;

    fn age(group: GroupId, since: UnixTime) -> KeyAge {
        KeyAge { group, epoch: 1, since, pending: false }
    }

    #[test]
    fn groups_that_were_made_together_are_rotated_apart() {
        let ages: Vec<_> = (1..=1000).map(|group| age(group, 0)).collect();
        let mut dues: Vec<_> = ages.iter().map(|a| due(a, DAY, 10)).collect();
        dues.sort_unstable();
        assert!(dues[0] >= DAY * 3 / 4 && dues[999] <= DAY, "never older than a day, never younger than 18 hours");
        let most_in_a_minute =
            dues.iter().map(|d| dues.iter().filter(|o| (**o - *d).abs() < 60).count()).max().unwrap();
        assert!(most_in_a_minute < 20, "{most_in_a_minute} of 1000 within two minutes");
    }

    #[test]
    fn the_one_that_is_due_longest_comes_first() {
        let mut ages = vec![age(1, DAY), age(2, 0), age(3, 2 * DAY)];
        assert!(matches!(turn(&ages, DAY, 3 * DAY), Turn::Rotate(a) if a.group == 2));
        ages[1].pending = true;
        assert!(matches!(turn(&ages, DAY, 3 * DAY), Turn::Rotate(a) if a.group == 1));
        ages[0].since = 3 * DAY;
        ages[2].since = 3 * DAY;
        assert_eq!(turn(&ages, DAY, 3 * DAY), Turn::Wait(LOOK), "what is distributed is not rotated again");
        assert_eq!(turn(&[], DAY, 3 * DAY), Turn::Wait(LOOK));
        let last = due(&ages[0], DAY, 3 * DAY).min(due(&ages[2], DAY, 3 * DAY));
        assert_eq!(turn(&ages, DAY, last - 3), Turn::Wait(3));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_keep_keys_alive() {
        assert!(matches!(turn(&[age(1, 10 * DAY)], DAY, DAY), Turn::Rotate(_)));
    }
}
