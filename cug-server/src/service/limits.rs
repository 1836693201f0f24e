//! Limits for those who have not shown yet who they are.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How many connections may be open that have neither logged in nor attached.
#[derive(Clone)]
pub struct Admission(Arc<Mutex<Counts>>);

struct Counts {
    max: usize,
    max_per_source: usize,
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

impl Admission {
    /// At most `max` at a time, and `max_per_source` from one address.
    pub fn new(max: usize, max_per_source: usize) -> Self {
        Self(Arc::new(Mutex::new(Counts { max, max_per_source, all: 0, by_source: HashMap::new() })))
    }

    /// A place for a connection from `source`, until it is dropped; `None` when there is none.
    pub fn admit(&self, source: IpAddr) -> Option<Admitted> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = counts.by_source.get(&source).copied().unwrap_or(0);
        if counts.all >= counts.max || of_source >= counts.max_per_source {
            return None;
        }
        counts.all += 1;
        counts.by_source.insert(source, of_source + 1);
        Some(Admitted { admission: self.clone(), source })
    }
}

/// A place of [`Admission`].
pub struct Admitted {
    admission: Admission,
    source: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        match counts.by_source.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.by_source.remove(&self.source)),
        }
    }
}

/// How many logins without the card are written into the audit: nobody shall fill the disk or keep it busy from outside.
pub(super) struct Rejections(Mutex<(Instant, u32)>);

impl Rejections {
    const PER_SECOND: u32 = 10;

    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new((now, 0)))
    }

    /// Whether this one is written.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(window.0) >= Duration::from_secs(1) {
            *window = (now, 0);
        }
        window.1 = window.1.saturating_add(1);
        window.1 <= Self::PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_come_back() {
        let admission = Admission::new(3, 2);
        let [one, other] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let first = admission.admit(one).unwrap();
        let _second = admission.admit(one).unwrap();
        assert!(admission.admit(one).is_none(), "per source");
        let _third = admission.admit(other).unwrap();
        assert!(admission.admit(other).is_none(), "in all");
        drop(first);
        assert!(admission.admit(one).is_some());
    }

    #[test]
    fn a_flood_is_not_written_down() {
        let start = crate::clock::monotonic();
        let rejections = Rejections::new(start);
        assert_eq!((0..100).filter(|_| rejections.take(start)).count(), 10);
        assert!(rejections.take(start + Duration::from_secs(1)));
    }
}
