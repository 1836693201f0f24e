//! Audit rows. Written in the transaction of the change that they speak of.

use super::{By, Result};
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
        self.card = Some(super::row::hex(card));
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
            self.source,
            self.outcome,
            self.reason
        ])?;
        Ok(())
    }
}
