//! Sessions that end by the clock: the account expires, or the permitted hours end. Each is found by an index when its time has come.

use super::*;

/// Most sessions that are looked at in one go.
const BATCH: u32 = 200;

/// Those of one user; what was set may end them.
pub(super) fn look_now(t: &Transaction<'_>, user: &UserId) -> Result<()> {
    t.prepare_cached("UPDATE session SET look = 0 WHERE user = (SELECT id FROM user WHERE name = ?1)")?
        .execute([user.as_str()])?;
    Ok(())
}

pub(super) fn again(t: &Transaction<'_>) -> Result<()> {
    t.execute(
        "UPDATE session SET look = 0 WHERE user IN (SELECT id FROM user WHERE expires IS NOT NULL OR hours IS NOT NULL)",
        [],
    )?;
    Ok(())
}

pub(super) fn due(t: &Transaction<'_>, now: UnixTime) -> Result<(Vec<Watched>, Option<UnixTime>)> {
    let mut query = t.prepare_cached(
        "SELECT s.id, u.expires, u.hours FROM session s JOIN user u ON u.id = s.user
         WHERE s.look IS NOT NULL AND s.look <= ?1 ORDER BY s.look LIMIT ?2",
    )?;
    let watched = query
        .query_map(params![now, BATCH], |r| Ok(Watched { session: r.get(0)?, expires: r.get(1)?, hours: r.get(2)? }))?
        .collect::<rusqlite::Result<_>>()?;
    let next = t
        .prepare_cached("SELECT MIN(look) FROM session WHERE look IS NOT NULL AND look > ?1")?
        .query_row([now], |r| r.get(0))?;
    Ok((watched, next))
}

pub(super) fn found(t: &Transaction<'_>, found: &[(Watched, Found)], now: UnixTime) -> Result<usize> {
    let mut ended = 0;
    for (watched, found) in found {
        if !is_still_so(t, watched)? {
            continue;
        }
        match found {
            Found::Again(look) => {
                t.prepare_cached("UPDATE session SET look = ?2 WHERE id = ?1")?
                    .execute(params![watched.session, look])?;
            }
            Found::Over(lapse, reason) => {
                let (by, tell) = (By { actor: "server", now }, Some(EndReason::Disabled(Some(*lapse))));
                let ending = Ending { event: "session-end", by, reason, tell };
                ended += usize::from(session::end_session(t, &watched.session, &ending)?);
            }
        }
    }
    Ok(ended)
}

fn is_still_so(t: &Transaction<'_>, watched: &Watched) -> Result<bool> {
    Ok(t.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM session s JOIN user u ON u.id = s.user WHERE s.id = ?1 AND u.expires IS ?2 AND u.hours IS ?3)",
    )?
    .query_row(params![watched.session, watched.expires, watched.hours], |r| r.get(0))?)
}
