//! Opening the database: is it ours, is it whole, and is in force what durability depends on?

use super::{BUSY, Result, StoreError, chain, condition, refuse, schema};
use crate::keys::AuditKey;
use rusqlite::{Connection, OpenFlags, TransactionBehavior, config::DbConfig};
use std::{
    fs::{OpenOptions, Permissions},
    io::ErrorKind,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Opens, checks and migrates; answers with the head of the audit's chain too.
pub(super) fn writer(path: &Path, key: &AuditKey) -> Result<(Connection, Option<chain::Head>)> {
    own_file(path)?;
    let at = |error| condition::fault(path, error);
    let mut connection = Connection::open_with_flags(path, flags()).map_err(at)?;
    connection.busy_timeout(BUSY)?;
    // Before anything is written: a file that is not ours stays as it is.
    let version = schema::recognise(&connection.transaction().map_err(at)?)?;
    prepare(&connection)?;
    if version > 0 {
        whole(&connection, path)?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    schema::migrate(&transaction, version)?;
    references(&transaction, path)?;
    strict(&transaction)?;
    let head = chain::resume(&transaction, key)?;
    transaction.commit()?;
    Ok((connection, head))
}

/// One more connection to a database that [`writer`] has opened.
pub(super) fn reader(path: &Path) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, flags()).map_err(|error| condition::fault(path, error))?;
    prepare(&connection)?;
    Ok(connection)
}

fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// Made with mode 0600 from the first byte on; one that others can read is closed to them.
fn own_file(path: &Path) -> Result<()> {
    let fault = |e: std::io::Error| StoreError::Fault(format!("{}: {e}", path.display()).into());
    let meta = match std::fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fault)?;
            return Ok(());
        }
        other => other.map_err(fault)?,
    };
    let me = nix::unistd::geteuid();
    if !me.is_root() && meta.uid() != me.as_raw() {
        return refuse(format!(
            "{} belongs to user number {}, and this program runs as {me}: give the file to the server's user with chown",
            path.display(),
            meta.uid()
        ));
    }
    if meta.mode() & 0o077 != 0 {
        tracing::warn!("{} was open to other users; its mode is 0600 now", path.display());
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(fault)?;
    }
    Ok(())
}

/// What every connection needs; none of it is taken for granted.
fn prepare(connection: &Connection) -> Result<()> {
    connection.busy_timeout(BUSY)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |r| r.get(0))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is deleted (wrapped keys, addresses) is overwritten, not only unlinked.
    connection.pragma_update(None, "secure_delete", true)?;
    // Nothing in a file that somebody else wrote may run code of theirs.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_prepared_statement_cache_capacity(128);
    // One plan for a query, whoever is asked for. Otherwise it is planned again for other values, in search of one that suits them better.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |r| r.get(0))?;
    let foreign_keys: bool = connection.pragma_query_value(None, "foreign_keys", |r| r.get(0))?;
    if (mode.as_str(), synchronous, foreign_keys) != ("wal", 2, true) {
        return Err(StoreError::Fault(
            format!(
                "the file system does not support what durability needs (journal {mode}, synchronous {synchronous})"
            )
            .into(),
        ));
    }
    Ok(())
}

/// Pages, rows and indexes fit each other.
pub(super) fn whole(connection: &Connection, path: &Path) -> Result<()> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if found == "ok" { Ok(()) } else { damaged(path, &found) }
}

/// No row refers to one that is not there.
fn references(connection: &Connection, path: &Path) -> Result<()> {
    let mut query = connection.prepare("PRAGMA foreign_key_check")?;
    let mut rows = query.query([])?;
    match rows.next()? {
        None => Ok(()),
        Some(row) => damaged(path, &format!("a row of {} refers to one that is not there", row.get::<_, String>(0)?)),
    }
}

fn strict(connection: &Connection) -> Result<()> {
    let sql = "SELECT group_concat(name) FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND strict = 0 AND name NOT LIKE 'sqlite_%'";
    match connection.query_row(sql, [], |r| r.get::<_, Option<String>>(0))? {
        None => Ok(()),
        Some(tables) => Err(StoreError::Fault(format!("tables without strict types: {tables}").into())),
    }
}

fn damaged<T>(path: &Path, found: &str) -> Result<T> {
    let sentence = format!(
        "{} is damaged ({found}): stop the server, keep the file, and use `cug-server restore` with a backup",
        path.display()
    );
    Err(StoreError::Fault(sentence.into()))
}
