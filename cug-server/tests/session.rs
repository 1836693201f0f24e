//! The session channel: members, displacement, rotation, restart.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::message::*;
use cug_server::{
    admin::{Reply, Request},
    clock,
};

fn users(peers: &[Peer]) -> Vec<&str> {
    let mut users: Vec<_> = peers.iter().map(|p| p.user.as_str()).collect();
    users.sort_unstable();
    users
}

#[tokio::test(flavor = "multi_thread")]
async fn members_learn_of_each_other_and_of_nobody_else() {
    let server = TestServer::start("").await;
    let [a, b, c, _] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let _tc = c.sit_down(&server, "terminal-3").await;
    let grant = b.log_in(&server).await;
    let group = grant.groups[0].id;
    let mut tb = Terminal::attach(&b, &server, grant, &[]).await.ok().unwrap();
    assert_eq!(tb.attached.heartbeat, 15);
    let snapshot = tb.synced().await;
    let [ServerMessage::Peers(snapshot)] = &snapshot[..] else { panic!("one group, one snapshot") };
    assert!(snapshot.full && snapshot.group == group);
    assert_eq!(users(&snapshot.present), ["USER-A"]);
    let endpoints: Vec<_> = snapshot.present[0].endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["127.0.0.1:51820", "192.0.2.8:51820"], "what the server sees comes first");

    assert!(ta.heartbeat().await.is_empty(), "not announced before it is ready");
    tb.announce(4000).await;
    let told = ta.peers().await;
    assert_eq!((users(&told.present), told.full), (vec!["USER-B"], false));
    assert!(told.revision > snapshot.revision);
    tb.announce(4001).await;
    assert_eq!(ta.peers().await.present[0].endpoints[0].port(), 4001, "moved");
    tb.clear().await;
    let told = ta.peers().await;
    assert_eq!(told.gone[0].as_str(), "USER-B");
    let left: Vec<_> = server.sessions().await.into_iter().map(|s| s.user.to_string()).collect();
    assert_eq!(left, ["USER-A", "USER-C"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_login_wins() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    let mut first = a.sit_down(&server, "terminal-1").await;
    let before = tb.peers().await.present.remove(0);
    let lost = first.grant.duplicate();
    let _second = a.sit_down(&server, "terminal-4").await;
    let end = first.next().await;
    assert!(matches!(end, ServerMessage::End(EndReason::Displaced(host)) if host.as_str() == "terminal-4"));
    first.connection.assert_closed().await;
    assert_eq!(tb.peers().await.gone[0].as_str(), "USER-A");
    let after = tb.peers().await.present.remove(0);
    assert_ne!(after.wg_public_key, before.wg_public_key);
    assert_eq!((after.address4, after.address6), (before.address4, before.address6), "the address goes with the user");
    assert_eq!(server.sessions().await.len(), 2);
    // Also a terminal that was not attached at that moment learns why.
    let refusal = Terminal::attach(&a, &server, lost, &[]).await.err().unwrap();
    assert!(matches!(refusal, ServerMessage::End(EndReason::Displaced(host)) if host.as_str() == "terminal-4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn attaching_needs_the_secret_of_the_session() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut grant = a.log_in(&server).await;
    grant.secret = cug_proto::secret::Secret::random(&mut clock::rng());
    let refusal = Terminal::attach(&a, &server, grant, &[]).await.err().unwrap();
    assert!(matches!(refusal, ServerMessage::End(EndReason::Unknown)));
    let LoginResult::Outcome(Outcome::Grant(grant), _pending) = b.attempt().run(&server).await else {
        panic!("no grant")
    };
    let refusal = Terminal::attach(&b, &server, grant, &[]).await.err().unwrap();
    assert!(matches!(refusal, ServerMessage::End(EndReason::Unknown)), "not acknowledged yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_waits_for_all_and_then_activates() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    ta.peers().await;
    server.done(Request::GroupRotate("VPN1".parse().unwrap())).await;
    let key = ta.take_key().await;
    assert_eq!(key.epoch, 2);
    assert!(!key.key.matches(ta.grant.groups[0].key.expose()));
    assert!(ta.heartbeat().await.is_empty(), "not before the other has it");
    assert!(tb.take_key().await.key.matches(key.key.expose()));
    for terminal in [&mut ta, &mut tb] {
        assert!(matches!(terminal.next().await, ServerMessage::Activate(KeyAck { epoch: 2, .. })));
    }
    assert_eq!(a.log_in(&server).await.groups[0].epoch, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_does_not_take_the_key_is_ended() {
    let server = TestServer::start("lease-seconds = 2\nheartbeat-seconds = 1").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    ta.peers().await;
    server.done(Request::GroupRotate("VPN1".parse().unwrap())).await;
    ta.take_key().await;
    assert!(matches!(tb.next().await, ServerMessage::Group(_)));
    let ended = tb.until(|m| matches!(m, ServerMessage::End(EndReason::Protocol)));
    let (mut activated, mut gone) = (false, false);
    let told = ta.until(|message| {
        activated |= matches!(message, ServerMessage::Activate(_));
        gone |= matches!(message, ServerMessage::Peers(p) if !p.gone.is_empty());
        activated && gone
    });
    tokio::join!(ended, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_and_leaving_take_effect_at_once() {
    let server = TestServer::start("").await;
    let [a, b, c, _] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    ta.peers().await;
    let mut tc = c.sit_down(&server, "terminal-3").await;

    server.done(Request::GroupJoin("VPN1".parse().unwrap(), c.user.clone())).await;
    let joined = tc.take_key().await;
    assert_eq!(joined.name.as_str(), "VPN1");
    assert!(joined.key.matches(ta.grant.groups[0].key.expose()));
    assert!(matches!(tc.next().await, ServerMessage::Activate(KeyAck { epoch: 1, .. })), "to be used at once");
    let members = tc.peers().await;
    assert_eq!((members.full, users(&members.present)), (true, vec!["USER-A", "USER-B"]));
    let ports = vec![GroupPort { group: joined.id, port: 7 }];
    tc.connection.send(&ClientMessage::Endpoints(Endpoints { ports, addresses: vec![] })).await;
    for terminal in [&mut ta, &mut tb] {
        assert_eq!(users(&terminal.peers().await.present), ["USER-C"]);
    }

    server.done(Request::GroupLeave("VPN1".parse().unwrap(), c.user.clone())).await;
    assert!(matches!(tc.next().await, ServerMessage::Left(group) if group == joined.id));
    for terminal in [&mut ta, &mut tb] {
        assert_eq!(terminal.peers().await.gone[0].as_str(), "USER-C");
        assert_eq!(terminal.take_key().await.epoch, 2, "the key changes with a member's removal");
    }
    for terminal in [&mut ta, &mut tb] {
        assert!(matches!(terminal.next().await, ServerMessage::Activate(KeyAck { epoch: 2, .. })));
    }
    assert!(tc.heartbeat().await.is_empty(), "nothing of the group any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_end_sessions() {
    let server = TestServer::start("").await;
    let [a, b, c, d] = server.patent().await;
    let fingerprint: String = c.fingerprint.iter().map(|x| format!("{x:02x}")).collect();
    for (person, request, expected) in [
        (&a, Request::SessionEnd(a.user.clone()), EndReason::Administrator),
        (&b, Request::UserDisable(b.user.clone()), EndReason::Disabled(None)),
        (&c, Request::CardRevoke(fingerprint), EndReason::CardRevoked),
        (&d, Request::GroupLeave("VPN2".parse().unwrap(), d.user.clone()), EndReason::NoGroup),
    ] {
        let mut terminal = person.sit_down(&server, "terminal-1").await;
        server.done(request).await;
        loop {
            match terminal.next().await {
                ServerMessage::End(reason) => break assert_eq!(reason, expected),
                ServerMessage::Left(_) | ServerMessage::Group(_) | ServerMessage::Activate(_) => {}
                _ => panic!("another message"),
            }
        }
    }
    assert!(server.sessions().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_lease_and_not_with_its_connection() {
    let server = TestServer::start("lease-seconds = 2\nheartbeat-seconds = 1\nattach-seconds = 5").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let tb = b.sit_down(&server, "terminal-2").await;
    ta.peers().await;
    let grant = tb.grant.duplicate();
    drop(tb);
    assert!(ta.heartbeat().await.is_empty(), "a lost connection is not the end");
    let mut tb = Terminal::attach(&b, &server, grant.duplicate(), &[]).await.ok().unwrap();
    tb.synced().await;
    drop(tb);
    ta.until(|m| matches!(m, ServerMessage::Peers(p) if p.gone.iter().any(|u| u.as_str() == "USER-B"))).await;
    let refusal = Terminal::attach(&b, &server, grant, &[]).await.err().unwrap();
    assert!(matches!(refusal, ServerMessage::End(EndReason::LeaseExpired)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_sessions_and_sends_what_was_missed() {
    let mut server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    let group = ta.grant.groups[0].id;
    let Reply::Groups(_) = server.ask(Request::GroupList).await else { panic!("another reply") };
    let revision = {
        let known = tb.grant.duplicate();
        let mut again = Terminal::attach(&b, &server, known, &[]).await.ok().unwrap();
        let messages = again.synced().await;
        let [ServerMessage::Peers(peers)] = &messages[..] else { panic!("one snapshot") };
        // The earlier connection of this session was replaced.
        tb.connection.assert_closed().await;
        tb = again;
        peers.revision
    };
    let (grant_a, grant_b) = (ta.grant.duplicate(), tb.grant.duplicate());

    server.stop().await;
    tb.connection.assert_closed().await;
    server.done(Request::GroupRotate("VPN1".parse().unwrap())).await;
    assert_eq!(server.sessions().await.len(), 2, "asked directly, no server running");
    server.resume().await;
    assert_eq!(server.sessions().await.len(), 2);

    let known = [Known { group, revision, epoch: 1 }];
    let mut tb = Terminal::attach(&b, &server, grant_b, &known).await.ok().unwrap();
    // Nobody moved: no snapshot; but a key was missed.
    assert!(matches!(tb.next().await, ServerMessage::Activate(KeyAck { epoch: 1, .. })));
    assert_eq!(tb.take_key().await.epoch, 2);
    assert!(tb.synced().await.is_empty());
    assert!(tb.heartbeat().await.is_empty(), "the other one still sleeps");
    let mut ta = Terminal::attach(&a, &server, grant_a, &[]).await.ok().unwrap();
    assert_eq!(ta.take_key().await.epoch, 2);
    for terminal in [&mut ta, &mut tb] {
        loop {
            match terminal.next().await {
                ServerMessage::Activate(KeyAck { epoch: 2, .. }) => break,
                ServerMessage::Peers(_) | ServerMessage::Synced => {}
                _ => panic!("another message"),
            }
        }
    }
    ta.announce(9).await;
    assert_eq!(tb.peers().await.present[0].endpoints[0].port(), 9);
    ta.clear().await;
    assert_eq!(tb.peers().await.gone[0].as_str(), "USER-A");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_goes_on_after_a_restart() {
    let mut server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let tb = b.sit_down(&server, "terminal-2").await;
    let revision = ta.peers().await.revision;
    server.done(Request::GroupRotate("VPN1".parse().unwrap())).await;
    let group = ta.take_key().await.id;
    ta.heartbeat().await;
    server.stop().await;
    server.resume().await;
    // One had acknowledged, the other had not: nobody has to do anything twice.
    let known = |epoch| [Known { group, revision, epoch }];
    let mut ta = Terminal::attach(&a, &server, ta.grant, &known(2)).await.ok().unwrap();
    assert!(matches!(ta.next().await, ServerMessage::Activate(KeyAck { epoch: 1, .. })));
    assert!(ta.synced().await.is_empty());
    let mut tb = Terminal::attach(&b, &server, tb.grant, &known(1)).await.ok().unwrap();
    assert!(matches!(tb.next().await, ServerMessage::Activate(KeyAck { epoch: 1, .. })));
    tb.take_key().await;
    assert!(tb.synced().await.is_empty());
    for terminal in [&mut ta, &mut tb] {
        assert!(matches!(terminal.next().await, ServerMessage::Activate(KeyAck { epoch: 2, .. })));
    }
}

/// Every message that must not come on a session channel ends it, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_misbehaves_loses_its_connection_only() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    let mut grant = a.log_in(&server).await;
    let group = grant.groups[0].id;
    let bad_port = Endpoints { ports: vec![GroupPort { group, port: 0 }], addresses: vec![] };
    let many = Endpoints { ports: vec![], addresses: vec!["192.0.2.1".parse().unwrap(); 9] };
    for message in [
        ClientMessage::Hello(Hello { version: 1, user: a.user.clone(), card: a.fingerprint }),
        ClientMessage::Login(Login { envelope: vec![], proof: [0; 32] }),
        ClientMessage::Ack(Ack { mac: [0; 32] }),
        ClientMessage::Attach(Attach { version: 1, session: [0; 16], proof: [0; 32], known: vec![] }),
        ClientMessage::Endpoints(bad_port),
        ClientMessage::Endpoints(many),
    ] {
        let mut terminal = Terminal::attach(&a, &server, grant, &[]).await.ok().unwrap();
        terminal.synced().await;
        terminal.connection.send(&message).await;
        terminal.connection.assert_closed().await;
        grant = terminal.grant;
    }
    for bytes in [vec![0xff; 8], vec![0, 0, 0, 1, 0xff], vec![0, 0, 0, 0]] {
        let mut terminal = Terminal::attach(&a, &server, grant, &[]).await.ok().unwrap();
        terminal.synced().await;
        terminal.connection.send_raw(&bytes).await;
        terminal.connection.assert_closed().await;
        grant = terminal.grant;
    }
    // A group that is not the user's is not announced in.
    let ports = vec![GroupPort { group: group + 1, port: 5 }];
    let mut terminal = Terminal::attach(&a, &server, grant, &[]).await.ok().unwrap();
    terminal.synced().await;
    terminal.connection.send(&ClientMessage::Endpoints(Endpoints { ports, addresses: vec![] })).await;
    terminal.heartbeat().await;
    let told: Vec<_> = tb
        .heartbeat()
        .await
        .into_iter()
        .filter(|m| matches!(m, ServerMessage::Peers(p) if !p.present.is_empty()))
        .collect();
    assert!(told.is_empty());
}

/// After a restart of the server every terminal announces itself again: in a group of N that must not be N x N messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_make_everybody_hear_of_everybody() {
    let mut server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let tb = b.sit_down(&server, "terminal-2").await;
    let revision = ta.peers().await.revision;
    let group = ta.grant.groups[0].id;
    let (grant_a, grant_b) = (ta.grant.duplicate(), tb.grant.duplicate());
    server.stop().await;
    server.resume().await;
    let known = [Known { group, revision, epoch: 1 }];
    let members =
        |messages: Vec<ServerMessage>| messages.iter().filter(|m| matches!(m, ServerMessage::Peers(_))).count();
    let mut ta = Terminal::attach(&a, &server, grant_a, &known).await.ok().unwrap();
    let mut tb = Terminal::attach(&b, &server, grant_b, &known).await.ok().unwrap();
    assert_eq!(members(ta.synced().await) + members(tb.synced().await), 0);
    ta.announce(51820).await;
    tb.announce(51820).await;
    assert_eq!(members(ta.heartbeat().await) + members(tb.heartbeat().await), 0, "everything was known");
    // The change that follows is heard, so nothing was only late.
    tb.announce(4001).await;
    assert_eq!(ta.peers().await.present[0].endpoints[0].port(), 4001);
}
