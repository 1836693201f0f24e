//! Keys change while the server runs: groups', the one of the database, the one of TLS.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{id::GroupName, message::*, trust};
use cug_server::{
    admin::{self, Reply, Request},
    clock,
    keys::Keys,
    server::Server,
    store::{By, Sqlite, Store},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

fn vpn1() -> GroupName {
    "VPN1".parse().unwrap()
}

async fn groups_of(server: &TestServer) -> Vec<cug_server::store::GroupInfo> {
    let Reply::Groups(groups) = server.ask(Request::GroupList).await else { panic!("another reply") };
    groups
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

async fn activated(terminal: &mut Terminal, wanted: u32) {
    terminal.until(|m| matches!(m, ServerMessage::Activate(KeyAck { epoch, .. }) if *epoch == wanted)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reason_begins_an_epoch() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let user = b.user.clone();
    let reasons = [
        Request::GroupRotate(vpn1()),
        Request::GroupLeave(vpn1(), user.clone()),
        Request::CardRevoke(hex(&b.fingerprint)),
        Request::UserDisable(user.clone()),
    ];
    let mut keys = vec![ta.grant.groups[0].key.expose().to_vec()];
    for (epoch, reason) in (2..).zip(reasons) {
        server.done(reason).await;
        let key = ta.take_key().await;
        assert_eq!(key.epoch, epoch);
        assert!(!keys.contains(&key.key.expose().to_vec()), "a key that was used before");
        keys.push(key.key.expose().to_vec());
        activated(&mut ta, epoch).await;
        if epoch == 3 {
            server.done(Request::GroupJoin(vpn1(), user.clone())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_goes_by_what_the_store_says() {
    let mut server = TestServer::start("[keys]\nrotate-every = '24h'").await;
    let [a, _, c, _] = server.patent().await;
    let ta = a.sit_down(&server, "terminal-1").await;
    let mut tc = c.sit_down(&server, "terminal-3").await;
    server.stop().await;
    let database = rusqlite::Connection::open(admin::database(&server.config.state_dir)).unwrap();
    let day_ago = clock::unix_now() - 86_400;
    database.execute("UPDATE closed_group SET rotated = ?1 WHERE name = 'VPN1'", [day_ago]).unwrap();
    drop(database);
    server.resume().await;
    let mut ta = Terminal::attach(&a, &server, ta.grant, &[]).await.ok().unwrap();
    // It attaches before the schedule is looked at, or after.
    let ServerMessage::Group(sealed) = ta.until(|m| matches!(m, ServerMessage::Group(_))).await else {
        panic!("another")
    };
    let group = ta.keys.open_group(&sealed).unwrap();
    assert_eq!(group.epoch, 2);
    ta.connection.send(&ClientMessage::KeyAck(KeyAck { group: group.id, epoch: 2 })).await;
    activated(&mut ta, 2).await;
    tc = Terminal::attach(&c, &server, tc.grant, &[]).await.ok().unwrap();
    tc.synced().await;
    assert!(tc.heartbeat().await.is_empty());
    let epochs: Vec<_> = groups_of(&server).await.iter().map(|g| (g.group.to_string(), g.epoch)).collect();
    assert_eq!(epochs, [("VPN1".to_owned(), 2), ("VPN2".to_owned(), 1)]);
    // It does not do it again, whatever happens to the server.
    server.stop().await;
    server.resume().await;
    let keys = Keys::load(&server.config.state_dir).unwrap();
    let store = Sqlite::open(&admin::database(&server.config.state_dir), keys.audit()).unwrap();
    let ages = store.key_ages().unwrap();
    assert!(ages.iter().all(|age| age.since > clock::unix_now() - 3600 && !age.pending), "{ages:?}");
    let events = store.recent_events(100).unwrap();
    let scheduled: Vec<_> = events.iter().filter(|e| e.actor == "schedule").collect();
    assert_eq!(scheduled.len(), 1, "{events:?}");
    assert_eq!((scheduled[0].event.as_str(), scheduled[0].reason.as_deref()), ("group-rotate", Some("VPN1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_on_changing_by_themselves() {
    let server = TestServer::start("lease-seconds = 2\nheartbeat-seconds = 1\n[keys]\nrotate-every = '4s'").await;
    let [a, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let first = ta.grant.groups[0].epoch;
    for epoch in [first + 1, first + 2] {
        let sealed = ta.until(|m| matches!(m, ServerMessage::Group(_))).await;
        let ServerMessage::Group(sealed) = sealed else { panic!("another message") };
        let group = ta.keys.open_group(&sealed).unwrap();
        assert_eq!(group.epoch, epoch);
        ta.connection.send(&ClientMessage::KeyAck(KeyAck { group: group.id, epoch })).await;
        activated(&mut ta, epoch).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_servers_one_rotates() {
    let server = TestServer::start("").await;
    server.patent().await;
    let path = admin::database(&server.config.state_dir);
    let keys = Keys::load(&server.config.state_dir).unwrap();
    let stores = [(); 2].map(|()| Sqlite::open(&path, keys.audit()).unwrap());
    let by = By { actor: "test", now: clock::unix_now() };
    let age = stores[0].key_ages().unwrap().remove(0);
    let rotate = |store: &Sqlite| store.rotate_if(by, &age, &|_, _| Ok(vec![1; 68])).unwrap();
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| rotate(&stores[0]));
        (rotate(&stores[1]), one.join().unwrap())
    });
    assert_eq!([one, other].iter().flatten().collect::<Vec<_>>(), [&2], "one of them: {one:?} {other:?}");
}

fn key_file(server: &TestServer) -> PathBuf {
    server.config.state_dir.join("keys/storage.key")
}

fn next_of(file: &Path) -> PathBuf {
    PathBuf::from(format!("{}.next", file.display()))
}

/// Names of the keys that the database's secrets are under.
fn key_names(server: &TestServer) -> Vec<Vec<u8>> {
    let database = rusqlite::Connection::open(admin::database(&server.config.state_dir)).unwrap();
    let mut all = vec![];
    for sql in ["SELECT wrapped FROM group_key", "SELECT wrapped_secret FROM session"] {
        let mut query = database.prepare(sql).unwrap();
        let rows = query.query_map([], |r| r.get::<_, Vec<u8>>(0)).unwrap();
        all.extend(rows.map(|row| row.unwrap()[..8].to_vec()));
    }
    all.sort();
    all.dedup();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_database_changes_under_load() {
    let mut server = TestServer::start("").await;
    let people = server.patent().await;
    let [a, ..] = &people;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let (before, file) = (key_names(&server), key_file(&server));
    let old = fs::read(&file).unwrap();
    let rotations = async {
        for _ in 0..6 {
            server.done(Request::ServerKeyRotate).await;
        }
    };
    let logins = |person: Person| {
        let server = &server;
        async move {
            let mut grant = None;
            for _ in 0..6 {
                server.done(Request::GroupRotate("VPN2".parse().unwrap())).await;
                grant = Some(person.log_in(server).await);
            }
            grant.unwrap()
        }
    };
    let [_, b, c, d] = people.clone();
    let ((), gb, gc, gd) = tokio::join!(rotations, logins(b), logins(c), logins(d));
    assert!(ta.heartbeat().await.iter().all(|m| matches!(m, ServerMessage::Peers(_))), "a session that stood");
    let after = key_names(&server);
    assert_eq!(after.len(), 1, "everything is under one key");
    assert_ne!(after, before);
    assert_ne!(fs::read(&file).unwrap(), old);
    assert!(!next_of(&file).exists());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // With nothing in memory of the old keys, all secrets are still good.
    server.stop().await;
    server.resume().await;
    assert_eq!(server.sessions().await.len(), 4);
    for (person, grant) in people.iter().zip([ta.grant, gb, gc, gd]) {
        let mut terminal = Terminal::attach(person, &server, grant, &[]).await.ok().unwrap();
        terminal.synced().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_anywhere_in_a_rotation_loses_nothing() {
    let mut server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let mut grant = a.sit_down(&server, "terminal-1").await.grant;
    let file = key_file(&server);
    let next = next_of(&file);
    let write = |path: &Path, bytes: &[u8]| {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let half = PathBuf::from(format!("{}.new", next.display()));
    for crash in ["while the new key is written", "before the transaction", "after the transaction"] {
        let old = fs::read(&file).unwrap();
        server.stop().await;
        match crash {
            "while the new key is written" => write(&half, b"half"),
            "before the transaction" => write(&next, &[9; 32]),
            _ => {
                server.done(Request::ServerKeyRotate).await;
                fs::rename(&file, &next).unwrap();
                write(&file, &old);
            }
        }
        server.resume().await;
        assert_eq!(fs::read(&file).unwrap() != old, crash != "while the new key is written", "{crash}");
        assert!(!next.exists(), "{crash}");
        assert_eq!(key_names(&server).len(), 1, "{crash}");
        let mut terminal = Terminal::attach(&a, &server, grant, &[]).await.ok().expect(crash);
        terminal.synced().await;
        server.done(Request::ServerKeyRotate).await;
        grant = terminal.grant;
    }
}

async fn start_error(server: &TestServer) -> String {
    format!("{:#}", Server::start(server.config.clone()).await.map(|_| ()).unwrap_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_and_one_that_others_can_read_are_refused() {
    let mut server = TestServer::start("").await;
    server.patent().await;
    server.stop().await;
    let file = key_file(&server);
    let right = fs::read(&file).unwrap();
    fs::write(&file, [7; 32]).unwrap();
    let error = start_error(&server).await;
    assert!(error.contains("storage.key") && error.contains("backup"), "{error}");
    // Nor does an administrator's command, which would wrap under it.
    let config = server.config.clone();
    let asked = tokio::task::spawn_blocking(move || admin::ask(&config, &Request::GroupRotate(vpn1())).map(|_| ()));
    assert!(asked.await.unwrap().unwrap_err().to_string().contains("storage key"));
    fs::write(&file, right).unwrap();
    for exposed in ["storage.key", "envelope.key", "tls.pem", "decoy.key"] {
        let exposed = server.config.state_dir.join("keys").join(exposed);
        fs::set_permissions(&exposed, fs::Permissions::from_mode(0o640)).unwrap();
        let error = start_error(&server).await;
        assert!(error.contains("others can read") && error.contains(exposed.to_str().unwrap()), "{error}");
        fs::set_permissions(&exposed, fs::Permissions::from_mode(0o600)).unwrap();
    }
    server.resume().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_database_may_lie_elsewhere() {
    let mut server = TestServer::start("").await;
    server.stop().await;
    let elsewhere = server.dir.join("elsewhere.key");
    fs::rename(key_file(&server), &elsewhere).unwrap();
    assert!(start_error(&server).await.contains("storage.key"));
    server.config.storage_key = Some(elsewhere.clone());
    server.resume().await;
    let before = fs::read(&elsewhere).unwrap();
    server.done(Request::ServerKeyRotate).await;
    assert_ne!(fs::read(&elsewhere).unwrap(), before);
    assert!(!key_file(&server).exists());
    // Whoever opens the state without the server finds the key there too.
    server.stop().await;
    let copy = server.dir.join("copy.db");
    admin::back_up(&server.config, &copy, false).unwrap();
    admin::restore(&server.config, &copy, false).unwrap();
    let wrong: Vec<_> = admin::check(&server.config).into_iter().filter(|f| f.item == "keys").collect();
    assert!(wrong.iter().all(|f| f.verdict == admin::Verdict::Ok), "{}", wrong[0].text);
    server.resume().await;
}

/// The key that a new connection is shown.
async fn shown(person: &Person, server: &TestServer) -> String {
    let connection = person.connect(server).await;
    let chain = connection.stream.get_ref().1.peer_certificates().unwrap().to_vec();
    hex(&trust::spki_sha256(&chain[0]).unwrap())
}

async fn tls(server: &TestServer, request: Request) -> cug_server::keys::TlsInfo {
    match server.ask(request).await {
        Reply::Tls(info) => info,
        Reply::Refused(sentence) => panic!("{sentence}"),
        _ => panic!("another reply"),
    }
}

async fn pem(server: &TestServer, request: Request) -> String {
    match server.ask(request).await {
        Reply::Pem(pem) => pem,
        Reply::Refused(sentence) => panic!("{sentence}"),
        _ => panic!("another reply"),
    }
}

async fn refused(server: &TestServer, request: Request, part: &str) {
    let Reply::Refused(sentence) = server.ask(request).await else { panic!("not refused, which should say {part}") };
    assert!(sentence.contains(part), "{part} is not in: {sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tls_key_changes_while_sessions_go_on() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let before = shown(&a, &server).await;
    let info = tls(&server, Request::TlsRotate).await;
    assert_ne!(info.key, before);
    assert!(info.renews && info.until_unix > clock::unix_now() + 360 * 86_400);
    assert_eq!(shown(&a, &server).await, info.key, "no restart");
    assert!(ta.heartbeat().await.is_empty(), "the channel that stood was not touched");
    b.sit_down(&server, "terminal-2").await;
    assert_eq!(ta.peers().await.present[0].user.as_str(), "USER-B");
    assert_eq!(tls(&server, Request::TlsShow).await, info);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_ca_may_be_kept_elsewhere() {
    let mut server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let office = TestServer::start("").await; // the same organisation, on another host
    let stranger = server.dir.join("stranger");
    cug_server::keys::create(&stranger, "Another", clock::unix_now()).unwrap();
    let ca = server.config.state_dir.join("keys/ca.key");
    fs::remove_file(&ca).unwrap();
    refused(&server, Request::TlsRotate, "ca.key is not on this host").await;
    refused(&server, Request::TlsInstall(String::new()), "nothing was requested").await;

    let before = shown(&a, &server).await;
    let csr = pem(&server, Request::TlsRequest).await;
    assert!(csr.contains("BEGIN CERTIFICATE REQUEST"));
    refused(&server, Request::TlsSign(csr.clone()), "ca.key is not on this host").await;
    refused(&office, Request::TlsSign("nonsense".into()), "not a certificate signing request").await;
    // A request whose signature is wrong: whoever made it does not have the private key.
    let middle = csr.len() / 2;
    let swapped = if &csr[middle..=middle] == "A" { "B" } else { "A" };
    let forged = format!("{}{swapped}{}", &csr[..middle], &csr[middle + 1..]);
    refused(&office, Request::TlsSign(forged), "not a certificate signing request").await;

    let certificate = pem(&office, Request::TlsSign(csr.clone())).await;
    refused(&server, Request::TlsInstall("nonsense".into()), "not a certificate in PEM").await;
    let foreign = Keys::load(&stranger).unwrap().sign_tls(&csr, clock::unix_now()).unwrap();
    refused(&server, Request::TlsInstall(foreign), "terminals would not accept").await;
    let old = Keys::load(&office.config.state_dir).unwrap();
    let expired = old.sign_tls(&csr, clock::unix_now() - 400 * 86_400).unwrap();
    refused(&server, Request::TlsInstall(expired), "terminals would not accept").await;
    let ca_itself = fs::read_to_string(server.config.state_dir.join("keys/ca.pem")).unwrap();
    refused(&server, Request::TlsInstall(ca_itself), "not for the key that was requested").await;
    assert_eq!(shown(&a, &server).await, before, "nothing of this changed anything");

    let info = tls(&server, Request::TlsInstall(certificate.clone())).await;
    assert!(!info.renews);
    assert_eq!(shown(&a, &server).await, info.key);
    refused(&server, Request::TlsInstall(certificate), "nothing was requested").await;
    // Also without the CA's key the server starts.
    server.stop().await;
    server.resume().await;
    assert_eq!(shown(&a, &server).await, info.key);
    tokio::time::timeout(Duration::from_secs(20), a.log_in(&server)).await.unwrap();
}
