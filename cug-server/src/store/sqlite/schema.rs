//! The schema, and how older databases become newer ones.

use super::{Result, refuse};
use rusqlite::{Connection, TransactionBehavior};

/// Each leads from one version (its position) to the next. A released one is never changed.
const MIGRATIONS: &[&str] = &[include_str!("schema-1.sql"), include_str!("enrolment.sql")];

/// Brings the database to the newest version: all steps in one transaction, or nothing.
pub(super) fn migrate(connection: &mut Connection) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |r| r.get(0))?;
    let Some(steps) = usize::try_from(version).ok().and_then(|v| MIGRATIONS.get(v..)) else {
        return refuse("the database was made by a newer version of cug-server: install that version");
    };
    for step in steps {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX))?;
    Ok(transaction.commit()?)
}
