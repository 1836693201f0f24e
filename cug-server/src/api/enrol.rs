//! The enrolment's messages in their order.

use super::{ConnectionError, Reader, Result, Writer, frames::send_frame};
use crate::service::{Claimed, NewKey, Service};
use cug_proto::{
    ProtocolError,
    enrol::{EnrolCommit, EnrolHello, EnrolKey, EnrolVerdict, Exchange, MAX_COMMITS},
    frame::{self, HEADER_LEN},
    message::{ClientMessage, ServerMessage},
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use zeroize::Zeroizing;

/// For the claim: the terminal has asked for the code already.
const CLAIM_TIME: Duration = Duration::from_secs(10);

/// For the card to make its key: with 4096 bits a slow card takes minutes. Only who has a code gets so far.
const KEY_TIME: Duration = Duration::from_secs(300);

/// For the card to be written and to answer; and for a person to think of another password.
const COMMIT_TIME: Duration = Duration::from_secs(120);

/// Runs an enrolment after its `EnrolHello`. Every wait is bounded.
pub(super) async fn run(
    service: &Arc<Service>,
    reader: Reader,
    writer: Writer,
    hello: EnrolHello,
    hello_body: &[u8],
    exporter: [u8; 32],
    source: IpAddr,
) -> Result<()> {
    let mut line = Line { reader, writer };
    let (enrolling, offer) = match service.enrol_offer(hello, source) {
        Ok(offered) => offered,
        Err(unavailable) => return line.end(ServerMessage::Unavailable(unavailable)).await,
    };
    let offer = line.send(&ServerMessage::EnrolOffer(offer)).await?;
    let mut exchange = Exchange::new(exporter, hello_body, body(&offer));

    let sent = line.receive(CLAIM_TIME).await?;
    let ClientMessage::EnrolClaim(claim) = frame::decode(&sent)? else { return Err(ProtocolError::OutOfOrder.into()) };
    let claimed = match service.enrol_claim(enrolling, &exchange, &claim).await {
        Ok(Some(claimed)) => claimed,
        Ok(None) => return line.end(ServerMessage::Rejected).await,
        Err(unavailable) => return line.end(ServerMessage::Unavailable(unavailable)).await,
    };
    exchange.absorb(&sent);
    let ready = line.send(&ServerMessage::EnrolReady(claimed.ready(&exchange))).await?;
    exchange.absorb(body(&ready));

    let sent = line.receive(KEY_TIME).await?;
    match frame::decode(&sent)? {
        ClientMessage::EnrolKey(key) => {
            let Some(key) = challenge(service, &mut line, &claimed, &mut exchange, key, &sent).await? else {
                return Ok(());
            };
            let sent = line.receive(COMMIT_TIME).await?;
            commits(service, line, &claimed, Some(&key), exchange, sent).await
        }
        ClientMessage::EnrolCommit(_) => commits(service, line, &claimed, None, exchange, sent).await,
        _ => Err(ProtocolError::OutOfOrder.into()),
    }
}

/// `EnrolKey` to `EnrolChallenge`; `None` when the server has a fault, which was told.
async fn challenge(
    service: &Arc<Service>,
    line: &mut Line,
    claimed: &Claimed,
    exchange: &mut Exchange,
    key: EnrolKey,
    sent: &[u8],
) -> Result<Option<NewKey>> {
    let mut key = match service.enrol_key(claimed, exchange, key).await? {
        Ok(key) => key,
        Err(unavailable) => {
            line.end(ServerMessage::Unavailable(unavailable)).await?;
            return Ok(None);
        }
    };
    exchange.absorb(sent);
    let challenge = claimed.challenge(exchange, &mut key);
    let challenge = line.send(&ServerMessage::EnrolChallenge(challenge)).await?;
    exchange.absorb(body(&challenge));
    Ok(Some(key))
}

/// The first commit is `sent`; after a refused password another one may come.
async fn commits(
    service: &Arc<Service>,
    mut line: Line,
    claimed: &Claimed,
    key: Option<&NewKey>,
    mut exchange: Exchange,
    mut sent: Zeroizing<Vec<u8>>,
) -> Result<()> {
    let mut keys = claimed.commit_keys(&exchange, key);
    for _ in 0..MAX_COMMITS {
        let commit: EnrolCommit = match frame::decode(&sent)? {
            ClientMessage::EnrolCommit(commit) => commit,
            _ => return Err(ProtocolError::OutOfOrder.into()),
        };
        if let Err(error) = keys.verify(&exchange, &commit) {
            service.enrol_unproved(claimed);
            return Err(error.into());
        }
        let verdict = match service.enrol_commit(claimed, key, &commit).await {
            Ok(verdict) => verdict,
            Err(unavailable) => return line.end(ServerMessage::Unavailable(unavailable)).await,
        };
        exchange.absorb(&sent);
        let result = keys.seal(&exchange, &verdict)?;
        let result = line.send(&ServerMessage::EnrolResult(result)).await?;
        exchange.absorb(body(&result));
        if !matches!(verdict, EnrolVerdict::PasswordRefused(_)) {
            return Ok(());
        }
        sent = line.receive(COMMIT_TIME).await?;
    }
    Err(ProtocolError::OutOfOrder.into())
}

/// The connection.
struct Line {
    reader: Reader,
    writer: Writer,
}

impl Line {
    /// The whole frame as it was sent.
    async fn send(&mut self, message: &ServerMessage) -> Result<Zeroizing<Vec<u8>>> {
        let frame = frame::encode(message, frame::MAX_LOGIN)?;
        send_frame(&mut self.writer, &frame).await?;
        Ok(frame)
    }

    async fn end(&mut self, message: ServerMessage) -> Result<()> {
        self.send(&message).await.map(drop)
    }

    async fn receive(&mut self, limit: Duration) -> Result<Zeroizing<Vec<u8>>> {
        tokio::time::timeout(limit, self.reader.next()).await.map_err(|_| ConnectionError::Deadline)?
    }
}

fn body(frame: &[u8]) -> &[u8] {
    frame.get(HEADER_LEN..).unwrap_or_default()
}
