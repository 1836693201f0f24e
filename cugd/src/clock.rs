//! The only place that reads clocks and draws random numbers.
#![expect(clippy::disallowed_methods, reason = "time is read here and is a parameter everywhere else")]

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::core::Time;

/// Time since the machine's start, sleep included: a lease runs on while the machine sleeps.
pub fn now() -> Time {
    // The call cannot fail for a clock that Linux has had since 2.6.39. Were it to, nothing would ever be due: systemd's watchdog
    // is fed by the same loop but not by this clock.
    let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    Time::since_boot(uptime.unwrap_or_default())
}

/// The same as a span.
pub fn uptime() -> Duration {
    now().since(Time::since_boot(Duration::ZERO))
}

/// Wall-clock time, for what the kernel reports in it.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// A random number, for spreading attempts in time. No secret; zero when the system has none to give.
pub fn jitter() -> u32 {
    getrandom::u32().unwrap_or_default()
}

/// The point in time from which a timer of the runtime counts.
pub fn timer() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// The point in time from which a blocking wait counts.
pub fn instant() -> std::time::Instant {
    std::time::Instant::now()
}
