//! Limits for those who have not shown yet who they are. Asked before the TLS handshake, which is the first thing that costs.

use crate::config::SourceRate;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Most sources that are remembered one by one. Beyond that new ones share one bucket, so that a flood from ever new sources takes no more memory.
const MOST_SOURCES: usize = 65_536;

/// Who counts as one: an IPv4 address, or an IPv6 /64, which is what one customer or one network segment has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Source {
    V4(u32),
    V6(u64),
    /// All that are too many.
    Others,
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            // The upper 64 bits.
            IpAddr::V6(address) => Self::V6(u64::try_from(address.to_bits() >> 64).unwrap_or_default()),
        }
    }
}

/// How many connections may be open that have neither logged in nor attached, and how often a source may connect.
#[derive(Clone)]
pub struct Admission(Arc<Mutex<Counts>>);

struct Counts {
    max: usize,
    max_per_source: usize,
    rate: SourceRate,
    all: usize,
    sources: HashMap<Source, Bucket>,
    /// When the full buckets were last thrown away.
    swept: Option<Instant>,
}

/// What is known of one source.
struct Bucket {
    open: usize,
    /// Connections that it may make now, in thousandths, at `at`.
    tokens: u64,
    at: Instant,
}

impl Bucket {
    /// Fills up for the time that has passed.
    fn fill(&mut self, rate: SourceRate, now: Instant) {
        let passed = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        self.tokens = self.tokens.saturating_add(passed.saturating_mul(rate.per_second.into())).min(full(rate));
        // What is left of a millisecond stays: else whoever knocks faster than that would keep the bucket empty for ever, for all behind one address.
        self.at = self.at.checked_add(Duration::from_millis(passed)).unwrap_or(now);
    }
}

/// Thousandths of a connection in a full bucket.
fn full(rate: SourceRate) -> u64 {
    u64::from(rate.burst) * 1000
}

impl Counts {
    /// The source's bucket, filled up to now.
    fn bucket(&mut self, source: Source, now: Instant) -> &mut Bucket {
        let rate = self.rate;
        let bucket = self.sources.entry(source).or_insert_with(|| Bucket { open: 0, tokens: full(rate), at: now });
        bucket.fill(rate, now);
        bucket
    }

    /// Whom a connection counts for. Sources that are as if they had never come are forgotten first, once a second at most.
    fn place(&mut self, source: Source, now: Instant) -> Source {
        if self.sources.len() < MOST_SOURCES || self.sources.contains_key(&source) {
            return source;
        }
        if self.swept.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1)) {
            self.swept = Some(now);
            let rate = self.rate;
            self.sources.retain(|_, bucket| {
                bucket.fill(rate, now);
                bucket.open > 0 || bucket.tokens < full(rate)
            });
        }
        if self.sources.len() < MOST_SOURCES { source } else { Source::Others }
    }
}

impl Admission {
    /// At most `max` at a time, `max_per_source` of one source, and one source no more often than `rate`.
    pub fn new(max: usize, max_per_source: usize, rate: SourceRate) -> Self {
        Self(Arc::new(Mutex::new(Counts { max, max_per_source, rate, all: 0, sources: HashMap::new(), swept: None })))
    }

    /// A place for a connection from `source`, until it is dropped; `None` when there is none.
    pub fn admit(&self, source: IpAddr, now: Instant) -> Option<Admitted> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (max_per_source, limited) = (counts.max_per_source, counts.rate.per_second > 0);
        let has_room = counts.all < counts.max;
        let source = counts.place(Source::of(source), now);
        let bucket = counts.bucket(source, now);
        if !has_room || bucket.open >= max_per_source || (limited && bucket.tokens < 1000) {
            return None;
        }
        if limited {
            bucket.tokens -= 1000;
        }
        bucket.open += 1;
        counts.all += 1;
        Some(Admitted { admission: self.clone(), source })
    }
}

