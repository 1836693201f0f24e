//! Backup and restore of the database file. The keys are not in it; see [`crate::keys`].

use super::{chain, condition, open, schema, session, *};
use crate::{clock, keys::Keys};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rusqlite::{
    OpenFlags,
    backup::{Backup as Copier, StepResult},
};
use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt,
};

/// By how much the revision jumps at a restore: whatever a terminal knows of the database that was lost is older than that.
const JUMP: i64 = 1 << 32;

/// A database and what may lie beside it.
const ENDS: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Users.
    pub users: u64,
    /// Groups.
    pub groups: u64,
    /// Rows of the audit.
    pub audit_rows: u64,
}

/// Copies a database as it is at one moment into a new file of mode 0600, while a server may be writing to it. The copy appears whole, on the disk,
/// or not at all. An existing file is replaced only by `force`.
///
/// # Errors
/// [`StoreError`]: no such database, a file that is there already, a full disk, ...
pub fn back_up(database: &Path, to: &Path, force: bool) -> Result<Backup> {
    if !force && to.symlink_metadata().is_ok() {
        return exists(to);
    }
    let from = existing(database)?;
    let partial = beside(to, &format!(".partial-{}", std::process::id()));
    let copied = copy(&from, &partial).and_then(|content| publish(&partial, to, force).map(|()| content));
    if copied.is_err() {
        // Whatever is left of it is of no use.
        let _gone = std::fs::remove_file(&partial);
    }
    copied
}

fn existing(database: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(|e| condition::fault(database, e))?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// Copies all pages within one read of the source, and checks the copy.
fn copy(from: &Connection, to: &Path) -> Result<Backup> {
    let at = |e| condition::fault(to, e);
    // Also the log that a copy left which was interrupted: it would be taken for this one's.
    for end in ENDS {
        match std::fs::remove_file(beside(to, end)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(file_fault(to, &e)),
            _ => {}
        }
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(|e| file_fault(to, &e))?;
    let mut copy = Connection::open(to).map_err(at)?;
    match Copier::new(from, &mut copy).map_err(at)?.step(-1).map_err(at)? {
        StepResult::Done => {}
        _ => return refuse("the database is locked by another program: do it again"),
    }
    let version = schema::recognise(&copy.transaction()?)?;
    // One file that is complete by itself, without a log beside it.
    let _mode: String = copy.pragma_update_and_check(None, "journal_mode", "DELETE", |r| r.get(0)).map_err(at)?;
    open::whole(&copy, to)?;
    if version == 0 {
        return refuse("the database is empty");
    }
    let count = |table: &str| copy.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |r| r.get(0));
    let content = Backup { users: count("user")?, groups: count("closed_group")?, audit_rows: count("audit")? };
    copy.close().map_err(|(_, e)| at(e))?;
    File::open(to).and_then(|f| f.sync_all()).map_err(|e| file_fault(to, &e))?;
    Ok(content)
}

/// Gives the finished file its name.
fn publish(partial: &Path, to: &Path, force: bool) -> Result<()> {
    let flags = if force { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
    match renameat2(AT_FDCWD, partial, AT_FDCWD, to, flags) {
        Ok(()) => {}
        Err(nix::Error::EEXIST) => return exists(to),
        // A file system that cannot tell: look, then rename.
        Err(nix::Error::EINVAL) if to.symlink_metadata().is_err() => {
            std::fs::rename(partial, to).map_err(|e| file_fault(to, &e))?;
        }
        Err(nix::Error::EINVAL) => return exists(to),
        Err(error) => return Err(file_fault(to, &error.into())),
    }
    sync_dir(to)
}

fn exists<T>(to: &Path) -> Result<T> {
    refuse(format!("{} is there already: give another name, or --force to replace it", to.display()))
}

fn sync_dir(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| file_fault(dir, &e))
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(end);
    name.into()
}

fn file_fault(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Refused(format!("cannot write {}: {error}", path.display()))
}

impl Sqlite {
    /// Puts a backup in the place of the database. The caller holds the state lock. Checked first: that it is a database of ours and whole, that these keys
    /// open its group keys, and its audit (unless `force`). Then all sessions end and all groups get new keys: who left after the backup was made knows the old ones.
    /// The database that was there is kept aside; its new name is the answer.
    ///
    /// # Errors
    /// [`StoreError`]: the backup cannot be used; the database is as it was.
    pub fn restore(
        database: &Path,
        backup: &Path,
        keys: &Keys,
        by: By<'_>,
        mint: Mint<'_>,
        force: bool,
    ) -> Result<Option<PathBuf>> {
        let new = beside(database, ".restored");
        let prepared = prepare(backup, &new, keys, by, mint, force).and_then(|()| replace(database, &new, by.now));
        if prepared.is_err() {
            for end in ENDS {
                // Whatever is left of it is of no use.
                let _gone = std::fs::remove_file(beside(&new, end));
            }
        }
        prepared
    }
}

/// A copy of the backup that can be the database.
fn prepare(backup: &Path, new: &Path, keys: &Keys, by: By<'_>, mint: Mint<'_>, force: bool) -> Result<()> {
    if !backup.is_file() {
        return refuse(format!("there is no file {}", backup.display()));
    }
    let mut from = Connection::open_with_flags(backup, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|e| condition::fault(backup, e))?;
    let recognised = from.transaction().map_err(|e| condition::fault(backup, e)).and_then(|t| schema::recognise(&t));
    if recognised.map_err(|e| condition::of_backup(backup, e))? == 0 {
        return refuse(format!("{} cannot be restored: it is empty; nothing was changed", backup.display()));
    }
    let found: String = from
        .query_row("PRAGMA integrity_check(1)", [], |r| r.get(0))
        .map_err(|e| condition::of_backup(backup, e.into()))?;
    if found != "ok" {
        return refuse(format!(
            "{} cannot be restored: it is damaged ({found}); nothing was changed",
            backup.display()
        ));
    }
    copy(&from, new)?;
    let key = {
        let mut copied = existing(new)?;
        let t = copied.transaction()?;
        opens(&t, keys)?;
        let chained: bool =
            t.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'audit_head')", [], |r| r.get(0))?;
        if chained && !force {
            let verdict = chain::verify(&t, keys.audit(), None)?;
            if let Some(wrong) = verdict.wrong {
                return refuse(format!(
                    "the backup's audit is not as it was written: {wrong}; --force restores it all the same"
                ));
            }
        }
        if chained { keys.audit().duplicate() } else { keys.audit().begin_anew() }
    };
    let store = Sqlite::open(new, &key)?;
    let reason = format!("from {}", backup.display());
    store.write(|t| begin_again(t, by, mint, &reason))?;
    drop(store);
    File::open(new).and_then(|f| f.sync_all()).map_err(|e| file_fault(new, &e))
}

