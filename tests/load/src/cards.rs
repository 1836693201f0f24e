//! Cards in software, thousands of them in a moment.
//!
//! All share one modulus and have public exponents of their own. That is worthless as security and costs both sides what any card of that size costs: a directory of 10,000
//! real keys would take an hour to make.

use anyhow::Context;
use cug_proto::message::Fingerprint;
use cug_proto::secret::Secret;
use rsa::pkcs8::{DecodePrivateKey, EncodePublicKey};
use rsa::traits::PrivateKeyParts;
use rsa::{BoxedUint, Oaep, RsaPrivateKey};
use sha2::{Digest, Sha256};

/// Bits of a card's key.
pub const BITS: u32 = 2048;

/// The first public exponent.
const FIRST: u64 = 65_537;

/// A card's key.
#[derive(Clone)]
pub struct Card {
    key: RsaPrivateKey,
    /// DER `SubjectPublicKeyInfo`.
    pub public_key: Vec<u8>,
    /// SHA-256 of it.
    pub fingerprint: Fingerprint,
}

/// Makes cards.
pub struct Printer {
    primes: [BoxedUint; 2],
    next: u64,
}

impl Printer {
    /// With a new modulus.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> anyhow::Result<Self> {
        let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
        let key = RsaPrivateKey::from_pkcs8_der(pair.serialized_der())?;
        let [p, q] = key.primes() else { anyhow::bail!("a key with {} primes", key.primes().len()) };
        Ok(Self { primes: [p.as_ref().clone(), q.as_ref().clone()], next: FIRST })
    }

    /// Another card.
    ///
    /// # Errors
    /// When the exponents are used up.
    pub fn print(&mut self) -> anyhow::Result<Card> {
        let [p, q] = &self.primes;
        for _ in 0..1000 {
            let exponent = BoxedUint::from(self.next);
            self.next += 2;
            // Some exponents have no inverse.
            let Ok(key) = RsaPrivateKey::from_p_q(p.clone(), q.clone(), exponent) else { continue };
            let public_key = key.to_public_key().to_public_key_der()?.into_vec();
            let fingerprint = Sha256::digest(&public_key).into();
            return Ok(Card { key, public_key, fingerprint });
        }
        anyhow::bail!("no exponent is left")
    }
}

impl Card {
    /// The key, for a card that is put into a reader.
    pub fn key(&self) -> &RsaPrivateKey {
        &self.key
    }

    /// Opens a challenge: the card operation of a login.
    ///
    /// # Errors
    /// When the challenge is for another card.
    pub fn open(&self, ciphertext: &[u8]) -> anyhow::Result<Secret<32>> {
        let plain = self.key.decrypt(Oaep::<Sha256>::new(), ciphertext)?;
        Secret::copy_from(&plain).context("a challenge of another length")
    }
}
