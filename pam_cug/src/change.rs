//! A new password: pam_sm_chauthtok. The server changes it, asked by card and old password; nothing is changed on this workstation.

use crate::{
    authenticate::{NOT_CONFIGURED, errand, find_card, unlock},
    exchange::{self, Wish},
    exempt::{is_exempt, is_remote},
    failure::Failure,
    host::{Host, Marked, Marker},
    login::Answer,
    offer::{HeldOffer, prepare},
    options::Options,
    parts::Parts,
};
use cug_card::Card;
use cug_login::{Failure as LoginFailure, daemon::DaemonError};
use cug_proto::{
    ProtocolError,
    id::UserId,
    message::{DenyReason, Fingerprint, Purpose},
    secret::SecretBytes,
};
use pam::constants::{PAM_CHANGE_EXPIRED_AUTHTOK, PamFlag, PamResultCode};

/// `PAM_PRELIM_CHECK` of pam_modules.h.
const PAM_PRELIM_CHECK: PamFlag = 0x4000;

/// How often a new password is asked for.
const TRIES: u8 = 3;

/// Root has neither card nor password of the member; and adduser and chpasswd must do their work whoever the account is for.
const LOCAL_ONLY: &str =
    "This sets a password for this workstation only; the one at the management server is changed by its owner.";

/// Which of its two calls libpam makes, and what for.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// The first call: could it be changed? Nothing is changed yet.
    pub preliminary: bool,
    /// Only a password that must be changed is to be.
    pub expired_only: bool,
}

impl Phase {
    /// From the flags of `pam_sm_chauthtok`.
    pub fn of(flags: PamFlag) -> Self {
        Self { preliminary: flags & PAM_PRELIM_CHECK != 0, expired_only: flags & PAM_CHANGE_EXPIRED_AUTHTOK != 0 }
    }
}

/// How a call ends well.
enum Verdict {
    Done,
    /// Not this module's business, and why.
    NotOurs(&'static str),
}

/// Changes the password, tells the person and the log what became of it, and gives the code for libpam.
pub fn change(host: &mut dyn Host, options: &Options, parts: &Parts<'_>, phase: Phase) -> PamResultCode {
    match try_to_change(host, options, parts, phase) {
        Ok(Verdict::Done) => PamResultCode::PAM_SUCCESS,
        Ok(Verdict::NotOurs(why)) => {
            host.log(libc::LOG_DEBUG, &format!("ignored: {why}"));
            if options.ask_others && !phase.preliminary {
                ask_for_others(host);
            }
            PamResultCode::PAM_IGNORE
        }
        Err(failure) => {
            host.log(libc::LOG_NOTICE, &format!("the password was not changed: {}", failure.chain()));
            host.error(&failure.to_string());
            if phase.preliminary { PamResultCode::PAM_TRY_AGAIN } else { failure.change_code() }
        }
    }
}

/// Nobody's business, where nothing was ever set up; else the failure.
fn not_configured(failure: Failure) -> Result<Verdict, Failure> {
    match failure {
        Failure::Login(LoginFailure::Daemon(DaemonError::NotConfigured)) => Ok(Verdict::NotOurs(NOT_CONFIGURED)),
        failure => Err(failure),
    }
}

/// Both calls come to the same verdict on whose business it is: libpam takes the same way through the stack twice.
fn try_to_change(host: &mut dyn Host, options: &Options, parts: &Parts<'_>, phase: Phase) -> Result<Verdict, Failure> {
    let name = host.user().map_err(Failure::NoUser)?;
    if is_exempt(&name, options, &*parts.accounts) {
        return Ok(Verdict::NotOurs("the user is exempt"));
    }
    if is_remote(host.remote_host().as_deref(), options) {
        return Ok(Verdict::NotOurs("a login from another host"));
    }
    let Ok(user) = name.parse::<UserId>() else {
        return Ok(Verdict::NotOurs("not a name that a member can have"));
    };
    let must = host.marker().is_some_and(|marker| marker.user == user && marker.result == Marked::MustChange);
    if phase.expired_only && !must {
        return Ok(Verdict::NotOurs("the password has not expired"));
    }
    if !phase.expired_only && host.started_by_root() {
        if !phase.preliminary {
            host.info(LOCAL_ONLY);
        }
        return Ok(Verdict::NotOurs("root sets a password of this workstation"));
    }
    if phase.preliminary {
        // The offer is given back at once: this is the question whether cugd is there.
        return match prepare(&*parts.daemon, &user, host.service()) {
            Ok(_offer) => Ok(Verdict::Done),
            Err(failure) => not_configured(failure.into()),
        };
    }
    if let Err(failure) = change_members(host, options, parts, &user, must) {
        return not_configured(failure);
    }
    host.log(libc::LOG_INFO, &format!("{user} changed the password"));
    if must {
        let marker = Marker { user, result: Marked::Authenticated };
        host.mark(marker)
            .map_err(|code| LoginFailure::Internal(format!("the login cannot be remembered: {code:?}")))?;
    }
    Ok(Verdict::Done)
}

/// The change, step by step. After a login that waits for it (`must`), the session comes with it.
fn change_members(
    host: &mut dyn Host,
    options: &Options,
    parts: &Parts<'_>,
    user: &UserId,
    must: bool,
) -> Result<(), Failure> {
    let kept = host.take_kept().filter(|kept| must && kept.user == *user);
    let offer = prepare(&*parts.daemon, user, host.service())?;
    let mut card = find_card(host, parts, &offer.offer)?;
    let (kept_pin, kept_password) = match kept {
        Some(kept) => (kept.pin.map(|pin| (pin, kept.card)), Some(kept.password)),
        None => (None, None),
    };
    let pin = unlock_as_before(host, &mut *card, kept_pin)?;
    let old = match kept_password.or_else(|| host.old_password()) {
        Some(old) => old,
        None => host.prompt("Current password: ").map_err(Failure::Conversation)?,
    };
    if old.expose().is_empty() {
        return Err(Failure::NoPassword);
    }
    let session = must && offer.offer.purpose == Purpose::Open;
    let change = Change { user, old: &old, pin: pin.as_ref(), session };
    let new = change.run(host, options, parts, offer, &mut *card)?;
    if let Err(code) = host.hand_password_on(&new) {
        host.log(libc::LOG_WARNING, &format!("cannot hand the password on to later modules: {code:?}"));
    }
    Ok(())
}

/// Types the PIN of the login once more, for the person, if it is still the same card; else asks.
fn unlock_as_before(
    host: &mut dyn Host,
    card: &mut dyn Card,
    kept: Option<(SecretBytes, Fingerprint)>,
) -> Result<Option<SecretBytes>, Failure> {
    match kept {
        Some((pin, of)) if of == *card.fingerprint() => {
            card.unlock(&pin).map_err(LoginFailure::Card)?;
            Ok(Some(pin))
        }
        _ => unlock(host, card),
    }
}

/// A change whose old password is known.
struct Change<'a> {
    user: &'a UserId,
    old: &'a SecretBytes,
    pin: Option<&'a SecretBytes>,
    /// A session is to come with it.
    session: bool,
}

