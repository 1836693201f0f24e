//! After each end: is all of the session gone from this terminal? What is not is named, counted and removed later.

use std::{sync::Weak, time::Duration};

use cug_proto::secret::Secret;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::sleep;

use crate::{
    guard::{Guard, causes},
    tunnel::{self, InterfaceName},
};

/// First and longest pause between attempts to remove what is left over.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a session had on this terminal.
#[derive(Clone, Default)]
pub struct Ended {
    /// Its interfaces, which bear its addresses, routes and rules.
    pub interfaces: Vec<InterfaceName>,
    /// Numbers of the BPF programs that guarded them.
    pub programs: Vec<u32>,
    /// Its private key, if it is still in memory.
    pub keys: Vec<Weak<Secret<32>>>,
}

type Findings<'a> = BoxFuture<'a, Result<Vec<String>, String>>;

/// Everything that is looked at, by what it is called in the log.
fn checks<'a>(ended: &'a Ended, guard: &'a Guard) -> Vec<(&'static str, Findings<'a>)> {
    vec![
        ("interfaces, routes and routing rules", network(ended).boxed()),
        ("packet filter", tables(guard).boxed()),
        ("BPF programs", programs(ended, guard).boxed()),
        ("memory", async { Ok(memory(ended)) }.boxed()),
    ]
}

/// What is left over, by name. What cannot be looked at counts as left over.
pub async fn leftovers(ended: &Ended, guard: &Guard) -> Vec<String> {
    let mut found = Vec::new();
    for (what, check) in checks(ended, guard) {
        match check.await {
            Ok(left) => found.extend(left),
            Err(error) => found.push(format!("{what}: cannot be checked ({error})")),
        }
    }
    found
}

/// Removes what is left over, again and again with growing pauses, until nothing is.
pub async fn clear(ended: Ended, guard: Guard) {
    let mut pause = PAUSE.0;
    loop {
        sleep(pause).await;
        remove(&ended, &guard).await;
        let left = leftovers(&ended, &guard).await;
        if left.is_empty() {
            tracing::info!("what was left over of a session is gone now");
            return;
        }
        tracing::error!(left = left.join("; "), "still left over of a session");
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One attempt; what remains is found by the next look.
async fn remove(ended: &Ended, guard: &Guard) {
    for name in &ended.interfaces {
        if let Err(error) = tunnel::clear_away(name).await {
            tracing::warn!(interface = %name, error = %error.with_causes(), "an interface or its rules cannot be removed");
        }
    }
    if let Err(error) = guard.lower(&ended.interfaces).await {
        tracing::warn!(error = %causes(&error), "the guard of an interface cannot be removed");
    }
    for leftover in guard.leftovers().await.unwrap_or_default() {
        if let Err(error) = leftover.remove().await {
            tracing::warn!(%leftover, error = %causes(&error), "it cannot be removed");
        }
    }
}

async fn network(ended: &Ended) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for name in &ended.interfaces {
        found.extend(tunnel::remains(name).await.map_err(|error| error.with_causes())?);
    }
    Ok(found)
}

async fn tables(guard: &Guard) -> Result<Vec<String>, String> {
    let found = guard.leftovers().await.map_err(|error| causes(&error))?;
    Ok(found.iter().map(ToString::to_string).collect())
}

async fn programs(ended: &Ended, guard: &Guard) -> Result<Vec<String>, String> {
    let found = guard.still_attached(&ended.programs).await.map_err(|error| causes(&error))?;
    Ok(found.iter().map(|id| format!("BPF program {id}")).collect())
}

fn memory(ended: &Ended) -> Vec<String> {
    let kept = ended.keys.iter().filter(|key| key.strong_count() > 0);
    kept.map(|_| "a private key in memory".to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_key_that_somebody_keeps_is_seen() {
        let key = Arc::new(Secret::fill(|bytes| bytes.fill(1)));
        let ended = Ended { keys: vec![Arc::downgrade(&key)], ..Ended::default() };
        assert_eq!(memory(&ended).len(), 1);
        drop(key);
        assert!(memory(&ended).is_empty());
    }
}
