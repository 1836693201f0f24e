//! Management servers without a network: the server's half of the protocol crate behind a [`Link`].

use super::{ManualClock, TestCa, assert_used_up};
use crate::{
    edge::{self, Clock},
    login::Frame,
    server::{Link, LinkError, Servers},
};
use cug_proto::{
    envelope::{EnvelopeKey, SealedEnvelope},
    frame,
    login::{BoundTranscript, LoginKeys, Transcript, verify_ack},
    message::{
        Challenge, ClientMessage, Credentials, DenyReason, Grant, GroupGrant, Outcome, Prefix4, Prefix6, Purpose,
        SealedOutcome, ServerMessage, Unavailable,
    },
    password::PasswordProblem,
    secret::Secret,
    trust::{CaPin, ServerObject},
};
use rsa::{Oaep, RsaPrivateKey, pkcs8::EncodePublicKey, sha2::Sha256};
use std::{
    collections::VecDeque,
    io::ErrorKind,
    sync::{Mutex, OnceLock},
    time::Instant,
};
use zeroize::Zeroizing;

pub const CHALLENGE: [u8; 32] = [0xc4; 32];
const EXPORTER: [u8; 32] = [3; 32];

fn server_key() -> &'static RsaPrivateKey {
    static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
    KEY.get_or_init(|| RsaPrivateKey::new(&mut edge::random(), 2048).unwrap())
}

pub fn envelope_key() -> EnvelopeKey {
    EnvelopeKey::new(server_key().to_public_key()).unwrap()
}

pub fn server_object() -> ServerObject {
    static OBJECT: OnceLock<Vec<u8>> = OnceLock::new();
    let der =
        OBJECT.get_or_init(|| TestCa::new().server_object(&server_key().to_public_key().to_public_key_der().unwrap()));
    ServerObject::parse(der).unwrap()
}

/// The body of a frame.
pub fn encode_body(message: &ServerMessage) -> Vec<u8> {
    frame::encode(message, frame::MAX_SESSION).unwrap()[frame::HEADER_LEN..].to_vec()
}

/// One login at the server.
#[derive(Default)]
pub struct FakeSession {
    transcript: Option<Transcript>,
    login: Option<(LoginKeys, BoundTranscript, Credentials)>,
    granted: Option<(Grant, BoundTranscript, Vec<u8>)>,
}

impl FakeSession {
    pub fn hello(&mut self, body: &[u8]) -> Vec<u8> {
        let Ok(ClientMessage::Hello(hello)) = frame::decode(body) else { panic!("no hello") };
        assert_eq!((hello.user.as_str(), hello.card), ("USER-A", [1; 32]));
        let challenge = encode_body(&ServerMessage::Challenge(Challenge { ciphertext: vec![0x5a; 256] }));
        self.transcript = Some(Transcript::new(body, &challenge));
        challenge
    }

    /// Whether the proof was right.
    pub fn login(&mut self, body: &[u8]) -> bool {
        let Ok(ClientMessage::Login(login)) = frame::decode(body) else { panic!("no login") };
        let transcript = self.transcript.take().expect("no hello").with_envelope(&login.envelope);
        let keys = LoginKeys::new(&Secret::copy_from(&CHALLENGE).unwrap(), &EXPORTER);
        if keys.verify_proof(&transcript, &login.proof).is_err() {
            return false;
        }
        let envelope = SealedEnvelope::parse(&login.envelope).unwrap();
        let content_key = server_key().decrypt(Oaep::<Sha256>::new(), envelope.wrapped_key()).unwrap();
        let credentials = envelope.open(&Secret::copy_from(&content_key).unwrap()).unwrap();
        self.login = Some((keys, transcript, credentials));
        true
    }

    pub fn password(&self) -> &[u8] {
        self.login.as_ref().unwrap().2.password.expose()
    }

    pub fn purpose(&self) -> Purpose {
        self.login.as_ref().unwrap().2.purpose
    }

    pub fn new_password(&self) -> Option<&[u8]> {
        self.login.as_ref().unwrap().2.new_password.as_ref().map(|new| new.expose())
    }

    pub fn outcome(&mut self, outcome: &Outcome) -> Vec<u8> {
        let (keys, transcript, credentials) = self.login.take().unwrap();
        assert!(credentials.addresses.len() <= cug_proto::message::MAX_ADDRESSES);
        let sealed = keys.seal_outcome(&transcript, &credentials.outcome_binding(), outcome).unwrap();
        if let Outcome::Grant(grant) = outcome {
            self.granted = Some((grant.duplicate(), transcript, sealed.clone()));
        }
        encode_body(&ServerMessage::Outcome(SealedOutcome { sealed }))
    }

    pub fn grant(&mut self) -> Vec<u8> {
        let group = GroupGrant {
            id: 1,
            name: "VPN1".parse().unwrap(),
            epoch: 1,
            key: Secret::fill(|key| key.fill(0x6b)),
            prefix4: Prefix4 { address: [100, 96, 0, 0].into(), len: 20 },
            prefix6: Prefix6 { address: "fd00::".parse().unwrap(), len: 64 },
            address4: [100, 96, 0, 1].into(),
            address6: "fd00::1".parse().unwrap(),
            policy: cug_proto::policy::Policy::Open,
        };
        let secret = Secret::fill(|secret| secret.fill(0x5e));
        self.outcome(&Outcome::Grant(Grant { session: [2; 16], secret, groups: vec![group], attach_within: 60 }))
    }

