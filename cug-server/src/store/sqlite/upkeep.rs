//! What the server does by itself: scheduled rotations, wrapping under a new key, looking after the database.

use super::{admin, audit::Entry, *};

/// Name of the setting that a probe writes.
const PROBE: &str = "probe";

pub(super) fn key_ages(t: &Transaction<'_>) -> Result<Vec<KeyAge>> {
    let mut query = t.prepare_cached(
        "SELECT g.id, MAX(k.epoch), COALESCE(g.rotated, g.created), MAX(k.epoch) > g.epoch
         FROM closed_group g JOIN group_key k ON k.closed_group = g.id GROUP BY g.id",
    )?;
    let ages = query
        .query_map([], |r| Ok(KeyAge { group: r.get(0)?, epoch: r.get(1)?, since: r.get(2)?, pending: r.get(3)? }))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(ages)
}

pub(super) fn rotate_if(t: &Transaction<'_>, by: By<'_>, age: &KeyAge, mint: Mint<'_>) -> Result<Option<Epoch>> {
    let name: Option<GroupName> = t
        .prepare_cached(
            "SELECT name FROM closed_group g WHERE id = ?1 AND ?2 = (SELECT MAX(epoch) FROM group_key WHERE closed_group = g.id)",
        )?
        .query_row(params![age.group, age.epoch], |r| row::parse(r, 0))
        .optional()?;
    name.map(|name| admin::rotate(t, by, &name, mint)).transpose()
}

pub(super) fn rewrap(t: &Transaction<'_>, by: By<'_>, setting: &str, key: &str, rewrap: Rewrap<'_>) -> Result<usize> {
    let mut changed = 0;
    for (group, epoch, wrapped) in stored(t, "SELECT closed_group, epoch, wrapped FROM group_key", |r| {
        Ok((r.get::<_, GroupId>(0)?, r.get::<_, Epoch>(1)?, r.get::<_, Vec<u8>>(2)?))
    })? {
        if let Some(new) = rewrap(Wrapped::Group(group, epoch), &wrapped)? {
            t.prepare_cached("UPDATE group_key SET wrapped = ?3 WHERE closed_group = ?1 AND epoch = ?2")?
                .execute(params![group, epoch, new])?;
            changed += 1;
        }
    }
    for (session, wrapped) in stored(t, "SELECT id, wrapped_secret FROM session", |r| {
        Ok((r.get::<_, SessionId>(0)?, r.get::<_, Vec<u8>>(1)?))
    })? {
        if let Some(new) = rewrap(Wrapped::Session(session), &wrapped)? {
            t.prepare_cached("UPDATE session SET wrapped_secret = ?2 WHERE id = ?1")?
                .execute(params![session.as_slice(), new])?;
            changed += 1;
        }
    }
    t.execute(
        "INSERT INTO setting (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        [setting, key],
    )?;
    Entry::new(by, "server-key-rotate").reason(key).write(t)?;
    Ok(changed)
}

fn stored<T>(
    t: &Transaction<'_>,
    sql: &str,
    row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    Ok(t.prepare_cached(sql)?.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn probe(t: &Transaction<'_>, now: UnixTime) -> Result<()> {
    t.prepare_cached(
        "INSERT INTO setting (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )?
    .execute(params![PROBE, now.to_string()])?;
    Ok(())
}

pub(super) fn recent_events(t: &Transaction<'_>, limit: u32) -> Result<Vec<EventInfo>> {
    let mut query = t.prepare_cached(
        "SELECT at, actor, event, user, source, outcome, reason FROM audit ORDER BY id DESC LIMIT ?1",
    )?;
    let events = query
        .query_map([limit], |r| {
            Ok(EventInfo {
                at: crate::clock::rfc3339(r.get(0)?),
                actor: r.get(1)?,
                event: r.get(2)?,
                user: r.get(3)?,
                source: r.get(4)?,
                outcome: r.get(5)?,
                reason: r.get(6)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(events)
}
