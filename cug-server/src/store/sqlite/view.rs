//! What terminals are told: groups, members, changes.

use super::{row, *};

const GROUP_KEY: &str = "SELECT g.id, g.name, k.epoch, k.wrapped, g.prefix4, g.prefix6, seat.host, g.policy,
        (SELECT group_concat(x.network, ' ') FROM policy_exception x WHERE x.closed_group = g.id)
     FROM membership m
     JOIN closed_group g ON g.id = m.closed_group
     JOIN seat ON seat.closed_group = m.closed_group AND seat.user = m.user
     JOIN group_key k ON k.closed_group = g.id";

const PEER: &str =
    "SELECT user.name, s.host_name, s.wg_public_key, s.source, s.addresses, sg.port, seat.host, g.prefix4, g.prefix6
     FROM session_group sg
     JOIN session s ON s.id = sg.session
     JOIN user ON user.id = s.user
     JOIN seat ON seat.closed_group = sg.closed_group AND seat.user = s.user
     JOIN closed_group g ON g.id = sg.closed_group
     WHERE sg.closed_group = ?1 AND sg.port IS NOT NULL AND s.state = 'up'";

/// The query of [`group_keys`].
pub(super) fn keys_of_user() -> String {
    format!("{GROUP_KEY} JOIN user ON user.id = m.user WHERE user.name = ?1 AND k.epoch = g.epoch ORDER BY g.id")
}

pub(super) fn group_keys(t: &Transaction<'_>, user: &UserId) -> Result<Vec<GroupKey>> {
    let mut query = t.prepare_cached(&keys_of_user())?;
    let groups = query.query_map([user.as_str()], row::group_key)?.collect::<rusqlite::Result<_>>()?;
    Ok(groups)
}

pub(super) fn revision(t: &Transaction<'_>) -> Result<u64> {
    // Not MAX(revision): pruning must not turn it back.
    Ok(t.prepare_cached("SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'change'), 0)")?
        .query_row([], |r| r.get(0))?)
}

pub(super) fn session_view(
    t: &Transaction<'_>,
    session: &SessionId,
    known: &[Known],
    only: Option<GroupId>,
) -> Result<Option<SessionView>> {
    let owner: Option<(i64, UserId)> = t
        .prepare_cached("SELECT user.id, user.name FROM session s JOIN user ON user.id = s.user WHERE s.id = ?1 AND s.state <> 'pending'")?
        .query_row([session.as_slice()], |r| Ok((r.get(0)?, row::parse(r, 1)?)))
        .optional()?;
    let Some((user, name)) = owner else { return Ok(None) };
    let revision = revision(t)?;
    let mut groups = Vec::new();
    for (group, has_epoch, policy_changed) in epochs_of(t, session, only)? {
        let known = known.iter().find(|k| k.group == group);
        let Some(active) = key_of(t, group, user, "k.epoch = g.epoch")? else { continue };
        let pending = key_of(t, group, user, "k.epoch > g.epoch")?;
        let changed = match known {
            Some(known) => changed_members(t, session, group, known.revision, revision)?,
            None => None,
        };
        let (full, present, gone) = match changed {
            Some(users) => {
                let users: Vec<_> = users.into_iter().filter(|u| *u != name).collect();
                let present = presence(t, group, &users)?;
                let gone = users.into_iter().filter(|u| !present.iter().any(|p| p.user == *u)).collect();
                (false, present, gone)
            }
            None => (true, snapshot(t, group, &name)?, Vec::new()),
        };
        let has_epoch = known.map_or(has_epoch, |k| k.epoch);
        groups.push(GroupView {
            active,
            pending,
            has_epoch,
            known: known.is_some(),
            full,
            present,
            gone,
            policy_changed,
        });
    }
    Ok(Some(SessionView { revision, groups }))
}

