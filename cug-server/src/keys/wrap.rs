//! Secrets at rest: AES-256-GCM under a key outside the database, each bound to what it is.
//!
//! A wrapped secret names its key, so that two keys can be in use while one takes the other's place (`server-key rotate`).

use cug_proto::{
    ProtocolError,
    id::{Epoch, GroupId},
    kdf,
    message::SessionId,
    secret::Secret,
};
use getrandom::rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Names a wrapping key: the first bytes of a hash of it. No secret.
pub type StorageKeyId = [u8; 8];

/// Length of a wrapped secret that does not name its key, as the first versions wrote it: nonce, 32 bytes, tag.
const UNNAMED: usize = 12 + 32 + 16;

/// Which secret a wrapped one is; the cipher binds it to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapped {
    /// A group's key of an epoch.
    Group(GroupId, Epoch),
    /// A session's secret.
    Session(SessionId),
}

impl Wrapped {
    fn aad(&self) -> Vec<u8> {
        match self {
            Self::Group(group, epoch) => {
                [b"cug/1 stored group key".as_slice(), &group.to_be_bytes(), &epoch.to_be_bytes()].concat()
            }
            Self::Session(session) => [b"cug/1 stored session secret".as_slice(), session].concat(),
        }
    }
}

/// One wrapping key.
pub(super) struct WrapKey {
    id: StorageKeyId,
    key: Secret<32>,
}

impl WrapKey {
    pub(super) fn new(key: Secret<32>) -> Self {
        let hash = Sha256::new().chain_update(b"cug/1 storage key id").chain_update(key.expose()).finalize();
        let mut id = StorageKeyId::default();
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Self { id, key }
    }

    pub(super) fn id(&self) -> StorageKeyId {
        self.id
    }

    fn wrap(&self, what: Wrapped, secret: &Secret<32>, rng: &mut impl CryptoRng) -> Result<Vec<u8>, ProtocolError> {
        let mut nonce = [0; 12];
        rng.fill_bytes(&mut nonce);
        let sealed = kdf::seal(&self.key, &nonce, &what.aad(), secret.expose())?;
        Ok([self.id.as_slice(), &nonce, &sealed].concat())
    }

    /// Opens nonce, ciphertext and tag.
    fn open(&self, what: Wrapped, wrapped: &[u8]) -> Result<Secret<32>, ProtocolError> {
        let (nonce, sealed) = wrapped.split_first_chunk::<12>().ok_or(ProtocolError::NotAuthentic)?;
        Secret::copy_from(&kdf::open(&self.key, nonce, &what.aad(), sealed)?).ok_or(ProtocolError::NotAuthentic)
    }
}

/// The keys that wrap group keys and session secrets: one that wraps, and earlier ones that still open: somebody may have read a secret just
/// before an exchange and open it just after. Those go with the process.
///
/// A wrapped secret is the key's [`StorageKeyId`], a 12-byte random nonce, ciphertext and tag.
pub struct StorageKey {
    ring: RwLock<Ring>,
    /// Held for reading from wrapping a secret until it is stored; for writing while the wrapping key is exchanged.
    exchange: RwLock<()>,
}

struct Ring {
    current: Arc<WrapKey>,
    others: Vec<Arc<WrapKey>>,
}

/// While this is held, what was wrapped stays under the key that wraps. See [`StorageKey::hold`].
pub struct Held<'a>(#[expect(dead_code, reason = "held, and released when it is dropped")] RwLockReadGuard<'a, ()>);

impl StorageKey {
    pub(super) fn new(current: WrapKey, other: Option<WrapKey>) -> Self {
        let ring = Ring { current: Arc::new(current), others: other.map(Arc::new).into_iter().collect() };
        Self { ring: RwLock::new(ring), exchange: RwLock::new(()) }
    }

