//! The store in one SQLite file: WAL, `synchronous=FULL`, one writer, a few readers.

mod account;
mod admin;
mod audit;
mod chain;
mod condition;
mod copy;
mod delete;
mod enrol;
mod import;
mod info;
mod login;
mod open;
mod policy;
mod row;
mod schema;
mod seat;
mod session;
mod upkeep;
mod view;
mod watch;

pub use copy::{Backup, back_up};

use super::*;
use crate::hex;
use crate::keys::AuditKey;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Readers that are kept open for the next read.
const IDLE_READERS: usize = 8;

/// How long a lock that another process holds is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// The database file. Clones nothing, blocks while it works.
pub struct Sqlite {
    path: PathBuf,
    key: AuditKey,
    writer: Mutex<Writer>,
    readers: Mutex<Vec<Connection>>,
}

/// The one connection that writes, and the end of the audit as it left it.
struct Writer {
    connection: Connection,
    head: Option<chain::Head>,
}

/// One sentence for the administrator.
fn refuse<T>(sentence: impl Into<String>) -> Result<T> {
    Err(StoreError::Refused(sentence.into()))
}

impl Sqlite {
    /// Opens the database, makes it if it is not there, checks it, and brings its schema up to date. `key` chains the audit.
    ///
    /// # Errors
    /// [`StoreError`]: cannot be opened, is damaged, is another program's, or was made by a newer version.
    pub fn open(path: &Path, key: &AuditKey) -> Result<Self> {
        let (connection, head) = open::writer(path, key)?;
        let writer = Mutex::new(Writer { connection, head });
        Ok(Self { path: path.into(), key: key.duplicate(), writer, readers: Mutex::default() })
    }

    /// Whether the database at `path` is whole: pages, indexes, foreign keys, and the schema of this version. Changes nothing; a server may run.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn verify(path: &Path) -> Result<()> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        let answer: String = connection.query_row("PRAGMA integrity_check(1)", [], |r| r.get(0))?;
        if answer != "ok" {
            return refuse(format!("the database is damaged: {answer}"));
        }
        if connection.prepare("PRAGMA foreign_key_check")?.exists([])? {
            return refuse("the database is damaged: a row refers to another one that is not there");
        }
        schema::check(&connection)
    }

    /// One atomic, durable write, its audit rows chained and then told to the journal. An error, a panic or a crash within it changes nothing.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut writer = lock(&self.writer);
        let remembered = writer.head;
        let transaction = writer.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&transaction)?;
        let (rows, head) = chain::seal(&transaction, &self.key, remembered)?;
        transaction.commit()?;
        writer.head = head;
        drop(writer);
        audit::tell_journal(&rows);
        Ok(result)
    }

    /// Checks the audit's chain, all of it. `noted`: a code ([`AuditVerdict::head`]) that an earlier check answered with.
    fn verify_audit(&self, noted: Option<&str>) -> Result<AuditVerdict> {
        self.read(|t| chain::verify(t, &self.key, noted))
    }

    /// One consistent view.
    fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let idle = lock(&self.readers).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => open::reader(&self.path)?,
        };
        let result = connection.transaction().map_err(StoreError::from).and_then(|t| work(&t));
        let mut readers = lock(&self.readers);
        if readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        result
    }
}

/// A panic in another thread does not make the database unusable: its transaction was rolled back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user's row number, or a sentence.
fn user_row(t: &Transaction<'_>, user: &UserId) -> Result<i64> {
    let row =
        t.prepare_cached("SELECT id FROM user WHERE name = ?1")?.query_row([user.as_str()], |r| r.get(0)).optional()?;
    row.map_or_else(|| refuse(format!("there is no user {user}")), Ok)
}

/// The group's number, or a sentence.
fn group_row(t: &Transaction<'_>, group: &GroupName) -> Result<GroupId> {
    let row = t
        .prepare_cached("SELECT id FROM closed_group WHERE name = ?1")?
        .query_row([group.as_str()], |r| r.get(0))
        .optional()?;
    row.map_or_else(|| refuse(format!("there is no group {group}")), Ok)
}

