//! A whole directory in one transaction.

use super::{account, admin, *};
use ipnet::Ipv6Net;
use std::collections::HashSet;

/// After how many users the progress is told.
const STEP: u64 = 500;

pub(super) fn import(
    t: &Transaction<'_>,
    by: By<'_>,
    directory: &Directory,
    means: &ImportMeans<'_>,
    problems: &mut Vec<LineProblem>,
    progress: &mut dyn FnMut(u64),
) -> Result<Imported> {
    let groups = info::groups(t)?.into_iter().map(|g| g.group).collect();
    let mut import = Import { t, by, directory, means, groups, made: Imported::default() };
    for group in &directory.groups {
        note(problems, group.line, import.add_group(&group.group, group.prefix4, group.prefix6))?;
    }
    for (done, user) in (0_u64..).zip(&directory.users) {
        if done % STEP == 0 {
            progress(done);
        }
        if !note(problems, user.line, import.add_user(user))? {
            continue;
        }
        for group in &user.groups {
            note(problems, user.line, import.join(group, &user.user))?;
        }
    }
    progress(u64::try_from(directory.users.len()).unwrap_or(u64::MAX));
    match problems.len() {
        0 => Ok(import.made),
        problems => refuse(format!("{problems} lines do not fit; nothing was imported")),
    }
}

/// What does not fit is noted, and the next line looked at; a fault ends it all. Answers whether it did fit.
fn note(problems: &mut Vec<LineProblem>, line: u64, result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(StoreError::Refused(problem)) => {
            problems.push(LineProblem { line, problem });
            Ok(false)
        }
        Err(fault) => Err(fault),
    }
}

struct Import<'a> {
    t: &'a Transaction<'a>,
    by: By<'a>,
    directory: &'a Directory,
    means: &'a ImportMeans<'a>,
    groups: HashSet<GroupName>,
    made: Imported,
}

impl Import<'_> {
    fn add_group(&mut self, name: &GroupName, prefix4: Option<Ipv4Net>, prefix6: Option<Ipv6Net>) -> Result<()> {
        if self.directory.merge && self.groups.contains(name) {
            return Ok(());
        }
        let (prefix4, prefix6) = (prefix4.map(|p| p.trunc()), prefix6.map(|p| p.trunc()));
        let new = NewGroup { name, prefix4, prefix6, pool: self.means.pool, ula: self.means.ula };
        admin::add_group(self.t, self.by, &new, self.means.mint)?;
        self.groups.insert(name.clone());
        self.made.groups += 1;
        Ok(())
    }

    fn add_user(&mut self, user: &DirectoryUser) -> Result<()> {
        if self.directory.merge {
            let sql = "SELECT EXISTS (SELECT 1 FROM user WHERE name = ?1)";
            if self.t.prepare_cached(sql)?.query_row([user.user.as_str()], |r| r.get(0))? {
                return Ok(());
            }
        }
        account::add_user_with(self.t, self.by, &user.user, &(self.means.no_password)(), &user.settings)?;
        if user.disabled {
            admin::disable_user(self.t, self.by, &user.user, self.means.mint)?;
        }
        self.made.users += 1;
        Ok(())
    }

    fn join(&mut self, group: &GroupName, user: &UserId) -> Result<()> {
        if self.directory.make_groups && !self.groups.contains(group) {
            self.add_group(group, None, None)?;
        }
        if self.directory.merge && self.is_member(group, user)? {
            return Ok(());
        }
        admin::join(self.t, self.by, group, user)?;
        self.made.memberships += 1;
        Ok(())
    }

    fn is_member(&self, group: &GroupName, user: &UserId) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM membership m JOIN closed_group g ON g.id = m.closed_group JOIN user u ON u.id = m.user
             WHERE g.name = ?1 AND u.name = ?2)";
        Ok(self.t.prepare_cached(sql)?.query_row([group.as_str(), user.as_str()], |r| r.get(0))?)
    }
}
