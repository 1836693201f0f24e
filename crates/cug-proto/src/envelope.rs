//! ID and password, encrypted to the server's public key that the card holds (patent, steps S3, S4, S22).
//!
//! `COSE_Encrypt` (RFC 9052 section 5.1), tagged 96: content A256GCM (RFC 9053 section 4.1) with a random 96-bit IV; one recipient,
//! RSAES-OAEP with SHA-256 (RFC 8230 section 3), key ID = SHA-256 of the server key's DER `SubjectPublicKeyInfo`. Any COSE library can open it.

use crate::{
    ProtocolError, frame, kdf,
    message::Credentials,
    secret::{Secret, encode_wiped},
};
use coset::{CoseEncrypt, CoseEncryptBuilder, CoseRecipientBuilder, HeaderBuilder, TaggedCborSerializable, iana};
use rsa::{Oaep, RsaPublicKey, pkcs8::EncodePublicKey, sha2::Sha256};
use sha2::Digest;
use zeroize::Zeroizing;

/// The server's key for envelopes: RSA 2048 to 4096 bits, from the card and never from the network.
pub struct EnvelopeKey {
    key: RsaPublicKey,
    key_id: [u8; 32],
}

impl EnvelopeKey {
    /// Wraps the server's public key.
    ///
    /// # Errors
    /// [`ProtocolError::Key`] when it cannot be encoded as a `SubjectPublicKeyInfo`.
    pub fn new(key: RsaPublicKey) -> Result<Self, ProtocolError> {
        let spki = key.to_public_key_der().map_err(|_| ProtocolError::Key)?;
        Ok(Self { key_id: Sha256::digest(spki.as_bytes()).into(), key })
    }

    /// SHA-256 of the key's DER `SubjectPublicKeyInfo`.
    pub fn key_id(&self) -> &[u8; 32] {
        &self.key_id
    }

    /// Seals a login's credentials.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`], [`ProtocolError::Key`]
    pub fn seal(
        &self,
        credentials: &Credentials,
        rng: &mut impl rand_core::CryptoRng,
    ) -> Result<Vec<u8>, ProtocolError> {
        self.seal_value(credentials, rng)
    }

    /// Seals any other message to the server.
    ///
    /// # Errors
    /// As [`EnvelopeKey::seal`].
    pub fn seal_value<T: minicbor::Encode<()>>(
        &self,
        value: &T,
        rng: &mut impl rand_core::CryptoRng,
    ) -> Result<Vec<u8>, ProtocolError> {
        let plain = encode_wiped(value, frame::MAX_LOGIN - 2048)?;
        let content_key = Secret::<32>::random(rng);
        let mut iv = [0; 12];
        rng.fill_bytes(&mut iv);
        let wrapped =
            self.key.encrypt(rng, Oaep::<Sha256>::new(), content_key.expose()).map_err(|_| ProtocolError::Key)?;

        let recipient = CoseRecipientBuilder::new()
            .unprotected(
                HeaderBuilder::new()
                    .algorithm(iana::Algorithm::RSAES_OAEP_SHA_256)
                    .key_id(self.key_id.to_vec())
                    .build(),
            )
            .ciphertext(wrapped)
            .build();
        CoseEncryptBuilder::new()
            .protected(HeaderBuilder::new().algorithm(iana::Algorithm::A256GCM).build())
            .unprotected(HeaderBuilder::new().iv(iv.to_vec()).build())
            .try_create_ciphertext(&plain, &[], |plain, aad| kdf::seal(&content_key, &iv, aad, plain))?
            .add_recipient(recipient)
            .build()
            .to_tagged_vec()
            .map_err(|_| ProtocolError::TooLarge)
    }
}

/// An envelope that was taken apart but not opened yet. Opening costs a private-key operation: check the login's proof first.
pub struct SealedEnvelope {
    cose: CoseEncrypt,
    iv: [u8; 12],
}

impl SealedEnvelope {
    /// Takes an envelope apart.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`] for anything but the one form that [`EnvelopeKey::seal`] makes.
    pub fn parse(envelope: &[u8]) -> Result<Self, ProtocolError> {
        let cose = CoseEncrypt::from_tagged_slice(envelope).map_err(|_| ProtocolError::Malformed)?;
        let iv = <[u8; 12]>::try_from(cose.unprotected.iv.as_slice()).map_err(|_| ProtocolError::Malformed)?;
        let gcm = coset::Algorithm::Assigned(iana::Algorithm::A256GCM);
        let oaep = coset::Algorithm::Assigned(iana::Algorithm::RSAES_OAEP_SHA_256);
        let recipient_is_oaep = match cose.recipients.as_slice() {
            [one] => one.unprotected.alg.as_ref() == Some(&oaep) && one.ciphertext.is_some(),
            _ => false,
        };
        if cose.protected.header.alg.as_ref() == Some(&gcm) && recipient_is_oaep {
            Ok(Self { cose, iv })
        } else {
            Err(ProtocolError::Malformed)
        }
    }

    /// The content key, encrypted with RSA-OAEP-SHA256 to the server.
    pub fn wrapped_key(&self) -> &[u8] {
        self.cose.recipients.first().and_then(|r| r.ciphertext.as_deref()).unwrap_or_default()
    }

    /// Which server key it is for: SHA-256 of the DER `SubjectPublicKeyInfo`.
    pub fn key_id(&self) -> &[u8] {
        self.cose.recipients.first().map(|r| r.unprotected.key_id.as_slice()).unwrap_or_default()
    }

    /// Opens it with the content key that was unwrapped from [`SealedEnvelope::wrapped_key`].
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`], [`ProtocolError::Malformed`]
    pub fn open(&self, content_key: &Secret<32>) -> Result<Credentials, ProtocolError> {
        self.open_value(content_key)
    }

    /// Opens an envelope with another message in it.
    ///
    /// # Errors
    /// As [`SealedEnvelope::open`].
    pub fn open_value<T: for<'b> minicbor::Decode<'b, ()>>(
        &self,
        content_key: &Secret<32>,
    ) -> Result<T, ProtocolError> {
        let plain = self.cose.decrypt_ciphertext(
            &[],
            || ProtocolError::Malformed,
            |sealed, aad| kdf::open(content_key, &self.iv, aad, sealed).map(|mut plain| std::mem::take(&mut *plain)),
        )?;
        frame::decode(&Zeroizing::new(plain))
    }
}
