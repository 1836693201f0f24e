//! What cugd offers for a login: keys of its own making, and the settings of this workstation.

use crate::{
    daemon::{Daemon, DaemonError, ORDINARY},
    failure::Failure,
};
use cug_card::Card;
use cug_proto::{
    id::UserId,
    local::{LOCAL_VERSION, Offer, Prepare, Refusal, Reply, Request},
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

/// Asks cugd for the keys and the settings of a login, for the PAM service of this name.
///
/// # Errors
/// [`Failure::Daemon`], [`Failure::Refused`]; whatever cannot be understood on either side is a matter of [`Refusal::Version`].
pub fn prepare<'a>(daemon: &'a dyn Daemon, user: &UserId, service: String) -> Result<HeldOffer<'a>, Failure> {
    let request = Request::Prepare(Prepare { version: LOCAL_VERSION, user: user.clone(), service });
    match daemon.call(&request, ORDINARY) {
        Ok(Reply::Offer(offer)) if offer.version == LOCAL_VERSION => Ok(HeldOffer { offer, daemon, keep: false }),
        Ok(Reply::Offer(offer)) => {
            drop(HeldOffer { offer, daemon, keep: false });
            Err(Failure::Refused(Refusal::Version))
        }
        Ok(Reply::Refused(Refusal::Malformed)) | Err(DaemonError::Protocol(_)) => {
            Err(Failure::Refused(Refusal::Version))
        }
        Ok(Reply::Refused(why)) => Err(Failure::Refused(why)),
        Ok(_) => Err(Failure::Daemon(DaemonError::Unexpected)),
        Err(error) => Err(Failure::Daemon(error)),
    }
}

/// The card says whom to trust, so whom the card trusts is checked first: else a card and a server of one's own let one in as anybody.
///
/// # Errors
/// [`Failure::ForeignCard`]
pub fn check_organisation(offer: &Offer, card: &dyn Card) -> Result<(), Failure> {
    let ours = offer.ca_pins.iter().any(|pin| **pin == *card.server_object().ca_pin());
    if ours { Ok(()) } else { Err(Failure::ForeignCard) }
}

/// The accounts of this workstation that log in without a card, as a daemon of another version tells them. `None`: it does not.
pub fn exempt(daemon: &dyn Daemon) -> Option<Vec<String>> {
    match daemon.call(&Request::Exempt, ORDINARY) {
        Ok(Reply::Exempt(names)) => Some(names),
        _ => None,
    }
}
