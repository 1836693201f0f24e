//! The audit: a row for every change, in a chain that shows what was done to it.

use super::*;
use cug_proto::message::Lapse;
use std::collections::BTreeSet;

/// Somebody with write access to the file, and without the key.
fn alter(f: &Fixture, sql: &str) {
    Connection::open(&f.path).unwrap().execute_batch(sql).unwrap();
}

fn wrong(f: &Fixture) -> String {
    f.store.audit_verify(None).unwrap().wrong.unwrap_or_default()
}

/// Row 5 and others, all sealed.
fn chained() -> Fixture {
    let f = Fixture::new();
    for _ in 0..3 {
        f.store.rotate(BY, &group("VPN1"), &mint).unwrap();
    }
    assert_eq!(wrong(&f), "");
    assert!(f.audit() > 8);
    f
}

#[test]
fn every_field_of_a_row_is_covered() {
    for change in [
        "at = at + 1",
        "actor = 'nobody'",
        "event = 'login'",
        "user = 'C'",
        "user = NULL",
        "card = 'ff'",
        "source = 'remote'",
        "outcome = 'refused'",
        "reason = 'VPN2'",
        "reason = ''",
        // The same bytes, cut elsewhere.
        "event = event || source, source = ''",
        "code = zeroblob(32)",
        "code = NULL",
    ] {
        let f = chained();
        alter(&f, &format!("UPDATE audit SET {change} WHERE id = 5"));
        assert!(wrong(&f).starts_with("row 5 is not as it was written"), "{change}: {}", wrong(&f));
    }
}

#[test]
fn rows_that_are_gone_or_moved_or_new_are_named() {
    let f = chained();
    let last = f.audit();
    for (sql, sentence) in [
        ("DELETE FROM audit WHERE id = 5".to_owned(), "row 5 is missing".to_owned()),
        ("DELETE FROM audit WHERE id IN (5, 6)".into(), "rows 5 to 6 are missing".into()),
        ("DELETE FROM audit WHERE id = 1".into(), "row 1 is missing".into()),
        (
            "DELETE FROM audit WHERE id = 5; UPDATE audit SET id = id - 1 WHERE id > 5".into(),
            "row 5 is not as it was written".into(),
        ),
        (
            "UPDATE audit SET id = -5 WHERE id = 5; UPDATE audit SET id = 5 WHERE id = 6; UPDATE audit SET id = 6 WHERE id = -5".into(),
            "row 5 is not as it was written".into(),
        ),
        (format!("DELETE FROM audit WHERE id = {last}"), format!("row {last} is missing")),
        ("DELETE FROM audit".into(), format!("rows 1 to {last} are missing")),
        (
            "INSERT INTO audit (at, actor, event, outcome, code) VALUES (1, 'x', 'y', 'done', zeroblob(32))".into(),
            format!("row {} is not as it was written", last + 1),
        ),
        // The end cut off, and the head moved back to the last row that is left.
        (
            format!(
                "DELETE FROM audit WHERE id = {last}; UPDATE audit_head SET last = {last} - 1, code = (SELECT code FROM audit WHERE id = {last} - 1)"
            ),
            "the end of the audit is not sealed".into(),
        ),
        ("DELETE FROM audit_head".into(), "the end of the audit is not sealed".into()),
    ] {
        let f = chained();
        alter(&f, &sql);
        assert!(wrong(&f).starts_with(&sentence), "{sql}: {}", wrong(&f));
    }
}

/// Whoever cuts off the end is not helped by what the server writes later, neither while it runs nor after it was started again.
#[test]
fn what_is_written_later_does_not_heal_a_chain() {
    let last = chained().audit();
    let back = format!(
        "DELETE FROM audit WHERE id = {last}; UPDATE sqlite_sequence SET seq = {last} - 1 WHERE name = 'audit';
         UPDATE audit_head SET last = {last} - 1, code = (SELECT code FROM audit WHERE id = {last} - 1)"
    );
    let wiped =
        "DELETE FROM audit; DELETE FROM audit_head; DELETE FROM sqlite_sequence WHERE name = 'audit'".to_owned();
    for sql in [back, wiped] {
        for restart in [false, true] {
            let mut f = chained();
            // A real key comes from its file once the chain has begun.
            f.key = f.key.kept();
            alter(&f, &sql);
            if restart {
                f.store = Sqlite::open(&f.path, &f.key).unwrap();
            }
            f.store.rotate(BY, &group("VPN1"), &mint).unwrap();
            f.store.rotate(BY, &group("VPN1"), &mint).unwrap();
            assert!(wrong(&f).starts_with("the end of the audit is not sealed"), "restart {restart}: {}", wrong(&f));
            let again = Sqlite::open(&f.path, &f.key).unwrap();
            again.rotate(BY, &group("VPN1"), &mint).unwrap();
            assert!(again.audit_verify(None).unwrap().wrong.is_some());
        }
    }
}