/// Adds a change to what terminals will be told.
fn change(t: &Transaction<'_>, change: &Change) -> Result<()> {
    let none = (None::<GroupId>, None::<&str>, None::<SessionId>, None::<String>);
    let (kind, (group, user, session, detail)) = match change {
        Change::Member(group, user) => ("member", (Some(*group), Some(user.as_str()), None, None)),
        Change::Ended(session, reason) => ("ended", (None, None, Some(*session), Some(row::reason_to_text(reason)))),
        Change::Joined(group, session) => ("joined", (Some(*group), None, Some(*session), None)),
        Change::Left(group, session) => ("left", (Some(*group), None, Some(*session), None)),
        Change::Epoch(group) => ("epoch", (Some(*group), none.1, none.2, none.3)),
        Change::Activated(group, epoch) => ("activated", (Some(*group), None, None, Some(epoch.to_string()))),
        Change::Policy(group) => ("policy", (Some(*group), None, None, None)),
    };
    t.prepare_cached("INSERT INTO change (kind, closed_group, user, session, detail) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![kind, group, user, session, detail])?;
    Ok(())
}

macro_rules! delegate {
    ($($mode:ident $name:ident($($arg:ident: $type:ty),*) -> $result:ty = $path:path;)*) => {
        impl Store for Sqlite {
            $(fn $name(&self, $($arg: $type),*) -> Result<$result> {
                self.$mode(|t| $path(t, $($arg),*))
            })*

            fn audit_verify(&self, noted: Option<&str>) -> Result<AuditVerdict> {
                self.verify_audit(noted)
            }
        }
    };
}

delegate! {
    read setting(name: &str) -> Option<String> = info::setting;
    read card(card: &Fingerprint) -> (Option<Card>, [bool; 3]) = login::card;
    read account(user: &UserId) -> Option<Account> = account::account;
    read group_keys(user: &UserId) -> Vec<GroupKey> = view::group_keys;
    read session(session: &SessionId) -> SessionState = session::session;
    read live_sessions() -> Vec<SessionId> = session::live_sessions;
    read session_groups(session: &SessionId) -> Option<(UserId, Vec<GroupId>)> = session::session_groups;
    read session_view(session: &SessionId, known: &[Known], only: Option<GroupId>) -> Option<SessionView> = view::session_view;
    read revision() -> u64 = view::revision;
    read changes_since(revision: u64) -> Vec<(u64, Change)> = view::changes_since;
    read presence(group: GroupId, users: &[UserId]) -> Vec<Peer> = view::presence;
    read pending_epoch(group: GroupId) -> Option<(Epoch, Vec<SessionId>)> = view::pending_epoch;
    read rotating_groups() -> Vec<GroupId> = view::rotating_groups;
    read watched(now: UnixTime) -> (Vec<Watched>, Option<UnixTime>) = watch::due;
    write found(found: &[(Watched, Found)], now: UnixTime) -> usize = watch::found;
    write watch_again() -> () = watch::again;
    write login_refused(refusal: &LoginRefused<'_>) -> () = login::refused;
    write login_verified(facts: &LoginFacts<'_>) -> () = login::verified;
    write create_session(session: &NewSession<'_>) -> () = login::create_session;
    write register(session: &SessionId, now: UnixTime) -> bool = session::register;
    write announce(session: &SessionId, place: &Place<'_>, now: UnixTime) -> bool = session::announce;
    write end_session(session: &SessionId, ending: &Ending<'_>) -> bool = session::end_session;
    write seen(sessions: &[SessionId], now: UnixTime) -> () = session::seen;
    write activate(group: GroupId, epoch: Epoch, acknowledged: &[SessionId], now: UnixTime) -> bool = admin::activate;
    write prune(now: UnixTime, processed: u64) -> () = session::prune;
    write set_once(name: &str, value: &str) -> () = admin::set_once;
    write add_user(by: By<'_>, user: &UserId, password: &PasswordRecord) -> () = admin::add_user;
    write set_password(by: By<'_>, user: &UserId, password: &PasswordRecord, settings: &UserSettings) -> () = account::set_password;
    write add_user_with(by: By<'_>, user: &UserId, password: &PasswordRecord, settings: &UserSettings) -> () = account::add_user_with;
    write set_user(by: By<'_>, user: &UserId, settings: &UserSettings) -> () = account::set_user;
    write unlock_user(by: By<'_>, user: &UserId) -> () = account::unlock_user;
    write change_password(facts: &LoginFacts<'_>, password: &PasswordRecord) -> () = account::change_password;
    write upgrade_password(by: By<'_>, user: &UserId, old: &PasswordRecord, new: &PasswordRecord) -> bool = account::upgrade_password;
    write enable_user(by: By<'_>, user: &UserId) -> () = admin::enable_user;
    write disable_user(by: By<'_>, user: &UserId, mint: Mint<'_>) -> () = admin::disable_user;
    write add_group(by: By<'_>, group: &NewGroup<'_>, mint: Mint<'_>) -> GroupInfo = admin::add_group;
    write join(by: By<'_>, group: &GroupName, user: &UserId) -> () = admin::join;
    write leave(by: By<'_>, group: &GroupName, user: &UserId, mint: Mint<'_>) -> () = admin::leave;
    write rotate(by: By<'_>, group: &GroupName, mint: Mint<'_>) -> Epoch = admin::rotate;
    write add_card(by: By<'_>, card: &NewCard<'_>) -> () = admin::add_card;
    write revoke_card(by: By<'_>, card: &Fingerprint, mint: Mint<'_>) -> () = admin::revoke_card;
    write end_user_session(by: By<'_>, user: &UserId, reason: &EndReason) -> () = admin::end_user_session;
    read users() -> Vec<UserInfo> = info::users;
    read user(user: &UserId) -> UserInfo = info::user;
    read groups() -> Vec<GroupInfo> = info::groups;
    read group(group: &GroupName) -> (GroupInfo, Vec<MemberInfo>) = info::group;
    read prefixes4() -> Vec<Ipv4Net> = info::prefixes4;
    read cards(user: Option<&UserId>) -> Vec<CardInfo> = info::cards;
    read sessions() -> Vec<SessionInfo> = info::sessions;
    write set_policy(by: By<'_>, group: &GroupName, update: &PolicyUpdate) -> GroupInfo = policy::set;
    write delete_user(by: By<'_>, user: &UserId, mint: Mint<'_>) -> () = delete::user;
    write delete_group(by: By<'_>, group: &GroupName) -> () = delete::group;
    write end_numbered_session(by: By<'_>, session: &SessionId) -> () = delete::session;
    read facts() -> StoreFacts = info::facts;
    read audit(query: &AuditQuery) -> Vec<AuditRow> = audit::rows;
    read export() -> Vec<ExportedUser> = info::export;
    write import(by: By<'_>, directory: &Directory, means: &ImportMeans<'_>, problems: &mut Vec<LineProblem>, progress: &mut dyn FnMut(u64)) -> Imported = import::import;
    read key_ages() -> Vec<KeyAge> = upkeep::key_ages;
    write rotate_if(by: By<'_>, age: &KeyAge, mint: Mint<'_>) -> Option<Epoch> = upkeep::rotate_if;
    write rewrap(by: By<'_>, setting: &str, key: &str, rewrap: Rewrap<'_>) -> usize = upkeep::rewrap;
    write probe(now: UnixTime) -> () = upkeep::probe;
    read recent_events(limit: u32) -> Vec<EventInfo> = upkeep::recent_events;
    read invitation(user: &UserId, now: UnixTime) -> Option<Invitation> = enrol::invitation;
    write enrol_refused(user: &UserId, source: IpAddr, reason: &str, now: UnixTime) -> () = enrol::enrol_refused;
    write enrol(enrolment: &NewEnrolment<'_>, mint: Mint<'_>) -> Enrolled = enrol::enrol;
    write invite(by: By<'_>, invitation: &NewInvitation<'_>) -> () = enrol::invite;
    write uninvite(by: By<'_>, user: &UserId) -> () = enrol::uninvite;
    write approve(by: By<'_>, user: &UserId, card: Option<&str>, mint: Mint<'_>) -> Option<String> = enrol::approve;
    read invitations(now: UnixTime) -> Vec<InvitationInfo> = enrol::invitations;
}

#[cfg(test)]
mod tests;
