//! The state directory: made, locked, and owned by whom it should be.

use crate::{
    clock,
    config::Config,
    keys::{self, AuditKey, Keys},
    store::{self, Backup, By, Sqlite, Store, StoreError},
};
use anyhow::{Context, Result, bail};
use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

/// Name of the setting that holds the deployment's unique local /48: the 40 bits after `fd`, as ten hexadecimal digits.
pub(super) const ULA: &str = "ula";

/// The database of a state directory.
pub fn database(state_dir: &Path) -> PathBuf {
    state_dir.join("cug.db")
}

/// How long a command waits for another one to end, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Held by whoever works on the store: the server, or one administrator's command.
pub struct StateLock(#[expect(dead_code, reason = "held, and released when it is closed")] File);

impl StateLock {
    /// Takes the lock, waiting a moment for a command that is about to end; or says who has it. Blocks for [`PATIENCE`] at most.
    ///
    /// # Errors
    /// A sentence.
    #[expect(
        clippy::disallowed_methods,
        reason = "a lock of a file tells nobody that it is free, except to one who waits without limit"
    )]
    pub fn take(state_dir: &Path) -> Result<Self> {
        if !state_dir.is_dir() {
            bail!(keys::KeyError::NotInitialised(state_dir.into()));
        }
        close_to_others(state_dir)?;
        let path = state_dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let deadline = clock::monotonic() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if clock::monotonic() < deadline => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => bail!(
                    "another cug-server works on {}: if it is the running server, it does not answer on its admin-socket (see its log)",
                    state_dir.display()
                ),
                Err(TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
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
    let store = Sqlite::open(&path, &AuditKey::not_yet())?;
    store.set_once("organisation", organisation)?;
    let ula: String = clock::random::<5>().iter().map(|b| format!("{b:02x}")).collect();
    store.set_once(ULA, &ula)?;
    drop(store);
    let place = keys::StoragePlace::of(dir, config.storage_key.as_deref());
    keys::create_with(dir, &place, organisation, clock::unix_now())?;
    drop(open_store(dir, &Keys::load_with(dir, place.clone())?)?);
    give_to_owner(dir)?;
    if config.storage_key.is_some() && nix::unistd::geteuid().is_root() {
        let owner = std::fs::metadata(dir)?;
        chown(place.file(), Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Opens a state directory's store. The caller holds its [`StateLock`].
///
/// # Errors
/// [`StoreError`]; [`keys::KeyError`] when the audit's key cannot be kept.
pub fn open_store(state_dir: &Path, keys: &Keys) -> Result<Sqlite> {
    let store = Sqlite::open(&database(state_dir), keys.audit())?;
    keys.storage_place().settle(&store)?;
    keys.keep_audit_key()?;
    Ok(store)
}

/// Copies the database into one file, while the server runs or not. The keys are not in it.
///
/// # Errors
/// A sentence; there is no new file then.
pub fn back_up(config: &Config, to: &Path, force: bool) -> Result<Backup> {
    let backup = store::back_up(&database(&config.state_dir), to, force)?;
    give_to_owner(&config.state_dir)?;
    Ok(backup)
}

/// Puts a backup in the place of the database. Answers with where the one that was there is now.
///
/// # Errors
/// A sentence, and nothing was changed: a server runs, the backup is damaged or was made with other keys, ...
pub fn restore(config: &Config, backup: &Path, force: bool) -> Result<Option<PathBuf>> {
    let dir = &config.state_dir;
    let _lock = StateLock::take(dir).context("stop the server first")?;
    let keys = super::keys_of(config)?;
    let actor = super::service::account_name(nix::unistd::geteuid().as_raw());
    let by = By { actor: &actor, now: clock::unix_now() };
    let mint = |group, epoch| keys.mint(group, epoch);
    let kept = Sqlite::restore(&database(dir), backup, &keys, by, &mint, force)
        // The sentence says what is wrong with the backup, not with the database.
        .map_err(|error| match error {
            StoreError::Refused(sentence) => anyhow::Error::msg(sentence),
            fault => fault.into(),
        })?;
    keys.keep_audit_key()?;
    give_to_owner(dir)?;
    Ok(kept)
}

/// The directory's owner alone may look into it.
fn close_to_others(dir: &Path) -> Result<()> {
    let mode = std::fs::metadata(dir)?.mode();
    if mode & 0o077 != 0 {
        tracing::warn!("{} was open to other users; its mode is 0700 now", dir.display());
        let closed = std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700));
        closed.with_context(|| format!("{} is open to other users, and that cannot be changed", dir.display()))?;
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