#[test]
fn a_code_that_was_noted_is_found_unless_the_database_is_an_older_one() {
    let f = chained();
    let old = path();
    back_up(&f.path, &old, false).unwrap();
    let noted = f.store.audit_verify(None).unwrap().head.unwrap();
    f.store.rotate(BY, &group("VPN1"), &mint).unwrap();
    assert_eq!(f.store.audit_verify(Some(&noted)).unwrap().wrong, None);
    let later = f.store.audit_verify(None).unwrap().head.unwrap();
    let old_store = Sqlite::open(&old, &f.key).unwrap();
    assert_eq!(old_store.audit_verify(None).unwrap().wrong, None, "by itself it is sound");
    assert!(old_store.audit_verify(Some(&later)).unwrap().wrong.is_some());
    let other = AuditKey::random(&mut crate::clock::rng());
    drop(old_store);
    assert!(Sqlite::open(&old, &other).unwrap().audit_verify(None).unwrap().wrong.unwrap().starts_with("row 1 "));
    remove(&old);
}

#[test]
fn queries_by_time_user_and_number() {
    let f = chained();
    let all = f.store.audit(&AuditQuery::default()).unwrap();
    assert_eq!(all.len(), usize::try_from(f.audit()).unwrap());
    assert!(all.windows(2).all(|w| w[1].id == w[0].id + 1));
    let newest = f.store.audit(&AuditQuery { newest: Some(2), ..AuditQuery::default() }).unwrap();
    assert_eq!(newest, all[all.len() - 2..]);
    let after = f.store.audit(&AuditQuery { after: all[3].id, ..AuditQuery::default() }).unwrap();
    assert_eq!(after, all[4..]);
    let b = f.store.audit(&AuditQuery { user: Some(user("B")), ..AuditQuery::default() }).unwrap();
    assert_eq!(b.iter().map(|r| r.event.as_str()).collect::<Vec<_>>(), ["user-add", "card-register", "group-join"]);
    let since = AuditQuery { since: Some(NOW + 1), ..AuditQuery::default() };
    assert!(f.store.audit(&since).unwrap().iter().all(|r| r.event == "audit-begin"));
}

/// Changes of tables that people ask about, counted by triggers; bookkeeping (heartbeats, what terminals are told, notices) is none.
fn count_changes(f: &Fixture) {
    let writer = lock(&f.store.writer);
    writer.connection.execute_batch("CREATE TEMP TABLE changed (n)").unwrap();
    for table in ["user", "card", "closed_group", "group_key", "seat", "membership", "session", "session_group"] {
        for event in ["INSERT", "DELETE", "UPDATE"] {
            let but = if (table, event) == ("session", "UPDATE") { "OF state, user, card, source" } else { "" };
            let sql = format!(
                "CREATE TEMP TRIGGER count_{table}_{event} AFTER {event} {but} ON main.{table} BEGIN INSERT INTO changed VALUES (1); END"
            );
            writer.connection.execute_batch(&sql).unwrap();
        }
    }
}

fn changes(f: &Fixture) -> i64 {
    let writer = lock(&f.store.writer);
    writer.connection.query_row("SELECT COUNT(*) FROM changed", [], |r| r.get(0)).unwrap()
}

/// Who is about to be changed, and that is a method of the store which changes something.
struct Watch<'a> {
    f: &'a Fixture,
    seen: BTreeSet<&'static str>,
}