/// A place of [`Admission`].
pub struct Admitted {
    admission: Admission,
    source: Source,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        let limited = counts.rate.per_second > 0;
        if let Some(bucket) = counts.sources.get_mut(&self.source) {
            bucket.open = bucket.open.saturating_sub(1);
            if bucket.open == 0 && !limited {
                counts.sources.remove(&self.source);
            }
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
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

    const UNLIMITED: SourceRate = SourceRate { per_second: 0, burst: 0 };

    fn now() -> Instant {
        crate::clock::monotonic()
    }

    #[test]
    fn places_are_limited_and_come_back() {
        let admission = Admission::new(3, 2, UNLIMITED);
        let [one, other] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let first = admission.admit(one, now()).unwrap();
        let _second = admission.admit(one, now()).unwrap();
        assert!(admission.admit(one, now()).is_none(), "per source");
        let _third = admission.admit(other, now()).unwrap();
        assert!(admission.admit(other, now()).is_none(), "in all");
        drop(first);
        assert!(admission.admit(one, now()).is_some());
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_the_ipv4_one() {
        let admission = Admission::new(100, 1, UNLIMITED);
        let _first = admission.admit("2001:db8:1:2::1".parse().unwrap(), now()).unwrap();
        assert!(admission.admit("2001:db8:1:2:ffff::9".parse().unwrap(), now()).is_none());
        assert!(admission.admit("2001:db8:1:3::1".parse().unwrap(), now()).is_some());
        let _v4 = admission.admit("10.0.0.1".parse().unwrap(), now()).unwrap();
        assert!(admission.admit("::ffff:10.0.0.1".parse().unwrap(), now()).is_none());
    }

    #[test]
    fn a_source_that_connects_too_often_waits_and_others_do_not() {
        let admission = Admission::new(100, 100, SourceRate { per_second: 2, burst: 5 });
        let [one, other] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let start = now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!((0..9).filter(|_| admission.admit(one, at(0)).is_some()).count(), 5, "the burst");
        assert!(admission.admit(other, at(0)).is_some());
        assert!(admission.admit(one, at(499)).is_none());
        assert!(admission.admit(one, at(500)).is_some(), "one each half second");
        assert!(admission.admit(one, at(501)).is_none());
        assert_eq!(
            (0..9).filter(|_| admission.admit(one, at(60_000)).is_some()).count(),
            5,
            "never more than the burst"
        );
    }

    #[test]
    fn who_knocks_without_a_pause_gets_the_rate_too() {
        let admission = Admission::new(usize::MAX, usize::MAX, SourceRate { per_second: 2, burst: 5 });
        let (source, start) = ("10.0.0.1".parse().unwrap(), now());
        let knocks = (0..100_000).map(|n| start + Duration::from_micros(n * 100));
        assert_eq!(knocks.filter(|at| admission.admit(source, *at).is_some()).count(), 5 + 19);
    }

    #[test]
    fn ever_new_sources_take_no_more_memory_and_get_no_more_than_one() {
        let admission = Admission::new(usize::MAX, usize::MAX, SourceRate { per_second: 1, burst: 2 });
        let address = |n: usize| IpAddr::V6(Ipv6Addr::from_bits(u128::try_from(n).unwrap() << 64));
        let start = now();
        for n in 0..MOST_SOURCES {
            assert!(admission.admit(address(n), start).is_some());
        }
        assert_eq!(
            (MOST_SOURCES..MOST_SOURCES + 1000).filter(|n| admission.admit(address(*n), start).is_some()).count(),
            2
        );
        assert!(admission.0.lock().unwrap().sources.len() <= MOST_SOURCES + 1);
        assert!(admission.admit(address(0), start).is_some(), "who was known before keeps what is left");
        // A rest later all of them are forgotten.
        let later = start + Duration::from_secs(10);
        assert!(admission.admit(address(MOST_SOURCES + 5000), later).is_some());
        assert_eq!(admission.0.lock().unwrap().sources.len(), 1);
    }

    proptest! {
        #[test]
        fn no_more_than_the_rate_gets_in(per_second in 1u32..50, burst in 1u32..50, gaps in proptest::collection::vec(0u64..200, 1..200)) {
            let admission = Admission::new(usize::MAX, usize::MAX, SourceRate { per_second, burst });
            let (start, mut passed, mut admitted) = (now(), 0, 0);
            for gap in gaps {
                passed += gap;
                let source = "10.0.0.1".parse().unwrap();
                admitted += u64::from(admission.admit(source, start + Duration::from_millis(passed)).is_some());
            }
            prop_assert!(admitted <= u64::from(burst) + passed * u64::from(per_second) / 1000);
        }
    }

    #[test]
    fn a_flood_is_not_written_down() {
        let start = crate::clock::monotonic();
        let rejections = Rejections::new(start);
        assert_eq!((0..100).filter(|_| rejections.take(start)).count(), 10);
        assert!(rejections.take(start + Duration::from_secs(1)));
    }
}
