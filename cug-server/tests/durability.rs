//! Killed at any moment: what was acknowledged is there, nothing is half done.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cug_proto::id::{GroupName, UserId};
use cug_server::{
    clock,
    store::{By, NewGroup, PasswordRecord, Sqlite, Store},
};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

const PLACE: &str = "CUG_TEST_DATABASE";

/// Adds users to a group as fast as it can and says so each time. Runs in a process of its own, until it is killed.
#[test]
#[ignore = "the other half of killed_at_any_moment"]
fn writer() {
    let path = std::env::var(PLACE).unwrap();
    let store = Sqlite::open(Path::new(&path)).unwrap();
    let password = PasswordRecord { salt: [0; 16], hash: [0; 32], memory_kib: 8, iterations: 1, lanes: 1 };
    let by = By { actor: "test", now: clock::unix_now() };
    let group: GroupName = "VPN1".parse().unwrap();
    let new = NewGroup { name: &group, prefix4: None, prefix6: None, pool: "10.0.0.0/8".parse().unwrap(), ula: [0; 5] };
    let _exists = store.add_group(by, &new, &|_, _| Ok(vec![]));
    let first = store.users().unwrap().len();
    for i in first.. {
        let user: UserId = format!("u{i}").parse().unwrap();
        store.add_user(by, &user, &password).unwrap();
        store.join(by, &group, &user).unwrap();
        store.rotate(by, &group, &|_, _| Ok(vec![])).unwrap();
        let mut out = std::io::stderr().lock();
        writeln!(out, "done {user}").unwrap();
    }
}

#[test]
fn killed_at_any_moment() {
    let path = std::env::temp_dir().join(format!("cug-durability-{}.db", std::process::id()));
    let files = || ["", "-wal", "-shm"].map(|end| format!("{}{end}", path.display()));
    files().iter().for_each(|f| drop(std::fs::remove_file(f)));
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--ignored", "--nocapture"])
            .env(PLACE, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut acknowledged = vec![];
        let wanted = usize::from(clock::random::<1>()[0] % 16) + 1;
        while acknowledged.len() < wanted {
            let line = lines.next().expect("the writer writes").unwrap();
            acknowledged.extend(line.strip_prefix("done ").map(str::to_owned));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.map_while(Result::ok).filter_map(|l| l.strip_prefix("done ").map(str::to_owned)));

        let store = Sqlite::open(&path).unwrap();
        let users = store.users().unwrap();
        for user in &acknowledged {
            let found = users
                .iter()
                .find(|u| u.user.as_str() == user)
                .unwrap_or_else(|| panic!("round {round}: {user} is lost"));
            assert_eq!(found.groups.len(), 1, "round {round}: {user}");
        }
        // Each user is an audit row, each membership one, each rotation one: none without the other.
        let members = store.group(&"VPN1".parse().unwrap()).unwrap();
        assert!(users.len() - members.1.len() <= 1 + round);
        let rotations = members.0.next_epoch.unwrap_or(1) - 1;
        assert_eq!(audit_rows(&path), 1 + users.len() + members.1.len() + usize::try_from(rotations).unwrap());
    }
    files().iter().for_each(|f| drop(std::fs::remove_file(f)));
}

fn audit_rows(path: &Path) -> usize {
    let connection = rusqlite::Connection::open(path).unwrap();
    let rows: i64 = connection.query_row("SELECT COUNT(*) FROM audit", [], |r| r.get(0)).unwrap();
    usize::try_from(rows).unwrap()
}
