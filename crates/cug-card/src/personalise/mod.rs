//! Making cards and media. Certificates are signed by the caller, so everything is done in two steps: `prepare` makes or takes the key and
//! gives the public key; `finish` writes the certificates.

mod management;
mod medium;
mod piv;

pub use management::ManagementKey;
pub use medium::{PreparedMedium, answer_of_medium, clear_medium, medium, medium_has_key};
pub use piv::{CARD_WAIT, KeySource, PivCard, PreparedPiv, RsaKey};

use crate::CardError;
use cug_proto::{
    message::Fingerprint,
    trust::{self, ServerObject},
};
use rsa::{
    BoxedUint, RsaPublicKey,
    pkcs8::{DecodePublicKey, EncodePublicKey},
    traits::PublicKeyParts,
};
use sha2::{Digest, Sha256};
use x509_cert::der::{Decode, Encode};

/// The public half of a card's key.
pub struct PublicKey {
    key: RsaPublicKey,
    der: Vec<u8>,
}

impl PublicKey {
    /// From modulus and exponent, big endian.
    fn from_parts(modulus: &[u8], exponent: &[u8]) -> Result<Self, CardError> {
        let bits = u32::try_from(modulus.len() * 8).map_err(|_| CardError::KeyKind)?;
        crate::piv::algorithm(modulus.len()).ok_or(CardError::KeyKind)?;
        let modulus = BoxedUint::from_be_slice(modulus, bits).map_err(|_| CardError::KeyKind)?;
        let exponent = BoxedUint::from_be_slice(exponent, 64).map_err(|_| CardError::KeyKind)?;
        Self::new(RsaPublicKey::new(modulus, exponent).map_err(|_| CardError::KeyKind)?)
    }

    fn new(key: RsaPublicKey) -> Result<Self, CardError> {
        crate::piv::algorithm(key.size()).ok_or(CardError::KeyKind)?;
        let der = key.to_public_key_der().map_err(|_| CardError::KeyKind)?.into_vec();
        Ok(Self { key, der })
    }

    /// Out of a certificate (DER).
    fn of_certificate(certificate: &[u8]) -> Result<Self, CardError> {
        let certificate = x509_cert::Certificate::from_der(certificate).map_err(|_| CardError::NoKey)?;
        let spki = certificate.tbs_certificate().subject_public_key_info().to_der().map_err(|_| CardError::NoKey)?;
        Self::new(RsaPublicKey::from_public_key_der(&spki).map_err(|_| CardError::KeyKind)?)
    }

    /// DER `SubjectPublicKeyInfo`, for the certificate.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// For the `rsa` crate.
    pub fn rsa(&self) -> &RsaPublicKey {
        &self.key
    }

    /// SHA-256 of [`PublicKey::der`].
    pub fn fingerprint(&self) -> Fingerprint {
        Sha256::digest(&self.der).into()
    }
}

/// Checks what is about to be written: the user's certificate is for this key, the server object is one.
fn check(fingerprint: &Fingerprint, certificate: Option<&[u8]>, server_object: &[u8]) -> Result<(), CardError> {
    ServerObject::parse(server_object).map_err(|_| CardError::Mismatch("server object"))?;
    match certificate.map(trust::spki_sha256) {
        Some(Ok(own)) if own == *fingerprint => Ok(()),
        None => Ok(()),
        Some(_) => Err(CardError::Mismatch("certificate")),
    }
}
