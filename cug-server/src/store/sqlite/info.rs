//! What administrators look at.

use super::{row, *};
use crate::{
    clock::{rfc3339, unix_now},
    store::addresses,
};

pub(super) fn setting(t: &Transaction<'_>, name: &str) -> Result<Option<String>> {
    Ok(t.query_row("SELECT value FROM setting WHERE name = ?1", [name], |r| r.get(0)).optional()?)
}

const USER: &str = "SELECT u.id, u.name, u.disabled, u.failures, u.created,
        (SELECT COUNT(*) FROM card c WHERE c.user = u.id AND c.revoked IS NULL),
        (SELECT s.source FROM session s WHERE s.user = u.id AND s.state <> 'pending'),
        u.last_failure, u.memory_kib > 0, MAX(u.password_set, u.created), u.must_change, u.expires, u.hours
     FROM user u";

fn user_info(t: &Transaction<'_>, r: &rusqlite::Row<'_>) -> rusqlite::Result<UserInfo> {
    let mut groups = t.prepare_cached(
        "SELECT g.name FROM membership m JOIN closed_group g ON g.id = m.closed_group WHERE m.user = ?1 ORDER BY g.name",
    )?;
    let (now, expires) = (unix_now(), r.get::<_, Option<UnixTime>>(11)?);
    Ok(UserInfo {
        user: row::parse(r, 1)?,
        disabled: r.get(2)?,
        groups: groups.query_map([r.get::<_, i64>(0)?], |g| row::parse(g, 0))?.collect::<rusqlite::Result<_>>()?,
        cards: r.get(5)?,
        address: row::parse_optional(r, 6)?,
        wrong_passwords: r.get(3)?,
        created: rfc3339(r.get(4)?),
        wait_seconds: crate::policy::remaining_wait(r.get(3)?, r.get(7)?, now),
        has_password: r.get(8)?,
        password_set: rfc3339(r.get(9)?),
        must_change: r.get(10)?,
        expires: expires.map(rfc3339),
        expired: expires.is_some_and(|expires| now >= expires),
        hours: row::parse_optional(r, 12)?,
    })
}

pub(super) fn export(t: &Transaction<'_>) -> Result<Vec<ExportedUser>> {
    let mut groups = t.prepare(
        "SELECT g.name FROM membership m JOIN closed_group g ON g.id = m.closed_group WHERE m.user = ?1 ORDER BY g.name",
    )?;
    let mut cards = t.prepare("SELECT fingerprint FROM card WHERE user = ?1 AND revoked IS NULL ORDER BY issued")?;
    let mut query = t.prepare(
        "SELECT id, name, disabled, salt, hash, memory_kib, iterations, lanes, expires, hours FROM user ORDER BY name",
    )?;
    let mut rows = query.query([])?;
    let mut users = Vec::new();
    while let Some(r) = rows.next()? {
        let id: i64 = r.get(0)?;
        let fingerprint = |c: &rusqlite::Row<'_>| Ok(hex::encode(&c.get::<_, Fingerprint>(0)?));
        users.push(ExportedUser {
            user: row::parse(r, 1)?,
            disabled: r.get(2)?,
            expires: r.get(8)?,
            hours: row::parse_optional(r, 9)?,
            groups: groups.query_map([id], |g| row::parse(g, 0))?.collect::<rusqlite::Result<_>>()?,
            cards: cards.query_map([id], fingerprint)?.collect::<rusqlite::Result<_>>()?,
            password: PasswordRecord {
                salt: r.get(3)?,
                hash: r.get(4)?,
                memory_kib: r.get(5)?,
                iterations: r.get(6)?,
                lanes: r.get(7)?,
            },
        });
    }
    Ok(users)
}

pub(super) fn users(t: &Transaction<'_>) -> Result<Vec<UserInfo>> {
    let mut query = t.prepare_cached(&format!("{USER} ORDER BY u.name"))?;
    let users = query.query_map([], |r| user_info(t, r))?.collect::<rusqlite::Result<_>>()?;
    Ok(users)
}

pub(super) fn user(t: &Transaction<'_>, user: &UserId) -> Result<UserInfo> {
    let id = user_row(t, user)?;
    Ok(t.prepare_cached(&format!("{USER} WHERE u.id = ?1"))?.query_row([id], |r| user_info(t, r))?)
}

const GROUP: &str = "SELECT g.id, g.name, g.prefix4, g.prefix6, g.epoch,
        (SELECT MAX(k.epoch) FROM group_key k WHERE k.closed_group = g.id AND k.epoch > g.epoch),
        (SELECT COUNT(*) FROM membership m WHERE m.closed_group = g.id),
        (SELECT COUNT(*) FROM session_group sg JOIN session s ON s.id = sg.session WHERE sg.closed_group = g.id AND s.state <> 'pending'),
        g.policy, (SELECT group_concat(x.network, ' ') FROM policy_exception x WHERE x.closed_group = g.id)
     FROM closed_group g";

fn group_info(r: &rusqlite::Row<'_>) -> rusqlite::Result<GroupInfo> {
    Ok(GroupInfo {
        group: row::parse(r, 1)?,
        id: r.get(0)?,
        prefix4: row::parse(r, 2)?,
        prefix6: row::parse(r, 3)?,
        epoch: r.get(4)?,
        next_epoch: r.get(5)?,
        members: r.get(6)?,
        sessions: r.get(7)?,
        policy: row::parse(r, 8)?,
        allow: row::exceptions(r, 9)?,
    })
}

