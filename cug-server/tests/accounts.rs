//! Passwords and accounts over real connections: change, expiry, lock, upgrade of the hash, a storm.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{message::*, password::PasswordProblem};
use cug_server::{
    admin::{Password, Reply, Request},
    clock,
    store::{PasswordRecord, Sqlite, Store, UserInfo, UserSettings},
};

fn denied(result: LoginResult) -> DenyReason {
    match result {
        LoginResult::Outcome(Outcome::Denied(reason), _) => reason,
        LoginResult::Outcome(..) => panic!("not denied"),
        LoginResult::Unavailable(why) => panic!("unavailable: {why:?}"),
        LoginResult::Rejected | LoginResult::Closed => panic!("no outcome"),
    }
}

async fn info(server: &TestServer, person: &Person) -> UserInfo {
    match server.ask(Request::UserShow(person.user.clone())).await {
        Reply::User(info) => info,
        _ => panic!("another reply"),
    }
}

async fn set(server: &TestServer, person: &Person, settings: UserSettings) {
    server.done(Request::UserSet(person.user.clone(), settings)).await;
}

fn change(person: &Person, purpose: Purpose, new: &str) -> Attempt {
    Attempt { purpose, new_password: Some(new.into()), ..person.attempt() }
}

fn with_password(person: &Person, password: &str) -> Person {
    Person { password: password.into(), ..person.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_changed_with_card_old_and_new_one() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let wrong = Attempt { password: "not-it".into(), ..change(&a, Purpose::ChangePassword, "new-passwd") };
    assert_eq!(denied(wrong.run(&server).await), DenyReason::WrongPassword);
    let right = change(&a, Purpose::ChangePassword, "new-passwd");
    assert!(matches!(right.run(&server).await, LoginResult::Outcome(Outcome::PasswordChanged, _)));
    assert!(server.sessions().await.is_empty(), "a change is no session");
    assert_eq!(denied(a.attempt().run(&server).await), DenyReason::WrongPassword);
    with_password(&a, "new-passwd").log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_has_its_answer_and_the_old_password_stays() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    for (new, problem) in [
        ("short", PasswordProblem::TooShort(6)),
        ("passwd1", PasswordProblem::Unchanged),
        ("I am user-a.", PasswordProblem::UserId),
        ("with\u{7}bell", PasswordProblem::NotText),
    ] {
        for purpose in [Purpose::ChangePassword, Purpose::Open] {
            let reason = denied(change(&a, purpose, new).run(&server).await);
            assert_eq!(reason, DenyReason::NewPassword(problem), "{new}");
        }
    }
    a.log_in(&server).await;
    assert_eq!(info(&server, &a).await.wrong_passwords, 0, "a bad new password is no wrong password");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_where_there_must_be_none_and_none_where_there_must_be() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let verify = change(&a, Purpose::Verify, "new-passwd");
    assert_eq!(denied(verify.run(&server).await), DenyReason::BadRequest);
    let nothing = Attempt { purpose: Purpose::ChangePassword, ..a.attempt() };
    assert_eq!(denied(nothing.run(&server).await), DenyReason::BadRequest);
    a.log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_must_be_changed_opens_nothing_until_it_is() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    set(&server, &a, UserSettings { must_change: Some(true), ..UserSettings::default() }).await;
    assert!(info(&server, &a).await.must_change);
    for purpose in [Purpose::Open, Purpose::Verify] {
        let attempt = Attempt { purpose, ..a.attempt() };
        assert_eq!(denied(attempt.run(&server).await), DenyReason::MustChangePassword);
        let wrong = Attempt { password: "wrong!".into(), ..attempt };
        assert_eq!(denied(wrong.run(&server).await), DenyReason::WrongPassword, "told with the right password only");
    }
    assert!(server.sessions().await.is_empty());
    // One login: the new password, and the session with it.
    let grant = change(&a, Purpose::Open, "new-passwd").log_in(&server).await;
    assert_eq!(grant.groups.len(), 1);
    assert!(!info(&server, &a).await.must_change);
    with_password(&a, "new-passwd").log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_expire_with_age() {
    let mut server = TestServer::start("password.expire-days = 1").await;
    let [a, b, ..] = server.patent().await;
    a.log_in(&server).await;
    server.stop().await;
    let database = rusqlite::Connection::open(server.config.state_dir.join("cug.db")).unwrap();
    database
        .execute(
            "UPDATE user SET created = created - 90000, password_set = password_set - 90000 WHERE name = 'USER-A'",
            [],
        )
        .unwrap();
    // As a database is that comes from before there was this column.
    database.execute("UPDATE user SET password_set = 0, created = created - 90000 WHERE name = 'USER-B'", []).unwrap();
    drop(database);
    server.resume().await;
    assert_eq!(denied(a.attempt().run(&server).await), DenyReason::MustChangePassword);
    assert_eq!(denied(b.attempt().run(&server).await), DenyReason::MustChangePassword);
    change(&a, Purpose::Open, "new-passwd").log_in(&server).await;
    with_password(&a, "new-passwd").log_in(&server).await;
    // The administrator's new password is a new one too.
    let password = Password::new(b"passwd-b").unwrap();
    server.done(Request::UserSetPassword { user: b.user.clone(), password, must_change: false }).await;
    with_password(&b, "passwd-b").log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_has_expired_is_told_so_with_the_right_password_only() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    set(&server, &a, UserSettings { expires: Some(Some(clock::unix_now() - 1)), ..UserSettings::default() }).await;
    assert!(info(&server, &a).await.expired);
    assert_eq!(denied(a.attempt().run(&server).await), DenyReason::Expired);
    let wrong = Attempt { password: "wrong!".into(), ..a.attempt() };
    assert_eq!(denied(wrong.run(&server).await), DenyReason::WrongPassword);
    assert_eq!(denied(change(&a, Purpose::ChangePassword, "new-passwd").run(&server).await), DenyReason::Expired);
    set(&server, &a, UserSettings { expires: Some(Some(clock::unix_now() + 1000)), ..UserSettings::default() }).await;
    a.log_in(&server).await;
    set(&server, &a, UserSettings { expires: Some(None), ..UserSettings::default() }).await;
    a.log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unlock_ends_the_wait() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    // Without the right card nothing is counted.
    let (card, fingerprint) = strangers_key(4);
    let stranger = Person { card, fingerprint, password: "wrong!".into(), ..a.clone() };
    for _ in 0..6 {
        assert!(matches!(stranger.attempt().run(&server).await, LoginResult::Rejected));
    }
    assert_eq!(info(&server, &a).await.wrong_passwords, 0);
    let wrong = Attempt { password: "wrong!".into(), ..a.attempt() };
    let mut tries = 0;
    while denied(wrong.run(&server).await) == DenyReason::WrongPassword {
        tries += 1;
        assert!(tries < 20, "nobody says that these are too many");
    }
    assert!(tries >= 3, "{tries}");
    assert!(info(&server, &a).await.wrong_passwords >= 3);
    server.done(Request::UserUnlock(a.user.clone())).await;
    assert_eq!(info(&server, &a).await.wrong_passwords, 0);
    a.log_in(&server).await;
    for user in [&a.user, &b.user, &"NOBODY".parse().unwrap()] {
        assert!(matches!(server.ask(Request::UserUnlock(user.clone())).await, Reply::Refused(_)), "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_a_password_refuses_every_one_of_them() {
    let mut server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    server.stop().await;
    let keys = cug_server::keys::Keys::load(&server.config.state_dir).unwrap();
    let store = Sqlite::open(&server.config.state_dir.join("cug.db"), keys.audit()).unwrap();
    let by = cug_server::store::By { actor: "test", now: clock::unix_now() };
    store.set_password(by, &a.user, &PasswordRecord::none(), &UserSettings::default()).unwrap();
    drop(store);
    server.resume().await;
    for password in ["", "\0", "passwd1"] {
        let attempt = Attempt { password: password.into(), ..a.attempt() };
        assert_eq!(denied(attempt.run(&server).await), DenyReason::WrongPassword);
    }
    assert!(!info(&server, &a).await.has_password && info(&server, &b).await.has_password);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_hash_is_made_again_at_the_next_right_login() {
    let mut server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    server.stop().await;
    server.config.argon2 = cug_server::config::Argon2Cost { memory_kib: 128, iterations: 2, lanes: 1 };
    server.resume().await;
    let database = server.config.state_dir.join("cug.db");
    let cost = |user: &str| {
        let database = rusqlite::Connection::open(&database).unwrap();
        let sql = "SELECT memory_kib, iterations FROM user WHERE name = ?1";
        database.query_row(sql, [user], |r| Ok((r.get::<_, u32>(0)?, r.get::<_, u32>(1)?))).unwrap()
    };
    let wrong = Attempt { password: "wrong!".into(), ..b.attempt() };
    assert_eq!(denied(wrong.run(&server).await), DenyReason::WrongPassword);
    a.log_in(&server).await;
    let deadline = clock::monotonic() + PATIENCE;
    while cost("USER-A") != (128, 2) {
        assert!(clock::monotonic() < deadline, "{:?}", cost("USER-A"));
        tokio::task::yield_now().await;
    }
    assert_eq!(cost("USER-B"), (64, 1), "a wrong password upgrades nothing");
    a.log_in(&server).await;
    // And it does not go down again.
    server.stop().await;
    server.config.argon2.memory_kib = 64;
    server.config.argon2.iterations = 1;
    server.resume().await;
    a.log_in(&server).await;
    server.stop().await;
    assert_eq!(cost("USER-A"), (128, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_hold_for_the_administrator_too() {
    let server = TestServer::start("password.expire-days = 7").await;
    let [a, ..] = server.patent().await;
    let refused = |reply| match reply {
        Reply::Refused(sentence) => sentence,
        _ => panic!("not refused"),
    };
    let password = |text: &str| Password::new(text.as_bytes()).unwrap();
    let short = Request::UserSetPassword { user: a.user.clone(), password: password("12345"), must_change: false };
    assert!(refused(server.ask(short).await).contains("at least 6 characters"));
    let user: cug_proto::id::UserId = "NEW-ONE".parse().unwrap();
    let named =
        Request::UserAdd { user: user.clone(), password: password("new-one1"), settings: UserSettings::default() };
    assert!(refused(server.ask(named).await).contains("user ID"));
    assert!(matches!(server.ask(Request::UserShow(user)).await, Reply::Refused(_)), "nothing was added");
    a.log_in(&server).await;
    let nothing = Request::UserSet(a.user.clone(), UserSettings::default());
    assert!(refused(server.ask(nothing).await).contains("nothing to set"));
}

/// Who connects too often is turned away before the handshake; who is attached, or sits elsewhere, does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_connects_too_often_is_turned_away() {
    let server = TestServer::start("connections-per-second-per-source = 1\nconnection-burst-per-source = 4").await;
    let [_, b, ..] = server.patent().await;
    let mut attached = b.sit_down(&server, "terminal-2").await;
    // Two connections are left of the four, and one more comes each second.
    let deadline = clock::monotonic() + PATIENCE;
    while lets_in(&server).await {
        assert!(clock::monotonic() < deadline, "never turned away");
    }
    attached.heartbeat().await;
    let deadline = clock::monotonic() + PATIENCE;
    while !lets_in(&server).await {
        assert!(clock::monotonic() < deadline, "never let in again");
    }
}

/// Whether the server waits for a handshake, and does not hang up.
async fn lets_in(server: &TestServer) -> bool {
    let mut stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let mut byte = [0];
    let closed = tokio::io::AsyncReadExt::read(&mut stream, &mut byte);
    tokio::time::timeout(std::time::Duration::from_millis(100), closed).await.is_err()
}
