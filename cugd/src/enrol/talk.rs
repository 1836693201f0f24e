//! The enrolment protocol as the terminal sees it. See [`cug_proto::enrol`].

use cug_proto::{
    PROTOCOL_VERSION, ProtocolError,
    enrol::{
        CardKind, CommitKeys, EnrolCode, EnrolCommit, EnrolCredentials, EnrolHello, EnrolKey, EnrolVerdict, Exchange,
        token,
    },
    id::{HostName, UserId},
    message::{ClientMessage, Fingerprint, ServerMessage},
    secret::{Secret, SecretBytes},
    trust::{ServerObject, signed_server_object, spki_sha256},
};
use getrandom::{SysRng, rand_core::UnwrapErr};

use super::{EnrolError, line::Line};

/// An enrolment whose code both sides have proved.
pub(super) struct Talk {
    line: Line,
    exchange: Exchange,
    token: Secret<32>,
    object: ServerObject,
    /// Those of the card, once it has answered; until then those for the password alone.
    keys: CommitKeys,
}

/// For the card.
pub(super) struct Challenge {
    /// DER.
    pub(super) certificate: Vec<u8>,
    /// To be opened by the card.
    pub(super) ciphertext: Vec<u8>,
    /// Of the card's key.
    pub(super) fingerprint: Fingerprint,
}

impl Talk {
    /// Up to the server's proof that it has this very code. Nothing of worth was given away before that: see the messages' documentation.
    pub(super) fn claim(
        mut line: Line,
        user: &UserId,
        host_name: &HostName,
        code: &EnrolCode,
    ) -> Result<Self, EnrolError> {
        let hello = EnrolHello { version: PROTOCOL_VERSION, user: user.clone(), host_name: host_name.clone() };
        let hello = line.send(&ClientMessage::EnrolHello(hello))?;
        let (answer, body) = line.receive()?;
        let ServerMessage::EnrolOffer(offer) = answer else { return Err(other(answer)) };
        let object = signed_server_object(&offer.server_object, &line.ca, &line.pin)?;
        let mut exchange = Exchange::new(line.exporter, &hello, &body);

        let token = token(code, user);
        let sent = line.send(&ClientMessage::EnrolClaim(exchange.seal_claim(&token)?))?;
        let (answer, body) = line.receive()?;
        exchange.absorb(&sent);
        let ServerMessage::EnrolReady(ready) = answer else { return Err(other(answer)) };
        exchange.verify_ready(&token, &ready).map_err(|_| EnrolError::Impostor)?;
        exchange.absorb(&body);
        let keys = exchange.commit_keys(&token, None);
        Ok(Self { line, exchange, token, object, keys })
    }

    /// What the card is to hold.
    pub(super) fn server_object(&self) -> &[u8] {
        self.object.certificate()
    }

    /// Tells the server the card's key.
    pub(super) fn key(&mut self, public_key: Vec<u8>, kind: CardKind) -> Result<Challenge, EnrolError> {
        let mac = self.exchange.key_mac(&self.token, &public_key, kind);
        let sent = self.line.send(&ClientMessage::EnrolKey(EnrolKey { public_key, kind, mac }))?;
        let (answer, body) = self.line.receive()?;
        self.exchange.absorb(&sent);
        let ServerMessage::EnrolChallenge(challenge) = answer else { return Err(other(answer)) };
        self.exchange.verify_challenge(&self.token, &challenge).map_err(|_| EnrolError::Impostor)?;
        self.exchange.absorb(&body);
        let fingerprint = spki_sha256(&challenge.certificate)?;
        Ok(Challenge { certificate: challenge.certificate, ciphertext: challenge.ciphertext, fingerprint })
    }

    /// The card has opened its challenge.
    pub(super) fn card_answered(&mut self, opened: &Secret<32>) {
        self.keys = self.exchange.commit_keys(&self.token, Some(opened));
    }

    /// Asks the server to register. When the answer does not come, nobody here knows whether it did.
    pub(super) fn commit(&mut self, user: &UserId, password: &SecretBytes) -> Result<EnrolVerdict, EnrolError> {
        let credentials = EnrolCredentials { user: user.clone(), password: password.duplicate() };
        let envelope = self.object.envelope_key().seal_value(&credentials, &mut UnwrapErr(SysRng))?;
        let proof = self.keys.proof(&self.exchange, &envelope);
        let sent = self.line.send(&ClientMessage::EnrolCommit(EnrolCommit { envelope, proof }))?;
        let (answer, body) = self.line.receive().map_err(|error| EnrolError::Unknown(Box::new(error.into())))?;
        let ServerMessage::EnrolResult(result) = answer else { return Err(other(answer)) };
        self.exchange.absorb(&sent);
        let verdict = self.keys.open(&self.exchange, &result).map_err(|_| EnrolError::Impostor)?;
        self.exchange.absorb(&body);
        Ok(verdict)
    }
}

/// What came instead of what must come.
fn other(answer: ServerMessage) -> EnrolError {
    match answer {
        ServerMessage::Rejected => EnrolError::Rejected,
        ServerMessage::Unavailable(why) => EnrolError::Unavailable(why),
        _ => EnrolError::Protocol(ProtocolError::OutOfOrder),
    }
}
