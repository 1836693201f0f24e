//! The key schedule of one login. K is the challenge's 32 bytes, X the TLS exporter of this connection.
//!
//! ```text
//! proof key = HKDF(salt X, K, "cug/1 login proof")        transcript T = H(Hello, Challenge)
//! grant key = HKDF(salt X, K, "cug/1 login grant")        T' = H(T, envelope)
//! proof     = HMAC(proof key, T')
//! Outcome   = AES-256-GCM(grant key, nonce 0, aad T' | WireGuard public key | outcome secret)
//! ack       = HMAC(HKDF("", session secret, "cug/1 login ack"), H(T', sealed outcome))
//! ```
//! The grant key seals one message in its life, so its nonce is constant. The outcome secret are 32 random bytes from the envelope: an outcome comes
//! from whoever opened the envelope, even where TLS was not authenticated and the card's public key is known.

use crate::{
    ProtocolError, kdf,
    message::{Credentials, Grant, Outcome, WgPublicKey},
    secret::{Secret, encode_wiped},
};
use rsa::{Oaep, RsaPublicKey, sha2::Sha256, traits::PublicKeyParts};

/// Label of the TLS exporter (RFC 8446 section 7.5) on both kinds of connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-cug-1";

/// Moduli that a card's key may have, in bits.
pub const CARD_KEY_BITS: [usize; 3] = [2048, 3072, 4096];

/// Encrypts the challenge to a card's public key: RSA-OAEP with SHA-256 and an empty label.
///
/// # Errors
/// [`ProtocolError::Key`] when the key's size is not one of [`CARD_KEY_BITS`].
pub fn encrypt_challenge(
    card_key: &RsaPublicKey,
    challenge: &Secret<32>,
    rng: &mut impl rand_core::CryptoRng,
) -> Result<Vec<u8>, ProtocolError> {
    if !CARD_KEY_BITS.contains(&(card_key.size() * 8)) {
        return Err(ProtocolError::Key);
    }
    card_key.encrypt(rng, Oaep::<Sha256>::new(), challenge.expose()).map_err(|_| ProtocolError::Key)
}

/// What both sides know after `Challenge` (T above). The arguments are the bodies of the two frames, as they were sent.
pub struct Transcript([u8; 32]);

impl Transcript {
    /// T.
    pub fn new(hello: &[u8], challenge: &[u8]) -> Self {
        Self(kdf::hash_parts(&[b"cug/1 login", hello, challenge]))
    }

    /// T', with the login's envelope.
    #[must_use]
    pub fn with_envelope(&self, envelope: &[u8]) -> BoundTranscript {
        BoundTranscript(kdf::hash_parts(&[&self.0, envelope]))
    }
}

/// What both sides know after `Login` (T' above).
pub struct BoundTranscript([u8; 32]);

/// What an outcome is bound to besides the transcript: values of the envelope, which only the server and this terminal know.
pub struct OutcomeBinding {
    wg_public_key: WgPublicKey,
    secret: Secret<32>,
}

impl Credentials {
    /// What the outcome of this login is bound to.
    pub fn outcome_binding(&self) -> OutcomeBinding {
        OutcomeBinding { wg_public_key: self.wg_public_key, secret: self.outcome_secret.duplicate() }
    }
}

/// The two keys of a login.
pub struct LoginKeys {
    proof: Secret<32>,
    grant: Secret<32>,
}

impl LoginKeys {
    /// From the challenge and the connection's TLS exporter.
    pub fn new(challenge: &Secret<32>, exporter: &[u8; 32]) -> Self {
        Self {
            proof: kdf::derive(exporter, challenge.expose(), &[b"cug/1 login proof"]),
            grant: kdf::derive(exporter, challenge.expose(), &[b"cug/1 login grant"]),
        }
    }

    /// Shows that the card opened the challenge on this connection and stands behind this envelope.
    pub fn proof(&self, transcript: &BoundTranscript) -> [u8; 32] {
        kdf::mac(&self.proof, &[&transcript.0])
    }

    /// Checks the other side's [`LoginKeys::proof`] in constant time.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn verify_proof(&self, transcript: &BoundTranscript, proof: &[u8; 32]) -> Result<(), ProtocolError> {
        kdf::verify_mac(&self.proof, &[&transcript.0], proof)
    }

    /// Seals what became of the login. Uses the keys up: a second message under the same nonce cannot be made.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] when the outcome does not fit into a frame.
    pub fn seal_outcome(
        self,
        transcript: &BoundTranscript,
        binding: &OutcomeBinding,
        outcome: &Outcome,
    ) -> Result<Vec<u8>, ProtocolError> {
        let plain = encode_wiped(outcome, crate::frame::MAX_SESSION - 256)?;
        kdf::seal(&self.grant, &[0; 12], outcome_aad(transcript, binding).expose(), &plain)
    }

    /// Opens what [`LoginKeys::seal_outcome`] made, with the values that this terminal sent.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`], [`ProtocolError::Malformed`]
    pub fn open_outcome(
        self,
        transcript: &BoundTranscript,
        binding: &OutcomeBinding,
        sealed: &[u8],
    ) -> Result<Outcome, ProtocolError> {
        let plain = kdf::open(&self.grant, &[0; 12], outcome_aad(transcript, binding).expose(), sealed)?;
        crate::frame::decode(&plain)
    }
}

fn outcome_aad(transcript: &BoundTranscript, binding: &OutcomeBinding) -> Secret<96> {
    Secret::fill(|aad| {
        let parts = transcript.0.iter().chain(&binding.wg_public_key).chain(binding.secret.expose());
        aad.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
    })
}

/// The terminal's acknowledgement: it opened the grant.
pub fn ack_mac(grant: &Grant, transcript: &BoundTranscript, sealed_outcome: &[u8]) -> [u8; 32] {
    kdf::mac(&ack_key(grant), &[&kdf::hash_parts(&[&transcript.0, sealed_outcome])])
}

/// Checks the terminal's [`ack_mac`].
///
/// # Errors
/// [`ProtocolError::NotAuthentic`]
pub fn verify_ack(
    grant: &Grant,
    transcript: &BoundTranscript,
    sealed_outcome: &[u8],
    mac: &[u8; 32],
) -> Result<(), ProtocolError> {
    kdf::verify_mac(&ack_key(grant), &[&kdf::hash_parts(&[&transcript.0, sealed_outcome])], mac)
}

fn ack_key(grant: &Grant) -> Secret<32> {
    kdf::derive(&[], grant.secret.expose(), &[b"cug/1 login ack"])
}
