//! The login protocol as the terminal sees it, without any I/O. Each state is a type that offers only what may come next:
//!
//! ```text
//! start --Hello--> AwaitChallenge --Challenge--> Challenged --(card)--> Ready --Login--> AwaitOutcome --Outcome--> Granted --Ack--> AwaitRegistered
//!                     |                                                                      |     \--> Verified, PasswordChanged, Denied
//!                     \--> Stop (Unavailable)                                                \--> Stop (Rejected, Unavailable)
//! ```
//! A message that may not come now is a [`Stop::Protocol`], and the caller drops the connection.

use cug_proto::{
    PROTOCOL_VERSION, ProtocolError,
    envelope::EnvelopeKey,
    frame,
    id::UserId,
    login::{BoundTranscript, CARD_KEY_BITS, LoginKeys, OutcomeBinding, Transcript, ack_mac},
    message::{
        Ack, ClientMessage, Credentials, DenyReason, Fingerprint, Grant, Hello, Login, MAX_GROUPS, Outcome, Purpose,
        ServerMessage, Unavailable,
    },
    secret::Secret,
};
use zeroize::Zeroizing;

/// A frame to be sent, header included.
pub type Frame = Zeroizing<Vec<u8>>;

/// The login ends here.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The server's one answer to a wrong proof.
    #[error("the server rejected the login")]
    Rejected,
    /// The server cannot serve now.
    #[error("the server is unavailable: {0:?}")]
    Unavailable(Unavailable),
    /// The server does not keep to the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// `Hello` was sent.
pub struct AwaitChallenge {
    hello: Frame,
}

impl AwaitChallenge {
    /// Begins a login; the frame is `Hello`.
    pub fn start(user: &UserId, card: &Fingerprint) -> Result<(Self, Frame), ProtocolError> {
        let hello = ClientMessage::Hello(Hello { version: PROTOCOL_VERSION, user: user.clone(), card: *card });
        let frame = frame::encode(&hello, frame::MAX_LOGIN)?;
        Ok((Self { hello: frame.clone() }, frame))
    }

    /// Takes the answer to `Hello`.
    pub fn receive(self, body: &[u8]) -> Result<Challenged, Stop> {
        match frame::decode(body)? {
            ServerMessage::Challenge(challenge) if CARD_KEY_BITS.contains(&(challenge.ciphertext.len() * 8)) => {
                Ok(Challenged {
                    transcript: Transcript::new(self.hello.get(frame::HEADER_LEN..).unwrap_or_default(), body),
                    ciphertext: challenge.ciphertext,
                })
            }
            ServerMessage::Challenge(_) => Err(ProtocolError::Key.into()),
            ServerMessage::Unavailable(why) => Err(Stop::Unavailable(why)),
            _ => Err(ProtocolError::OutOfOrder.into()),
        }
    }
}

/// The challenge is there, the card has to open it.
pub struct Challenged {
    transcript: Transcript,
    ciphertext: Vec<u8>,
}

impl Challenged {
    /// For the card.
    pub fn ciphertext(&self) -> &[u8] {
        &self.ciphertext
    }

    /// The card has opened the challenge on the connection with this exporter.
    pub fn opened(self, challenge: &Secret<32>, exporter: &[u8; 32]) -> Ready {
        Ready { transcript: self.transcript, keys: LoginKeys::new(challenge, exporter) }
    }
}

/// All is there but the password.
pub struct Ready {
    transcript: Transcript,
    keys: LoginKeys,
}

impl Ready {
    /// Seals the credentials; the frame is `Login`.
    pub fn login(
        self,
        server: &EnvelopeKey,
        credentials: &Credentials,
        rng: &mut impl rand_core::CryptoRng,
    ) -> Result<(AwaitOutcome, Frame), ProtocolError> {
        let envelope = server.seal(credentials, rng)?;
        let transcript = self.transcript.with_envelope(&envelope);
        let proof = self.keys.proof(&transcript);
        let frame = frame::encode(&ClientMessage::Login(Login { envelope, proof }), frame::MAX_LOGIN)?;
        let (keys, purpose, binding) = (self.keys, credentials.purpose, credentials.outcome_binding());
        Ok((AwaitOutcome { keys, transcript, purpose, binding }, frame))
    }
}

/// `Login` was sent.
pub struct AwaitOutcome {
    keys: LoginKeys,
    transcript: BoundTranscript,
    purpose: Purpose,
    binding: OutcomeBinding,
}

/// What became of the login.
pub enum Answer {
    /// A session.
    Granted(Granted),
    /// Card and password are right.
    Verified,
    /// The new password is the password now.
    PasswordChanged,
    /// Refused, and why.
    Denied(DenyReason),
}

impl AwaitOutcome {
    /// Takes the answer to `Login`. An outcome that does not fit the purpose is an error: a grant nobody asked for would be left lying about.
    pub fn receive(self, body: &[u8]) -> Result<Answer, Stop> {
        let sealed = match frame::decode(body)? {
            ServerMessage::Outcome(outcome) => outcome.sealed,
            ServerMessage::Rejected => return Err(Stop::Rejected),
            ServerMessage::Unavailable(why) => return Err(Stop::Unavailable(why)),
            _ => return Err(ProtocolError::OutOfOrder.into()),
        };
        match (self.keys.open_outcome(&self.transcript, &self.binding, &sealed)?, self.purpose) {
            (Outcome::Grant(grant), Purpose::Open) if grant.groups.len() <= MAX_GROUPS => {
                Ok(Answer::Granted(Granted { ack: ack_mac(&grant, &self.transcript, &sealed), grant }))
            }
            (Outcome::Verified, Purpose::Verify) => Ok(Answer::Verified),
            (Outcome::PasswordChanged, Purpose::ChangePassword) => Ok(Answer::PasswordChanged),
            (Outcome::Denied(reason), _) => Ok(Answer::Denied(reason)),
            (Outcome::Grant(_) | Outcome::Verified | Outcome::PasswordChanged, _) => {
                Err(ProtocolError::Malformed.into())
            }
        }
    }
}

