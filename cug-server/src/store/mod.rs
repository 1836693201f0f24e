//! What is kept: users, cards, groups, sessions, changes, audit.
//!
//! [`Store`] is made so that a database with several servers can stand behind it: reads of one entity or one group; one atomic,
//! conditional write per use-case with its audit row; and [`Store::changes_since`] as the only source of what terminals are told.

mod enrol;
mod records;
mod sqlite;
mod types;

pub use enrol::*;
pub use records::*;
pub use sqlite::{Backup, Sqlite, back_up};
pub use types::*;

use crate::{clock::UnixTime, keys::Wrapped};
use cug_proto::{
    id::{Epoch, GroupId, GroupName, HostName, UserId},
    message::{EndReason, Fingerprint, Known, Peer, SessionId},
};
use ipnet::Ipv4Net;
use std::net::IpAddr;

/// What the store answers.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A request that the store did not carry out; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The request does not fit what is stored. One sentence for the administrator.
    #[error("{0}")]
    Refused(String),
    /// The database cannot be used.
    #[error("the database cannot be used: {0}")]
    Fault(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Makes the wrapped key of a group's epoch. The store calls it within the write that needs it.
pub type Mint<'a> = &'a dyn Fn(GroupId, Epoch) -> Result<Vec<u8>>;

/// Wraps a stored secret anew; `None` when it may stay as it is.
pub type Rewrap<'a> = &'a dyn Fn(Wrapped, &[u8]) -> Result<Option<Vec<u8>>>;

/// The database. All methods block.
pub trait Store: Send + Sync {
    /// A setting that was made once.
    fn setting(&self, name: &str) -> Result<Option<String>>;
    /// The card, and which key sizes registered cards have (2048, 3072, 4096): the same work whether the card is known or not.
    fn card(&self, card: &Fingerprint) -> Result<(Option<Card>, [bool; 3])>;
    /// The account of a user.
    fn account(&self, user: &UserId) -> Result<Option<Account>>;
    /// The user's groups with their active keys.
    fn group_keys(&self, user: &UserId) -> Result<Vec<GroupKey>>;
    /// A session, by its number.
    fn session(&self, session: &SessionId) -> Result<SessionState>;
    /// All registered sessions.
    fn live_sessions(&self) -> Result<Vec<SessionId>>;
    /// Groups of a registered session; `None` when it is no longer.
    fn session_groups(&self, session: &SessionId) -> Result<Option<(UserId, Vec<GroupId>)>>;
    /// What a terminal must be sent when it attaches: one consistent view. `only` restricts it to one group.
    fn session_view(&self, session: &SessionId, known: &[Known], only: Option<GroupId>) -> Result<Option<SessionView>>;
    /// Revision of the last change.
    fn revision(&self) -> Result<u64>;
    /// What changed after `revision`, oldest first.
    fn changes_since(&self, revision: u64) -> Result<Vec<(u64, Change)>>;
    /// Those of `users` who can be reached in the group now.
    fn presence(&self, group: GroupId, users: &[UserId]) -> Result<Vec<Peer>>;
    /// The epoch that is distributed but not active, and the registered sessions of the group.
    fn pending_epoch(&self, group: GroupId) -> Result<Option<(Epoch, Vec<SessionId>)>>;
    /// Groups with a pending epoch.
    fn rotating_groups(&self) -> Result<Vec<GroupId>>;

    /// An attempt that came to nothing. Counts a wrong password.
    fn login_refused(&self, refusal: &LoginRefused<'_>) -> Result<()>;
    /// Card and password were right and no session was asked for.
    fn login_verified(&self, login: &LoginFacts<'_>) -> Result<()>;
    /// Card and old password were right, and this is the password from now on.
    fn change_password(&self, login: &LoginFacts<'_>, password: &PasswordRecord) -> Result<()>;
    /// The same password, hashed at another cost. `false`, and nothing is changed, when `old` is not what is stored any more.
    fn upgrade_password(&self, by: By<'_>, user: &UserId, old: &PasswordRecord, new: &PasswordRecord) -> Result<bool>;
    /// A session is granted but not acknowledged. Wrong passwords are forgotten.
    fn create_session(&self, session: &NewSession<'_>) -> Result<()>;
    /// The grant was acknowledged: the user's address is registered (patent, step S24), an earlier session ends (P8). `false` when
    /// the pending session is gone (user disabled, card revoked meanwhile).
    fn register(&self, session: &SessionId, now: UnixTime) -> Result<bool>;
    /// Where the session's terminal can be reached: the other members are told. `false` when there is no such session.
    fn announce(&self, session: &SessionId, place: &Place<'_>, now: UnixTime) -> Result<bool>;
    /// Ends a session. `false` when there is no such session.
    fn end_session(&self, session: &SessionId, ending: &Ending<'_>) -> Result<bool>;
    /// Sessions that must be looked at now, some hundreds at most, and when the next one must be: an account expires, or permitted hours end.
    fn watched(&self, now: UnixTime) -> Result<(Vec<Watched>, Option<UnixTime>)>;
    /// What was found about them. Where an administrator has set something else meanwhile, nothing is done, and the session is looked at again.
    /// Answers how many sessions ended.
    fn found(&self, found: &[(Watched, Found)], now: UnixTime) -> Result<usize>;
    /// All sessions whose users' time may end are to be looked at now: zones, the clock or the configuration may have changed.
    fn watch_again(&self) -> Result<()>;
    /// These sessions sent a heartbeat.
    fn seen(&self, sessions: &[SessionId], now: UnixTime) -> Result<()>;
    /// The pending epoch becomes the active one; older keys are deleted.
    fn activate(&self, group: GroupId, epoch: Epoch, acknowledged: &[SessionId], now: UnixTime) -> Result<bool>;
    /// Forgets pending sessions, notices of ended ones, and changes that no terminal needs any more.
    fn prune(&self, now: UnixTime, processed: u64) -> Result<()>;

    /// Makes a setting once; an existing one stays.
    fn set_once(&self, name: &str, value: &str) -> Result<()>;
    /// Adds a user.
    fn add_user(&self, by: By<'_>, user: &UserId, password: &PasswordRecord) -> Result<()>;
    /// Changes a user's password, and what else is set with it. It need not be changed again unless `settings` say so.
    fn set_password(&self, by: By<'_>, user: &UserId, password: &PasswordRecord, settings: &UserSettings)
    -> Result<()>;
    /// Adds a user with more than a password.
    fn add_user_with(
        &self,
        by: By<'_>,
        user: &UserId,
        password: &PasswordRecord,
        settings: &UserSettings,
    ) -> Result<()>;
    /// Sets something of a user.
    fn set_user(&self, by: By<'_>, user: &UserId, settings: &UserSettings) -> Result<()>;
    /// Forgets a user's wrong passwords, and with them the wait.
    fn unlock_user(&self, by: By<'_>, user: &UserId) -> Result<()>;
    /// Enables a user.
    fn enable_user(&self, by: By<'_>, user: &UserId) -> Result<()>;
    /// Disables a user: the session ends, the keys of the user's groups change.
    fn disable_user(&self, by: By<'_>, user: &UserId, mint: Mint<'_>) -> Result<()>;
    /// Adds a group.
    fn add_group(&self, by: By<'_>, group: &NewGroup<'_>, mint: Mint<'_>) -> Result<GroupInfo>;
    /// Makes a user a member.
    fn join(&self, by: By<'_>, group: &GroupName, user: &UserId) -> Result<()>;
    /// Ends a membership; the group's key changes.
    fn leave(&self, by: By<'_>, group: &GroupName, user: &UserId, mint: Mint<'_>) -> Result<()>;
    /// Begins a new epoch of a group's key.
    fn rotate(&self, by: By<'_>, group: &GroupName, mint: Mint<'_>) -> Result<Epoch>;
    /// Registers a card.
    fn add_card(&self, by: By<'_>, card: &NewCard<'_>) -> Result<()>;
    /// Revokes a card: a session that was opened with it ends, the keys of the user's groups change.
    fn revoke_card(&self, by: By<'_>, card: &Fingerprint, mint: Mint<'_>) -> Result<()>;
    /// Ends a user's session for an administrator.
    fn end_user_session(&self, by: By<'_>, user: &UserId, reason: &EndReason) -> Result<()>;

    /// Users, by name.
    fn users(&self) -> Result<Vec<UserInfo>>;
    /// One user.
    fn user(&self, user: &UserId) -> Result<UserInfo>;
    /// Groups, by name.
    fn groups(&self) -> Result<Vec<GroupInfo>>;
    /// One group and its members.
    fn group(&self, group: &GroupName) -> Result<(GroupInfo, Vec<MemberInfo>)>;
    /// IPv4 networks of all groups.
    fn prefixes4(&self) -> Result<Vec<Ipv4Net>>;
    /// Cards, of one user or all.
    fn cards(&self, user: Option<&UserId>) -> Result<Vec<CardInfo>>;
    /// Who is where: one row for each group of each session (the table of the patent's Fig. 8).
    fn sessions(&self) -> Result<Vec<SessionInfo>>;

    /// Changes what the members of a group may reach; attached terminals are told. Refuses what changes nothing.
    fn set_policy(&self, by: By<'_>, group: &GroupName, update: &PolicyUpdate) -> Result<GroupInfo>;
    /// Deletes a user: the session ends, the cards are revoked for ever, the keys of the user's groups change. The audit keeps the name.
    fn delete_user(&self, by: By<'_>, user: &UserId, mint: Mint<'_>) -> Result<()>;
    /// Deletes a group and its keys: whoever is logged in leaves it, and a session that has no other group ends.
    fn delete_group(&self, by: By<'_>, group: &GroupName) -> Result<()>;
    /// Ends one session for an administrator.
    fn end_numbered_session(&self, by: By<'_>, session: &SessionId) -> Result<()>;
    /// Numbers for `status`.
    fn facts(&self) -> Result<StoreFacts>;
    /// Rows of the audit, oldest first, at most [`AuditQuery::MOST`].
    fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditRow>>;
    /// Checks the audit's chain, all of it. `noted`: the code of a row ([`AuditVerdict::head`]) that an earlier check answered with.
    fn audit_verify(&self, noted: Option<&str>) -> Result<AuditVerdict>;
    /// All users with what an export needs, by name.
    fn export(&self) -> Result<Vec<ExportedUser>>;
    /// Adds users, groups and memberships: all, or none when a line does not fit. Then `problems` says what is wrong with which line.
    /// `progress` hears how many users are done.
    fn import(
        &self,
        by: By<'_>,
        directory: &Directory,
        means: &ImportMeans<'_>,
        problems: &mut Vec<LineProblem>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Imported>;
    /// Since when each group has its newest key.
    fn key_ages(&self) -> Result<Vec<KeyAge>>;
    /// Begins a new epoch, unless another server did since `age` was read: of several servers one does it. `None` then.
    fn rotate_if(&self, by: By<'_>, age: &KeyAge, mint: Mint<'_>) -> Result<Option<Epoch>>;
    /// Wraps all secrets anew and notes the name of their key as the setting `setting`, in one write. Answers with how many changed.
    fn rewrap(&self, by: By<'_>, setting: &str, key: &str, rewrap: Rewrap<'_>) -> Result<usize>;
    /// Writes something, to find out whether writing works.
    fn probe(&self, now: UnixTime) -> Result<()>;
    /// The last events of the audit, newest first.
    fn recent_events(&self, limit: u32) -> Result<Vec<EventInfo>>;
    /// The open invitation of a user.
    fn invitation(&self, user: &UserId, now: UnixTime) -> Result<Option<Invitation>>;
    /// An enrolment that came to nothing; for the audit.
    fn enrol_refused(&self, user: &UserId, source: IpAddr, reason: &str, now: UnixTime) -> Result<()>;
    /// Registers an enrolment and uses the code up, or keeps it for an approval; all of it or nothing.
    fn enrol(&self, enrolment: &NewEnrolment<'_>, mint: Mint<'_>) -> Result<Enrolled>;
    /// Invites a user; an open invitation of that user ends.
    fn invite(&self, by: By<'_>, invitation: &NewInvitation<'_>) -> Result<()>;
    /// Takes an invitation, or what waits for an approval, back.
    fn uninvite(&self, by: By<'_>, user: &UserId) -> Result<()>;
    /// Approves what a user enrolled: the card's fingerprint, if there is a card. With `card`, only if the fingerprint begins so.
    fn approve(&self, by: By<'_>, user: &UserId, card: Option<&str>, mint: Mint<'_>) -> Result<Option<String>>;
    /// Invitations, by user.
    fn invitations(&self, now: UnixTime) -> Result<Vec<InvitationInfo>>;
}