impl Watch<'_> {
    /// Carries one write out, and looks for its row: who, what and from where are always there.
    fn write<T>(&mut self, method: &'static str, event: &str, work: impl FnOnce(&Sqlite) -> Result<T>) {
        let (changes_before, rows) = (changes(self.f), self.f.audit());
        assert!(work(&self.f.store).is_ok(), "{method}");
        let query = AuditQuery { after: rows, ..AuditQuery::default() };
        let new = self.f.store.audit(&query).unwrap();
        assert!(changes(self.f) == changes_before || !new.is_empty(), "{method} changed something without a row");
        assert!(new.iter().any(|row| row.event == event), "{method}: {new:?}");
        for row in &new {
            assert!(!row.actor.is_empty() && row.source.is_some() && !row.outcome.is_empty(), "{method}: {row:?}");
            let login = ["login", "verify", "session-registered", "session-up", "session-moved", "session-displaced"];
            if login.contains(&row.event.as_str()) || row.event.starts_with("card-") {
                assert!(row.card.is_some() && row.user.is_some(), "{method}: {row:?}");
            }
        }
        self.seen.insert(method);
    }
}

#[test]
fn every_write_of_the_store_has_its_row() {
    let f = Fixture::new();
    count_changes(&f);
    let mut watch = Watch { f: &f, seen: BTreeSet::new() };
    let (a, b, c) = (user("A"), user("B"), user("C"));
    let vpn = group("VPN1");
    let facts = LoginFacts { user: &a, card: &[1; 32], source: source(), now: NOW };
    let password = PasswordRecord { salt: [1; 16], hash: [3; 32], memory_kib: 64, iterations: 1, lanes: 1 };
    let place = Place { source: source(), addresses: &[], ports: &[] };
    let new_card = NewCard { fingerprint: [3; 32], user: &c, public_key: &[0], bits: 2048, kind: "piv" };
    let id = f.store.group(&vpn).unwrap().0.id;
    watch.write("login_refused", "login", |s| {
        s.login_refused(&LoginRefused { login: facts, reason: "wrong password", wrong_password: true })
    });
    watch.write("login_verified", "verify", |s| s.login_verified(&facts));
    watch.write("create_session", "login", |_| {
        f.pending(1, "A", 1);
        Ok(())
    });
    watch.write("register", "session-registered", |s| s.register(&[1; 16], NOW));
    watch.write("announce", "session-up", |s| s.announce(&[1; 16], &place, NOW));
    let moved = Place { source: "10.0.0.2".parse().unwrap(), addresses: &[], ports: &[] };
    watch.write("announce", "session-moved", |s| s.announce(&[1; 16], &moved, NOW));
    f.pending(2, "A", 1);
    watch.write("register", "session-displaced", |s| s.register(&[2; 16], NOW));
    watch.write("rotate", "group-rotate", |s| s.rotate(BY, &vpn, &mint));
    watch.write("activate", "group-epoch-active", |s| s.activate(id, 2, &[], NOW));
    watch.write("end_session", "session-clear", |s| {
        s.end_session(&[2; 16], &Ending { event: "session-clear", by: BY, reason: "card removed", tell: None })
    });
    f.up(3, "B", 2);
    watch.write("end_user_session", "session-end", |s| s.end_user_session(BY, &b, &EndReason::Administrator));
    f.up(4, "B", 2);
    watch.write("found", "session-end", |s| {
        let over = Found::Over(Lapse::OutsideHours, "outside of hours");
        s.found(&[(Watched { session: [4; 16], expires: None, hours: None }, over)], NOW)
    });
    watch.write("add_user", "user-add", |s| s.add_user(BY, &c, &password));
    watch.write("set_password", "user-set-password", |s| s.set_password(BY, &c, &password, &UserSettings::default()));
    watch.write("add_group", "group-add", |s| s.add_group(BY, &new_group(&group("VPN9"), None), &mint));
    watch.write("join", "group-join", |s| s.join(BY, &vpn, &c));
    watch.write("add_card", "card-register", |s| s.add_card(BY, &new_card));
    watch.write("revoke_card", "card-revoke", |s| s.revoke_card(BY, &[3; 32], &mint));
    watch.write("disable_user", "user-disable", |s| s.disable_user(BY, &c, &mint));
    watch.write("enable_user", "user-enable", |s| s.enable_user(BY, &c));
    watch.write("leave", "group-leave", |s| s.leave(BY, &vpn, &c, &mint));
    watch.write("import", "user-add", |s| {
        let one = copies::one(1, "D", &["VPN1"]);
        s.import(BY, &Directory { users: vec![one], ..Directory::default() }, &means(), &mut vec![], &mut |_| ())
    });
    accounts_and_keys(&mut watch);
    invitations_and_deletions(&mut watch);
    // Settings are made once, before the chain begins; heartbeats, tidying up, looking again and trying the disk change nothing that anybody decided.
    watch.seen.extend(["set_once", "seen", "prune", "probe", "watch_again"]);

    let methods = include_str!("../mod.rs").lines().filter_map(|l| l.trim().strip_prefix("write "));
    let missing: Vec<_> = methods.filter_map(|l| l.split('(').next()).filter(|m| !watch.seen.contains(m)).collect();
    assert!(missing.is_empty(), "a new write: show here that it leaves its row: {missing:?}");
    assert_eq!(wrong(&f), "");
}

