//! What is known of a user's account: the password's record and age, and until when it may be used.

use super::{audit::Entry, row, watch, *};
use crate::clock::rfc3339;

pub(super) fn account(t: &Transaction<'_>, user: &UserId) -> Result<Option<Account>> {
    Ok(t.prepare_cached(
        "SELECT salt, hash, memory_kib, iterations, lanes, disabled, failures, last_failure, MAX(password_set, created), must_change, expires, hours
         FROM user WHERE name = ?1",
    )?
    .query_row([user.as_str()], |r| {
        let password = PasswordRecord {
            salt: r.get(0)?,
            hash: r.get(1)?,
            memory_kib: r.get(2)?,
            iterations: r.get(3)?,
            lanes: r.get(4)?,
        };
        Ok(Account {
            password,
            disabled: r.get(5)?,
            failures: r.get(6)?,
            last_failure: r.get(7)?,
            password_set: r.get(8)?,
            must_change: r.get(9)?,
            expires: r.get(10)?,
            hours: row::parse_optional(r, 11)?,
        })
    })
    .optional()?)
}

pub(super) fn add_user_with(
    t: &Transaction<'_>,
    by: By<'_>,
    user: &UserId,
    password: &PasswordRecord,
    settings: &UserSettings,
) -> Result<()> {
    admin::add_user(t, by, user, password)?;
    apply(t, by, user, settings)
}

pub(super) fn set_password(
    t: &Transaction<'_>,
    by: By<'_>,
    user: &UserId,
    password: &PasswordRecord,
    settings: &UserSettings,
) -> Result<()> {
    write_password(t, user_row(t, user)?, password, by.now)?;
    Entry::new(by, "user-set-password").user(user.as_str()).write(t)?;
    apply(t, by, user, settings)
}

pub(super) fn change_password(t: &Transaction<'_>, facts: &LoginFacts<'_>, password: &PasswordRecord) -> Result<()> {
    write_password(t, user_row(t, facts.user)?, password, facts.now)?;
    login::entry(facts, "password-change").write(t)
}

/// The new record; the old one's age, its wrong tries and the word that it must be changed go with it.
fn write_password(t: &Transaction<'_>, user: i64, password: &PasswordRecord, now: UnixTime) -> Result<()> {
    t.prepare_cached(
        "UPDATE user SET salt = ?2, hash = ?3, memory_kib = ?4, iterations = ?5, lanes = ?6, failures = 0, must_change = 0, password_set = ?7 WHERE id = ?1",
    )?
    .execute(params![user, password.salt, password.hash, password.memory_kib, password.iterations, password.lanes, now])?;
    Ok(())
}

pub(super) fn upgrade_password(
    t: &Transaction<'_>,
    by: By<'_>,
    user: &UserId,
    old: &PasswordRecord,
    new: &PasswordRecord,
) -> Result<bool> {
    let changed = t
        .prepare_cached(
            "UPDATE user SET salt = ?2, hash = ?3, memory_kib = ?4, iterations = ?5, lanes = ?6 WHERE name = ?1 AND salt = ?7 AND hash = ?8",
        )?
        .execute(params![user.as_str(), new.salt, new.hash, new.memory_kib, new.iterations, new.lanes, old.salt, old.hash])?;
    if changed == 1 {
        Entry::new(by, "password-rehash").user(user.as_str()).write(t)?;
    }
    Ok(changed == 1)
}

pub(super) fn set_user(t: &Transaction<'_>, by: By<'_>, user: &UserId, settings: &UserSettings) -> Result<()> {
    user_row(t, user)?;
    if *settings == UserSettings::default() {
        return refuse("there is nothing to set: say what, see `cug-server user set --help`");
    }
    apply(t, by, user, settings)
}

