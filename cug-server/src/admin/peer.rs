//! Who may administer: root, the server's own user, and the members of a configured group.

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use std::ffi::CString;

/// The number of a group of this system.
pub(super) fn group_id(name: &str) -> Result<u32> {
    match Group::from_name(name).with_context(|| format!("cannot look up the group {name}"))? {
        Some(group) => Ok(group.gid.as_raw()),
        None => bail!("there is no group {name} on this system (admin-group in the configuration)"),
    }
}

/// Whether the account `uid`, whose process has the primary group `gid`, may administer. Supplementary groups are those of the account
/// database as it is now, so that who is taken out of the group is out at once, with whatever processes they still have; the kernel has
/// compared the process's own groups with the socket's before. Blocks.
pub(super) fn permitted(uid: u32, gid: u32, group: Option<&str>) -> bool {
    if uid == 0 || uid == geteuid().as_raw() {
        return true;
    }
    let Some(Ok(wanted)) = group.map(group_id) else { return false };
    let account = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let of_account = account.and_then(|user| {
        let name = CString::new(user.name).ok()?;
        getgrouplist(&name, user.gid).ok()
    });
    match of_account {
        Some(groups) => groups.contains(&Gid::from_raw(wanted)),
        None => gid == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_own_user_and_a_groups_members_may() {
        let own = geteuid().as_raw();
        assert!(permitted(0, 0, None) && permitted(own, 65534, None));
        assert!(!permitted(65534, 65534, None), "nobody");
        assert!(!permitted(65534, 65534, Some("no such group")));
        let nobody = User::from_uid(Uid::from_raw(65534)).unwrap().unwrap();
        let primary = Group::from_gid(nobody.gid).unwrap().unwrap();
        assert!(permitted(65534, 0, Some(&primary.name)), "by the account database");
        assert!(!permitted(65534, 0, Some("root")), "whatever the process says");
        // A number without an account counts by its process.
        assert!(permitted(3_999_999, 0, Some("root")) && !permitted(3_999_999, 1, Some("root")));
    }
}
