//! From the password to the registered session.

use crate::{
    challenge::{self, Errand, Line, Opened},
    daemon::{DaemonError, OPENING},
    edge,
    failure::Failure,
    login::{Answer, Granted},
    offer::HeldOffer,
    server::LinkError,
};
use cug_card::Card;
use cug_proto::{
    ProtocolError,
    id::UserId,
    local::{Deliver, Offer, Reply, Request},
    message::{Credentials, DenyReason, MAX_ADDRESSES, Purpose},
    secret::{Secret, SecretBytes},
};

/// What the person wants of the server.
pub struct Wish<'a> {
    /// Who.
    pub user: &'a UserId,
    /// From cugd.
    pub offer: &'a Offer,
    /// What a right password leads to.
    pub purpose: Purpose,
    /// The password.
    pub password: &'a SecretBytes,
    /// What it is to be from now on.
    pub new_password: Option<&'a SecretBytes>,
}

impl Wish<'_> {
    /// With an outcome secret of their own each time.
    fn credentials(&self) -> Credentials {
        Credentials {
            user: self.user.clone(),
            password: self.password.duplicate(),
            purpose: self.purpose,
            wg_public_key: self.offer.wg_public_key,
            host_name: self.offer.host_name.clone(),
            addresses: self.offer.addresses.iter().copied().take(MAX_ADDRESSES).collect(),
            outcome_secret: Secret::random(&mut edge::random()),
            new_password: self.new_password.map(SecretBytes::duplicate),
        }
    }
}

/// Sends the login and gives the answer. A server that closed the connection before it answered, because the person typed for long or because it was restarted, is
/// asked once more from the start; the card then wants its PIN again.
fn send_login<'a>(
    errand: &Errand<'a>,
    wish: &Wish<'_>,
    card: &mut dyn Card,
    pin: Option<&SecretBytes>,
    opened: Opened<'a>,
) -> Result<(Answer, Line<'a>), Failure> {
    let limit = opened.line.left;
    match attempt(errand, wish, card, opened) {
        Err(Failure::Server(LinkError::Closed)) => {
            if let Some(pin) = pin {
                card.unlock(pin).map_err(Failure::Card)?;
            }
            let again = challenge::obtain(&Errand { limit, ..*errand }, card)?;
            attempt(errand, wish, card, again)
        }
        other => other,
    }
}

/// How a login ends well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoggedIn {
    /// cugd has the grant, and the server knows.
    Granted,
    /// Card and password are right; no session was asked for.
    Verified,
    /// They are right, and the password must be changed before there is a session.
    MustChange,
}

/// A whole login after the challenge was opened, up to the acknowledged grant. The caller keeps the offer if one was granted.
///
/// # Errors
/// Whatever kept it from succeeding; [`Failure::is_away`] tells absence from refusal.
pub fn log_in<'a>(
    errand: &Errand<'a>,
    offer: &HeldOffer<'_>,
    wish: &Wish<'_>,
    card: &mut dyn Card,
    pin: Option<&SecretBytes>,
    opened: Opened<'a>,
) -> Result<LoggedIn, Failure> {
    let (answer, line) = send_login(errand, wish, card, pin, opened)?;
    match answer {
        Answer::Denied(DenyReason::MustChangePassword) => Ok(LoggedIn::MustChange),
        Answer::Denied(reason) => Err(Failure::Denied(reason)),
        Answer::PasswordChanged => Err(Failure::Protocol(ProtocolError::OutOfOrder)),
        Answer::Verified => Ok(LoggedIn::Verified),
        Answer::Granted(granted) => {
            deliver_and_acknowledge(errand, offer, card, granted, line)?;
            Ok(LoggedIn::Granted)
        }
    }
}

/// Sends a new password and gives the answer. It is never sent twice: if no answer comes, nobody here knows which of the two passwords counts.
pub fn send_change<'a>(
    errand: &Errand<'a>,
    wish: &Wish<'_>,
    card: &mut dyn Card,
) -> Result<(Answer, Line<'a>), Failure> {
    let opened = challenge::obtain(errand, card)?;
    attempt(errand, wish, card, opened).map_err(|failure| match failure {
        Failure::Server(error) => Failure::Unsure(error),
        other => other,
    })
}

fn attempt<'a>(
    errand: &Errand<'a>,
    wish: &Wish<'_>,
    card: &dyn Card,
    opened: Opened<'a>,
) -> Result<(Answer, Line<'a>), Failure> {
    let Opened { mut line, ready } = opened;
    let server_key = card.server_object().envelope_key();
    let login = ready.login(server_key, &wish.credentials(), &mut edge::random());
    let (state, login) = login.map_err(Failure::Protocol)?;
    let body = line.ask(&login, errand.clock).map_err(Failure::Server)?;
    Ok((state.receive(&body)?, line))
}

/// First cugd gets the grant, then the server hears that it arrived, and registers the address (patent, step S7). The limit for cugd is that of opening a session, because
/// it brings a suspended one up again at once.
pub fn deliver_and_acknowledge(
    errand: &Errand<'_>,
    offer: &HeldOffer<'_>,
    card: &dyn Card,
    granted: Granted,
    mut line: Line<'_>,
) -> Result<(), Failure> {
    let (mut grant, state, ack) = granted.acknowledge().map_err(Failure::Protocol)?;
    if offer.offer.without_groups {
        // This process is the user's; the keys of the groups are not for it, and cugd would not take them from it.
        grant.groups.clear();
    }
    let request = Request::Deliver(Deliver {
        offer: offer.offer.id,
        grant,
        server: line.server.to_owned(),
        ca_pin: *card.server_object().ca_pin(),
        card: card.binding(),
    });
    match offer.daemon.call(&request, OPENING).map_err(Failure::Daemon)? {
        Reply::Delivered(_) => {}
        Reply::Refused(why) => return Err(Failure::Refused(why)),
        _ => return Err(Failure::Daemon(DaemonError::Unexpected)),
    }
    let body = line.ask(&ack, errand.clock).map_err(Failure::Server)?;
    Ok(state.receive(&body)?)
}
