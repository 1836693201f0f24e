//! Deletions, ends, refusals and status, with real terminals and a real server.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{
    id::{GroupName, UserId},
    message::*,
};
use cug_server::{
    admin::{Password, Reply, Request},
    store::GroupInfo,
};
use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

async fn refused(server: &TestServer, request: Request) -> String {
    match server.ask(request).await {
        Reply::Refused(sentence) => sentence,
        _ => panic!("not refused"),
    }
}

async fn shown(server: &TestServer, name: &str) -> (GroupInfo, Vec<String>) {
    let Reply::Group(info, members) = server.ask(Request::GroupShow(group(name))).await else { panic!("no group") };
    (info, members.into_iter().map(|m| format!("{} {}", m.user, m.overlay4)).collect())
}

fn register(person: &Person) -> Request {
    use rsa::pkcs8::EncodePublicKey;
    let public_key = person.card.to_public_key().to_public_key_der().unwrap().into_vec();
    Request::CardRegister { user: person.user.clone(), public_key, kind: "registered".into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_is_gone_everywhere_but_in_the_audit() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    ta.peers().await;
    let (_, before) = shown(&server, "VPN1").await;
    server.done(Request::UserDelete(user("USER-A"))).await;
    assert!(matches!(ta.next().await, ServerMessage::End(EndReason::Disabled(None))));
    assert_eq!(tb.peers().await.gone, [user("USER-A")]);
    assert_eq!(tb.take_key().await.epoch, 2, "the group's key changes");
    assert!(refused(&server, Request::UserShow(user("USER-A"))).await.contains("no user USER-A"));
    assert!(refused(&server, Request::UserDelete(user("USER-A"))).await.contains("no user USER-A"));
    assert!(matches!(a.attempt().run(&server).await, LoginResult::Rejected));

    // The ID may be given again; neither card nor overlay address comes with it.
    let password = Password::new(b"passwd9").unwrap();
    server
        .done(Request::UserAdd { user: user("USER-A"), password, settings: cug_server::store::UserSettings::default() })
        .await;
    assert!(refused(&server, register(&a)).await.contains("deleted user"));
    assert!(matches!(a.attempt().run(&server).await, LoginResult::Rejected), "the old card");
    server.done(Request::GroupJoin(group("VPN1"), user("USER-A"))).await;
    let (info, after) = shown(&server, "VPN1").await;
    assert_eq!(info.members, 2);
    assert!(
        after.iter().all(|member| !before.iter().any(|old| old == member && old.starts_with("USER-A"))),
        "{after:?}"
    );
    let database = rusqlite::Connection::open(server.config.state_dir.join("cug.db")).unwrap();
    let events = "SELECT group_concat(event, ' ') FROM (SELECT event FROM audit WHERE user = 'USER-A' ORDER BY id)";
    let events: String = database.query_row(events, [], |r| r.get(0)).unwrap();
    let in_order = ["session-up", "session-end", "card-revoke", "user-delete", "user-add", "group-join"];
    let mut rest = events.as_str();
    for event in in_order {
        rest = rest.split_once(event).unwrap_or_else(|| panic!("no {event} in its place: {events}")).1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_group_is_left_by_all_and_ends_who_has_no_other() {
    let server = TestServer::start("").await;
    let [a, b, c, _] = server.patent().await;
    server.done(Request::GroupJoin(group("VPN2"), user("USER-A"))).await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    let mut tc = c.sit_down(&server, "terminal-3").await;
    for _ in 0..2 {
        ta.peers().await;
    }
    let LoginResult::Outcome(Outcome::Grant(_), mut pending) = b.attempt().run(&server).await else {
        panic!("no grant")
    };
    server.done(Request::GroupDelete(group("VPN1"))).await;
    assert!(!pending.acknowledge().await, "a grant that names the group is void");
    let number = ta.grant.groups[0].id;
    assert!(matches!(ta.next().await, ServerMessage::Left(g) if g == number));
    assert!(ta.heartbeat().await.is_empty(), "goes on in the other group");
    assert!(matches!(tb.next().await, ServerMessage::Left(g) if g == number));
    assert!(matches!(tb.next().await, ServerMessage::End(EndReason::NoGroup)));
    assert!(tc.heartbeat().await.is_empty());
    assert!(refused(&server, Request::GroupDelete(group("VPN1"))).await.contains("no group VPN1"));
    let LoginResult::Outcome(Outcome::Denied(reason), _) = b.attempt().run(&server).await else { panic!("not denied") };
    assert_eq!(reason, DenyReason::NoGroup);
    // The name may be given again, to another group.
    server.done(Request::GroupAdd { group: group("VPN1"), prefix4: None, prefix6: None }).await;
    let (info, members) = shown(&server, "VPN1").await;
    assert!(info.id > number && members.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_deleted_while_its_key_changes() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    server.done(Request::GroupRotate(group("VPN1"))).await;
    server.done(Request::GroupDelete(group("VPN1"))).await;
    ta.until(|m| matches!(m, ServerMessage::End(EndReason::NoGroup))).await;
    let Reply::Status(status) = server.ask(Request::Status).await else { panic!("no status") };
    assert_eq!((status.store.rotating, status.store.groups, status.store.sessions), (0, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_by_its_number() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let _tb = b.sit_down(&server, "terminal-2").await;
    let sessions = server.sessions().await;
    let id = &sessions.iter().find(|s| s.user == user("USER-A")).unwrap().id;
    for bad in ["", "1234567", "zzzzzzzz", "00000000000000000000000000000000"] {
        refused(&server, Request::SessionEndNumber(bad.into())).await;
    }
    server.done(Request::SessionEndNumber(id[..12].to_uppercase())).await;
    ta.until(|m| matches!(m, ServerMessage::End(EndReason::Administrator))).await;
    assert!(refused(&server, Request::SessionEndNumber(id.clone())).await.contains("no such session"));
    assert_eq!(server.sessions().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_what_it_is() {
    let mut server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let terminal = a.sit_down(&server, "terminal-1").await;
    let Reply::Status(status) = server.ask(Request::Status).await else { panic!("no status") };
    assert!(status.running && status.uptime_seconds.is_some() && status.tls_certificate_expires.is_some());
    assert_eq!(status.attached_terminals, Some(1));
    let store = &status.store;
    assert_eq!((store.users, store.groups, store.cards, store.sessions), (4, 2, 4, 1));
    assert!(status.database_bytes > 10_000);
    drop(terminal);
    let detached = async {
        while !matches!(server.ask(Request::Status).await, Reply::Status(s) if s.attached_terminals == Some(0)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, detached).await.expect("the terminal is still counted");
    server.stop().await;
    let Reply::Status(status) = server.ask(Request::Status).await else { panic!("no status") };
    assert!(!status.running && status.attached_terminals.is_none() && status.store.sessions == 1);
}

/// Of administrators who do the same at once, one does it; the others hear that it is done, and nothing is done twice.
#[tokio::test(flavor = "multi_thread")]
async fn administrators_at_the_same_time() {
    let server = TestServer::start("").await;
    server.patent().await;
    type Make = fn() -> Request;
    let cases: [(Make, &str); 5] = [
        (|| Request::UserDisable(user("USER-B")), "already"),
        (|| Request::GroupLeave(group("VPN1"), user("USER-A")), "not in group"),
        (|| Request::GroupAdd { group: group("NEW"), prefix4: None, prefix6: None }, "already"),
        (|| Request::UserDelete(user("USER-C")), "no user"),
        (|| Request::GroupDelete(group("VPN2")), "no group"),
    ];
    for (make, sentence) in cases {
        let replies = [(); 8].map(|()| {
            let config = server.config.clone();
            tokio::task::spawn_blocking(move || cug_server::admin::ask(&config, &make()).unwrap())
        });
        let (mut done, mut lost) = (0, 0);
        for reply in replies {
            match reply.await.unwrap() {
                Reply::Done(_) => done += 1,
                Reply::Refused(why) => {
                    assert!(why.contains(sentence), "{why}");
                    lost += 1;
                }
                _ => panic!("another reply"),
            }
        }
        assert_eq!((done, lost), (1, 7), "{sentence}");
    }
}

/// One request as bytes, and the answer as text.
fn exchange(path: &std::path::Path, request: &[u8]) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&u32::try_from(request.len()).unwrap().to_be_bytes())?;
    stream.write_all(request)?;
    let mut reply = vec![];
    stream.read_to_end(&mut reply)?;
    Ok(String::from_utf8_lossy(reply.get(4..).unwrap_or_default()).into_owned())
}

/// Runs `work` in a process of another user: a thread's credentials cannot be changed without unsafe code.
fn as_user(uid: u32, gid: u32, test: &str, socket: &std::path::Path) -> String {
    let output = std::process::Command::new("setpriv")
        .args([&format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups", "--"])
        .args(["/usr/bin/python3", "-c", ASK, &socket.display().to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{test}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const ASK: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
try:
    s.connect(sys.argv[1])
except PermissionError:
    print("shut")
    sys.exit()
request = b'"user-list"'
s.sendall(len(request).to_bytes(4, "big") + request)
reply = b""
while part := s.recv(65536):
    reply += part
print(reply[4:].decode())
"#;

#[tokio::test(flavor = "multi_thread")]
async fn only_root_and_the_admin_group_may_ask() {
    assert!(nix::unistd::geteuid().is_root(), "the tests of this program run as root");
    for (configured, nobody, daemon) in [("", "shut", "shut"), ("admin-group = 'daemon'", "shut", "users")] {
        let server = TestServer::start(configured).await;
        std::fs::set_permissions(&server.dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let socket = server.config.admin_socket.clone();
        // The kernel shuts strangers out by the socket's mode ...
        assert!(as_user(65534, 65534, "nobody", &socket).starts_with(nobody));
        assert!(as_user(1, 1, "daemon", &socket).contains(daemon));
        // ... and without it the server does, by their credentials.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let reply = as_user(65534, 65534, "nobody", &socket);
        assert!(reply.contains("may not administer") && !reply.contains("users"), "{reply}");
        // The account database counts, not what groups a process still has.
        assert!(as_user(65534, 1, "nobody with the group", &socket).contains("may not administer"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_not_there_keeps_the_server_from_starting() {
    let mut server = TestServer::start("").await;
    server.stop().await;
    let mut config = server.config.clone();
    config.admin_group = Some("no-such-group".into());
    let error = cug_server::server::Server::start(config).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("no-such-group"), "{error:#}");
}

/// What the command line would never send: the socket takes it and says no.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_on_the_socket_change_nothing() {
    let server = TestServer::start("").await;
    server.patent().await;
    let names =
        ["", "../x", "-x", "a\\u0000b", "a\\u001b[31m", "\\u202eb", "a b", "a/b", "a\\nb", "ü", &"x".repeat(33)];
    for name in names {
        for request in ["user-show", "user-delete", "user-disable", "group-delete", "session-end"] {
            let socket = server.config.admin_socket.clone();
            let request = format!("{{\"{request}\": \"{name}\"}}");
            let reply =
                tokio::task::spawn_blocking(move || exchange(&socket, request.as_bytes())).await.unwrap().unwrap();
            assert!(reply.contains("not understood"), "{name}: {reply}");
        }
    }
    for junk in [&b"\xff\xfe"[..], b"{", b"null", b"\"no-such-request\"", b""] {
        let socket = server.config.admin_socket.clone();
        let reply = tokio::task::spawn_blocking(move || exchange(&socket, junk)).await.unwrap().unwrap();
        assert!(reply.contains("not understood"), "{reply}");
    }
    let Reply::Users(users) = server.ask(Request::UserList).await else { panic!("no users") };
    assert_eq!(users.len(), 4);
}
