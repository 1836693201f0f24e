//! Enrolment: a user with a one-time code from the administrator registers password and card at any terminal (patent, ¶24 and ¶27).
//!
//! A fresh card trusts nobody yet, so the terminal trusts the CA that its own configuration names. What both sides know besides is the code, and
//! the server knows only a hash of it:
//!
//! ```text
//! token    = HKDF("", code, "cug/1 enrol token" | user)         V = HKDF("", token, "cug/1 enrol verifier"): what the server keeps
//! T        = a running hash over all frames of the exchange      X = the TLS exporter of the connection, the salt of every key below
//! Claim    = AES-256-GCM(HKDF(V, "cug/1 enrol claim"), nonce 0, aad T, token): only who knows V opens it, only who knows the code can make it
//! Ready    = HMAC(HKDF(V, "cug/1 enrol ready"), T | approval): the other side keeps this very code
//! Key      = HMAC(HKDF(token, "cug/1 enrol key"), T | kind | the card's public key)
//! Challenge: K for the card, and HMAC(HKDF(token, "cug/1 enrol challenge"), T | certificate | challenge)
//! Commit   : ID and password in a COSE envelope to the server's RSA key, and HMAC(HKDF(K | token, "cug/1 enrol commit"), T | envelope)
//! Result   = AES-256-GCM(HKDF(K | token, "cug/1 enrol result"), nonce = number of the commit, aad T, verdict)
//! ```
//!
//! | # | from | message | what may follow |
//! |---|---|---|---|
//! | 1 | terminal | [`EnrolHello`] | `EnrolOffer`, `Unavailable` |
//! | 2 | server | [`EnrolOffer`] | `EnrolClaim` |
//! | 3 | terminal | [`EnrolClaim`] | `EnrolReady`, `Rejected` (unknown user, wrong, expired or used code: one answer), `Unavailable` |
//! | 4 | server | [`EnrolReady`] | `EnrolKey`; or `EnrolCommit`, to set the password only |
//! | 5 | terminal | [`EnrolKey`] | `EnrolChallenge`, `Unavailable` |
//! | 6 | server | [`EnrolChallenge`] | `EnrolCommit`, once the card holds certificate and server object and has opened the challenge |
//! | 7 | terminal | [`EnrolCommit`] | `EnrolResult`, `Unavailable` |
//! | 8 | server | [`EnrolResult`] | `EnrolCommit` again after [`EnrolVerdict::PasswordRefused`]; else the connection ends |
//!
//! Until 7 nothing is registered and the code is not used up: whatever breaks before can begin again. At 7 all of it happens at once or not at all.
//!
//! Why so: the code is never sent in a form that a false server could use. Who has stolen the server's TLS key, or the CA's, and sits between, learns nothing from
//! Claim and fails at Ready, before the card is touched and before the password leaves the terminal. Who has read the server's database has V only and
//! cannot make a Claim. An ordinary MAC under a key that the server keeps would let exactly that thief enrol; a code inside the RSA
//! envelope would be at the mercy of the CA's key.

mod code;

pub use code::{CodeError, EnrolCode};

use crate::{
    ProtocolError,
    id::{HostName, UserId},
    kdf,
    secret::{Secret, SecretBytes, encode_wiped},
};
use minicbor::{Decode, Encode};

/// Longest card public key (DER `SubjectPublicKeyInfo`), in bytes: RSA 4096 takes 550.
pub const MAX_PUBLIC_KEY: usize = 1024;

/// How often a password may be offered in one exchange.
pub const MAX_COMMITS: u32 = 5;

/// Opens an enrolment. TLS hides it from the wire.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolHello {
    /// [`crate::PROTOCOL_VERSION`].
    #[n(0)]
    pub version: u16,
    /// Who wants to enrol.
    #[n(1)]
    pub user: UserId,
    /// The workstation's name, for people.
    #[n(2)]
    pub host_name: HostName,
}

/// What the card is to hold.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolOffer {
    /// The server object: to be checked with [`crate::trust::signed_server_object`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub server_object: Vec<u8>,
}

/// The user has the code.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolClaim {
    /// See [`Exchange::seal_claim`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
}

/// The server has its hash, and waits.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolReady {
    /// An administrator will have to approve before the card is good for a login.
    #[n(0)]
    pub approval: bool,
    /// See [`Exchange::ready_proof`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub proof: [u8; 32],
}

/// How a card's key came about, for the administrator's list.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
#[cbor(index_only)]
pub enum CardKind {
    /// A PIV card that was personalised here.
    #[n(0)]
    Piv,
    /// A removable medium.
    #[n(1)]
    Medium,
    /// A card whose key a third party made.
    #[n(2)]
    Registered,
}

impl CardKind {
    /// As `cug-server card list` shows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Piv => "piv",
            Self::Medium => "medium",
            Self::Registered => "registered",
        }
    }
}

