//! Sessions: registered, announced, ended.

use super::{audit::Entry, row, *};
use std::collections::BTreeSet;

/// How long a grant may stay unacknowledged, in seconds; the connection of the login ends long before.
const PENDING_LIFE: UnixTime = 30;
/// How long a terminal can learn why its session ended, in seconds.
const ENDED_LIFE: UnixTime = 7 * 86_400;
/// Changes kept for terminals that re-attach; one that is further behind gets a snapshot.
const KEPT_CHANGES: u64 = 100_000;

pub(super) fn session(t: &Transaction<'_>, session: &SessionId) -> Result<SessionState> {
    let live = t
        .prepare_cached(
            "SELECT user.name, wrapped_secret FROM session JOIN user ON user.id = session.user WHERE session.id = ?1 AND state <> 'pending'",
        )?
        .query_row([session.as_slice()], |r| Ok(LiveSession { user: row::parse(r, 0)?, wrapped_secret: r.get(1)? }))
        .optional()?;
    if let Some(live) = live {
        return Ok(SessionState::Live(live));
    }
    let reason: Option<String> = t
        .prepare_cached("SELECT reason FROM ended WHERE session = ?1")?
        .query_row([session.as_slice()], |r| r.get(0))
        .optional()?;
    Ok(reason.map_or(SessionState::Unknown, |text| SessionState::Ended(row::reason_from_text(&text))))
}

pub(super) fn live_sessions(t: &Transaction<'_>) -> Result<Vec<SessionId>> {
    let mut query = t.prepare_cached("SELECT id FROM session WHERE state <> 'pending'")?;
    let sessions = query.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(sessions)
}

pub(super) fn session_groups(t: &Transaction<'_>, session: &SessionId) -> Result<Option<(UserId, Vec<GroupId>)>> {
    let user = t
        .prepare_cached("SELECT user.name FROM session JOIN user ON user.id = session.user WHERE session.id = ?1 AND state <> 'pending'")?
        .query_row([session.as_slice()], |r| row::parse(r, 0))
        .optional()?;
    let Some(user) = user else { return Ok(None) };
    Ok(Some((user, groups_of(t, session)?)))
}

