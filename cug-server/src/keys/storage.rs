//! Where the wrapping key lies, and how another takes its place.
//!
//! | step | on disk | in the database | after a crash here |
//! |---|---|---|---|
//! | 1 | `KEY`, `KEY.next` written and synced | under KEY | both open; the next start goes on with 2 |
//! | 2 | the same | one transaction: everything under KEY.next | both open; the next start does 2 again (nothing to do) and 3 |
//! | 3 | `KEY.next` renamed to `KEY` | under the new KEY | done |
//!
//! The database notes which key it is under. A server that is given another one refuses to start instead of refusing every login.

use super::{
    certify::{KeyError, replace},
    wrap::{StorageKey, WrapKey},
};
use crate::{
    clock, hex,
    store::{By, Result as StoreResult, Store, StoreError},
};
use cug_proto::secret::Secret;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use zeroize::Zeroizing;

/// Name of the setting that notes which key the database is under.
const SETTING: &str = "storage-key";

/// Name of the credential that a service manager can hand over instead of a file.
const CREDENTIAL: &str = "storage-key";

/// Where the wrapping key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoragePlace {
    file: PathBuf,
    /// Handed over by the service manager, which alone decides who can read it; it cannot be written.
    credential: bool,
}

impl StoragePlace {
    /// `configured`, else the credential `storage-key` if there is one in `credentials`, else `keys/storage.key` of the state.
    pub fn choose(state_dir: &Path, configured: Option<&Path>, credentials: Option<&Path>) -> Self {
        if let Some(file) = configured {
            let credential = credentials.is_some_and(|dir| file.starts_with(dir));
            return Self { file: file.into(), credential };
        }
        match credentials.map(|dir| dir.join(CREDENTIAL)).filter(|file| file.exists()) {
            Some(file) => Self { file, credential: true },
            None => Self { file: state_dir.join("keys/storage.key"), credential: false },
        }
    }

    /// As [`StoragePlace::choose`], with the credentials of this process (`$CREDENTIALS_DIRECTORY`, systemd.exec(5)).
    pub fn of(state_dir: &Path, configured: Option<&Path>) -> Self {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Self::choose(state_dir, configured, credentials.as_deref())
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Where the next key is during a rotation.
    fn next(&self) -> PathBuf {
        let mut name = self.file.as_os_str().to_owned();
        name.push(".next");
        name.into()
    }

    /// Makes a key, unless there is one.
    ///
    /// # Errors
    /// [`KeyError::File`]
    pub(super) fn create(&self) -> Result<(), KeyError> {
        if self.file.exists() {
            return self.read(&self.file).map(drop);
        }
        replace(&self.file, Zeroizing::new(clock::random::<32>()).as_slice())
    }

    /// Both keys; the second one is there after an interrupted rotation.
    pub(super) fn load(&self) -> Result<StorageKey, KeyError> {
        let current = self.read(&self.file)?;
        let next = self.next();
        let next = if next.exists() { Some(self.read(&next)?) } else { None };
        Ok(StorageKey::new(current, next))
    }

    fn read(&self, file: &Path) -> Result<WrapKey, KeyError> {
        private(file, self.credential)?;
        let bytes = Zeroizing::new(fs::read(file).map_err(|e| KeyError::file(file, e))?);
        Secret::copy_from(&bytes).map(WrapKey::new).ok_or_else(|| KeyError::bad(file))
    }
}

/// Refuses a secret file that others can read. A credential may carry an access list, whose mask shows as permissions of the group.
pub(super) fn private(file: &Path, credential: bool) -> Result<(), KeyError> {
    let mode = fs::metadata(file).map_err(|e| KeyError::file(file, e))?.mode();
    let others = if credential { 0o007 } else { 0o077 };
    if mode & others == 0 { Ok(()) } else { Err(KeyError::Exposed(file.into())) }
}

/// The wrapping key with its place.
pub struct Storage {
    key: StorageKey,
    place: StoragePlace,
    rotating: Mutex<()>,
}

impl Storage {
    pub(super) fn load(place: StoragePlace) -> Result<Self, KeyError> {
        Ok(Self { key: place.load()?, place, rotating: Mutex::new(()) })
    }

    /// The key.
    pub fn key(&self) -> &StorageKey {
        &self.key
    }

    /// Checks that the database is under this key, and finishes a rotation that was interrupted. To be called before anything is wrapped.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it is another database's key, with what to do.
    pub fn settle(&self, store: &dyn Store) -> StoreResult<()> {
        if let Some(next) = self.key.interrupted() {
            tracing::warn!("an interrupted rotation of the storage key goes on");
            return self.finish(By { actor: "server", now: clock::unix_now() }, store, next).map(drop);
        }
        let own = hex::encode(&self.key.id());
        store.set_once(SETTING, &own)?;
        match store.setting(SETTING)? {
            Some(noted) if noted != own => Err(StoreError::Refused(format!(
                "the database is under the storage key {noted}, and {} is {own}: put the right key there (it is in the backup that belongs to this database)",
                self.place.file.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Makes a new key and wraps everything under it, in one transaction, while others read and write. An interrupted rotation is
    /// finished instead. Answers with a sentence for the administrator.
    ///
    /// # Errors
    /// A sentence; the earlier key is still good then.
    pub fn rotate(&self, by: By<'_>, store: &dyn Store) -> StoreResult<String> {
        let _one_at_a_time = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.place.next();
        if !next.exists() {
            if self.place.credential {
                return Err(StoreError::Refused(format!(
                    "the storage key is a credential of the service: hand over the new key too, as {CREDENTIAL}.next, and restart; everything is then wrapped under it"
                )));
            }
            replace(&next, Zeroizing::new(clock::random::<32>()).as_slice()).map_err(refused)?;
        }
        let next = Arc::new(self.place.read(&next).map_err(refused)?);
        self.finish(by, store, next)
    }

    fn finish(&self, by: By<'_>, store: &dyn Store, next: Arc<WrapKey>) -> StoreResult<String> {
        let id = next.id();
        self.key.exchange(next);
        let rewrapped = store.rewrap(by, SETTING, &hex::encode(&id), &|what, wrapped| {
            let rewrapped = self.key.rewrap(what, wrapped, &mut clock::rng());
            rewrapped.map_err(|e| StoreError::Fault(format!("a stored secret cannot be unwrapped: {e}").into()))
        })?;
        let file = self.place.file.display();
        if self.place.credential {
            return Ok(format!(
                "{rewrapped} secrets are under the new storage key {}; make {CREDENTIAL}.next the credential {CREDENTIAL} now",
                hex::encode(&id)
            ));
        }
        promote(&self.place.next(), &self.place.file).map_err(refused)?;
        Ok(format!(
            "{rewrapped} secrets are under the new storage key {} in {file}; an older backup of the database needs the key of its time",
            hex::encode(&id)
        ))
    }
}

fn promote(next: &Path, file: &Path) -> Result<(), KeyError> {
    fs::rename(next, file).map_err(|e| KeyError::file(file, e))?;
    let dir = file.parent().unwrap_or(Path::new("."));
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| KeyError::file(dir, e))
}

fn refused(error: KeyError) -> StoreError {
    StoreError::Refused(error.to_string())
}