fn apply(t: &Transaction<'_>, by: By<'_>, user: &UserId, settings: &UserSettings) -> Result<()> {
    if let Some(must_change) = settings.must_change {
        t.execute("UPDATE user SET must_change = ?2 WHERE name = ?1", params![user.as_str(), must_change])?;
        let reason = if must_change { "password must be changed" } else { "password need not be changed" };
        Entry::new(by, "user-set").user(user.as_str()).reason(reason).write(t)?;
    }
    if let Some(expires) = settings.expires {
        t.execute("UPDATE user SET expires = ?2 WHERE name = ?1", params![user.as_str(), expires])?;
        let reason = expires.map_or("account does not expire".into(), |at| format!("account expires {}", rfc3339(at)));
        Entry::new(by, "user-set").user(user.as_str()).reason(&reason).write(t)?;
    }
    if let Some(hours) = &settings.hours {
        let hours = hours.as_ref().map(ToString::to_string);
        t.execute("UPDATE user SET hours = ?2 WHERE name = ?1", params![user.as_str(), hours])?;
        let reason = format!("may log in {}", hours.as_deref().unwrap_or("always"));
        Entry::new(by, "user-set").user(user.as_str()).reason(&reason).write(t)?;
    }
    if settings.expires.is_some() || settings.hours.is_some() {
        watch::look_now(t, user)?;
    }
    Ok(())
}

pub(super) fn unlock_user(t: &Transaction<'_>, by: By<'_>, user: &UserId) -> Result<()> {
    let id = user_row(t, user)?;
    if t.execute("UPDATE user SET failures = 0 WHERE id = ?1 AND failures <> 0", [id])? == 0 {
        return refuse(format!("user {user} is not locked: no wrong passwords since the last right one"));
    }
    Entry::new(by, "user-unlock").user(user.as_str()).write(t)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of the first version, with a user in it.
    #[test]
    fn an_older_database_gets_ages_and_keeps_its_users() {
        let path = std::env::temp_dir().join(format!("cug-password-age-{}.db", std::process::id()));
        let files = || ["", "-wal", "-shm"].map(|end| format!("{}{end}", path.display()));
        files().iter().for_each(|f| drop(std::fs::remove_file(f)));
        let old = Connection::open(&path).unwrap();
        old.execute_batch(include_str!("schema-1.sql")).unwrap();
        old.execute_batch(
            "INSERT INTO user (name, salt, hash, memory_kib, iterations, lanes, failures, created)
             VALUES ('A', zeroblob(16), zeroblob(32), 64, 1, 1, 2, 1000); PRAGMA user_version = 1;",
        )
        .unwrap();
        drop(old);
        let store = Sqlite::open(&path, &AuditKey::random(&mut crate::clock::rng())).unwrap();
        let account = store.account(&"A".parse().unwrap()).unwrap().unwrap();
        assert_eq!(
            (account.password_set, account.must_change, account.expires, account.failures, account.hours),
            (1000, false, None, 2, None)
        );
        assert!(!account.password.is_none());
        files().iter().for_each(|f| drop(std::fs::remove_file(f)));
    }

    #[test]
    fn a_hash_is_replaced_only_where_it_is_still_the_one_that_was_checked() {
        let path = std::env::temp_dir().join(format!("cug-rehash-{}.db", std::process::id()));
        let files = || ["", "-wal", "-shm"].map(|end| format!("{}{end}", path.display()));
        files().iter().for_each(|f| drop(std::fs::remove_file(f)));
        let store = Sqlite::open(&path, &AuditKey::random(&mut crate::clock::rng())).unwrap();
        let (user, by) = ("A".parse().unwrap(), By { actor: "test", now: 5 });
        let record = |hash| PasswordRecord { salt: [1; 16], hash: [hash; 32], memory_kib: 64, iterations: 1, lanes: 1 };
        store.add_user(by, &user, &record(1)).unwrap();
        store.set_password(By { now: 9, ..by }, &user, &record(2), &UserSettings::default()).unwrap();
        assert!(!store.upgrade_password(by, &user, &record(1), &record(3)).unwrap(), "it was changed meanwhile");
        assert!(store.upgrade_password(by, &user, &record(2), &record(4)).unwrap());
        let account = store.account(&user).unwrap().unwrap();
        assert_eq!((account.password.hash, account.password_set), ([4; 32], 9), "no younger for being hashed again");
        files().iter().for_each(|f| drop(std::fs::remove_file(f)));
    }
}