fn epochs_of(t: &Transaction<'_>, session: &SessionId, only: Option<GroupId>) -> Result<Vec<(GroupId, Epoch, bool)>> {
    let mut query = t.prepare_cached(
        "SELECT closed_group, epoch, policy_changed FROM session_group WHERE session = ?1 AND (?2 IS NULL OR closed_group = ?2) ORDER BY closed_group",
    )?;
    let groups = query
        .query_map(params![session, only], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(groups)
}

fn key_of(t: &Transaction<'_>, group: GroupId, user: i64, which: &str) -> Result<Option<GroupKey>> {
    let sql =
        format!("{GROUP_KEY} WHERE m.closed_group = ?1 AND m.user = ?2 AND {which} ORDER BY k.epoch DESC LIMIT 1");
    Ok(t.prepare_cached(&sql)?.query_row(params![group, user], row::group_key).optional()?)
}

fn snapshot(t: &Transaction<'_>, group: GroupId, except: &UserId) -> Result<Vec<Peer>> {
    let mut query = t.prepare_cached(&format!("{PEER} AND user.name <> ?2"))?;
    let mut rows = query.query(params![group, except.as_str()])?;
    let mut peers = Vec::new();
    while let Some(found) = rows.next()? {
        peers.push(row::peer(found)?);
    }
    Ok(peers)
}

/// Members who changed since `since`; `None` when that is not known any more, or the user joined since.
fn changed_members(
    t: &Transaction<'_>,
    session: &SessionId,
    group: GroupId,
    since: u64,
    now: u64,
) -> Result<Option<Vec<UserId>>> {
    let oldest: Option<u64> = t.prepare_cached("SELECT MIN(revision) FROM change")?.query_row([], |r| r.get(0))?;
    if since > now || oldest.unwrap_or(now + 1) > since + 1 {
        return Ok(None);
    }
    let joined: bool = t
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM change WHERE closed_group = ?1 AND revision > ?2 AND kind = 'joined' AND session = ?3)")?
        .query_row(params![group, since, session], |r| r.get(0))?;
    if joined {
        return Ok(None);
    }
    let mut query = t.prepare_cached(
        "SELECT DISTINCT user FROM change WHERE closed_group = ?1 AND revision > ?2 AND kind = 'member'",
    )?;
    let users = query.query_map(params![group, since], |r| row::parse(r, 0))?.collect::<rusqlite::Result<_>>()?;
    Ok(Some(users))
}

pub(super) fn presence(t: &Transaction<'_>, group: GroupId, users: &[UserId]) -> Result<Vec<Peer>> {
    let mut query = t.prepare_cached(&format!("{PEER} AND user.name = ?2"))?;
    let mut peers = Vec::new();
    for user in users {
        let mut rows = query.query(params![group, user.as_str()])?;
        while let Some(found) = rows.next()? {
            peers.push(row::peer(found)?);
        }
    }
    Ok(peers)
}

pub(super) fn changes_since(t: &Transaction<'_>, revision: u64) -> Result<Vec<(u64, Change)>> {
    let mut query = t.prepare_cached(
        "SELECT revision, kind, closed_group, user, session, detail FROM change WHERE revision > ?1 ORDER BY revision LIMIT 10000",
    )?;
    let mut rows = query.query([revision])?;
    let mut changes = Vec::new();
    while let Some(r) = rows.next()? {
        let kind: String = r.get(1)?;
        let detail: Option<String> = r.get(5)?;
        let detail = detail.unwrap_or_default();
        let change = match kind.as_str() {
            "member" => Change::Member(r.get(2)?, row::parse(r, 3)?),
            "ended" => Change::Ended(r.get(4)?, row::reason_from_text(&detail)),
            "joined" => Change::Joined(r.get(2)?, r.get(4)?),
            "left" => Change::Left(r.get(2)?, r.get(4)?),
            "epoch" => Change::Epoch(r.get(2)?),
            "activated" => Change::Activated(r.get(2)?, row::parse(r, 5)?),
            "policy" => Change::Policy(r.get(2)?),
            other => return Err(StoreError::Fault(format!("unknown kind of change {other:?}").into())),
        };
        changes.push((r.get(0)?, change));
    }
    Ok(changes)
}

pub(super) fn pending_epoch(t: &Transaction<'_>, group: GroupId) -> Result<Option<(Epoch, Vec<SessionId>)>> {
    let epoch: Option<Epoch> = t
        .prepare_cached(
            "SELECT MAX(k.epoch) FROM group_key k JOIN closed_group g ON g.id = k.closed_group WHERE g.id = ?1 AND k.epoch > g.epoch",
        )?
        .query_row([group], |r| r.get(0))?;
    let Some(epoch) = epoch else { return Ok(None) };
    let mut query = t.prepare_cached(
        "SELECT sg.session FROM session_group sg JOIN session s ON s.id = sg.session WHERE sg.closed_group = ?1 AND s.state <> 'pending'",
    )?;
    let sessions = query.query_map([group], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(Some((epoch, sessions)))
}

pub(super) fn rotating_groups(t: &Transaction<'_>) -> Result<Vec<GroupId>> {
    let mut query = t.prepare_cached(
        "SELECT DISTINCT g.id FROM closed_group g JOIN group_key k ON k.closed_group = g.id WHERE k.epoch > g.epoch",
    )?;
    let groups = query.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(groups)
}
