//! The login: pam_sm_authenticate.

use crate::{
    challenge::{self, Errand, Opened},
    exchange::{self, LoggedIn, Wish},
    exempt::{is_exempt, is_listed, is_remote},
    failure::Failure,
    host::{Host, Kept, Later, Marked, Marker},
    later,
    offer::{HeldOffer, check_organisation, exempt, prepare},
    options::{Options, PasswordSource},
    parts::Parts,
};
use cug_card::{Card, CardError, PinRequest, Selection};
use cug_login::{Failure as LoginFailure, daemon::DaemonError};
use cug_proto::{
    id::UserId,
    local::{Offer, Refusal},
    message::{DenyReason, Purpose},
    secret::SecretBytes,
    waiting::HandOver,
};
use pam::constants::PamResultCode;
use std::time::Duration;

/// The packages may be installed long before anybody decides whose cards count here.
pub const NOT_CONFIGURED: &str = "this workstation has no configuration of cugd";

/// How a login ends well.
enum Verdict {
    /// Card and password are right. If the password must be changed, the account phase says so.
    Authenticated,
    /// Not this module's business, and why.
    NotOurs(&'static str),
    /// No server can be reached, and the configuration leaves the OS login to other modules.
    Away,
}

/// Logs in, tells the person and the log what became of it, and gives the code for libpam.
pub fn authenticate(host: &mut dyn Host, options: &Options, parts: &Parts<'_>) -> PamResultCode {
    match log_in(host, options, parts) {
        Ok(Verdict::Authenticated) => PamResultCode::PAM_SUCCESS,
        Ok(Verdict::NotOurs(why)) => {
            host.log(libc::LOG_DEBUG, &format!("ignored: {why}"));
            PamResultCode::PAM_IGNORE
        }
        Ok(Verdict::Away) => {
            host.info(later::AWAY);
            PamResultCode::PAM_IGNORE
        }
        Err(failure) => {
            host.log(libc::LOG_NOTICE, &format!("login failed: {}", failure.chain()));
            host.error(&failure.to_string());
            if on_a_display(host) {
                host.linger();
            }
            failure.code()
        }
    }
}

/// A greeter or a locker on an X display: it shows one line at a time, and begins again as soon as a login has failed.
fn on_a_display(host: &dyn Host) -> bool {
    host.tty().starts_with(':')
}

fn log_in(host: &mut dyn Host, options: &Options, parts: &Parts<'_>) -> Result<Verdict, Failure> {
    let name = host.user().map_err(Failure::NoUser)?;
    if is_exempt(&name, options, &*parts.accounts) {
        return Ok(Verdict::NotOurs("the user is exempt"));
    }
    if is_remote(host.remote_host().as_deref(), options) {
        return Ok(Verdict::NotOurs("a login from another host"));
    }
    // What is no user ID may be a password in the wrong place: it does not go into the log.
    let user: UserId = name.parse().map_err(|_| Failure::NotAUserId)?;
    let earlier = earlier_password(host, options);
    let offer = earlier.and_then(|earlier| Ok((prepare(&*parts.daemon, &user, host.service())?, earlier)));
    if let Err(Failure::Login(LoginFailure::Refused(Refusal::Version))) = &offer
        && exempt(&*parts.daemon).is_some_and(|names| is_listed(&name, &names, &*parts.accounts))
    {
        return Ok(Verdict::NotOurs("the user is exempt by the configuration of cugd, which is of another version"));
    }
    if let Err(Failure::Login(LoginFailure::Daemon(DaemonError::NotConfigured))) = &offer {
        return Ok(Verdict::NotOurs(NOT_CONFIGURED));
    }
    if let Ok((offer, _)) = &offer
        && is_listed(&name, &offer.offer.exempt, &*parts.accounts)
    {
        return Ok(Verdict::NotOurs("the user is exempt by the configuration of cugd"));
    }
    let outcome = offer.and_then(|(offer, earlier)| log_member_in(host, parts, &user, offer, earlier));
    let what = match &outcome {
        Ok(Marked::MustChange) => "may log in with a card once the password is changed",
        Ok(Marked::Away) => "could not log in: the server is away",
        Ok(_) => "logged in with a card",
        Err(_) => "did not log in with a card",
    };
    host.log(libc::LOG_INFO, &format!("{user} {what}"));
    let result = match &outcome {
        Ok(result) => *result,
        Err(Failure::Login(LoginFailure::Denied(reason))) if is_about_the_account(*reason) => Marked::Refused(*reason),
        Err(_) => Marked::Failed,
    };
    if let Err(code) = host.mark(Marker { user, result }) {
        host.log(libc::LOG_ERR, &format!("cannot remember the login on the handle: {code:?}"));
    }
    outcome.map(|result| if result == Marked::Away { Verdict::Away } else { Verdict::Authenticated })
}

/// The login of a member, step by step. An error, whichever, makes cugd forget the offer.
fn log_member_in(
    host: &mut dyn Host,
    parts: &Parts<'_>,
    user: &UserId,
    offer: HeldOffer<'_>,
    earlier: Option<SecretBytes>,
) -> Result<Marked, Failure> {
    let mut card = find_card(host, parts, &offer.offer)?;
    let pin = unlock(host, &mut *card)?;
    let errand = errand(parts, &offer.offer, user);
    let (opened, password) = open_challenge_and_ask_password(host, &errand, &mut *card, earlier)?;
    let purpose = offer.offer.purpose;
    let wish = Wish { user, offer: &offer.offer, purpose, password: &password, new_password: None };
    let logged_in =
        opened.and_then(|opened| exchange::log_in(&errand, &offer, &wish, &mut *card, pin.as_ref(), opened));
    let result = match logged_in {
        Ok(LoggedIn::Granted) => {
            offer.keep();
            Marked::Authenticated
        }
        Ok(LoggedIn::Verified) => Marked::Authenticated,
        Ok(LoggedIn::MustChange) => Marked::MustChange,
        Err(failure) if failure.is_away() && offer.offer.offline_local => {
            host.log(libc::LOG_NOTICE, &format!("no server: {}", failure.chain()));
            Marked::Away
        }
        Err(failure) => return Err(failure.into()),
    };
    if let Err(code) = host.hand_password_on(&password) {
        host.log(libc::LOG_WARNING, &format!("cannot hand the password on to later modules: {code:?}"));
    }
    if result == Marked::MustChange {
        // libpam wipes PAM_AUTHTOK between the phases. Without this the person types everything once more, and that is all.
        let kept = Kept { user: user.clone(), password, pin, card: *card.fingerprint() };
        if let Err(code) = host.keep(kept) {
            host.log(libc::LOG_WARNING, &format!("cannot keep the password until it is changed: {code:?}"));
        }
    } else if result == Marked::Away && purpose == Purpose::Open {
        // Not before the session begins: until then nobody knows whether the person is let in.
        let later = Later { user: user.clone(), typed: HandOver { password, pin }, card: card.binding() };
        if let Err(code) = host.keep_for_later(later) {
            host.log(libc::LOG_WARNING, &format!("cannot keep the password until the session begins: {code:?}"));
        }
    }
    Ok(result)
}

/// A wrong password says something about the person who typed; these say something about the account, whoever else lets the person in.
fn is_about_the_account(reason: DenyReason) -> bool {
    match reason {
        DenyReason::WrongPassword
        | DenyReason::TooManyAttempts(_)
        | DenyReason::BadRequest
        | DenyReason::NewPassword(_) => false,
        DenyReason::Disabled
        | DenyReason::CardRevoked
        | DenyReason::NoGroup
        | DenyReason::MustChangePassword
        | DenyReason::Expired
        | DenyReason::OutsideHours(_) => true,
    }
}

fn earlier_password(host: &mut dyn Host, options: &Options) -> Result<Option<SecretBytes>, Failure> {
    match options.password {
        PasswordSource::Ask => Ok(None),
        PasswordSource::EarlierOrAsk => Ok(host.earlier_password()),
        PasswordSource::Earlier => host.earlier_password().map(Some).ok_or(Failure::NoEarlierPassword),
    }
}

/// Longest wait for a card that cugd may ask for.
const LONGEST_CARD_WAIT: Duration = Duration::from_secs(600);
/// Longest wait for servers that cugd may ask for.
const LONGEST_SERVER_WAIT: Duration = Duration::from_secs(60);

/// The card of this organisation that is inserted, or that the person is asked to insert.
pub fn find_card(host: &mut dyn Host, parts: &Parts<'_>, offer: &Offer) -> Result<Box<dyn Card>, Failure> {
    let selection =
        Selection { readers: offer.readers.clone(), media: offer.media.clone(), taken: offer.taken.clone() };
    let wait = Duration::from_millis(offer.card_wait_ms.into()).min(LONGEST_CARD_WAIT);
    let mut ask = || host.info("Please insert your card.");
    let card = parts.readers.find(&selection, parts.clock.now() + wait, &mut ask).map_err(LoginFailure::Card)?;
    check_organisation(offer, &*card)?;
    Ok(card)
}

/// Tries for a PIN within one login. The last try before the card blocks is never taken without a new login.
const PIN_PROMPTS: u8 = 3;

/// Asks for PIN or passphrase if the card wants one; it is kept for a card that wants it again. A PIN that the card has refused is not sent to it
/// again: some screen lockers give one answer, the password, to every question.
pub fn unlock(host: &mut dyn Host, card: &mut dyn Card) -> Result<Option<SecretBytes>, Failure> {
    let mut refused: Option<SecretBytes> = None;
    for prompts_left in (0..PIN_PROMPTS).rev() {
        let request = card.pin().map_err(LoginFailure::Card)?;
        if prompts_left + 1 == PIN_PROMPTS && request != PinRequest::NotNeeded && on_a_display(host) {
            // The first field may stand there without its prompt, and a password typed into it would cost the card a try.
            host.info("First the PIN of your card, then your password.");
        }
        let prompt = match request {
            PinRequest::NotNeeded => return Ok(None),
            PinRequest::Pin { tries_left } => {
                if tries_left == Some(1) {
                    host.info("One try is left before the card blocks.");
                }
                "PIN: "
            }
            PinRequest::Passphrase => "Passphrase: ",
        };
        let pin = host.prompt(prompt).map_err(Failure::Conversation)?;
        let same = refused.as_ref().is_some_and(|refused| refused.expose() == pin.expose());
        match if same { Err(CardError::SamePin) } else { card.unlock(&pin) } {
            Ok(()) => return Ok(Some(pin)),
            Err(error) if prompts_left > 0 && may_ask_again(&error) => {
                host.error(&LoginFailure::Card(error).to_string());
                refused = Some(pin);
            }
            Err(error) => return Err(LoginFailure::Card(error).into()),
        }
    }
    Err(LoginFailure::Card(CardError::PinRequired).into())
}

fn may_ask_again(error: &CardError) -> bool {
    match error {
        CardError::WrongPin { tries_left } => tries_left.is_none_or(|tries| tries > 1),
        CardError::WrongPassphrase | CardError::PinFormat | CardError::SamePin => true,
        _ => false,
    }
}

/// Whom to log in at which servers.
pub fn errand<'a>(parts: &'a Parts<'_>, offer: &'a Offer, user: &'a UserId) -> Errand<'a> {
    let limit = Duration::from_millis(offer.server_timeout_ms.into()).min(LONGEST_SERVER_WAIT);
    Errand { user, servers: &offer.servers, limit, network: &*parts.servers, clock: parts.clock }
}

/// Both at once, so that the card and the network cost the person no time.
fn open_challenge_and_ask_password<'a>(
    host: &mut dyn Host,
    errand: &Errand<'a>,
    card: &mut dyn Card,
    earlier: Option<SecretBytes>,
) -> Result<(Result<Opened<'a>, LoginFailure>, SecretBytes), Failure> {
    let (opened, password) = match earlier {
        Some(password) => (challenge::obtain(errand, card), Ok(password)),
        None => challenge::while_asking(errand, card, || host.prompt("Password: ")),
    };
    let password = password.map_err(Failure::Conversation)?;
    if password.expose().is_empty() {
        return Err(Failure::NoPassword);
    }
    Ok((opened, password))
}

#[cfg(test)]
mod tests;
