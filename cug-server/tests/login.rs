//! The login as its two sides see it, and as an attacker would, over real TLS.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{frame, message::*, secret::Secret};
use cug_server::{admin::Request, clock};

#[tokio::test(flavor = "multi_thread")]
async fn card_and_password_open_the_groups_of_the_user() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let grant = a.log_in(&server).await;
    assert_eq!(grant.groups.len(), 1);
    assert_eq!(grant.groups[0].name.as_str(), "VPN1");
    assert_eq!(grant.groups[0].epoch, 1);
    let other = b.log_in(&server).await;
    assert!(other.groups[0].key.matches(grant.groups[0].key.expose()), "one key for the group");
    assert_ne!(other.groups[0].address4, grant.groups[0].address4);
    let sessions = server.sessions().await;
    assert_eq!(sessions.iter().map(|s| s.user.as_str()).collect::<Vec<_>>(), ["USER-A", "USER-B"]);
    assert_eq!(sessions[0].address.to_string(), "127.0.0.1");
    assert_eq!((sessions[0].state.as_str(), sessions[0].host.as_str()), ("registered", "terminal-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_registered_before_the_acknowledgement() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let LoginResult::Outcome(Outcome::Grant(_), mut pending) = a.attempt().run(&server).await else {
        panic!("no grant")
    };
    assert!(server.sessions().await.is_empty());
    pending.connection.send(&ClientMessage::Ack(Ack { mac: [0; 32] })).await;
    pending.connection.assert_closed().await;
    assert!(server.sessions().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_makes_no_session() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let verify = Attempt { purpose: Purpose::Verify, ..a.attempt() };
    assert!(matches!(verify.run(&server).await, LoginResult::Outcome(Outcome::Verified, _)));
    assert!(server.sessions().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_denied_and_then_costs_time() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let wrong = Attempt { password: "wrong!".into(), ..a.attempt() };
    for _ in 0..3 {
        let result = wrong.run(&server).await;
        assert!(matches!(result, LoginResult::Outcome(Outcome::Denied(DenyReason::WrongPassword), _)));
    }
    let right = a.attempt().run(&server).await;
    assert!(matches!(right, LoginResult::Outcome(Outcome::Denied(DenyReason::TooManyAttempts(1..)), _)));
    b.log_in(&server).await;
    assert_eq!(server.sessions().await.len(), 1);
}

/// P4: another user's card, an unknown user and an unknown card: the same challenge sizes, the same answer.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_card_there_is_one_answer() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let (card, fingerprint) = strangers_key(4);
    let stranger = Person { card, fingerprint, ..a.clone() };
    let attempts = [
        Attempt { hello_user: a.user.clone(), ..b.attempt() },
        Attempt { hello_user: "NOBODY".parse().unwrap(), ..a.attempt() },
        Attempt { hello_user: "NOBODY".parse().unwrap(), ..stranger.attempt() },
        stranger.attempt(),
    ];
    for (i, attempt) in attempts.iter().enumerate() {
        let mut connection = attempt.person.connect(&server).await;
        let hello = Hello { version: 1, user: attempt.hello_user.clone(), card: attempt.person.fingerprint };
        connection.send(&ClientMessage::Hello(hello)).await;
        let Some((ServerMessage::Challenge(challenge), _)) = connection.receive_raw().await else {
            panic!("no challenge")
        };
        assert_eq!(challenge.ciphertext.len(), 256, "{i}");
        assert!(matches!(attempt.run(&server).await, LoginResult::Rejected), "{i}");
    }
    // A card that opens the challenge of another user proves nothing; and nobody was counted against.
    a.log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_users_and_revoked_cards_are_told_so() {
    let server = TestServer::start("").await;
    let [a, b, c, _] = server.patent().await;
    server.done(Request::UserDisable(a.user.clone())).await;
    assert!(matches!(a.attempt().run(&server).await, LoginResult::Outcome(Outcome::Denied(DenyReason::Disabled), _)));
    let fingerprint: String = b.fingerprint.iter().map(|x| format!("{x:02x}")).collect();
    server.done(Request::CardRevoke(fingerprint)).await;
    assert!(matches!(
        b.attempt().run(&server).await,
        LoginResult::Outcome(Outcome::Denied(DenyReason::CardRevoked), _)
    ));
    server.done(Request::GroupLeave("VPN2".parse().unwrap(), c.user.clone())).await;
    assert!(matches!(c.attempt().run(&server).await, LoginResult::Outcome(Outcome::Denied(DenyReason::NoGroup), _)));
    server.done(Request::UserEnable(a.user.clone())).await;
    a.log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_login_is_rejected_elsewhere() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let attempt = a.attempt();
    let (connection, transcript, challenge) = attempt.challenge(&server).await;
    let (recorded, ..) = attempt.login(&connection, &transcript, &challenge);
    let (mut other, ..) = attempt.challenge(&server).await;
    other.send(&ClientMessage::Login(recorded)).await;
    assert!(matches!(other.receive().await, Some(ServerMessage::Rejected)));
    other.assert_closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_in_the_envelope_must_be_the_one_of_the_card() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut attempt = a.attempt();
    attempt.person.user = b.user.clone();
    let result = attempt.run(&server).await;
    assert!(matches!(result, LoginResult::Outcome(Outcome::Denied(DenyReason::BadRequest), _)));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_told_which_one_is_spoken() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let mut connection = a.connect(&server).await;
    let hello = Hello { version: 2, user: a.user.clone(), card: a.fingerprint };
    connection.send(&ClientMessage::Hello(hello)).await;
    assert!(matches!(connection.receive().await, Some(ServerMessage::Unavailable(Unavailable::Version(1)))));
    connection.assert_closed().await;
}

/// Every message in every state of a login where it must not come.
#[tokio::test(flavor = "multi_thread")]
async fn messages_out_of_order_end_the_connection() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let hello = || ClientMessage::Hello(Hello { version: 1, user: a.user.clone(), card: a.fingerprint });
    let login = || ClientMessage::Login(Login { envelope: vec![1], proof: [0; 32] });
    let ack = || ClientMessage::Ack(Ack { mac: [0; 32] });
    let attach = || ClientMessage::Attach(Attach { version: 1, session: [0; 16], proof: [0; 32], known: vec![] });
    let others = || {
        let endpoints = Endpoints { ports: vec![], addresses: vec![] };
        let key = KeyAck { group: 1, epoch: 1 };
        [
            ClientMessage::Endpoints(endpoints),
            ClientMessage::Heartbeat(1),
            ClientMessage::KeyAck(key),
            ClientMessage::Clear(ClearReason::LoggedOut),
        ]
    };
    for first in [login(), ack()].into_iter().chain(others()) {
        let mut connection = a.connect(&server).await;
        connection.send(&first).await;
        connection.assert_closed().await;
    }
    for second in [hello(), ack(), attach()].into_iter().chain(others()) {
        let (mut connection, ..) = a.attempt().challenge(&server).await;
        connection.send(&second).await;
        connection.assert_closed().await;
    }
    for third in [hello(), login(), attach()].into_iter().chain(others()) {
        let LoginResult::Outcome(_, mut pending) = a.attempt().run(&server).await else { panic!("no outcome") };
        pending.connection.send(&third).await;
        pending.connection.assert_closed().await;
    }
    assert!(server.sessions().await.is_empty());
    a.log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_truncated_and_random_frames_end_the_connection_only() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut undisturbed = b.sit_down(&server, "terminal-2").await;
    for round in 0..40_u32 {
        let mut connection = a.connect(&server).await;
        let junk: [u8; 64] = clock::random();
        let bytes = match round % 4 {
            0 => [&u32::try_from(frame::MAX_LOGIN + 1).unwrap().to_be_bytes()[..], &junk].concat(),
            1 => [&[0, 0, 0, 64][..], &junk].concat(),
            2 => junk.to_vec(),
            _ => [&[0, 0, 0, 0][..], &junk].concat(),
        };
        // Of random bytes, the first must not be a small length that waits for more.
        let bytes = if round % 4 == 2 { [&[0xff][..], &bytes[1..]].concat() } else { bytes };
        connection.send_raw(&bytes).await;
        connection.assert_closed().await;
    }
    undisturbed.heartbeat().await;
    a.log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_do_nothing_are_limited_by_source() {
    let server = TestServer::start("max-unauthenticated-per-source = 4").await;
    let [a, b, ..] = server.patent().await;
    let _attached = b.sit_down(&server, "terminal-2").await;
    let mut idle = vec![];
    for _ in 0..4 {
        idle.push(a.connect(&server).await);
    }
    let mut refused = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let start = clock::monotonic();
    assert_eq!(tokio::io::AsyncReadExt::read(&mut refused, &mut [0]).await.unwrap_or(0), 0);
    assert!(start.elapsed().as_secs() < 5, "refused at once, not by the deadline of a login");
    drop(idle);
    // The places come back when the server has noticed that the connections are gone.
    let deadline = clock::monotonic() + PATIENCE;
    loop {
        let mut stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
        let mut byte = [0];
        let closed = tokio::io::AsyncReadExt::read(&mut stream, &mut byte);
        if tokio::time::timeout(std::time::Duration::from_millis(200), closed).await.is_err() {
            break;
        }
        assert!(clock::monotonic() < deadline, "no place came back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_stalls_is_ended() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let LoginResult::Outcome(_, mut pending) = a.attempt().run(&server).await else { panic!("no outcome") };
    let start = clock::monotonic();
    pending.connection.assert_closed().await;
    assert!(start.elapsed().as_secs() < 8, "an acknowledgement has 5 seconds");
    assert!(!pending.acknowledge().await, "too late");
}

/// Not a benchmark: prints what a login takes on this machine (`--nocapture`), with the default cost of the password.
#[tokio::test(flavor = "multi_thread")]
async fn login_latency() {
    let mut server = TestServer::start("").await;
    server.stop().await;
    server.config.argon2 = cug_server::config::Argon2Cost { memory_kib: 19_456, iterations: 2, lanes: 1 };
    server.resume().await;
    let [a, ..] = server.patent().await;
    let mut times = vec![];
    for _ in 0..20 {
        let (connection, transcript, challenge) = a.attempt().challenge(&server).await;
        let attempt = a.attempt();
        let start = clock::monotonic();
        let LoginResult::Outcome(Outcome::Grant(_), mut pending) =
            attempt.answer(connection, transcript, challenge).await
        else {
            panic!("no grant")
        };
        let granted = start.elapsed();
        assert!(pending.acknowledge().await);
        times.push((granted, start.elapsed()));
    }
    times.sort();
    let start = clock::monotonic();
    let (mut connection, ..) = a.attempt().challenge(&server).await;
    let challenged = start.elapsed();
    connection.send(&ClientMessage::Heartbeat(0)).await;
    eprintln!(
        "TLS + challenge (with a software card): {challenged:?}; Login to Outcome, to Registered (median): {:?}",
        times[10]
    );
    let _ = Secret::<32>::random(&mut clock::rng());
}
