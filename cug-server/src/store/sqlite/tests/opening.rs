//! What is found when the database is opened, and older schemas.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn key() -> AuditKey {
    AuditKey::random(&mut crate::clock::rng())
}

fn sentence(path: &Path) -> String {
    Sqlite::open(path, &key()).err().unwrap().to_string()
}

/// What an installation of the first version had in it.
const FIRST: &str = include_str!("first.sql");

/// A database as the version with `steps` migrations left it.
fn database_of(steps: usize) -> PathBuf {
    let path = path();
    let connection = Connection::open(&path).unwrap();
    for (number, step) in schema::MIGRATIONS.iter().take(steps).enumerate() {
        connection.execute_batch(step).unwrap();
        if number == 0 {
            connection.execute_batch(FIRST).unwrap();
        }
    }
    if steps > 1 {
        connection.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
    }
    connection.pragma_update(None, "user_version", i64::try_from(steps).unwrap()).unwrap();
    path
}

#[test]
fn every_earlier_schema_is_brought_up_to_date_with_all_that_is_in_it() {
    for steps in 1..=schema::MIGRATIONS.len() {
        let path = database_of(steps);
        let store = Sqlite::open(&path, &key()).unwrap();
        let users: Vec<_> = store.users().unwrap().into_iter().map(|u| (u.user.to_string(), u.disabled)).collect();
        assert_eq!(users, [("USER-A".into(), false), ("USER-B".into(), true)], "from {steps}");
        let members = store.group(&group("VPN1")).unwrap().1;
        assert_eq!(members.iter().map(|m| m.overlay4.to_string()).collect::<Vec<_>>(), ["10.96.0.1"], "from {steps}");
        assert_eq!(store.group_keys(&user("USER-A")).unwrap()[0].wrapped, [1, 2, 3], "from {steps}");
        assert_eq!(store.live_sessions().unwrap(), [[9; 16]], "from {steps}");
        assert!(store.card(&[1; 32]).unwrap().0.is_some(), "from {steps}");
        let rows = store.audit(&AuditQuery::default()).unwrap();
        assert_eq!(rows.iter().map(|r| r.event.as_str()).collect::<Vec<_>>(), ["user-add", "login", "audit-begin"]);
        assert_eq!(rows[2].reason.as_deref(), Some("2 earlier rows"));
        assert_eq!(store.audit_verify(None).unwrap().wrong, None, "the earlier rows are chained too");
        // USER-B left before: the number is free from now on, not since ever.
        store.join(BY, &group("VPN1"), &user("USER-B")).unwrap();
        let again = Sqlite::open(&path, &key()).unwrap();
        assert_eq!(again.users().unwrap().len(), 2);
        remove(&path);
    }
}

/// The step itself is real; it meets a table that is in its way, as it would meet a full disk or the end of the power.
#[test]
fn a_migration_that_is_interrupted_leaves_the_old_schema() {
    let path = database_of(1);
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE seat_freed (x INTEGER) STRICT").unwrap();
    let schema = |c: &Connection| -> String {
        c.query_row("SELECT group_concat(sql) FROM sqlite_schema", [], |r| r.get(0)).unwrap()
    };
    let before = schema(&connection);
    assert!(Sqlite::open(&path, &key()).is_err());
    assert_eq!(schema(&connection), before);
    let version: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0)).unwrap();
    assert_eq!(version, 1);
    connection.execute_batch("DROP TABLE seat_freed").unwrap();
    assert_eq!(Sqlite::open(&path, &key()).unwrap().users().unwrap().len(), 2, "and it can be done again");
    remove(&path);
}

#[test]
fn what_durability_depends_on_is_in_force() {
    let f = Fixture::new();
    let check = |c: &Connection| {
        let pragma = |name: &str| -> String {
            c.pragma_query_value(None, name, |r| r.get::<_, rusqlite::types::Value>(0))
                .map(|v| format!("{v:?}"))
                .unwrap()
        };
        assert_eq!(pragma("journal_mode"), "Text(\"wal\")");
        assert_eq!(pragma("synchronous"), "Integer(2)");
        assert_eq!(pragma("foreign_keys"), "Integer(1)");
        assert_eq!(pragma("secure_delete"), "Integer(1)");
        assert_eq!(pragma("trusted_schema"), "Integer(0)");
        assert_eq!(pragma("application_id"), format!("Integer({})", schema::APPLICATION_ID));
    };
    check(&lock(&f.store.writer).connection);
    f.store.users().unwrap();
    check(lock(&f.store.readers).first().unwrap());
    let mode =
        |end: &str| std::fs::metadata(format!("{}{end}", f.path.display())).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(""), mode("-wal"), mode("-shm")], [0o600; 3]);
    std::fs::set_permissions(&f.path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _again = Sqlite::open(&f.path, &f.key).unwrap();
    assert_eq!(mode(""), 0o600, "closed again");
    lock(&f.store.writer).connection.execute_batch("CREATE TABLE loose (x)").unwrap();
    assert!(sentence(&f.path).contains("loose"), "not strict");
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let path = path();
    for sql in ["PRAGMA application_id = 42", "CREATE TABLE user (x)", "PRAGMA user_version = 1"] {
        let other = Connection::open(&path).unwrap();
        other.execute_batch(sql).unwrap();
        drop(other);
        let before = std::fs::read(&path).unwrap();
        assert!(sentence(&path).contains("another program"), "{sql}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        remove(&path);
    }
}

#[test]
fn damage_is_found_before_anything_is_written() {
    let f = Fixture::new();
    f.store.write(|t| Ok(t.execute_batch("PRAGMA wal_checkpoint")?)).ok();
    let copy = path();
    back_up(&f.path, &copy, false).unwrap();
    let sound = std::fs::read(&copy).unwrap();
    let mut found = 0;
    for page in 1..sound.len() / 4096 {
        let mut damaged = sound.clone();
        damaged[page * 4096..page * 4096 + 200].fill(0xAA);
        std::fs::write(&copy, &damaged).unwrap();
        if let Err(error) = Sqlite::open(&copy, &f.key) {
            let sentence = error.to_string();
            assert!(sentence.contains("damaged") && sentence.contains("restore"), "page {page}: {sentence}");
            found += 1;
        }
        remove(&copy);
    }
    assert!(found > sound.len() / 4096 / 2, "{found}");
    let truncated = &sound[..sound.len() / 2];
    std::fs::write(&copy, truncated).unwrap();
    assert!(sentence(&copy).contains("damaged"));
    assert_eq!(std::fs::read(&copy).unwrap(), truncated, "kept as it is");
    remove(&copy);
}

#[test]
fn a_row_that_refers_to_nothing_is_damage() {
    let f = Fixture::new();
    let other = Connection::open(&f.path).unwrap();
    other.execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM user WHERE name = 'B'").unwrap();
    assert!(sentence(&f.path).contains("refers to one that is not there"));
}

#[test]
fn a_lock_of_another_program_is_waited_for_and_then_named() {
    let f = Fixture::new();
    let other = Connection::open(&f.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let sentence = f.store.enable_user(BY, &user("A")).err().unwrap().to_string();
    assert!(sentence.contains("another program keeps it locked"), "{sentence}");
    other.execute_batch("ROLLBACK").unwrap();
    f.store.rotate(BY, &group("VPN1"), &mint).unwrap();
}
