//! Audit rows. Written in the transaction of the change that they speak of.

use super::{By, Result, hex};
use crate::store::{AuditQuery, AuditRow};
use rusqlite::{Transaction, params};

/// One row.
pub(super) struct Entry<'a> {
    by: By<'a>,
    event: &'a str,
    user: Option<&'a str>,
    card: Option<String>,
    source: Option<String>,
    outcome: &'a str,
    reason: Option<&'a str>,
}

impl<'a> Entry<'a> {
    pub(super) fn new(by: By<'a>, event: &'a str) -> Self {
        Self { by, event, user: None, card: None, source: None, outcome: "done", reason: None }
    }

    pub(super) fn user(mut self, user: &'a str) -> Self {
        self.user = Some(user);
        self
    }

    pub(super) fn card(mut self, card: &[u8]) -> Self {
        self.card = Some(hex::encode(card));
        self
    }

    pub(super) fn source(mut self, source: impl ToString) -> Self {
        self.source = Some(source.to_string());
        self
    }

    pub(super) fn outcome(mut self, outcome: &'a str) -> Self {
        self.outcome = outcome;
        self
    }

    pub(super) fn reason(mut self, reason: &'a str) -> Self {
        self.reason = Some(reason);
        self
    }

    pub(super) fn write(self, t: &Transaction<'_>) -> Result<()> {
        t.prepare_cached(
            "INSERT INTO audit (at, actor, event, user, card, source, outcome, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            self.by.now,
            self.by.actor,
            self.event,
            self.user,
            self.card,
            // What does not come from a terminal is done at the server itself.
            self.source.as_deref().unwrap_or("local"),
            self.outcome,
            self.reason
        ])?;
        Ok(())
    }
}

pub(super) fn rows(t: &Transaction<'_>, query: &AuditQuery) -> Result<Vec<AuditRow>> {
    let order = if query.newest.is_some() { "DESC" } else { "ASC" };
    let limit = query.newest.unwrap_or(u32::MAX).min(AuditQuery::MOST);
    // Two ways to one row, so that each goes by its own index.
    let whose = match query.user {
        Some(_) => "id IN (SELECT id FROM audit WHERE user = ?3 UNION SELECT id FROM audit WHERE actor = ?3)",
        None => "?3 IS NULL",
    };
    let sql = format!(
        "SELECT id, at, actor, event, user, card, source, outcome, reason FROM audit
         WHERE id > ?1 AND (?2 IS NULL OR at >= ?2) AND {whose} ORDER BY id {order} LIMIT {limit}"
    );
    let mut found: Vec<AuditRow> = t
        .prepare_cached(&sql)?
        .query_map(params![query.after, query.since, query.user.as_ref().map(|u| u.as_str())], |r| {
            let mut row = AuditRow::at(r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(7)?);
            (row.user, row.card, row.source, row.reason) = (r.get(4)?, r.get(5)?, r.get(6)?, r.get(8)?);
            Ok(row)
        })?
        .collect::<rusqlite::Result<_>>()?;
    if query.newest.is_some() {
        found.reverse();
    }
    Ok(found)
}

/// Rows of one change that the journal gets one by one; an import has far more, and they are in the database.
const MOST_IN_JOURNAL: usize = 1000;

/// To the journal, with fields. Only after the commit: what is there has happened.
pub(super) fn tell_journal(rows: &[AuditRow]) {
    for row in rows.iter().take(MOST_IN_JOURNAL) {
        tracing::info!(
            target: "cug_audit",
            row = row.id,
            actor = row.actor,
            event = row.event,
            user = row.user,
            card = row.card,
            source = row.source,
            outcome = row.outcome,
            reason = row.reason,
            "{} {}{}",
            row.event,
            row.outcome,
            row.user.as_ref().map(|u| format!(": {u}")).unwrap_or_default(),
        );
    }
    if let (Some(_), Some(last)) = (rows.get(MOST_IN_JOURNAL), rows.last()) {
        tracing::info!(target: "cug_audit", row = last.id, event = "bulk", "and more, up to row {} of the audit", last.id);
    }
}
