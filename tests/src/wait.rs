//! Waiting for a condition, with a deadline. Nothing else in the harness waits.

use std::time::{Duration, Instant};

/// Between two looks at a condition that nobody announces.
const STEP: Duration = Duration::from_millis(4);

/// What `condition` yields, as soon as it yields something.
///
/// # Errors
/// After `limit`: that `what` did not happen.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            anyhow::bail!("waited {limit:?} in vain: {what}");
        }
        pause();
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// As [`until`].
pub fn for_true(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    until(what, limit, || condition().then_some(()))
}

/// The one pause of the harness: conditions in other processes can only be looked at again.
fn pause() {
    std::thread::park_timeout(STEP);
}
