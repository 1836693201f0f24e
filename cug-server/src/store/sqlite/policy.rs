//! What the members of a group may reach.

use super::{audit::Entry, *};
use cug_proto::policy::MAX_ALLOW;

/// Removals first, then additions, then the policy: all of it, or nothing.
pub(super) fn set(t: &Transaction<'_>, by: By<'_>, group: &GroupName, update: &PolicyUpdate) -> Result<GroupInfo> {
    let id = group_row(t, group)?;
    let before = info::group(t, group)?.0;
    for network in &update.remove {
        let gone = "DELETE FROM policy_exception WHERE closed_group = ?1 AND network = ?2";
        if t.execute(gone, params![id, network.to_string()])? == 0 {
            return refuse(format!("group {group} has no exception {network}"));
        }
    }
    for network in &update.allow {
        let new = "INSERT OR IGNORE INTO policy_exception (closed_group, network) VALUES (?1, ?2)";
        t.execute(new, params![id, network.to_string()])?;
    }
    if let Some(policy) = update.policy {
        t.execute("UPDATE closed_group SET policy = ?2 WHERE id = ?1", params![id, policy.as_str()])?;
    }
    let after = info::group(t, group)?.0;
    if after.allow.len() > MAX_ALLOW {
        return refuse(format!(
            "a group has at most {MAX_ALLOW} exceptions; group {group} would have {}",
            after.allow.len()
        ));
    }
    if (before.policy, &before.allow) == (after.policy, &after.allow) {
        return refuse(format!("group {group} is set like this already"));
    }
    // Also of sessions that are granted and not attached yet: their grant holds the policy of before.
    t.execute("UPDATE session_group SET policy_changed = 1 WHERE closed_group = ?1", [id])?;
    change(t, &Change::Policy(id))?;
    Entry::new(by, "group-set").reason(&describe(&after)).write(t)?;
    Ok(after)
}

/// For the audit: the whole policy as it is now.
fn describe(group: &GroupInfo) -> String {
    let networks: Vec<_> = group.allow.iter().map(ToString::to_string).collect();
    format!("{} policy={} allow={}", group.group, group.policy.as_str(), networks.join(","))
}
