//! Imports; backups (restore is tested with the program).

use super::*;
use std::os::unix::fs::PermissionsExt;

pub(super) fn one(line: u64, name: &str, groups: &[&str]) -> DirectoryUser {
    DirectoryUser {
        line,
        user: user(name),
        disabled: false,
        groups: groups.iter().map(|g| group(g)).collect(),
        settings: UserSettings::default(),
    }
}

fn import(f: &Fixture, directory: &Directory) -> std::result::Result<Imported, Vec<LineProblem>> {
    let mut problems = vec![];
    let result = f.store.import(BY, directory, &audit::means(), &mut problems, &mut |_| ());
    result.map_err(|error| {
        refused::<()>(Err(error));
        problems
    })
}

#[test]
fn an_import_is_all_or_nothing() {
    let f = Fixture::new();
    let (rows, revision) = (f.audit(), f.store.revision().unwrap());
    let mut directory = Directory {
        users: vec![one(2, "C", &["VPN1"]), one(3, "A", &["VPN1"]), one(4, "D", &["VPN7", "VPN2"]), one(5, "E", &[])],
        ..Directory::default()
    };
    let lines: Vec<_> = import(&f, &directory).unwrap_err().into_iter().map(|p| p.line).collect();
    assert_eq!(lines, [3, 4], "A is there already, VPN7 is not");
    assert_eq!((f.audit(), f.store.revision().unwrap(), f.store.users().unwrap().len()), (rows, revision, 2));

    (directory.merge, directory.make_groups) = (true, true);
    let made = import(&f, &directory).unwrap();
    assert_eq!(made, Imported { users: 3, groups: 1, memberships: 3 });
    assert_eq!(import(&f, &directory).unwrap(), Imported::default(), "again, nothing new");
    let infos = f.store.users().unwrap();
    let names: Vec<_> = infos.iter().map(|u| (u.user.as_str(), u.has_password, u.groups.len())).collect();
    let expected = [("A", true, 2), ("B", true, 1), ("C", false, 1), ("D", false, 2), ("E", false, 0)];
    assert_eq!(names, expected);
    assert!(f.store.account(&user("C")).unwrap().unwrap().password.is_none());
}

#[test]
fn a_backup_is_one_closed_file_that_is_never_written_over() {
    let f = Fixture::new();
    f.up(1, "A", 1);
    let to = path();
    // While somebody reads and somebody writes.
    let _reader = f.store.read(|t| Ok(t.query_row("SELECT COUNT(*) FROM user", [], |r| r.get::<_, i64>(0))?)).unwrap();
    let backup = back_up(&f.path, &to, false).unwrap();
    assert_eq!((backup.users, backup.groups, backup.audit_rows), (2, 2, u64::try_from(f.audit()).unwrap()));
    assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    let first = std::fs::read(&to).unwrap();
    assert_eq!(&first[18..20], [1, 1], "complete without a log beside it");
    f.store.end_user_session(BY, &user("A"), &EndReason::Administrator).unwrap();
    assert!(refused(back_up(&f.path, &to, false)).contains("--force"));
    assert_eq!(std::fs::read(&to).unwrap(), first);
    back_up(&f.path, &to, true).unwrap();
    assert_ne!(std::fs::read(&to).unwrap(), first);
    let nowhere = Path::new("/nonexistent/backup");
    assert!(refused(back_up(&f.path, nowhere, false)).contains("/nonexistent"));
    let copy = Sqlite::open(&to, &f.key).unwrap();
    assert!(copy.live_sessions().unwrap().is_empty());
    assert_eq!(copy.audit_verify(None).unwrap().wrong, None);
    drop(copy);
    remove(&to);
}
