//! Time and randomness of the real world.

use std::time::Instant;

/// Tells the time.
pub trait Clock: Sync {
    /// Now, monotonic.
    fn now(&self) -> Instant;
}

/// The system's monotonic clock.
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // this is the module that may
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// The kernel's random source. Since it has been seeded at boot it does not fail; if it ever did, the panic would end in `PAM_SYSTEM_ERR`.
pub fn random() -> impl rand_core::CryptoRng {
    rand_core::UnwrapErr(getrandom::SysRng)
}