/// The card's new key.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolKey {
    /// RSA, DER `SubjectPublicKeyInfo`, at most [`MAX_PUBLIC_KEY`] bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub public_key: Vec<u8>,
    /// Where it came from.
    #[n(1)]
    pub kind: CardKind,
    /// See [`Exchange::key_mac`].
    #[cbor(n(2), with = "minicbor::bytes")]
    pub mac: [u8; 32],
}

/// For the card to hold, and to show that it has the private key.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolChallenge {
    /// The card's certificate, DER.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
    /// As in [`crate::message::Challenge`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub ciphertext: Vec<u8>,
    /// See [`Exchange::challenge_mac`].
    #[cbor(n(2), with = "minicbor::bytes")]
    pub mac: [u8; 32],
}

/// All is ready at the terminal: register.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolCommit {
    /// COSE_Encrypt of [`EnrolCredentials`], see [`crate::envelope`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub envelope: Vec<u8>,
    /// See [`CommitKeys::proof`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub proof: [u8; 32],
}

/// What a commit's envelope holds.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolCredentials {
    /// Must equal the `user` of [`EnrolHello`].
    #[n(0)]
    pub user: UserId,
    /// The new password, UTF-8 as typed.
    #[n(1)]
    pub password: SecretBytes,
}

/// An [`EnrolVerdict`], sealed. See [`CommitKeys::seal`].
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct EnrolResult {
    /// Ciphertext and tag.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
}

/// What became of a commit.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
pub enum EnrolVerdict {
    /// Registered: the user can log in.
    #[n(0)]
    Active,
    /// Kept; good for a login once an administrator has approved it.
    #[n(1)]
    AwaitsApproval,
    /// The password does not satisfy a rule; one sentence that says which. Another commit may follow.
    #[n(2)]
    PasswordRefused(#[n(0)] String),
    /// This card's key is registered already.
    #[n(3)]
    CardTaken,
    /// The code was withdrawn, has expired or was used while this exchange went on.
    #[n(4)]
    Withdrawn,
    /// The server cannot do what the invitation says (a group is full, ...); its log says why.
    #[n(5)]
    Impossible,
}

/// What the code makes known to the terminal, and in the end to the server.
pub fn token(code: &EnrolCode, user: &UserId) -> Secret<32> {
    kdf::derive(&[], code.secret().expose(), &[b"cug/1 enrol token", user.as_str().as_bytes()])
}

/// V: what the server keeps. A fast hash is right for it: the code has 100 random bits, so there is no dictionary to try, and the work of a slow one
/// would be a present to whoever floods the server.
pub fn verifier(token: &Secret<32>) -> Secret<32> {
    kdf::derive(&[], token.expose(), &[b"cug/1 enrol verifier"])
}

/// One enrolment as both sides compute it: the exporter, and the running transcript T.
pub struct Exchange {
    exporter: [u8; 32],
    transcript: [u8; 32],
}

impl Exchange {
    /// After `EnrolOffer`. The frames' bodies, as they were sent.
    pub fn new(exporter: [u8; 32], hello: &[u8], offer: &[u8]) -> Self {
        Self { exporter, transcript: kdf::hash_parts(&[b"cug/1 enrol", hello, offer]) }
    }

    /// The body of a frame after `EnrolOffer` becomes part of T, once it was sent or has been checked.
    pub fn absorb(&mut self, body: &[u8]) {
        self.transcript = kdf::hash_parts(&[&self.transcript, body]);
    }

    fn key(&self, secret: &[u8], label: &[u8]) -> Secret<32> {
        kdf::derive(&self.exporter, secret, &[label])
    }

    /// For [`EnrolClaim`].
    ///
    /// # Errors
    /// None that comes.
    pub fn seal_claim(&self, token: &Secret<32>) -> Result<EnrolClaim, ProtocolError> {
        let key = self.key(verifier(token).expose(), b"cug/1 enrol claim");
        Ok(EnrolClaim { sealed: kdf::seal(&key, &[0; 12], &self.transcript, token.expose())? })
    }

    /// The token out of a claim: that of the code with this verifier, and of no other.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn open_claim(&self, expected: &Secret<32>, claim: &EnrolClaim) -> Result<Secret<32>, ProtocolError> {
        let key = self.key(expected.expose(), b"cug/1 enrol claim");
        let opened = kdf::open(&key, &[0; 12], &self.transcript, &claim.sealed)?;
        let token = Secret::copy_from(&opened).ok_or(ProtocolError::NotAuthentic)?;
        if verifier(&token).matches(expected.expose()) { Ok(token) } else { Err(ProtocolError::NotAuthentic) }
    }

    /// For [`EnrolReady`].
    pub fn ready_proof(&self, expected: &Secret<32>, approval: bool) -> [u8; 32] {
        kdf::mac(&self.key(expected.expose(), b"cug/1 enrol ready"), &[&self.transcript, &[u8::from(approval)]])
    }

