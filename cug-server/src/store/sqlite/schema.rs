//! The schema, and how older databases become newer ones.

use super::{Result, refuse};
use rusqlite::Transaction;

/// Written into the file's header, so that `file` and we can tell it from others: "CUGd".
pub(super) const APPLICATION_ID: i32 = 0x4355_4764;

/// Each leads from one version (its position) to the next. A released one is never changed.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("schema-1.sql"),
    include_str!("audit-chain.sql"),
    include_str!("seat-quarantine.sql"),
    include_str!("schema-policy.sql"),
    include_str!("schema-deletion.sql"),
    include_str!("schema-key-age.sql"),
    include_str!("password-age.sql"),
    include_str!("enrolment.sql"),
    include_str!("hours.sql"),
];

/// Whether this database is one of ours, of a version that we know. Reads only.
pub(super) fn recognise(t: &Transaction<'_>) -> Result<usize> {
    let application: i32 = t.pragma_query_value(None, "application_id", |r| r.get(0))?;
    let version: i64 = t.pragma_query_value(None, "user_version", |r| r.get(0))?;
    let tables: Vec<String> = t
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?
        .query_map([], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    // The first version had no number in the header.
    let ours = match application {
        APPLICATION_ID => true,
        0 if version == 0 => tables.is_empty(),
        0 => ["user", "closed_group", "audit"].iter().all(|name| tables.iter().any(|t| t == name)),
        _ => false,
    };
    if !ours {
        return refuse("the file is a database of another program, not of cug-server: it was left as it is");
    }
    match usize::try_from(version) {
        Ok(version) if version <= MIGRATIONS.len() => Ok(version),
        _ => refuse(format!(
            "the database has schema {version} and was made by a newer version of cug-server; this one knows up to {}: install the newer version",
            MIGRATIONS.len()
        )),
    }
}

/// Brings a database of `version` to the newest one. All steps are in the caller's transaction: they are all done, or none.
pub(super) fn migrate(t: &Transaction<'_>, version: usize) -> Result<()> {
    for step in MIGRATIONS.iter().skip(version) {
        t.execute_batch(step)?;
    }
    if version < MIGRATIONS.len() {
        t.pragma_update(None, "application_id", APPLICATION_ID)?;
        t.pragma_update(None, "user_version", i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX))?;
    }
    Ok(())
}

/// Whether the schema is of this version.
pub(super) fn check(connection: &rusqlite::Connection) -> Result<()> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
    match usize::try_from(version).ok().map(|v| v.cmp(&MIGRATIONS.len())) {
        Some(std::cmp::Ordering::Equal) => Ok(()),
        Some(std::cmp::Ordering::Less) => {
            refuse("the database is of an older version; the next start of the server brings it up to date")
        }
        _ => refuse("the database was made by a newer version of cug-server: install that version"),
    }
}