    /// To be held from wrapping a secret outside of a write of the store until that write is done: otherwise a rotation could finish in
    /// between, and its old key would be gone.
    pub fn hold(&self) -> Held<'_> {
        Held(self.exchange.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key that wraps.
    pub fn id(&self) -> StorageKeyId {
        self.current().id()
    }

    /// From now on `next` wraps and the earlier key only opens. Waits for those who [hold](Self::hold) the earlier one.
    pub(super) fn exchange(&self, next: Arc<WrapKey>) {
        let _nobody_wraps = self.exchange.write().unwrap_or_else(PoisonError::into_inner);
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        if ring.current.id() != next.id() {
            let earlier = std::mem::replace(&mut ring.current, next);
            ring.others.push(earlier);
        }
    }

    /// Before the first exchange: the key that an interrupted rotation was going to use.
    pub(super) fn interrupted(&self) -> Option<Arc<WrapKey>> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).others.first().cloned()
    }

    fn current(&self) -> Arc<WrapKey> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).current.clone()
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
        self.current().wrap(Wrapped::Group(group, epoch), key, rng)
    }

    /// Unwraps a group's key; a key of another group or epoch does not unwrap.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn unwrap_group_key(&self, group: GroupId, epoch: Epoch, wrapped: &[u8]) -> Result<Secret<32>, ProtocolError> {
        self.unwrap(Wrapped::Group(group, epoch), wrapped)
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
        self.current().wrap(Wrapped::Session(*session), secret, rng)
    }

    /// Unwraps a session's secret.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn unwrap_session_secret(&self, session: &SessionId, wrapped: &[u8]) -> Result<Secret<32>, ProtocolError> {
        self.unwrap(Wrapped::Session(*session), wrapped)
    }

    /// Another key, for `purpose`, from the key that wraps.
    pub(super) fn derive(&self, purpose: &[u8]) -> Secret<32> {
        kdf::derive(b"cug/1 storage key", self.current().key.expose(), &[purpose])
    }

    /// The same secret under the key that wraps; `None` when it is under that key already.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`] when no key at hand opens it.
    pub(super) fn rewrap(
        &self,
        what: Wrapped,
        wrapped: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<Option<Vec<u8>>, ProtocolError> {
        let current = self.current();
        if wrapped.len() != UNNAMED && wrapped.starts_with(&current.id()) {
            return Ok(None);
        }
        let secret = self.unwrap(what, wrapped)?;
        current.wrap(what, &secret, rng).map(Some)
    }

    fn unwrap(&self, what: Wrapped, wrapped: &[u8]) -> Result<Secret<32>, ProtocolError> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys = [&ring.current].into_iter().chain(&ring.others);
        if wrapped.len() == UNNAMED {
            return keys.find_map(|key| key.open(what, wrapped).ok()).ok_or(ProtocolError::NotAuthentic);
        }
        let (id, sealed) = wrapped.split_first_chunk().ok_or(ProtocolError::NotAuthentic)?;
        let key = keys.find(|key| key.id() == *id).ok_or(ProtocolError::NotAuthentic)?;
        key.open(what, sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn fresh() -> WrapKey {
        WrapKey::new(Secret::random(&mut clock::rng()))
    }

    #[test]
    fn a_wrapped_secret_is_bound_to_what_it_is() {
        let storage = StorageKey::new(fresh(), None);
        let key = Secret::random(&mut clock::rng());
        let wrapped = storage.wrap_group_key(1, 2, &key, &mut clock::rng()).unwrap();
        assert!(storage.unwrap_group_key(1, 2, &wrapped).unwrap().matches(key.expose()));
        assert!(storage.unwrap_group_key(1, 3, &wrapped).is_err());
        assert!(storage.unwrap_group_key(2, 2, &wrapped).is_err());
        assert!(storage.unwrap_session_secret(&[0; 16], &wrapped).is_err());
        for cut in 0..wrapped.len() {
            assert!(storage.unwrap_group_key(1, 2, &wrapped[..cut]).is_err());
        }
    }

    #[test]
    fn an_exchange_wraps_everything_anew_and_the_earlier_key_still_opens() {
        let storage = StorageKey::new(fresh(), None);
        let secret = Secret::random(&mut clock::rng());
        let session = [3; 16];
        let before = storage.wrap_session_secret(&session, &secret, &mut clock::rng()).unwrap();
        let unnamed = before[8..].to_vec();
        storage.exchange(Arc::new(fresh()));
        let after = storage.wrap_session_secret(&session, &secret, &mut clock::rng()).unwrap();
        assert_ne!(before[..8], after[..8]);
        let mut rewrapped = vec![];
        for wrapped in [&before, &unnamed] {
            assert!(storage.unwrap_session_secret(&session, wrapped).unwrap().matches(secret.expose()));
            let again = storage.rewrap(Wrapped::Session(session), wrapped, &mut clock::rng()).unwrap();
            rewrapped.push(again.expect("it was under the other key"));
        }
        assert_eq!(storage.rewrap(Wrapped::Session(session), &after, &mut clock::rng()).unwrap(), None);
        storage.ring.write().unwrap().others.clear();
        for wrapped in rewrapped.iter().chain([&after]) {
            assert!(storage.unwrap_session_secret(&session, wrapped).unwrap().matches(secret.expose()));
        }
        for wrapped in [&before, &unnamed] {
            assert!(storage.unwrap_session_secret(&session, wrapped).is_err(), "it needed the earlier key");
        }
    }

    #[test]
    fn an_exchange_waits_for_those_who_wrap() {
        let storage = StorageKey::new(fresh(), None);
        let before = storage.id();
        let held = storage.hold();
        std::thread::scope(|scope| {
            let exchanging = scope.spawn(|| storage.exchange(Arc::new(fresh())));
            assert_eq!(storage.id(), before);
            drop(held);
            exchanging.join().unwrap();
        });
        assert_ne!(storage.id(), before);
    }
}