/// The storage key that is here unwraps every group key.
fn opens(t: &Transaction<'_>, keys: &Keys) -> Result<()> {
    let mut query = t.prepare("SELECT closed_group, epoch, wrapped FROM group_key")?;
    let mut rows = query.query([])?;
    while let Some(r) = rows.next()? {
        let wrapped: Vec<u8> = r.get(2)?;
        if keys.storage().unwrap_group_key(r.get(0)?, r.get(1)?, &wrapped).is_err() {
            return refuse(
                "the backup was made with other keys than those in the state directory: restore its directory `keys` first",
            );
        }
    }
    Ok(())
}

/// Nobody is logged in, nobody outside knows a key, and no terminal takes what it is told for old news.
fn begin_again(t: &Transaction<'_>, by: By<'_>, mint: Mint<'_>, reason: &str) -> Result<()> {
    let ids: Vec<SessionId> =
        t.prepare("SELECT id FROM session")?.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    for id in ids {
        let tell = Some(EndReason::Administrator);
        session::end_session(t, &id, &Ending { event: "session-end", by, reason: "database restored", tell })?;
    }
    for group in info::groups(t)? {
        admin::rotate(t, by, &group.group, mint)?;
    }
    let revision = view::revision(t)?;
    t.execute("DELETE FROM change", [])?;
    let next = i64::try_from(revision).unwrap_or(0).saturating_add(JUMP);
    t.execute("DELETE FROM sqlite_sequence WHERE name = 'change'", [])?;
    t.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('change', ?1)", [next])?;
    audit::Entry::new(by, "restore").reason(reason).write(t)
}

/// One rename. The log of the old database must be gone by then: it would be taken for the new one's.
fn replace(database: &Path, new: &Path, now: UnixTime) -> Result<Option<PathBuf>> {
    let aside = name_aside(database, now)?;
    let kept = match std::fs::hard_link(database, &aside) {
        Ok(()) => Some(aside.clone()),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(file_fault(&aside, &e)),
    };
    if kept.is_some() {
        // Into the old file, if it can be used at all; what remains of the log is kept beside it.
        if let Ok(old) = existing(database) {
            let _as_far_as_possible = old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
    }
    for end in ["-wal", "-shm"] {
        match std::fs::rename(beside(database, end), beside(&aside, end)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(file_fault(&beside(&aside, end), &e)),
            _ => {}
        }
    }
    std::fs::rename(new, database).map_err(|e| file_fault(database, &e))?;
    sync_dir(database)?;
    Ok(kept)
}

/// A name for the old database that nothing has yet; an interrupted restore may have left one a moment ago.
fn name_aside(database: &Path, now: UnixTime) -> Result<PathBuf> {
    let time = clock::rfc3339(now).replace([':', '-'], "");
    let names = (1..100).map(|n| if n == 1 { format!(".before-{time}") } else { format!(".before-{time}-{n}") });
    let free = names.map(|name| beside(database, &name)).find(|path| path.symlink_metadata().is_err());
    free.map_or_else(|| refuse("there are too many old databases beside the present one: remove some"), Ok)
}
