//! The store in one SQLite file: WAL, `synchronous=FULL`, one writer, a few readers.

mod admin;
mod audit;
mod enrol;
mod info;
mod login;
mod row;
mod schema;
mod session;
mod view;

use super::*;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
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
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Fault(error.into())
    }
}

/// One sentence for the administrator.
fn refuse<T>(sentence: impl Into<String>) -> Result<T> {
    Err(StoreError::Refused(sentence.into()))
}

impl Sqlite {
    /// Opens the database, makes it if it is not there, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`]: cannot be opened, is damaged, or was made by a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        let mut writer = Connection::open(path)?;
        prepare(&writer)?;
        schema::migrate(&mut writer)?;
        Ok(Self { path: path.into(), writer: Mutex::new(writer), readers: Mutex::default() })
    }

    /// One atomic, durable write. An error, a panic or a crash within it changes nothing.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = lock(&self.writer);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    /// One consistent view.
    fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let idle = lock(&self.readers).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => {
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&self.path, flags)?;
                prepare(&connection)?;
                connection
            }
        };
        let result = connection.transaction().map_err(StoreError::from).and_then(|t| work(&t));
        let mut readers = lock(&self.readers);
        if readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        result
    }
}

fn prepare(connection: &Connection) -> Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is deleted (wrapped keys, addresses) is overwritten, not only unlinked.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(())
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
        }
    };
}

delegate! {
    read setting(name: &str) -> Option<String> = info::setting;
    read card(card: &Fingerprint) -> (Option<Card>, [bool; 3]) = login::card;
    read account(user: &UserId) -> Option<Account> = login::account;
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
    write set_password(by: By<'_>, user: &UserId, password: &PasswordRecord) -> () = admin::set_password;
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