/// A grant that was not acknowledged yet.
pub struct Granted {
    ack: [u8; 32],
    grant: Grant,
}

impl Granted {
    /// The grant for cugd, and the frame `Ack` to be sent once cugd has it.
    pub fn acknowledge(self) -> Result<(Grant, AwaitRegistered, Frame), ProtocolError> {
        let frame = frame::encode(&ClientMessage::Ack(Ack { mac: self.ack }), frame::MAX_LOGIN)?;
        Ok((self.grant, AwaitRegistered, frame))
    }
}

/// `Ack` was sent.
pub struct AwaitRegistered;

impl AwaitRegistered {
    /// Takes the answer to `Ack`.
    pub fn receive(self, body: &[u8]) -> Result<(), Stop> {
        match frame::decode(body)? {
            ServerMessage::Registered => Ok(()),
            ServerMessage::Unavailable(why) => Err(Stop::Unavailable(why)),
            _ => Err(ProtocolError::OutOfOrder.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doubles::{CHALLENGE, FakeSession, encode_body, envelope_key, user_a};
    use cug_proto::message::Challenge;

    fn credentials(purpose: Purpose) -> Credentials {
        Credentials {
            user: user_a(),
            password: cug_proto::secret::SecretBytes::copy_from(b"passwd1").unwrap(),
            purpose,
            wg_public_key: [9; 32],
            host_name: "ws1".parse().unwrap(),
            addresses: Vec::new(),
            outcome_secret: Secret::random(&mut crate::edge::random()),
            new_password: None,
        }
    }

    /// Up to the point where the outcome is due; the other side is the server's half of the protocol crate.
    fn until_login(purpose: Purpose) -> (AwaitOutcome, FakeSession) {
        let (state, hello) = AwaitChallenge::start(&user_a(), &[1; 32]).unwrap();
        let mut session = FakeSession::default();
        let challenge = session.hello(&hello[4..]);
        let state = state.receive(&challenge).unwrap();
        let ready = state.opened(&Secret::copy_from(&CHALLENGE).unwrap(), &[3; 32]);
        let (state, login) = ready.login(&envelope_key(), &credentials(purpose), &mut crate::edge::random()).unwrap();
        session.login(&login[4..]);
        (state, session)
    }

    #[test]
    fn a_whole_login() {
        let (state, mut session) = until_login(Purpose::Open);
        assert_eq!(session.password(), b"passwd1");
        let Ok(Answer::Granted(granted)) = state.receive(&session.grant()) else { panic!("no grant") };
        let (grant, state, ack) = granted.acknowledge().unwrap();
        session.verify_ack(&ack[4..]);
        assert_eq!(grant.groups.len(), 1);
        state.receive(&encode_body(&ServerMessage::Registered)).unwrap();
    }

    #[test]
    fn an_outcome_must_fit_the_purpose() {
        let (state, mut session) = until_login(Purpose::Verify);
        assert!(matches!(state.receive(&session.grant()), Err(Stop::Protocol(ProtocolError::Malformed))));
        let (state, mut session) = until_login(Purpose::Open);
        assert!(matches!(state.receive(&session.outcome(&Outcome::Verified)), Err(Stop::Protocol(_))));
        let (state, mut session) = until_login(Purpose::Verify);
        assert!(matches!(state.receive(&session.outcome(&Outcome::Verified)), Ok(Answer::Verified)));
        for purpose in [Purpose::Open, Purpose::Verify] {
            let (state, mut session) = until_login(purpose);
            assert!(matches!(state.receive(&session.outcome(&Outcome::PasswordChanged)), Err(Stop::Protocol(_))));
        }
        let (state, mut session) = until_login(Purpose::ChangePassword);
        let changed = session.outcome(&Outcome::PasswordChanged);
        assert!(matches!(state.receive(&changed), Ok(Answer::PasswordChanged)));
    }

    #[test]
    fn a_message_out_of_order_ends_the_login() {
        for message in [ServerMessage::Registered, ServerMessage::Rejected, ServerMessage::Synced] {
            let (state, _) = AwaitChallenge::start(&user_a(), &[1; 32]).unwrap();
            assert!(matches!(state.receive(&encode_body(&message)), Err(Stop::Protocol(ProtocolError::OutOfOrder))));
        }
        for message in [ServerMessage::Registered, ServerMessage::Challenge(Challenge { ciphertext: vec![0; 256] })] {
            let (state, _) = until_login(Purpose::Open);
            assert!(matches!(state.receive(&encode_body(&message)), Err(Stop::Protocol(ProtocolError::OutOfOrder))));
        }
        assert!(AwaitRegistered.receive(&encode_body(&ServerMessage::Rejected)).is_err());
    }

    #[test]
    fn bad_bytes_end_the_login() {
        let challenge = |len| encode_body(&ServerMessage::Challenge(Challenge { ciphertext: vec![0; len] }));
        for body in [vec![], vec![0xff; 40], challenge(255), challenge(0), [challenge(256), vec![0]].concat()] {
            let (state, _) = AwaitChallenge::start(&user_a(), &[1; 32]).unwrap();
            assert!(matches!(state.receive(&body), Err(Stop::Protocol(_))));
        }
        let (state, mut session) = until_login(Purpose::Open);
        let mut altered = session.grant();
        *altered.last_mut().unwrap() ^= 1;
        assert!(matches!(state.receive(&altered), Err(Stop::Protocol(ProtocolError::NotAuthentic))));
    }
}
