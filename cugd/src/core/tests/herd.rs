//! All terminals lose the server at once: they must not all come back at once.

use crate::core::{Time, types::backoff};
use proptest::prelude::*;
use std::time::Duration;

/// When the terminals are attached again, in milliseconds after the server was there again; it is away for `outage`.
fn back(terminals: usize, outage: Duration, mut draw: impl FnMut() -> u32) -> Vec<u64> {
    let there = Time::since_boot(Duration::ZERO) + outage;
    let mut times: Vec<u64> = (0..terminals)
        .map(|_| {
            let (mut at, mut failures) = (Time::since_boot(Duration::ZERO), 0);
            loop {
                at = backoff(at, failures, draw());
                failures += 1;
                if at >= there {
                    return u64::try_from(at.since(there).as_millis()).unwrap();
                }
            }
        })
        .collect();
    times.sort_unstable();
    times
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Whatever the outage: within any tenth of a second at most a quarter of them, of a minute or more at most one in forty; nobody waits
    /// longer than 45 s.
    #[test]
    fn terminals_come_back_spread(seed in any::<u64>(), outage in prop::sample::select(vec![1u64, 5, 20, 60, 600])) {
        let mut state = seed | 1;
        let draw = move || {
            // xorshift64: any spread of numbers does.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from(state >> 32).unwrap()
        };
        let times = back(10_000, Duration::from_secs(outage), draw);
        let crowd = times.iter().enumerate().map(|(i, t)| times[i..].iter().take_while(|o| **o < t + 100).count()).max().unwrap();
        let most = if outage >= 60 { 250 } else { 2_500 };
        prop_assert!(crowd <= most, "{crowd} of 10000 within 100 ms after {outage} s");
        prop_assert!(*times.last().unwrap() <= 45_000);
    }
}
