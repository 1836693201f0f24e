//! Permitted hours and the end of accounts, over real connections; and by a clock that is a value.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::message::*;
use cug_server::{
    admin::{ExportUser, Reply, Request},
    clock::{self, UnixTime},
    hub::closing::{Looked, look},
    import::{Format, parse},
    store::{AuditQuery, AuditRow, Found, Store, UserSettings},
};

const DAY: UnixTime = 86_400;

/// The day of the week so many days from now, by UTC.
fn day(later: i64) -> &'static str {
    // 1970 began on a Thursday.
    let days = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    days[usize::try_from((clock::unix_now() / DAY + later).rem_euclid(7)).unwrap()]
}

/// Hours that are far away from now.
fn closed() -> String {
    format!("{} 08:00-12:00 in UTC", day(3))
}

async fn set_hours(server: &TestServer, person: &Person, hours: &str) {
    let hours = Some((hours != "always").then(|| hours.parse().unwrap()));
    set(server, person, UserSettings { hours, ..UserSettings::default() }).await;
}

async fn set(server: &TestServer, person: &Person, settings: UserSettings) {
    server.done(Request::UserSet(person.user.clone(), settings)).await;
}

async fn denied(attempt: &Attempt, server: &TestServer) -> DenyReason {
    match attempt.run(server).await {
        LoginResult::Outcome(Outcome::Denied(reason), _) => reason,
        _ => panic!("not denied"),
    }
}

async fn audit(server: &TestServer) -> Vec<AuditRow> {
    match server.ask(Request::Audit(AuditQuery::default())).await {
        Reply::Audit(rows) => rows,
        _ => panic!("another reply"),
    }
}

