//! The state directory: made, locked, and owned by whom it should be.

use crate::{
    clock,
    config::Config,
    keys,
    store::{Sqlite, Store},
};
use anyhow::{Context, Result, bail};
use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

/// Name of the setting that holds the deployment's unique local /48: the 40 bits after `fd`, as ten hexadecimal digits.
pub(super) const ULA: &str = "ula";

/// The database of a state directory.
pub fn database(state_dir: &Path) -> PathBuf {
    state_dir.join("cug.db")
}

/// Held by whoever works on the store: the server, or one administrator's command.
pub struct StateLock(#[expect(dead_code, reason = "held, and released when it is closed")] File);

impl StateLock {
    /// Takes the lock, or says who has it.
    ///
    /// # Errors
    /// A sentence.
    pub fn take(state_dir: &Path) -> Result<Self> {
        if !state_dir.is_dir() {
            bail!(keys::KeyError::NotInitialised(state_dir.into()));
        }
        let path = state_dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => bail!(
                "another cug-server works on {}: if it is the running server, it does not answer on its admin-socket (see its log)",
                state_dir.display()
            ),
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Makes the state of a new organisation. Takes a second or two.
///
/// # Errors
/// A sentence: initialised already, or a file that cannot be made.
pub fn initialise(config: &Config, organisation: &str) -> Result<()> {
    let dir = &config.state_dir;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    let _lock = StateLock::take(dir)?;
    if dir.join("keys").exists() {
        bail!(keys::KeyError::Initialised(dir.clone()));
    }
    // Nobody but the owner, from the first byte on.
    let path = database(dir);
    let touched = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    touched.with_context(|| format!("cannot make {}", path.display()))?;
    let store = Sqlite::open(&path)?;
    store.set_once("organisation", organisation)?;
    let ula: String = clock::random::<5>().iter().map(|b| format!("{b:02x}")).collect();
    store.set_once(ULA, &ula)?;
    drop(store);
    let place = keys::StoragePlace::of(dir, config.storage_key.as_deref());
    keys::create_with(dir, &place, organisation, clock::unix_now())?;
    give_to_owner(dir)?;
    if config.storage_key.is_some() && nix::unistd::geteuid().is_root() {
        let owner = std::fs::metadata(dir)?;
        chown(place.file(), Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// What root makes in the server's directory belongs to the server's user, who could not use it otherwise.
pub(super) fn give_to_owner(dir: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let owner = std::fs::metadata(dir)?;
    for place in [dir.to_path_buf(), dir.join("keys")] {
        let Ok(entries) = std::fs::read_dir(&place) else { continue };
        for entry in entries {
            let path = entry?.path();
            let meta = std::fs::symlink_metadata(&path)?;
            if (meta.uid(), meta.gid()) != (owner.uid(), owner.gid()) && !meta.is_symlink() {
                chown(&path, Some(owner.uid()), Some(owner.gid()))
                    .with_context(|| format!("cannot give {} to the server's user", path.display()))?;
            }
        }
    }
    Ok(())
}
