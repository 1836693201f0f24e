//! What administrators change, and the epochs of group keys.

use super::{audit::Entry, seat, session, *};
use crate::policy::overlay;
use cug_proto::message::MAX_GROUPS;

pub(super) fn set_once(t: &Transaction<'_>, name: &str, value: &str) -> Result<()> {
    t.execute("INSERT OR IGNORE INTO setting (name, value) VALUES (?1, ?2)", [name, value])?;
    Ok(())
}

pub(super) fn add_user(t: &Transaction<'_>, by: By<'_>, user: &UserId, password: &PasswordRecord) -> Result<()> {
    let added = t
        .prepare_cached(
            "INSERT OR IGNORE INTO user (name, salt, hash, memory_kib, iterations, lanes, created, password_set) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
        )?
        .execute(params![
            user.as_str(),
            password.salt,
            password.hash,
            password.memory_kib,
            password.iterations,
            password.lanes,
            by.now
        ])?;
    if added == 0 {
        return refuse(format!("there is a user {user} already"));
    }
    Entry::new(by, "user-add").user(user.as_str()).write(t)
}

pub(super) fn enable_user(t: &Transaction<'_>, by: By<'_>, user: &UserId) -> Result<()> {
    let id = user_row(t, user)?;
    if t.execute("UPDATE user SET disabled = 0, failures = 0 WHERE id = ?1 AND disabled = 1", [id])? == 0 {
        return refuse(format!("user {user} is enabled already"));
    }
    Entry::new(by, "user-enable").user(user.as_str()).write(t)
}

pub(super) fn disable_user(t: &Transaction<'_>, by: By<'_>, user: &UserId, mint: Mint<'_>) -> Result<()> {
    let id = user_row(t, user)?;
    if t.execute("UPDATE user SET disabled = 1 WHERE id = ?1 AND disabled = 0", [id])? == 0 {
        return refuse(format!("user {user} is disabled already"));
    }
    end_all(
        t,
        id,
        None,
        &Ending { event: "session-end", by, reason: "user disabled", tell: Some(EndReason::Disabled(None)) },
    )?;
    rotate_groups_of(t, by, id, mint)?;
    Entry::new(by, "user-disable").user(user.as_str()).write(t)
}

