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
    local::{Deliver, Reply, Request},
    message::Credentials,
    secret::SecretBytes,
};

/// Sends the login and gives the answer. A server that closed the connection before it answered, because the person typed for long or because it was restarted, is
/// asked once more from the start; the card then wants its PIN again.
pub fn send_login<'a>(
    errand: &Errand<'a>,
    credentials: &Credentials,
    card: &mut dyn Card,
    pin: Option<&SecretBytes>,
    opened: Opened<'a>,
) -> Result<(Answer, Line<'a>), Failure> {
    let limit = opened.line.left;
    match attempt(errand, credentials, card, opened) {
        Err(Failure::Server(LinkError::Closed)) => {
            if let Some(pin) = pin {
                card.unlock(pin).map_err(Failure::Card)?;
            }
            let again = challenge::obtain(&Errand { limit, ..*errand }, card)?;
            attempt(errand, credentials, card, again)
        }
        other => other,
    }
}

fn attempt<'a>(
    errand: &Errand<'a>,
    credentials: &Credentials,
    card: &dyn Card,
    opened: Opened<'a>,
) -> Result<(Answer, Line<'a>), Failure> {
    let Opened { mut line, ready } = opened;
    let server_key = card.server_object().envelope_key();
    let (state, login) = ready.login(server_key, credentials, &mut edge::random()).map_err(Failure::Protocol)?;
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
    let (grant, state, ack) = granted.acknowledge().map_err(Failure::Protocol)?;
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
