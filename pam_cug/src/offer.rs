//! What cugd offers for a login: keys of its own making, and the settings of this workstation.

use crate::{
    daemon::{Daemon, DaemonError, ORDINARY},
    failure::Failure,
    host::Host,
};
use cug_proto::{
    id::UserId,
    local::{LOCAL_VERSION, Offer, Prepare, Reply, Request},
};

/// An offer that is cancelled unless it is kept, on every way out, panics included.
pub struct HeldOffer<'a> {
    /// What cugd offered.
    pub offer: Offer,
    /// Who offered it.
    pub daemon: &'a dyn Daemon,
    keep: bool,
}

impl HeldOffer<'_> {
    /// The login succeeded: cugd keeps what came of the offer.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for HeldOffer<'_> {
    fn drop(&mut self) {
        if !self.keep {
            // If cugd does not hear it, the offer expires by itself.
            let _done = self.daemon.call(&Request::Cancel(self.offer.id), ORDINARY);
        }
    }
}

/// Asks cugd for the keys and the settings of a login.
pub fn prepare<'a>(host: &mut dyn Host, daemon: &'a dyn Daemon, user: &UserId) -> Result<HeldOffer<'a>, Failure> {
    let request = Request::Prepare(Prepare { version: LOCAL_VERSION, user: user.clone(), service: host.service() });
    match daemon.call(&request, ORDINARY).map_err(Failure::Daemon)? {
        Reply::Offer(offer) => Ok(HeldOffer { offer, daemon, keep: false }),
        Reply::Refused(why) => Err(Failure::Refused(why)),
        _ => Err(Failure::Daemon(DaemonError::Unexpected)),
    }
}