async fn end(terminal: &mut Terminal) -> EndReason {
    loop {
        if let ServerMessage::End(reason) = terminal.next().await {
            return reason;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_the_hours_a_login_is_refused_and_told_when_it_will_not_be() {
    let server = TestServer::start("time-zone = 'UTC'").await;
    let [a, b, ..] = server.patent().await;
    set_hours(&server, &a, &closed()).await;
    for purpose in [Purpose::Open, Purpose::Verify] {
        let attempt = Attempt { purpose, ..a.attempt() };
        let DenyReason::OutsideHours(Some(told)) = denied(&attempt, &server).await else { panic!("not for the hours") };
        assert_eq!(told.next.unwrap().minute, 480);
        assert!(told.to_string().contains("08:00-12:00; the next time is on "), "{told}");
        let wrong = Attempt { password: "wrong!".into(), ..attempt };
        assert_eq!(denied(&wrong, &server).await, DenyReason::WrongPassword, "told with the right password only");
    }
    b.log_in(&server).await;
    // What is written without a zone is stored with the server's.
    set_hours(&server, &a, "00:00-24:00").await;
    a.log_in(&server).await;
    set_hours(&server, &a, "always").await;
    a.log_in(&server).await;
    let reasons: Vec<_> = audit(&server).await.into_iter().filter_map(|row| row.reason).collect();
    for reason in ["outside of hours", "may log in Mon-Sun 00:00-24:00 in UTC", "may log in always"] {
        assert!(reasons.iter().any(|r| r == reason), "{reason}: {reasons:?}");
    }
}

/// Stored by an administrator with tzdata, and then it was removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_is_gone_refuses_whom_it_concerns_and_nobody_else() {
    let mut server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    set_hours(&server, &a, "00:00-24:00 in Europe/Berlin").await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    server.stop().await;
    let database = rusqlite::Connection::open(server.config.state_dir.join("cug.db")).unwrap();
    let gone = "UPDATE user SET hours = 'Mon-Sun 00:00-24:00 in Europe/Gone' WHERE hours IS NOT NULL";
    assert_eq!(database.execute(gone, []).unwrap(), 1);
    drop(database);
    server.resume().await;
    assert_eq!(denied(&a.attempt(), &server).await, DenyReason::OutsideHours(None));
    b.log_in(&server).await;
    let unusable = |row: &AuditRow| row.reason.as_deref() == Some("time zone of the hours cannot be used");
    let rows: Vec<_> = audit(&server).await.into_iter().filter(unusable).map(|row| row.event).collect();
    assert!(rows.contains(&"login".into()) && rows.contains(&"session-end".into()), "{rows:?}");
    let _closed = ta.connection.receive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_the_hours_and_with_the_account() {
    let server = TestServer::start("").await;
    let [a, b, c, d] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    let mut tc = c.sit_down(&server, "terminal-3").await;
    set_hours(&server, &a, &closed()).await;
    assert_eq!(end(&mut ta).await, EndReason::Disabled(Some(Lapse::OutsideHours)));
    // It ends when its time has come, and not only when somebody sets something.
    set(&server, &c, UserSettings { expires: Some(Some(clock::unix_now() + 2)), ..UserSettings::default() }).await;
    assert_eq!(end(&mut tc).await, EndReason::Disabled(Some(Lapse::Expired)));
    // Also where it was set before the login.
    set(&server, &d, UserSettings { expires: Some(Some(clock::unix_now() + 3)), ..UserSettings::default() }).await;
    let mut td = d.sit_down(&server, "terminal-4").await;
    assert_eq!(end(&mut td).await, EndReason::Disabled(Some(Lapse::Expired)));
    tb.heartbeat().await;
    let ends: Vec<_> = audit(&server).await.into_iter().filter(|row| row.event == "session-end").collect();
    let told = |user: &str, reason: &str| {
        ends.iter().any(|row| {
            row.user.as_deref() == Some(user) && row.reason.as_deref() == Some(reason) && row.actor == "server"
        })
    };
    assert!(
        told("USER-A", "outside of hours") && told("USER-C", "account expired") && told("USER-D", "account expired")
    );
    assert_eq!(server.sessions().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_may_be_let_outlast_the_hours_and_never_the_account() {
    let server = TestServer::start("[hours]\nend-sessions = false").await;
    let [a, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    set_hours(&server, &a, &closed()).await;
    assert!(matches!(denied(&a.attempt(), &server).await, DenyReason::OutsideHours(Some(_))));
    set(&server, &a, UserSettings { expires: Some(Some(clock::unix_now() + 1)), ..UserSettings::default() }).await;
    assert_eq!(end(&mut ta).await, EndReason::Disabled(Some(Lapse::Expired)));
}

/// The same by a clock that is a value, on the store of a server that stands still.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_looked_at_when_it_begins_and_when_its_time_has_come() {
    let mut server = TestServer::start("").await;
    let [a, b, c, ..] = server.patent().await;
    let (today, tomorrow) = (day(0), day(1));
    set_hours(&server, &a, &format!("{today},{tomorrow} 00:00-24:00 in UTC")).await;
    let _sitting = [a.sit_down(&server, "terminal-1").await, b.sit_down(&server, "terminal-2").await];
    server.stop().await;
    let (config, keys) = (&server.config, cug_server::keys::Keys::load(&server.config.state_dir).unwrap());
    let store = cug_server::admin::open_store(&config.state_dir, &keys).unwrap();
    let now = clock::unix_now();
    let close = (now / DAY + 2) * DAY;
    store.watch_again().unwrap();
    let (watched, _) = store.watched(now).unwrap();
    assert_eq!(watched.len(), 1, "nobody looks at a session whose user has no end");
    look(&store, config, now).unwrap();
    let nothing = Looked { ended: 0, next: Some(close) };
    for at in [now, close - 1] {
        assert_eq!(look(&store, config, at).unwrap(), nothing);
    }
    assert_eq!(store.sessions().unwrap().len(), 2);

    // What an administrator sets meanwhile is not overrun.
    let by = cug_server::store::By { actor: "test", now };
    let found: Vec<_> =
        store.watched(close).unwrap().0.into_iter().map(|w| (w, Found::Over(Lapse::OutsideHours, "x"))).collect();
    let longer = UserSettings { hours: Some(Some("00:00-24:00 in UTC".parse().unwrap())), ..UserSettings::default() };
    store.set_user(by, &a.user, &longer).unwrap();
    assert_eq!((found.len(), store.found(&found, close).unwrap()), (1, 0));
    look(&store, config, close).unwrap();
    assert_eq!(look(&store, config, close + 30 * DAY).unwrap(), Looked { ended: 0, next: None });

    let shorter = UserSettings {
        hours: Some(Some(format!("{today} 00:00-24:00 in UTC").parse().unwrap())),
        ..UserSettings::default()
    };
    store.set_user(by, &a.user, &shorter).unwrap();
    assert_eq!(look(&store, config, close - DAY).unwrap().ended, 1);
    let left: Vec<_> = store.sessions().unwrap().into_iter().map(|s| s.user).collect();
    assert_eq!(left, std::slice::from_ref(&b.user));
    drop((store, c));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_brings_expiry_and_hours_and_an_export_has_them() {
    let server = TestServer::start("").await;
    let directory = |csv: &str| parse(Format::Csv, csv.as_bytes()).unwrap();
    let csv = "user,expires,hours\nA,2031-12-31,Mon-Fri 07:00-19:00 in Europe/Berlin\nB,,\nC,never,Sat 07:00-19:00\n";
    server.done(Request::Import(directory(csv))).await;
    let Reply::Export(export) = server.ask(Request::Export { secrets: false }).await else { panic!("another reply") };
    let seen = |user: &ExportUser| (user.expires.clone(), user.hours.as_ref().map(ToString::to_string));
    let [a, b, c] = export.users.as_slice() else { panic!("{export:?}") };
    assert_eq!(seen(a), (Some("2032-01-01T00:00:00Z".into()), Some("Mon-Fri 07:00-19:00 in Europe/Berlin".into())));
    assert_eq!(seen(b), (None, None));
    // The zone that counts at the import counts wherever this is imported next.
    assert!(seen(c).1.unwrap().starts_with("Sat 07:00-19:00 in "));

    // What was exported is the same when it is imported elsewhere.
    let written = serde_json::to_vec(&export).unwrap();
    let other = TestServer::start("").await;
    other.done(Request::Import(parse(Format::Json, &written).unwrap())).await;
    let Reply::Export(again) = other.ask(Request::Export { secrets: false }).await else { panic!("another reply") };
    assert_eq!(serde_json::to_value(&again.users).unwrap(), serde_json::to_value(&export.users).unwrap());

    // A zone that nobody knows keeps everything out, and its line is named.
    let bad = directory("user,hours\nD,\nE,Mon 07:00-19:00 in Nowhere/Atall\n");
    let Reply::BadLines(lines) = server.ask(Request::Import(bad)).await else { panic!("another reply") };
    assert!(
        matches!(lines.as_slice(), [line] if line.line == 3 && line.problem.contains("Nowhere/Atall")),
        "{lines:?}"
    );
    let Reply::Export(after) = server.ask(Request::Export { secrets: false }).await else { panic!("another reply") };
    assert_eq!(after.users.len(), 3);
}
