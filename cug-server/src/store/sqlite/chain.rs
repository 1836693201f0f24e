//! The audit as a chain: sealed in the transaction that wrote its rows, checked as a whole.
//!
//! A row's code is HMAC-SHA256 over the code before it, its number and all of its fields. The head (last number, its code) has a code of its own. Who can write to the database
//! but does not have the key can neither alter, remove, swap, insert nor cut off rows without being found. They can put back the *whole* of an older
//! database: for that there are the journal, which has every row too, and [`super::AuditVerdict::head`], to be kept elsewhere.

use super::{By, Result, audit::Entry, hex};
use crate::{
    clock::{self, UnixTime, rfc3339},
    keys::{AuditKey, Chain},
    store::{AuditRow, AuditVerdict},
};
use rusqlite::{OptionalExtension, Row, Transaction, params};

/// The code before the first row.
const GENESIS: [u8; 32] = [0; 32];
/// In the place of a seal: the chain was broken, and stays so. A seal of the broken rest would hide that.
const BROKEN: [u8; 32] = [0; 32];
/// The event with which a chain begins.
pub(super) const BEGIN: &str = "audit-begin";

/// The end of the chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    last: i64,
    code: [u8; 32],
    seal: [u8; 32],
}

impl Head {
    fn is_sound(&self, key: &AuditKey) -> bool {
        self.seal == seal_of(key, self.last, &self.code)
    }
}

fn seal_of(key: &AuditKey, last: i64, code: &[u8; 32]) -> [u8; 32] {
    key.code(&[b"cug/1 audit head", &last.to_be_bytes(), code])
}

fn head(t: &Transaction<'_>) -> Result<Option<Head>> {
    let mut query = t.prepare_cached("SELECT last, code, seal FROM audit_head")?;
    Ok(query.query_row([], |r| Ok(Head { last: r.get(0)?, code: r.get(1)?, seal: r.get(2)? })).optional()?)
}

/// One row, as it is stored.
struct Stored {
    row: AuditRow,
    at: UnixTime,
    code: Option<[u8; 32]>,
}

const COLUMNS: &str = "id, at, actor, event, user, card, source, outcome, reason, code";

impl Stored {
    fn read(r: &Row<'_>) -> rusqlite::Result<Self> {
        let at = r.get(1)?;
        let mut row = AuditRow::at(r.get(0)?, at, r.get(2)?, r.get(3)?, r.get(7)?);
        (row.user, row.card, row.source, row.reason) = (r.get(4)?, r.get(5)?, r.get(6)?, r.get(8)?);
        Ok(Self { row, at, code: r.get(9)? })
    }

    /// Numbers have 8 bytes, big endian; a text has 1 and its length before it, a text that is not there has 0.
    fn code(&self, key: &AuditKey, before: &[u8; 32]) -> [u8; 32] {
        let row = &self.row;
        let mut fields = Vec::with_capacity(256);
        fields.extend_from_slice(&row.id.to_be_bytes());
        fields.extend_from_slice(&self.at.to_be_bytes());
        let texts = [
            Some(&row.actor),
            Some(&row.event),
            row.user.as_ref(),
            row.card.as_ref(),
            row.source.as_ref(),
            Some(&row.outcome),
            row.reason.as_ref(),
        ];
        for text in texts {
            match text {
                None => fields.push(0),
                Some(text) => {
                    fields.push(1);
                    fields.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
                    fields.extend_from_slice(text.as_bytes());
                }
            }
        }
        key.code(&[b"cug/1 audit row", before, &fields])
    }
}

/// Chains the rows that this transaction wrote. `remembered` is the head as this process left it: another one now was not written by it.
/// Answers with the new rows and the new head.
pub(super) fn seal(
    t: &Transaction<'_>,
    key: &AuditKey,
    remembered: Option<Head>,
) -> Result<(Vec<AuditRow>, Option<Head>)> {
    let stored = head(t)?;
    let last = stored.map_or(0, |h| h.last);
    let mut query = t.prepare_cached(&format!("SELECT {COLUMNS} FROM audit WHERE id > ?1 ORDER BY id"))?;
    let new: Vec<Stored> = query.query_map([last], Stored::read)?.collect::<rusqlite::Result<_>>()?;
    let Some(newest) = new.last().map(|s| s.row.id) else { return Ok((Vec::new(), stored)) };

    let sound = match (stored, remembered) {
        (Some(head), remembered) => head.is_sound(key) && remembered.is_none_or(|r| r == head),
        (None, remembered) => remembered.is_none(),
    };
    let mut code = stored.map_or(GENESIS, |h| h.code);
    let mut update = t.prepare_cached("UPDATE audit SET code = ?2 WHERE id = ?1")?;
    for row in &new {
        code = row.code(key, &code);
        update.execute(params![row.row.id, code])?;
    }
    let seal = if sound { seal_of(key, newest, &code) } else { BROKEN };
    t.prepare_cached("INSERT OR REPLACE INTO audit_head (one, last, code, seal) VALUES (1, ?1, ?2, ?3)")?
        .execute(params![newest, code, seal])?;
    Ok((new.into_iter().map(|s| s.row).collect(), Some(Head { last: newest, code, seal })))
}

