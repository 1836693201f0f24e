//! What goes into the store and comes out of it: the audit, and whole directories.

use super::{Mint, PasswordRecord, UserSettings};
use crate::clock::{UnixTime, rfc3339};
use cug_proto::{
    hours::Rule,
    id::{GroupName, UserId},
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// One event.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Its number: from 1, without gaps.
    pub id: i64,
    /// RFC 3339.
    pub time: String,
    /// Who did it: a user ID, an administrator's account, or `server`.
    pub actor: String,
    /// What: `login`, `session-end`, `user-add`, ...
    pub event: String,
    /// The user that it is about.
    pub user: Option<String>,
    /// Fingerprint, 64 hexadecimal digits.
    pub card: Option<String>,
    /// From where: the terminal's address, or `local` for what is done at the server itself.
    pub source: Option<String>,
    /// `done`, `granted` or `refused`.
    pub outcome: String,
    /// Why, where, or which: the words of the event.
    pub reason: Option<String>,
}

impl AuditRow {
    pub(super) fn at(id: i64, at: UnixTime, actor: String, event: String, outcome: String) -> Self {
        Self { id, time: rfc3339(at), actor, event, user: None, card: None, source: None, outcome, reason: None }
    }
}

/// Which rows of the audit. At most [`AuditQuery::MOST`] come at a time, oldest first.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct AuditQuery {
    /// Only rows after this one.
    pub after: i64,
    /// Only events at this time or later.
    pub since: Option<UnixTime>,
    /// Only what this user did or what is about this user.
    pub user: Option<UserId>,
    /// Only the newest so many.
    pub newest: Option<u32>,
}

impl AuditQuery {
    /// The most rows that one query answers with.
    pub const MOST: u32 = 10_000;
}

/// What checking the whole chain found.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct AuditVerdict {
    /// Rows that are as they were written, from the first one on.
    pub rows: i64,
    /// The last row's code, 64 hexadecimal digits: to be noted elsewhere, and given to a later check.
    pub head: Option<String>,
    /// When the chain began, RFC 3339; rows before that were taken over from an earlier version as they were.
    pub begun: Option<String>,
    /// The first thing that is wrong, in a sentence.
    pub wrong: Option<String>,
}

/// Users, groups and memberships: what is imported, and the core of what is exported.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// Groups to be made.
    pub groups: Vec<DirectoryGroup>,
    /// Users to be made.
    pub users: Vec<DirectoryUser>,
    /// Groups that only memberships name are made too.
    pub make_groups: bool,
    /// Users, groups and memberships that are there already are no error, and stay as they are.
    pub merge: bool,
}

/// A group of a [`Directory`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct DirectoryGroup {
    /// Where in the file.
    pub line: u64,
    /// Name.
    pub group: GroupName,
    /// Overlay network; a free one when `None`.
    pub prefix4: Option<Ipv4Net>,
    /// Overlay network; a free one when `None`.
    pub prefix6: Option<Ipv6Net>,
}

/// A user of a [`Directory`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct DirectoryUser {
    /// Where in the file.
    pub line: u64,
    /// User ID.
    pub user: UserId,
    /// May not log in.
    pub disabled: bool,
    /// Groups.
    pub groups: Vec<GroupName>,
    /// Until when and at which hours.
    #[serde(default)]
    pub settings: UserSettings,
}

/// What is wrong with a line.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineProblem {
    /// Its number, from 1.
    pub line: u64,
    /// A sentence.
    pub problem: String,
}

/// What an import made.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// New users.
    pub users: u64,
    /// New groups.
    pub groups: u64,
    /// New memberships.
    pub memberships: u64,
}

/// What an import draws on.
pub struct ImportMeans<'a> {
    /// Where IPv4 networks come from.
    pub pool: Ipv4Net,
    /// The deployment's unique local /48: the 40 bits after `fd`.
    pub ula: [u8; 5],
    /// Makes a password that nobody has, see [`PasswordRecord::none`].
    pub no_password: &'a dyn Fn() -> PasswordRecord,
    /// Makes group keys.
    pub mint: Mint<'a>,
}

/// A user for an export.
pub struct ExportedUser {
    /// User ID.
    pub user: UserId,
    /// By an administrator.
    pub disabled: bool,
    /// From then on nobody logs in.
    pub expires: Option<UnixTime>,
    /// When the user may log in.
    pub hours: Option<Rule>,
    /// Names.
    pub groups: Vec<GroupName>,
    /// Fingerprints of valid cards, 64 hexadecimal digits.
    pub cards: Vec<String>,
    /// The password's hash.
    pub password: PasswordRecord,
}
