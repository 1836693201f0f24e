//! Members' numbers in a group's overlay network.
//!
//! A number stays with its user as long as there are numbers that nobody ever had. When there are none left, the one that has been free for longest
//! goes to the new member, but not before [`QUARANTINE`]: until then the former member's address may be remembered somewhere.

use super::{row, *};
use crate::{clock::rfc3339, policy::overlay};

/// How long a former member's number stays free, in seconds.
pub(super) const QUARANTINE: UnixTime = 30 * 86_400;

/// The user's old number in the group, the next one, or the one that has been free for longest.
pub(super) fn take(t: &Transaction<'_>, group: GroupId, user: i64, name: &GroupName, now: UnixTime) -> Result<()> {
    let old = "UPDATE seat SET freed = NULL WHERE closed_group = ?1 AND user = ?2";
    if t.prepare_cached(old)?.execute(params![group, user])? == 1 {
        return Ok(());
    }
    let (prefix, next): (Ipv4Net, u32) = t
        .prepare_cached(
            "SELECT prefix4, 1 + MAX(
                (SELECT COALESCE(MAX(host), 0) FROM seat WHERE closed_group = ?1),
                (SELECT COALESCE(MAX(host), 0) FROM retired_seat WHERE closed_group = ?1))
             FROM closed_group WHERE id = ?1",
        )?
        .query_row([group], |r| Ok((row::parse(r, 0)?, r.get(1)?)))?;
    let host = match overlay::address4(prefix, next) {
        Some(_) => next,
        None => reclaim(t, group, name, prefix, now)?,
    };
    t.prepare_cached("INSERT INTO seat (closed_group, user, host) VALUES (?1, ?2, ?3)")?
        .execute(params![group, user, host])?;
    Ok(())
}

/// The membership is over; the number waits.
pub(super) fn free(t: &Transaction<'_>, group: GroupId, user: i64, now: UnixTime) -> Result<()> {
    t.execute("UPDATE seat SET freed = ?3 WHERE closed_group = ?1 AND user = ?2", params![group, user, now])?;
    Ok(())
}

/// Takes the number that has been free for longest from its former member, who may be a user no more.
fn reclaim(t: &Transaction<'_>, group: GroupId, name: &GroupName, prefix: Ipv4Net, now: UnixTime) -> Result<u32> {
    let longest: Option<(u32, UnixTime)> = t
        .prepare_cached(
            "SELECT host, freed FROM seat WHERE closed_group = ?1 AND freed IS NOT NULL
             UNION ALL SELECT host, freed FROM retired_seat WHERE closed_group = ?1 ORDER BY freed, host LIMIT 1",
        )?
        .query_row([group], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    let full = format!("group {name} is full: its network {prefix} has no more addresses");
    match longest {
        Some((host, freed)) if freed.saturating_add(QUARANTINE) <= now => {
            t.prepare_cached("DELETE FROM seat WHERE closed_group = ?1 AND host = ?2")?
                .execute(params![group, host])?;
            t.prepare_cached("DELETE FROM retired_seat WHERE closed_group = ?1 AND host = ?2")?
                .execute(params![group, host])?;
            Ok(host)
        }
        Some((_, freed)) => {
            refuse(format!("{full}; a former member's becomes free on {}", rfc3339(freed.saturating_add(QUARANTINE))))
        }
        None => refuse(format!("{full}, and all are members'")),
    }
}