fn groups_of(t: &Transaction<'_>, session: &SessionId) -> Result<Vec<GroupId>> {
    let mut query = t.prepare_cached("SELECT closed_group FROM session_group WHERE session = ?1")?;
    let groups = query.query_map([session.as_slice()], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(groups)
}

pub(super) fn register(t: &Transaction<'_>, session: &SessionId, now: UnixTime) -> Result<bool> {
    let pending = t
        .prepare_cached(
            "SELECT user.name, session.host_name, session.source, session.card FROM session JOIN user ON user.id = session.user
             WHERE session.id = ?1 AND state = 'pending' AND session.created >= ?2",
        )?
        .query_row(params![session, now - PENDING_LIFE], |r| {
            Ok((row::parse::<UserId>(r, 0)?, row::parse::<HostName>(r, 1)?, r.get::<_, String>(2)?, r.get::<_, Vec<u8>>(3)?))
        })
        .optional()?;
    let Some((user, host, source, card)) = pending else { return Ok(false) };
    let by = By { actor: user.as_str(), now };

    // P8: the latest login wins, and the terminal of the earlier one is told.
    if let Some(earlier) = session_of_user(t, &user)? {
        let tell = Some(EndReason::Displaced(host.clone()));
        end_session(t, &earlier, &Ending { event: "session-displaced", by, reason: host.as_str(), tell })?;
    }
    t.prepare_cached("UPDATE session SET state = 'registered', created = ?2, seen = ?2 WHERE id = ?1")?
        .execute(params![session, now])?;
    Entry::new(by, "session-registered")
        .user(user.as_str())
        .card(&card)
        .source(source)
        .reason(host.as_str())
        .write(t)?;
    Ok(true)
}

/// The registered session of a user.
pub(super) fn session_of_user(t: &Transaction<'_>, user: &UserId) -> Result<Option<SessionId>> {
    Ok(t.prepare_cached(
        "SELECT session.id FROM session JOIN user ON user.id = session.user WHERE user.name = ?1 AND state <> 'pending'",
    )?
    .query_row([user.as_str()], |r| r.get(0))
    .optional()?)
}

/// Only what is new is news: after a restart of the server every terminal announces itself again, and all the others need not hear it.
pub(super) fn announce(t: &Transaction<'_>, session: &SessionId, place: &Place<'_>, now: UnixTime) -> Result<bool> {
    let before = t
        .prepare_cached(
            "SELECT user.name, state, source, card, addresses FROM session JOIN user ON user.id = session.user WHERE session.id = ?1 AND state <> 'pending'",
        )?
        .query_row([session.as_slice()], |r| {
            let (user, card) = (row::parse::<UserId>(r, 0)?, r.get::<_, Vec<u8>>(3)?);
            Ok((user, r.get::<_, String>(1)?, r.get::<_, String>(2)?, card, r.get::<_, String>(4)?))
        })
        .optional()?;
    let Some((user, state, source, card, addresses)) = before else { return Ok(false) };
    let (now_at, now_also_at) = (place.source.to_string(), row::addresses_to_text(place.addresses));
    t.prepare_cached("UPDATE session SET state = 'up', source = ?2, addresses = ?3, seen = ?4 WHERE id = ?1")?
        .execute(params![session, now_at, now_also_at, now])?;
    let mut news: BTreeSet<GroupId> = BTreeSet::new();
    for port in place.ports {
        let changed = t
            .prepare_cached(
                "UPDATE session_group SET port = ?3 WHERE session = ?1 AND closed_group = ?2 AND port IS NOT ?3",
            )?
            .execute(params![session, port.group, port.port])?;
        if changed > 0 {
            news.insert(port.group);
        }
    }
    if state != "up" || source != now_at || addresses != now_also_at {
        news.extend(groups_of(t, session)?);
    }
    for group in news {
        change(t, &Change::Member(group, user.clone()))?;
    }
    let event = if state != "up" {
        "session-up"
    } else if source != now_at {
        "session-moved"
    } else {
        return Ok(true);
    };
    Entry::new(By { actor: user.as_str(), now }, event).user(user.as_str()).card(&card).source(now_at).write(t)?;
    Ok(true)
}

pub(super) fn end_session(t: &Transaction<'_>, session: &SessionId, ending: &Ending<'_>) -> Result<bool> {
    let found = t
        .prepare_cached(
            "SELECT user.name, session.source, session.card, state <> 'pending' FROM session JOIN user ON user.id = session.user WHERE session.id = ?1",
        )?
        .query_row([session.as_slice()], |r| {
            Ok((row::parse::<UserId>(r, 0)?, r.get::<_, String>(1)?, r.get::<_, Vec<u8>>(2)?, r.get::<_, bool>(3)?))
        })
        .optional()?;
    let Some((user, source, card, registered)) = found else { return Ok(false) };
    let groups = groups_of(t, session)?;
    t.prepare_cached("DELETE FROM session WHERE id = ?1")?.execute([session.as_slice()])?;
    if !registered {
        return Ok(true);
    }
    for group in groups {
        change(t, &Change::Member(group, user.clone()))?;
    }
    // Also after a terminal's own clear: a rotation that waits for this session must not.
    let reason = ending.tell.clone().unwrap_or(EndReason::Unknown);
    if ending.tell.is_some() {
        t.prepare_cached("INSERT OR REPLACE INTO ended (session, reason, at) VALUES (?1, ?2, ?3)")?
            .execute(params![session, row::reason_to_text(&reason), ending.by.now])?;
    }
    change(t, &Change::Ended(*session, reason))?;
    Entry::new(ending.by, ending.event)
        .user(user.as_str())
        .card(&card)
        .source(source)
        .reason(ending.reason)
        .write(t)?;
    Ok(true)
}

pub(super) fn seen(t: &Transaction<'_>, sessions: &[SessionId], now: UnixTime) -> Result<()> {
    let mut update = t.prepare_cached("UPDATE session SET seen = ?2 WHERE id = ?1")?;
    for session in sessions {
        update.execute(params![session, now])?;
    }
    Ok(())
}

pub(super) fn prune(t: &Transaction<'_>, now: UnixTime, processed: u64) -> Result<()> {
    t.prepare_cached("DELETE FROM session WHERE state = 'pending' AND created < ?1")?.execute([now - PENDING_LIFE])?;
    t.prepare_cached("DELETE FROM ended WHERE at < ?1")?.execute([now - ENDED_LIFE])?;
    t.prepare_cached("DELETE FROM change WHERE revision <= ?1")?.execute([processed.saturating_sub(KEPT_CHANGES)])?;
    Ok(())
}