    /// Checks [`Exchange::ready_proof`] at the terminal.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn verify_ready(&self, token: &Secret<32>, ready: &EnrolReady) -> Result<(), ProtocolError> {
        let key = self.key(verifier(token).expose(), b"cug/1 enrol ready");
        kdf::verify_mac(&key, &[&self.transcript, &[u8::from(ready.approval)]], &ready.proof)
    }

    /// For [`EnrolKey`].
    pub fn key_mac(&self, token: &Secret<32>, public_key: &[u8], kind: CardKind) -> [u8; 32] {
        let key = self.key(token.expose(), b"cug/1 enrol key");
        kdf::mac(&key, &[&self.transcript, &kdf::hash_parts(&[kind.name().as_bytes(), public_key])])
    }

    /// Checks [`Exchange::key_mac`] at the server.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn verify_key(&self, token: &Secret<32>, sent: &EnrolKey) -> Result<(), ProtocolError> {
        let key = self.key(token.expose(), b"cug/1 enrol key");
        let covered = kdf::hash_parts(&[sent.kind.name().as_bytes(), &sent.public_key]);
        kdf::verify_mac(&key, &[&self.transcript, &covered], &sent.mac)
    }

    /// For [`EnrolChallenge`].
    pub fn challenge_mac(&self, token: &Secret<32>, certificate: &[u8], ciphertext: &[u8]) -> [u8; 32] {
        let key = self.key(token.expose(), b"cug/1 enrol challenge");
        kdf::mac(&key, &[&self.transcript, &kdf::hash_parts(&[certificate, ciphertext])])
    }

    /// Checks [`Exchange::challenge_mac`] at the terminal.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn verify_challenge(&self, token: &Secret<32>, sent: &EnrolChallenge) -> Result<(), ProtocolError> {
        let key = self.key(token.expose(), b"cug/1 enrol challenge");
        let covered = kdf::hash_parts(&[&sent.certificate, &sent.ciphertext]);
        kdf::verify_mac(&key, &[&self.transcript, &covered], &sent.mac)
    }

    /// The keys of the commits. `challenge` is K as the card opened it; `None` sets the password only.
    pub fn commit_keys(&self, token: &Secret<32>, challenge: Option<&Secret<32>>) -> CommitKeys {
        let secret = Secret::<64>::fill(|both| {
            let (first, second) = both.split_at_mut(32);
            if let Some(challenge) = challenge {
                first.copy_from_slice(challenge.expose());
            }
            second.copy_from_slice(token.expose());
        });
        let labels: [&[u8]; 2] = match challenge {
            Some(_) => [b"cug/1 enrol commit", b"cug/1 enrol result"],
            None => [b"cug/1 enrol password commit", b"cug/1 enrol password result"],
        };
        let [proof, result] = labels.map(|label| self.key(secret.expose(), label));
        CommitKeys { proof, result, commits: 0 }
    }
}

/// The keys of the commits of one exchange.
pub struct CommitKeys {
    proof: Secret<32>,
    result: Secret<32>,
    /// How many there were: no two results have one nonce.
    commits: u32,
}

impl CommitKeys {
    /// For [`EnrolCommit`]: who has the code and has had the card open the challenge stands behind this envelope.
    pub fn proof(&self, exchange: &Exchange, envelope: &[u8]) -> [u8; 32] {
        kdf::mac(&self.proof, &[&exchange.transcript, &kdf::hash_parts(&[envelope])])
    }

    /// Checks [`CommitKeys::proof`] at the server.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn verify(&self, exchange: &Exchange, commit: &EnrolCommit) -> Result<(), ProtocolError> {
        kdf::verify_mac(&self.proof, &[&exchange.transcript, &kdf::hash_parts(&[&commit.envelope])], &commit.proof)
    }

    /// Seals a verdict for the terminal. T must contain the commit.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`]
    pub fn seal(&mut self, exchange: &Exchange, verdict: &EnrolVerdict) -> Result<EnrolResult, ProtocolError> {
        let plain = encode_wiped(verdict, 1024)?;
        let nonce = self.next_nonce()?;
        let sealed = kdf::seal(&self.result, &nonce, &exchange.transcript, &plain)?;
        Ok(EnrolResult { sealed })
    }

    /// Opens what [`CommitKeys::seal`] made.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`], [`ProtocolError::Malformed`]
    pub fn open(&mut self, exchange: &Exchange, result: &EnrolResult) -> Result<EnrolVerdict, ProtocolError> {
        let nonce = self.next_nonce()?;
        let plain = kdf::open(&self.result, &nonce, &exchange.transcript, &result.sealed)?;
        crate::frame::decode(&plain)
    }

    fn next_nonce(&mut self) -> Result<[u8; 12], ProtocolError> {
        self.commits = self.commits.checked_add(1).ok_or(ProtocolError::OutOfOrder)?;
        let mut nonce = [0; 12];
        nonce.iter_mut().rev().zip(self.commits.to_be_bytes().into_iter().rev()).for_each(|(to, from)| *to = from);
        Ok(nonce)
    }
}
