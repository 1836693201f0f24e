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

/// What each later version came to remember: after which step it is written, and a question that has one answer as long as it is there.
const LATER: [(usize, &str, &str); 6] = [
    (
        3,
        "UPDATE seat SET freed = 1700000005 WHERE user = 2",
        "SELECT 1 FROM seat WHERE user = 2 AND freed = 1700000005",
    ),
    (
        4,
        "UPDATE closed_group SET policy = 'closed'; INSERT INTO policy_exception VALUES (1, '192.0.2.0/24')",
        "SELECT 1 FROM closed_group JOIN policy_exception ON closed_group = id WHERE policy = 'closed' AND network = '192.0.2.0/24'",
    ),
    (
        5,
        "INSERT INTO retired_card VALUES (zeroblob(32)); INSERT INTO retired_seat VALUES (1, 9, 1700000006)",
        "SELECT 1 FROM retired_card, retired_seat WHERE fingerprint = zeroblob(32) AND host = 9 AND freed = 1700000006",
    ),
    (6, "UPDATE closed_group SET rotated = 1700000007", "SELECT 1 FROM closed_group WHERE rotated = 1700000007"),
    (
        7,
        "UPDATE user SET password_set = 1700000008, must_change = 1, expires = 1900000000 WHERE id = 1",
        "SELECT 1 FROM user WHERE (id, password_set, must_change, expires) = (1, 1700000008, 1, 1900000000)",
    ),
    (
        8,
        "INSERT INTO invitation (user, verifier, approve, replace_cards, actor, created, expires) VALUES ('USER-C', zeroblob(32), 0, 0, 'root', 1, 2)",
        "SELECT 1 FROM invitation WHERE user = 'USER-C'",
    ),
];

/// The steps are these tests' only record of what earlier versions left on disks, and a step that is changed reaches no database that has it behind it.
#[test]
fn a_step_that_was_released_is_never_changed() {
    use sha2::Digest;
    const RELEASED: [&str; 8] = [
        "af3a50f14f6139b48edb22413500e02daad21657a3055e88573ac8b5d386fd41",
        "a51c1b8417945cb86fd6634d39e51795d971d8b994b5629d9460c5c07db2a294",
        "d9d06886e9b1e0f6d9bce161c4a77ed627010a1f5cb74fd0030c2eeb23928c60",
        "30299991c8683930e8027fcf432b4d714763acda73fa447d8db6bda306aa4c22",
        "48ad08c3335cb0dd4c395920a6c86f14a359a031da6a010bf4afc7cbfc1cd010",
        "d1131937c6548273fd9d1ef9a6b7e0c60b6edcd3bdf65776cf32111b14218760",
        "95c61712c56a90191acf188a838865885d1ed0acab513c60b5e3d7ca0e70ea21",
        "ef9edae6258bd3e7141de3d422efe9bf3e830c4ec009ef030e34267bb01d68f1",
    ];
    let now = schema::MIGRATIONS.iter().map(|step| hex::encode(&sha2::Sha256::digest(step)));
    assert_eq!(now.take(RELEASED.len()).collect::<Vec<_>>(), RELEASED, "write a new step instead");
}

/// A database as the version with `steps` migrations left it.
fn database_of(steps: usize) -> PathBuf {
    let path = path();
    let connection = Connection::open(&path).unwrap();
    for (number, step) in schema::MIGRATIONS.iter().take(steps).enumerate() {
        connection.execute_batch(step).unwrap();
        if number == 0 {
            connection.execute_batch(FIRST).unwrap();
        }
        for (_, write, _) in LATER.iter().filter(|(after, _, _)| *after == number + 1) {
            connection.execute_batch(write).unwrap();
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
        for (after, _, there) in LATER.iter().filter(|(after, _, _)| *after <= steps) {
            let found = store.read(|t| Ok(t.query_row(there, [], |r| r.get::<_, i64>(0))?));
            assert_eq!(found.unwrap(), 1, "from {steps}: {after}");
        }
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