fn accounts_and_keys(watch: &mut Watch<'_>) {
    let (a, vpn) = (user("A"), group("VPN1"));
    let facts = LoginFacts { user: &a, card: &[1; 32], source: source(), now: NOW };
    let password = PasswordRecord { salt: [1; 16], hash: [3; 32], memory_kib: 64, iterations: 1, lanes: 1 };
    let id = watch.f.store.group(&vpn).unwrap().0.id;
    let settings = UserSettings { must_change: Some(true), ..UserSettings::default() };
    watch.write("add_user_with", "user-add", |s| s.add_user_with(BY, &user("E"), &password, &settings));
    watch.write("set_user", "user-set", |s| {
        s.set_user(BY, &user("E"), &UserSettings { must_change: Some(false), ..settings })
    });
    watch.write("login_refused", "login", |s| {
        s.login_refused(&LoginRefused { login: facts, reason: "wrong password", wrong_password: true })
    });
    watch.write("unlock_user", "user-unlock", |s| s.unlock_user(BY, &a));
    watch.write("change_password", "password-change", |s| s.change_password(&facts, &password));
    let dearer = PasswordRecord { memory_kib: 128, ..password.clone() };
    watch.write("upgrade_password", "password-rehash", |s| s.upgrade_password(BY, &a, &password, &dearer));
    let policy = PolicyUpdate { policy: Some(PolicyKind::Closed), ..PolicyUpdate::default() };
    watch.write("set_policy", "group-set", |s| s.set_policy(BY, &vpn, &policy));
    let age = watch.f.store.key_ages().unwrap().into_iter().find(|age| age.group != id).unwrap();
    watch.write("rotate_if", "group-rotate", |s| s.rotate_if(BY, &age, &mint));
    watch.write("rewrap", "server-key-rotate", |s| s.rewrap(BY, "storage-key", "00", &|_, _| Ok(Some(vec![9]))));
    watch.f.up(5, "B", 2);
    watch.write("end_numbered_session", "session-end", |s| s.end_numbered_session(BY, &[5; 16]));
}

fn invitations_and_deletions(watch: &mut Watch<'_>) {
    let (b, c) = (user("B"), user("C"));
    let password = PasswordRecord { salt: [1; 16], hash: [3; 32], memory_kib: 64, iterations: 1, lanes: 1 };
    let invitation = |user| NewInvitation {
        user,
        verifier: &[7; 32],
        groups: &[],
        approve: true,
        replace: false,
        expires: NOW + 10,
    };
    watch.write("invite", "user-invite", |s| s.invite(BY, &invitation(&b)));
    watch.write("uninvite", "user-uninvite", |s| s.uninvite(BY, &b));
    watch.write("enrol_refused", "enrol", |s| s.enrol_refused(&b, source(), "wrong code", NOW));
    watch.f.store.invite(BY, &invitation(&b)).unwrap();
    let host_name = "terminal-1".parse().unwrap();
    let enrolment = NewEnrolment {
        user: &b,
        verifier: &[7; 32],
        password: &password,
        card: None,
        approve: true,
        source: source(),
        host_name: &host_name,
        now: NOW,
    };
    watch.write("enrol", "enrol", |s| s.enrol(&enrolment, &mint));
    watch.write("approve", "user-approve", |s| s.approve(BY, &b, None, &mint));
    watch.write("delete_group", "group-delete", |s| s.delete_group(BY, &group("VPN9")));
    watch.write("delete_user", "user-delete", |s| s.delete_user(BY, &c, &mint));
}

pub(super) fn means() -> ImportMeans<'static> {
    let no_password = &PasswordRecord::none;
    ImportMeans { pool: "100.96.0.0/12".parse().unwrap(), ula: [1; 5], no_password, mint: &mint }
}
