//! HKDF-SHA256 (RFC 5869), HMAC-SHA256 (RFC 2104) and AES-256-GCM, in the few forms that the protocol uses.

use crate::{ProtocolError, secret::Secret};
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit, Nonce, Tag};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Length of an AES-GCM tag in bytes.
pub const TAG_LEN: usize = 16;

/// HKDF-SHA256: 32 bytes for the purpose `info` out of `key` and `salt`.
pub fn derive(salt: &[u8], key: &[u8], info: &[&[u8]]) -> Secret<32> {
    let (_, hkdf) = hkdf::Hkdf::<Sha256>::extract(Some(salt), key);
    // 32 bytes is one block of SHA-256: the only error of expand, too long an output, cannot come.
    Secret::fill(|out| {
        let _always_fits = hkdf.expand_multi_info(info, out);
    })
}

/// HMAC-SHA256 of the parts, one after the other. The parts must have fixed lengths, or begin with one.
pub fn mac(key: &Secret<32>, parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    if let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose()) {
        for part in parts {
            mac.update(part);
        }
        out.copy_from_slice(&mac.finalize().into_bytes());
    }
    out
}

/// Checks an HMAC of [`mac`] in constant time.
///
/// # Errors
/// [`ProtocolError::NotAuthentic`]
pub fn verify_mac(key: &Secret<32>, parts: &[&[u8]], tag: &[u8]) -> Result<(), ProtocolError> {
    if mac(key, parts).ct_eq(tag).into() { Ok(()) } else { Err(ProtocolError::NotAuthentic) }
}

/// SHA-256 over the parts, each with its length (u32, big endian) before it, so that no two lists of parts collide.
pub fn hash_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// AES-256-GCM: `plaintext` is wiped, the result is ciphertext and tag. A (key, nonce) pair must not be used for two plaintexts.
///
/// # Errors
/// [`ProtocolError::TooLarge`] beyond the limits of GCM (64 GiB).
pub fn seal(key: &Secret<32>, nonce: &[u8; 12], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let cipher = Aes256Gcm::new_from_slice(key.expose()).map_err(|_| ProtocolError::Key)?;
    let mut buffer = Vec::with_capacity(plaintext.len() + TAG_LEN);
    buffer.extend_from_slice(plaintext);
    let tag = cipher
        .encrypt_inout_detached(&Nonce::from(*nonce), aad, buffer.as_mut_slice().into())
        .map_err(|_| ProtocolError::TooLarge)?;
    buffer.extend_from_slice(&tag);
    Ok(buffer)
}

/// Opens what [`seal`] made.
///
/// # Errors
/// [`ProtocolError::NotAuthentic`]
pub fn open(
    key: &Secret<32>,
    nonce: &[u8; 12],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
    let cipher = Aes256Gcm::new_from_slice(key.expose()).map_err(|_| ProtocolError::Key)?;
    let split = sealed.len().checked_sub(TAG_LEN).ok_or(ProtocolError::NotAuthentic)?;
    let (ciphertext, tag) = sealed.split_at(split);
    let tag = Tag::try_from(tag).map_err(|_| ProtocolError::NotAuthentic)?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    cipher
        .decrypt_inout_detached(&Nonce::from(*nonce), aad, buffer.as_mut_slice().into(), &tag)
        .map_err(|_| ProtocolError::NotAuthentic)?;
    Ok(buffer)
}
