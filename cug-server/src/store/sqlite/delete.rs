//! Deletions. What is deleted is gone from the database (personal data too); the audit keeps the names.

use super::{audit::Entry, *};

pub(super) fn user(t: &Transaction<'_>, by: By<'_>, user: &UserId, mint: Mint<'_>) -> Result<()> {
    let id = user_row(t, user)?;
    let ending = Ending { event: "session-end", by, reason: "user deleted", tell: Some(EndReason::Disabled(None)) };
    admin::end_all(t, id, None, &ending)?;
    admin::rotate_groups_of(t, by, id, mint)?;
    let mut query = t.prepare_cached("SELECT fingerprint FROM card WHERE user = ?1 AND revoked IS NULL")?;
    let cards: Vec<Fingerprint> = query.query_map([id], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    for card in &cards {
        Entry::new(by, "card-revoke").user(user.as_str()).card(card).reason("user deleted").write(t)?;
    }
    t.execute(
        "INSERT OR REPLACE INTO retired_seat (closed_group, host, freed)
         SELECT closed_group, host, COALESCE(freed, ?2) FROM seat WHERE user = ?1",
        params![id, by.now],
    )?;
    for sql in [
        "INSERT INTO retired_card (fingerprint) SELECT fingerprint FROM card WHERE user = ?1",
        "DELETE FROM card WHERE user = ?1",
        "DELETE FROM membership WHERE user = ?1",
        "DELETE FROM seat WHERE user = ?1",
        "DELETE FROM user WHERE id = ?1",
    ] {
        t.execute(sql, [id])?;
    }
    Entry::new(by, "user-delete").user(user.as_str()).write(t)
}

pub(super) fn group(t: &Transaction<'_>, by: By<'_>, name: &GroupName) -> Result<()> {
    let id = group_row(t, name)?;
    // A grant that is on its way names the group: it is void, and the user logs in again.
    t.execute(
        "DELETE FROM session WHERE state = 'pending' AND id IN (SELECT session FROM session_group WHERE closed_group = ?1)",
        [id],
    )?;
    let sessions: Vec<(SessionId, UserId)> = {
        let mut query = t.prepare_cached(
            "SELECT sg.session, user.name FROM session_group sg JOIN session s ON s.id = sg.session JOIN user ON user.id = s.user
             WHERE sg.closed_group = ?1",
        )?;
        query.query_map([id], |r| Ok((r.get(0)?, row::parse(r, 1)?)))?.collect::<rusqlite::Result<_>>()?
    };
    for sql in [
        "DELETE FROM session_group WHERE closed_group = ?1",
        "DELETE FROM membership WHERE closed_group = ?1",
        "DELETE FROM seat WHERE closed_group = ?1",
        "DELETE FROM group_key WHERE closed_group = ?1",
        "DELETE FROM closed_group WHERE id = ?1",
    ] {
        t.execute(sql, [id])?;
    }
    for (one, user) in sessions {
        change(t, &Change::Left(id, one))?;
        let elsewhere = "SELECT EXISTS (SELECT 1 FROM membership m JOIN user ON user.id = m.user WHERE user.name = ?1)";
        if !t.query_row(elsewhere, [user.as_str()], |r| r.get::<_, bool>(0))? {
            let ending = Ending { event: "session-end", by, reason: "in no group", tell: Some(EndReason::NoGroup) };
            session::end_session(t, &one, &ending)?;
        }
    }
    Entry::new(by, "group-delete").reason(name.as_str()).write(t)
}

pub(super) fn session(t: &Transaction<'_>, by: By<'_>, session: &SessionId) -> Result<()> {
    let ending = Ending { event: "session-end", by, reason: "administrator", tell: Some(EndReason::Administrator) };
    if session::end_session(t, session, &ending)? { Ok(()) } else { refuse("this session is over already") }
}