/// Begins the chain of a database that has none, taking over the rows of an earlier version. A chain that should be there and is not, or has
/// another end than the rows, is marked: what follows must not look sound. Answers with the head from which to go on.
pub(super) fn resume(t: &Transaction<'_>, key: &AuditKey) -> Result<Option<Head>> {
    let found = head(t)?;
    let last: Option<(i64, Option<[u8; 32]>)> = t
        .query_row("SELECT id, code FROM audit ORDER BY id DESC LIMIT 1", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    match (found, key.chain()) {
        (None, Chain::NotYet) => Ok(None),
        (None, Chain::Fresh) => {
            let earlier = format!("{} earlier rows", last.map_or(0, |(id, _)| id));
            let by = By { actor: "server", now: clock::unix_now() };
            Entry::new(by, BEGIN).reason(&earlier).write(t)?;
            Ok(seal(t, key, None)?.1)
        }
        (Some(found), _) if found.is_sound(key) && last == Some((found.last, Some(found.code))) => Ok(Some(found)),
        _ => {
            tracing::error!("the audit was altered outside of cug-server: `cug-server audit verify` says where");
            mark_broken(t)?;
            head(t)
        }
    }
}

/// A head that no check will find sound.
fn mark_broken(t: &Transaction<'_>) -> Result<()> {
    t.execute(
        "INSERT INTO audit_head (one, last, code, seal) VALUES (1, 0, ?1, ?1) ON CONFLICT DO UPDATE SET seal = ?1",
        [BROKEN],
    )?;
    Ok(())
}

/// Checks every row. With `noted`, also that the chain still has the row with this code.
pub(super) fn verify(t: &Transaction<'_>, key: &AuditKey, noted: Option<&str>) -> Result<AuditVerdict> {
    let mut verdict = AuditVerdict { rows: 0, head: None, begun: None, wrong: None };
    let mut query = t.prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY id"))?;
    let mut rows = query.query([])?;
    let mut code = GENESIS;
    let mut noted_found = noted.is_none();
    while let Some(r) = rows.next()? {
        let id: i64 = r.get(0)?;
        let next = verdict.rows + 1;
        if id != next {
            verdict.wrong = Some(missing(next, id - 1));
            return Ok(verdict);
        }
        // A field of another type is an altered row too.
        let expected = Stored::read(r).ok().map(|stored| (stored.code(key, &code), stored));
        let Some((expected, stored)) = expected.filter(|(expected, stored)| stored.code == Some(*expected)) else {
            verdict.wrong = Some(format!("row {id} is not as it was written, or not where it was written"));
            return Ok(verdict);
        };
        code = expected;
        verdict.rows = id;
        noted_found |= noted.is_some_and(|noted| noted.eq_ignore_ascii_case(&hex::encode(&code)));
        if stored.row.event == BEGIN && verdict.begun.is_none() {
            verdict.begun = Some(rfc3339(stored.at));
        }
    }
    verdict.head = Some(hex::encode(&code));
    verdict.wrong = match head(t)? {
        Some(head) if head.is_sound(key) && (head.last, head.code) == (verdict.rows, code) => None,
        Some(head) if head.is_sound(key) && head.last > verdict.rows => Some(missing(verdict.rows + 1, head.last)),
        None if verdict.rows == 0 && key.chain() != Chain::Begun => None,
        _ => Some(format!(
            "the end of the audit is not sealed: rows after {} may be missing, or rows were removed at the end earlier",
            verdict.rows
        )),
    };
    if verdict.wrong.is_none() && !noted_found {
        verdict.wrong = Some("no row has the code that was noted: the database is an older or another one".into());
    }
    Ok(verdict)
}

fn missing(first: i64, last: i64) -> String {
    if first == last { format!("row {first} is missing") } else { format!("rows {first} to {last} are missing") }
}
