//! Secrets at rest: AES-256-GCM under a key outside the database, each bound to what it is.

use cug_proto::{
    ProtocolError,
    id::{Epoch, GroupId},
    kdf,
    message::SessionId,
    secret::Secret,
};
use getrandom::rand_core::CryptoRng;

/// The key that wraps group keys and session secrets. A wrapped secret is a 12-byte random nonce, ciphertext and tag.
pub struct StorageKey(Secret<32>);

impl StorageKey {
    pub(super) fn new(key: Secret<32>) -> Self {
        Self(key)
    }

    /// Wraps a group's key of an epoch.
    ///
    /// # Errors
    /// [`ProtocolError`] of the cipher.
    pub fn wrap_group_key(
        &self,
        group: GroupId,
        epoch: Epoch,
        key: &Secret<32>,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, ProtocolError> {
        self.wrap(&group_aad(group, epoch), key, rng)
    }

    /// Unwraps a group's key; a key of another group or epoch does not unwrap.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn unwrap_group_key(&self, group: GroupId, epoch: Epoch, wrapped: &[u8]) -> Result<Secret<32>, ProtocolError> {
        self.unwrap(&group_aad(group, epoch), wrapped)
    }

    /// Wraps a session's secret.
    ///
    /// # Errors
    /// [`ProtocolError`] of the cipher.
    pub fn wrap_session_secret(
        &self,
        session: &SessionId,
        secret: &Secret<32>,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, ProtocolError> {
        self.wrap(&session_aad(session), secret, rng)
    }

    /// Unwraps a session's secret.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn unwrap_session_secret(&self, session: &SessionId, wrapped: &[u8]) -> Result<Secret<32>, ProtocolError> {
        self.unwrap(&session_aad(session), wrapped)
    }

    /// Another key, for `purpose`.
    pub(super) fn derive(&self, purpose: &[u8]) -> Secret<32> {
        kdf::derive(b"cug/1 storage key", self.0.expose(), &[purpose])
    }

    fn wrap(&self, aad: &[u8], secret: &Secret<32>, rng: &mut impl CryptoRng) -> Result<Vec<u8>, ProtocolError> {
        let mut nonce = [0; 12];
        rng.fill_bytes(&mut nonce);
        let sealed = kdf::seal(&self.0, &nonce, aad, secret.expose())?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn unwrap(&self, aad: &[u8], wrapped: &[u8]) -> Result<Secret<32>, ProtocolError> {
        let (nonce, sealed) = wrapped.split_first_chunk::<12>().ok_or(ProtocolError::NotAuthentic)?;
        Secret::copy_from(&kdf::open(&self.0, nonce, aad, sealed)?).ok_or(ProtocolError::NotAuthentic)
    }
}

fn group_aad(group: GroupId, epoch: Epoch) -> Vec<u8> {
    [b"cug/1 stored group key".as_slice(), &group.to_be_bytes(), &epoch.to_be_bytes()].concat()
}

fn session_aad(session: &SessionId) -> Vec<u8> {
    [b"cug/1 stored session secret".as_slice(), session].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_wrapped_secret_is_bound_to_what_it_is() {
        let storage = StorageKey::new(Secret::random(&mut clock::rng()));
        let key = Secret::random(&mut clock::rng());
        let wrapped = storage.wrap_group_key(1, 2, &key, &mut clock::rng()).unwrap();
        assert!(storage.unwrap_group_key(1, 2, &wrapped).unwrap().matches(key.expose()));
        assert!(storage.unwrap_group_key(1, 3, &wrapped).is_err());
        assert!(storage.unwrap_group_key(2, 2, &wrapped).is_err());
        assert!(storage.unwrap_session_secret(&[0; 16], &wrapped).is_err());
        assert!(storage.unwrap_group_key(1, 2, &wrapped[..11]).is_err());
    }
}