pub(super) fn groups(t: &Transaction<'_>) -> Result<Vec<GroupInfo>> {
    let mut query = t.prepare_cached(&format!("{GROUP} ORDER BY g.name"))?;
    let groups = query.query_map([], group_info)?.collect::<rusqlite::Result<_>>()?;
    Ok(groups)
}

pub(super) fn group(t: &Transaction<'_>, group: &GroupName) -> Result<(GroupInfo, Vec<MemberInfo>)> {
    let id = group_row(t, group)?;
    let info = t.prepare_cached(&format!("{GROUP} WHERE g.id = ?1"))?.query_row([id], group_info)?;
    let mut query = t.prepare_cached(
        "SELECT u.name, seat.host, m.since, (SELECT s.source FROM session s WHERE s.user = u.id AND s.state <> 'pending')
         FROM membership m JOIN user u ON u.id = m.user JOIN seat ON seat.closed_group = m.closed_group AND seat.user = m.user
         WHERE m.closed_group = ?1 ORDER BY u.name",
    )?;
    let mut rows = query.query([id])?;
    let mut members = Vec::new();
    while let Some(r) = rows.next()? {
        let (overlay4, overlay6) = addresses(info.prefix4, info.prefix6, r.get(1)?)?;
        let address = row::parse_optional(r, 3)?;
        members.push(MemberInfo { user: row::parse(r, 0)?, overlay4, overlay6, address, since: rfc3339(r.get(2)?) });
    }
    Ok((info, members))
}

pub(super) fn prefixes4(t: &Transaction<'_>) -> Result<Vec<Ipv4Net>> {
    let mut query = t.prepare_cached("SELECT prefix4 FROM closed_group")?;
    let prefixes = query.query_map([], |r| row::parse(r, 0))?.collect::<rusqlite::Result<_>>()?;
    Ok(prefixes)
}

pub(super) fn cards(t: &Transaction<'_>, user: Option<&UserId>) -> Result<Vec<CardInfo>> {
    let id = user.map(|u| user_row(t, u)).transpose()?;
    let mut query = t.prepare_cached(
        "SELECT c.fingerprint, u.name, c.bits, c.kind, c.issued, c.revoked FROM card c JOIN user u ON u.id = c.user
         WHERE ?1 IS NULL OR u.id = ?1 ORDER BY u.name, c.issued",
    )?;
    let cards = query
        .query_map([id], |r| {
            let revoked: Option<UnixTime> = r.get(5)?;
            Ok(CardInfo {
                fingerprint: hex::encode(&r.get::<_, Fingerprint>(0)?),
                user: row::parse(r, 1)?,
                bits: r.get(2)?,
                kind: r.get(3)?,
                issued: rfc3339(r.get(4)?),
                revoked: revoked.map(rfc3339),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(cards)
}

pub(super) fn sessions(t: &Transaction<'_>) -> Result<Vec<SessionInfo>> {
    let mut query = t.prepare_cached(
        "SELECT g.name, u.name, s.source, s.host_name, s.created, s.state, seat.host, g.prefix4, g.prefix6, s.id
         FROM session_group sg JOIN session s ON s.id = sg.session JOIN user u ON u.id = s.user
         JOIN closed_group g ON g.id = sg.closed_group JOIN seat ON seat.closed_group = g.id AND seat.user = u.id
         WHERE s.state <> 'pending' ORDER BY g.name, u.name",
    )?;
    let mut rows = query.query([])?;
    let mut sessions = Vec::new();
    while let Some(r) = rows.next()? {
        let (overlay4, overlay6) = addresses(row::parse(r, 7)?, row::parse(r, 8)?, r.get(6)?)?;
        sessions.push(SessionInfo {
            id: hex::encode(&r.get::<_, SessionId>(9)?),
            group: row::parse(r, 0)?,
            user: row::parse(r, 1)?,
            address: row::parse(r, 2)?,
            host: row::parse(r, 3)?,
            overlay4,
            overlay6,
            since: rfc3339(r.get(4)?),
            state: r.get(5)?,
        });
    }
    Ok(sessions)
}

pub(super) fn facts(t: &Transaction<'_>) -> Result<StoreFacts> {
    Ok(t.query_row(
        "SELECT (SELECT COUNT(*) FROM user), (SELECT COUNT(*) FROM closed_group),
            (SELECT COUNT(DISTINCT k.closed_group) FROM group_key k JOIN closed_group g ON g.id = k.closed_group WHERE k.epoch > g.epoch),
            (SELECT COUNT(*) FROM card WHERE revoked IS NULL), (SELECT COUNT(*) FROM session WHERE state <> 'pending'),
            (SELECT MAX(at) FROM audit WHERE event = 'backup')",
        [],
        |r| {
            Ok(StoreFacts {
                users: r.get(0)?,
                groups: r.get(1)?,
                rotating: r.get(2)?,
                cards: r.get(3)?,
                sessions: r.get(4)?,
                last_backup: r.get::<_, Option<UnixTime>>(5)?.map(rfc3339),
            })
        },
    )?)
}
