//! How long, how many, how often.

use std::time::Duration;

use super::Time;

/// How long an offer waits for its grant: a person may take minutes to find the card and to type.
pub const OFFER_TIME: Duration = Duration::from_secs(300);
/// Most offers at a time.
pub const MAX_OFFERS: usize = 64;
/// When a channel is attached for the first time, after the card is watched, unless `Open` comes before. The login module tells the server
/// of the grant's receipt only after its delivery here; earlier the server would not know the session.
pub const ATTACH_DELAY: Duration = Duration::from_millis(200);
/// How long the server may take to answer `Clear`.
pub const FAREWELL_TIME: Duration = Duration::from_secs(2);
/// Over how long the terminals spread that find the network again at one moment, after the server had been away.
pub const SPREAD: Duration = Duration::from_secs(2);
/// How often something is sent through a router that translates addresses: most forget a way that was not used for thirty seconds.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// How long a tunnel may take to go down before the rest goes on without its word.
pub const FALL_TIME: Duration = Duration::from_secs(15);

/// Backoff before the `failures`-th attempt to attach: doubling from half a second to half a minute, times 0.5 to 1.5.
pub(super) fn backoff(now: Time, failures: u32, jitter: u32) -> Time {
    let base = 500u64.saturating_mul(1 << failures.min(6)).min(30_000);
    now + Duration::from_millis(base / 2 + u64::from(jitter) % (base + 1))
}
