//! The key of the audit's chain, `keys/audit.key`: outside the database, so that whoever can only write to the database cannot make the chain anew.
//!
//! It is derived from the storage key once and then kept, because the storage key may be exchanged later and the chain must still verify.

use super::{KeyError, StorageKey, certify, read_secret};
use cug_proto::{kdf, secret::Secret};
use std::path::Path;

const FILE: &str = "audit.key";

/// Makes and checks the codes (HMAC-SHA256) of the audit's chain.
pub struct AuditKey {
    secret: Secret<32>,
    chain: Chain,
}

/// What is known outside of the database about the chain in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// None was ever begun with this key.
    Fresh,
    /// There is one. A database without it was exchanged or altered.
    Begun,
    /// The database is being made; its chain begins when its keys are there.
    NotYet,
}

impl AuditKey {
    /// A key that is in no file. What is chained with it can only be checked by the same value.
    pub fn random(rng: &mut impl getrandom::rand_core::CryptoRng) -> Self {
        Self { secret: Secret::random(rng), chain: Chain::Fresh }
    }

    /// While the keys are not made yet. Nothing that is written into the audit under it would verify.
    pub(crate) fn not_yet() -> Self {
        Self { secret: Secret::fill(|_| ()), chain: Chain::NotYet }
    }

    pub(super) fn load(dir: &Path, storage: &StorageKey) -> Result<Self, KeyError> {
        let path = dir.join(FILE);
        match path.try_exists() {
            Ok(true) => Ok(Self { secret: read_secret(&path)?, chain: Chain::Begun }),
            Ok(false) => Ok(Self { secret: storage.derive(b"cug/1 audit chain"), chain: Chain::Fresh }),
            Err(error) => Err(KeyError::file(&path, error)),
        }
    }

    /// Writes the key to its file, unless it came from there.
    pub(super) fn keep(&self, dir: &Path) -> Result<(), KeyError> {
        if self.chain == Chain::Fresh { certify::replace(&dir.join(FILE), self.secret.expose()) } else { Ok(()) }
    }

    /// Which database is to be expected.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// The code of these parts, each of which must have a fixed length or begin with one.
    pub fn code(&self, parts: &[&[u8]]) -> [u8; 32] {
        kdf::mac(&self.secret, parts)
    }

    /// The same key, for another owner.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self { secret: self.secret.duplicate(), chain: self.chain }
    }

    /// The same key, as it comes from its file later.
    #[must_use]
    pub fn kept(&self) -> Self {
        Self { secret: self.secret.duplicate(), chain: Chain::Begun }
    }

    /// The same key, for a database of an earlier version that an administrator puts in the place of the present one.
    #[must_use]
    pub(crate) fn begin_anew(&self) -> Self {
        Self { secret: self.secret.duplicate(), chain: Chain::Fresh }
    }
}
