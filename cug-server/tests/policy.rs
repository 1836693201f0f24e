//! A group's policy on its way to the terminals.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{
    message::*,
    policy::{Allow, MAX_ALLOW, Policy},
};
use cug_server::{
    admin::{Reply, Request},
    store::{PolicyKind, PolicyUpdate},
};

fn allow(networks: &[&str]) -> Vec<Allow> {
    networks.iter().map(|n| n.parse().unwrap()).collect()
}

fn closed(networks: &[&str]) -> PolicyUpdate {
    PolicyUpdate { policy: Some(PolicyKind::Closed), allow: allow(networks), remove: vec![] }
}

fn set(group: &str, update: PolicyUpdate) -> Request {
    Request::GroupSet(group.parse().unwrap(), update)
}

async fn refused(server: &TestServer, request: Request) -> String {
    match server.ask(request).await {
        Reply::Refused(sentence) => sentence,
        _ => panic!("not refused"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_members_at_once_and_nobody_else() {
    let server = TestServer::start("").await;
    let [a, b, c, _] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    let mut tc = c.sit_down(&server, "terminal-3").await;
    ta.peers().await;
    assert_eq!(ta.grant.groups[0].policy, Policy::Open);

    let begin = cug_server::clock::monotonic();
    server.done(set("VPN1", closed(&["192.0.2.7:53", "10.0.0.0/8"]))).await;
    let expected = Policy::Closed(allow(&["10.0.0.0/8", "192.0.2.7:53"]));
    for terminal in [&mut ta, &mut tb] {
        let group = terminal.take_key().await;
        assert_eq!((group.epoch, &group.policy), (1, &expected), "the same epoch, another policy");
        assert!(group.key.matches(terminal.grant.groups[0].key.expose()));
    }
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "told after {:?}", begin.elapsed());
    assert!(tc.heartbeat().await.is_empty(), "another group's policy");

    let remove = PolicyUpdate { remove: allow(&["10.0.0.0/8"]), ..PolicyUpdate::default() };
    server.done(set("VPN1", remove)).await;
    assert_eq!(ta.take_key().await.policy, Policy::Closed(allow(&["192.0.2.7:53"])));
    server.done(set("VPN1", PolicyUpdate { policy: Some(PolicyKind::Open), ..PolicyUpdate::default() })).await;
    assert_eq!(ta.take_key().await.policy, Policy::Open);
    assert!(ta.heartbeat().await.is_empty());
    // A login from now on gets the policy with the grant.
    server.done(set("VPN1", closed(&[]))).await;
    assert_eq!(
        b.log_in(&server).await.groups[0].policy,
        Policy::Closed(allow(&["192.0.2.7:53"])),
        "exceptions are kept"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_was_not_there_gets_it_when_it_attaches() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    // Between the grant and the first attach, when the terminal has nothing to compare.
    let grant = a.log_in(&server).await;
    server.done(set("VPN1", closed(&["10.0.0.0/8"]))).await;
    let mut ta = Terminal::attach(&a, &server, grant.duplicate(), &[]).await.ok().unwrap();
    let first = ta.synced().await;
    let [ServerMessage::Group(sealed), ServerMessage::Peers(_)] = &first[..] else { panic!("no policy") };
    assert_eq!(ta.keys.open_group(sealed).unwrap().policy, Policy::Closed(allow(&["10.0.0.0/8"])));

    // While the connection is away, with everything else known.
    let (group, revision) = match &first[1] {
        ServerMessage::Peers(peers) => (peers.group, peers.revision),
        _ => panic!("no members"),
    };
    drop(ta);
    server.done(set("VPN1", closed(&["172.16.0.0/12"]))).await;
    let known = [Known { group, revision, epoch: 1 }];
    let mut ta = Terminal::attach(&a, &server, grant, &known).await.ok().unwrap();
    let again = ta.synced().await;
    let policies: Vec<_> = again
        .iter()
        .filter_map(|m| match m {
            ServerMessage::Group(sealed) => Some(ta.keys.open_group(sealed).unwrap().policy),
            _ => None,
        })
        .collect();
    assert_eq!(policies, [Policy::Closed(allow(&["10.0.0.0/8", "172.16.0.0/12"]))]);

    // Who logged in after the change has it already.
    let grant = b.log_in(&server).await;
    let mut tb = Terminal::attach(&b, &server, grant, &[]).await.ok().unwrap();
    assert!(tb.synced().await.iter().all(|m| matches!(m, ServerMessage::Peers(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_during_a_rotation_reaches_both_epochs() {
    let server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    ta.peers().await;
    server.done(Request::GroupRotate("VPN1".parse().unwrap())).await;
    assert_eq!(ta.take_key().await.epoch, 2);
    // B has not acknowledged: the rotation is under way.
    assert!(matches!(tb.next().await, ServerMessage::Group(_)));
    server.done(set("VPN1", closed(&[]))).await;
    for epoch in [1, 2] {
        let group = ta.take_key().await;
        assert_eq!((group.epoch, group.policy), (epoch, Policy::Closed(vec![])));
    }
    assert!(matches!(tb.next().await, ServerMessage::Group(SealedGroup { epoch: 1, .. })));
    assert_eq!(tb.take_key().await.epoch, 2);
    for terminal in [&mut ta, &mut tb] {
        assert!(matches!(terminal.next().await, ServerMessage::Activate(KeyAck { epoch: 2, .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_in_as_many_groups_as_there_may_be_logs_in() {
    let server = TestServer::start("").await;
    let person = server.person("USER-A", "passwd1", 0).await;
    let networks: Vec<_> = (0..MAX_ALLOW).map(|i| format!("[2001:db8:ffff:ffff:ffff:ffff:ffff:{i:x}]:65535")).collect();
    let networks: Vec<_> = networks.iter().map(String::as_str).collect();
    for i in 0..MAX_GROUPS {
        let name = format!("{i:0>32}");
        server.done(Request::GroupAdd { group: name.parse().unwrap(), prefix4: None, prefix6: None }).await;
        server.done(Request::GroupJoin(name.parse().unwrap(), person.user.clone())).await;
        server.done(set(&name, closed(&networks))).await;
    }
    let grant = person.log_in(&server).await;
    assert_eq!(grant.groups.len(), MAX_GROUPS);
    assert!(grant.groups.iter().all(|g| matches!(&g.policy, Policy::Closed(all) if all.len() == MAX_ALLOW)));
    let mut terminal = Terminal::attach(&person, &server, grant, &[]).await.ok().unwrap();
    terminal.synced().await;
    let one_more = PolicyUpdate { allow: allow(&["10.0.0.0/8"]), ..PolicyUpdate::default() };
    assert!(refused(&server, set(&format!("{:0>32}", 0), one_more)).await.contains("at most 32"));
    assert!(terminal.heartbeat().await.is_empty(), "a refused change tells nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_nothing_is_refused_as_a_whole() {
    let server = TestServer::start("").await;
    server.patent().await;
    assert!(refused(&server, set("VPN9", closed(&[]))).await.contains("no group VPN9"));
    let nothing = PolicyUpdate { policy: Some(PolicyKind::Open), ..PolicyUpdate::default() };
    assert!(refused(&server, set("VPN1", nothing)).await.contains("already"));
    let half = PolicyUpdate { allow: allow(&["10.0.0.0/8"]), remove: allow(&["10.1.0.0/16"]), policy: None };
    assert!(refused(&server, set("VPN1", half)).await.contains("no exception 10.1.0.0/16"));
    let Reply::Group(group, _) = server.ask(Request::GroupShow("VPN1".parse().unwrap())).await else {
        panic!("no group")
    };
    assert!(group.allow.is_empty() && group.policy == PolicyKind::Open, "{group:?}");
}