/// Ends a user's sessions, pending ones too; with `card`, those that were opened with it.
pub(super) fn end_all(
    t: &Transaction<'_>,
    user: i64,
    card: Option<&Fingerprint>,
    ending: &Ending<'_>,
) -> Result<usize> {
    let mut query = t.prepare_cached("SELECT id FROM session WHERE user = ?1 AND (?2 IS NULL OR card = ?2)")?;
    let sessions: Vec<SessionId> =
        query.query_map(params![user, card], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    for one in &sessions {
        session::end_session(t, one, ending)?;
    }
    Ok(sessions.len())
}

pub(super) fn add_group(t: &Transaction<'_>, by: By<'_>, new: &NewGroup<'_>, mint: Mint<'_>) -> Result<GroupInfo> {
    let prefix4 = match new.prefix4 {
        Some(prefix) => prefix,
        None => match overlay::free_prefix4(new.pool, &info::prefixes4(t)?) {
            Some(prefix) => prefix,
            None => return refuse(format!("all of {} is used up: give the group a network with --prefix4", new.pool)),
        },
    };
    if overlay::address4(prefix4, 2).is_none() {
        return refuse(format!("{prefix4} has no room for two members: a group needs a /30 or larger"));
    }
    let added = t.execute(
        "INSERT OR IGNORE INTO closed_group (name, prefix4, prefix6, epoch, created) VALUES (?1, ?2, '', 1, ?3)",
        params![new.name.as_str(), prefix4.to_string(), by.now],
    )?;
    if added == 0 {
        return refuse(format!("there is a group {} already", new.name));
    }
    let id = group_row(t, new.name)?;
    let own = u16::try_from(id).ok().and_then(|subnet| overlay::prefix6(new.ula, subnet));
    let Some(prefix6) = new.prefix6.or(own) else {
        return refuse("all IPv6 networks are used up: give the group a network with --prefix6");
    };
    t.execute("UPDATE closed_group SET prefix6 = ?2 WHERE id = ?1", params![id, prefix6.to_string()])?;
    t.execute("INSERT INTO group_key (closed_group, epoch, wrapped) VALUES (?1, 1, ?2)", params![id, mint(id, 1)?])?;
    Entry::new(by, "group-add").reason(new.name.as_str()).write(t)?;
    Ok(info::group(t, new.name)?.0)
}

pub(super) fn join(t: &Transaction<'_>, by: By<'_>, group: &GroupName, user: &UserId) -> Result<()> {
    let (id, member) = (group_row(t, group)?, user_row(t, user)?);
    let groups: usize =
        t.prepare_cached("SELECT COUNT(*) FROM membership WHERE user = ?1")?.query_row([member], |r| r.get(0))?;
    if groups >= MAX_GROUPS {
        return refuse(format!("user {user} is in {MAX_GROUPS} groups already, which is the most"));
    }
    seat::take(t, id, member, group, by.now)?;
    let added = t
        .prepare_cached("INSERT OR IGNORE INTO membership (closed_group, user, since) VALUES (?1, ?2, ?3)")?
        .execute(params![id, member, by.now])?;
    if added == 0 {
        return refuse(format!("user {user} is in group {group} already"));
    }
    if let Some(live) = session::session_of_user(t, user)? {
        t.execute("INSERT INTO session_group (session, closed_group, epoch) VALUES (?1, ?2, 0)", params![live, id])?;
        change(t, &Change::Joined(id, live))?;
    }
    Entry::new(by, "group-join").user(user.as_str()).reason(group.as_str()).write(t)
}

pub(super) fn leave(t: &Transaction<'_>, by: By<'_>, group: &GroupName, user: &UserId, mint: Mint<'_>) -> Result<()> {
    let (id, member) = (group_row(t, group)?, user_row(t, user)?);
    if t.execute("DELETE FROM membership WHERE closed_group = ?1 AND user = ?2", params![id, member])? == 0 {
        return refuse(format!("user {user} is not in group {group}"));
    }
    seat::free(t, id, member, by.now)?;
    let pending = "DELETE FROM session WHERE user = ?1 AND state = 'pending'";
    t.execute(pending, [member])?;
    if let Some(live) = session::session_of_user(t, user)? {
        t.execute("DELETE FROM session_group WHERE session = ?1 AND closed_group = ?2", params![live, id])?;
        change(t, &Change::Member(id, user.clone()))?;
        change(t, &Change::Left(id, live))?;
        let more: bool =
            t.query_row("SELECT EXISTS (SELECT 1 FROM membership WHERE user = ?1)", [member], |r| r.get(0))?;
        if !more {
            let ending = Ending { event: "session-end", by, reason: "in no group", tell: Some(EndReason::NoGroup) };
            session::end_session(t, &live, &ending)?;
        }
    }
    new_epoch(t, by, id, group.as_str(), mint)?;
    Entry::new(by, "group-leave").user(user.as_str()).reason(group.as_str()).write(t)
}

pub(super) fn rotate(t: &Transaction<'_>, by: By<'_>, group: &GroupName, mint: Mint<'_>) -> Result<Epoch> {
    let id = group_row(t, group)?;
    new_epoch(t, by, id, group.as_str(), mint)
}

/// Begins an epoch. One that was not active yet is given up: whoever is to be kept out may have its key.
fn new_epoch(t: &Transaction<'_>, by: By<'_>, group: GroupId, name: &str, mint: Mint<'_>) -> Result<Epoch> {
    let newest: Epoch =
        t.query_row("SELECT MAX(epoch) FROM group_key WHERE closed_group = ?1", [group], |r| r.get(0))?;
    let Some(epoch) = newest.checked_add(1) else { return refuse("the group has no more epochs") };
    t.execute(
        "DELETE FROM group_key WHERE closed_group = ?1 AND epoch > (SELECT epoch FROM closed_group WHERE id = ?1)",
        [group],
    )?;
    t.execute(
        "INSERT INTO group_key (closed_group, epoch, wrapped) VALUES (?1, ?2, ?3)",
        params![group, epoch, mint(group, epoch)?],
    )?;
    t.execute("UPDATE closed_group SET rotated = ?2 WHERE id = ?1", params![group, by.now])?;
    change(t, &Change::Epoch(group))?;
    Entry::new(by, "group-rotate").reason(name).write(t)?;
    Ok(epoch)
}

pub(super) fn rotate_groups_of(t: &Transaction<'_>, by: By<'_>, user: i64, mint: Mint<'_>) -> Result<()> {
    let mut query = t.prepare_cached(
        "SELECT g.id, g.name FROM membership m JOIN closed_group g ON g.id = m.closed_group WHERE m.user = ?1",
    )?;
    let groups: Vec<(GroupId, String)> =
        query.query_map([user], |r| Ok((r.get(0)?, r.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    for (group, name) in groups {
        new_epoch(t, by, group, &name, mint)?;
    }
    Ok(())
}

pub(super) fn activate(
    t: &Transaction<'_>,
    group: GroupId,
    epoch: Epoch,
    acknowledged: &[SessionId],
    now: UnixTime,
) -> Result<bool> {
    let exists = "EXISTS (SELECT 1 FROM group_key WHERE closed_group = ?1 AND epoch = ?2)";
    let sql = format!("UPDATE closed_group SET epoch = ?2 WHERE id = ?1 AND epoch < ?2 AND {exists}");
    if t.execute(&sql, params![group, epoch])? == 0 {
        return Ok(false);
    }
    t.execute("DELETE FROM group_key WHERE closed_group = ?1 AND epoch < ?2", params![group, epoch])?;
    let mut update =
        t.prepare_cached("UPDATE session_group SET epoch = ?3 WHERE session = ?1 AND closed_group = ?2")?;
    for one in acknowledged {
        update.execute(params![one, group, epoch])?;
    }
    change(t, &Change::Activated(group, epoch))?;
    let name: String = t.query_row("SELECT name FROM closed_group WHERE id = ?1", [group], |r| r.get(0))?;
    Entry::new(By { actor: "server", now }, "group-epoch-active").reason(&name).write(t)?;
    Ok(true)
}

pub(super) fn add_card(t: &Transaction<'_>, by: By<'_>, card: &NewCard<'_>) -> Result<()> {
    let user = user_row(t, card.user)?;
    let retired = "SELECT EXISTS (SELECT 1 FROM retired_card WHERE fingerprint = ?1)";
    if t.query_row(retired, [card.fingerprint], |r| r.get(0))? {
        return refuse("this card was a deleted user's, and a card belongs to one user for ever");
    }
    let added = t.execute(
        "INSERT OR IGNORE INTO card (fingerprint, user, public_key, bits, kind, issued) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![card.fingerprint, user, card.public_key, card.bits, card.kind, by.now],
    )?;
    if added == 0 {
        return refuse("this card is registered already, and a card belongs to one user for ever");
    }
    Entry::new(by, "card-register").user(card.user.as_str()).card(&card.fingerprint).reason(card.kind).write(t)
}

pub(super) fn revoke_card(t: &Transaction<'_>, by: By<'_>, card: &Fingerprint, mint: Mint<'_>) -> Result<()> {
    let owner = t
        .query_row(
            "SELECT user.id, user.name FROM card JOIN user ON user.id = card.user WHERE fingerprint = ?1",
            [card.as_slice()],
            |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?)),
        )
        .optional()?;
    let Some((user, name)) = owner else { return refuse("there is no such card") };
    let revoked =
        t.execute("UPDATE card SET revoked = ?2 WHERE fingerprint = ?1 AND revoked IS NULL", params![card, by.now])?;
    if revoked == 0 {
        return refuse("this card is revoked already");
    }
    let ending = Ending { event: "session-end", by, reason: "card revoked", tell: Some(EndReason::CardRevoked) };
    end_all(t, user, Some(card), &ending)?;
    rotate_groups_of(t, by, user, mint)?;
    Entry::new(by, "card-revoke").user(&name).card(card).write(t)
}

pub(super) fn end_user_session(t: &Transaction<'_>, by: By<'_>, user: &UserId, reason: &EndReason) -> Result<()> {
    let id = user_row(t, user)?;
    let ending = Ending { event: "session-end", by, reason: "administrator", tell: Some(reason.clone()) };
    if end_all(t, id, None, &ending)? == 0 {
        return refuse(format!("user {user} is not logged in"));
    }
    Ok(())
}