impl Change<'_> {
    /// Asks for a new password until the server takes one, a few times at most, and gives the one that counts from now on.
    fn run(
        &self,
        host: &mut dyn Host,
        options: &Options,
        parts: &Parts<'_>,
        offer: HeldOffer<'_>,
        card: &mut dyn Card,
    ) -> Result<SecretBytes, Failure> {
        let purpose = if self.session { Purpose::Open } else { Purpose::ChangePassword };
        // What an earlier module asked for cannot be asked for again here.
        let tries = if options.use_authtok { 1 } else { TRIES };
        for tries_left in (0..tries).rev() {
            let new = match new_password(host, options) {
                Err(failure @ Failure::NotTheSame) if tries_left > 0 => {
                    host.error(&failure.to_string());
                    continue;
                }
                other => other?,
            };
            let errand = errand(parts, &offer.offer, self.user);
            let wish =
                Wish { user: self.user, offer: &offer.offer, purpose, password: self.old, new_password: Some(&new) };
            let (answer, line) = exchange::send_change(&errand, &wish, card)?;
            match answer {
                Answer::PasswordChanged => {
                    host.info("Your password has been changed.");
                    return Ok(new);
                }
                Answer::Granted(granted) => {
                    host.info("Your password has been changed.");
                    exchange::deliver_and_acknowledge(&errand, &offer, card, granted, line)?;
                    offer.keep();
                    return Ok(new);
                }
                Answer::Denied(reason @ DenyReason::NewPassword(_)) if tries_left > 0 => {
                    host.error(&LoginFailure::Denied(reason).to_string());
                    // A card may want its PIN for each operation.
                    if let Some(pin) = self.pin {
                        card.unlock(pin).map_err(LoginFailure::Card)?;
                    }
                }
                Answer::Denied(reason) => return Err(LoginFailure::Denied(reason).into()),
                Answer::Verified => return Err(LoginFailure::Protocol(ProtocolError::OutOfOrder).into()),
            }
        }
        Err(Failure::NotTheSame)
    }
}

/// Typed twice the same, or from an earlier module.
fn new_password(host: &mut dyn Host, options: &Options) -> Result<SecretBytes, Failure> {
    if options.use_authtok {
        return host.earlier_password().ok_or(Failure::NoNewPassword);
    }
    let new = host.prompt("New password: ").map_err(Failure::Conversation)?;
    if new.expose().is_empty() {
        return Err(Failure::NoPassword);
    }
    let again = host.prompt("New password once more: ").map_err(Failure::Conversation)?;
    if new.expose() == again.expose() { Ok(new) } else { Err(Failure::NotTheSame) }
}

/// Asks for a new password that is none of this module's business. pam-auth-update tells every module but the first of a stack not to ask (`use_authtok`), so without
/// this nobody would. Nothing here is an error: the module that wants the password says what is wrong.
fn ask_for_others(host: &mut dyn Host) {
    for _ in 0..TRIES {
        let typed = host.prompt("New password: ").and_then(|new| Ok((new, host.prompt("Retype new password: ")?)));
        match typed {
            Ok((new, again)) if new.expose() == again.expose() => {
                if let Err(code) = host.hand_password_on(&new) {
                    host.log(libc::LOG_WARNING, &format!("cannot hand the password on to later modules: {code:?}"));
                }
                return;
            }
            Ok(_) => host.error("The new password was not typed twice the same."),
            Err(code) => return host.log(libc::LOG_NOTICE, &format!("no new password: {code:?}")),
        }
    }
}

#[cfg(test)]
mod tests;
