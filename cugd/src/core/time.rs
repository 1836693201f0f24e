//! Points in time, as a parameter.

use std::{ops::Add, time::Duration};

/// A point in time: how long the machine has been up, sleep included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Time(Duration);

impl Time {
    /// That long after the machine's start.
    pub const fn since_boot(uptime: Duration) -> Self {
        Self(uptime)
    }

    /// Time from `earlier` to this, zero when it is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}