    pub fn verify_ack(&self, body: &[u8]) {
        let Ok(ClientMessage::Ack(ack)) = frame::decode(body) else { panic!("no ack") };
        let (grant, transcript, sealed) = self.granted.as_ref().expect("no grant");
        verify_ack(grant, transcript, sealed, &ack.mac).unwrap();
    }
}

/// What a server does on one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    Unreachable,
    NotTrusted,
    /// Answers nothing until the deadline, to `Hello`.
    Hangs,
    /// Likewise, to `Login`.
    HangsAtLogin,
    /// Likewise, to `Ack`.
    HangsAtAck,
    ClosesAtLogin,
    ClosesAtAck,
    Busy,
    /// Answers `Hello` with something else.
    Babbles,
    Grants,
    Verifies,
    Denies(DenyReason),
    /// Expects this new password, and takes it: with a grant if a session was asked for.
    Changes(&'static str),
    /// Expects this new password, and refuses it.
    RefusesNew(&'static str, PasswordProblem),
    /// Expects a proof that is wrong.
    Rejects,
}

/// Servers that do these things, connection after connection.
pub struct FakeServers<'a> {
    clock: &'a ManualClock,
    acts: Mutex<VecDeque<Act>>,
}

impl<'a> FakeServers<'a> {
    pub fn new(clock: &'a ManualClock, acts: impl IntoIterator<Item = Act>) -> Self {
        Self { clock, acts: Mutex::new(acts.into_iter().collect()) }
    }
}

impl Drop for FakeServers<'_> {
    fn drop(&mut self) {
        assert_used_up("server", self.acts.lock().unwrap().len());
    }
}

impl Servers for FakeServers<'_> {
    fn connect(&self, server: &str, _: CaPin, deadline: Instant) -> Result<Box<dyn Link + '_>, LinkError> {
        let act = self.acts.lock().unwrap().pop_front().unwrap_or_else(|| panic!("unexpected connection to {server}"));
        assert!(deadline > self.clock.now(), "a connection without any time");
        match act {
            Act::Unreachable => Err(LinkError::Unreachable(ErrorKind::ConnectionRefused.into())),
            Act::NotTrusted => Err(LinkError::NotTrusted(rustls::Error::DecryptError)),
            act => Ok(Box::new(FakeLink { act, clock: self.clock, session: FakeSession::default(), answer: None })),
        }
    }
}

struct FakeLink<'a> {
    act: Act,
    clock: &'a ManualClock,
    session: FakeSession,
    answer: Option<Result<Vec<u8>, LinkError>>,
}

impl FakeLink<'_> {
    fn hang(&self, deadline: Instant) -> Result<Vec<u8>, LinkError> {
        self.clock.advance(deadline - self.clock.now());
        Err(LinkError::Timeout)
    }

    fn answer(&mut self, body: &[u8], deadline: Instant) -> Result<Vec<u8>, LinkError> {
        match (frame::decode(body).unwrap(), self.act) {
            (ClientMessage::Hello(_), Act::Hangs) => self.hang(deadline),
            (ClientMessage::Hello(_), Act::Busy) => Ok(encode_body(&ServerMessage::Unavailable(Unavailable::Busy(30)))),
            (ClientMessage::Hello(_), Act::Babbles) => Ok(encode_body(&ServerMessage::Cleared)),
            (ClientMessage::Hello(_), _) => Ok(self.session.hello(body)),
            (ClientMessage::Login(_), Act::HangsAtLogin) => self.hang(deadline),
            (ClientMessage::Login(_), Act::ClosesAtLogin) => Err(LinkError::Closed),
            (ClientMessage::Login(_), act) => {
                let right = self.session.login(body);
                assert_eq!(right, act != Act::Rejects);
                Ok(match act {
                    Act::Rejects => encode_body(&ServerMessage::Rejected),
                    Act::Verifies => self.session.outcome(&Outcome::Verified),
                    Act::Denies(reason) => self.session.outcome(&Outcome::Denied(reason)),
                    Act::RefusesNew(new, problem) => {
                        assert_eq!(self.session.new_password(), Some(new.as_bytes()));
                        self.session.outcome(&Outcome::Denied(DenyReason::NewPassword(problem)))
                    }
                    Act::Changes(new) => {
                        assert_eq!(self.session.password(), b"passwd1");
                        assert_eq!(self.session.new_password(), Some(new.as_bytes()));
                        match self.session.purpose() {
                            Purpose::Open => self.session.grant(),
                            Purpose::ChangePassword => self.session.outcome(&Outcome::PasswordChanged),
                            Purpose::Verify => panic!("a new password with a check"),
                        }
                    }
                    _ => {
                        assert_eq!(self.session.password(), b"passwd1");
                        self.session.grant()
                    }
                })
            }
            (ClientMessage::Ack(_), Act::ClosesAtAck) => Err(LinkError::Closed),
            (ClientMessage::Ack(_), Act::HangsAtAck) => self.hang(deadline),
            (ClientMessage::Ack(_), _) => {
                self.session.verify_ack(body);
                Ok(encode_body(&ServerMessage::Registered))
            }
            _ => panic!("not a message of a login"),
        }
    }
}

impl Link for FakeLink<'_> {
    fn exporter(&self) -> Result<[u8; 32], LinkError> {
        Ok(EXPORTER)
    }
    fn send(&mut self, frame: &Frame, deadline: Instant) -> Result<(), LinkError> {
        self.answer = Some(self.answer(&frame[frame::HEADER_LEN..], deadline));
        Ok(())
    }
    fn receive(&mut self, _: Instant) -> Result<Zeroizing<Vec<u8>>, LinkError> {
        self.answer.take().expect("nothing was sent").map(Zeroizing::new)
    }
}
