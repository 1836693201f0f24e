//! Metrics and health over HTTP, and the dashboard that shows them.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::message::*;
use cug_server::{admin::Request, config::Config, server::Server};
use std::{net::SocketAddr, path::Path};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const METRICS: &str = "[metrics]\nlisten = '127.0.0.1:0'\nmax-groups = 2";

async fn ask(address: SocketAddr, request: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![];
        // A connection that is cut may be reset.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer or the end of the connection")
}

async fn get(server: &TestServer, path: &str) -> String {
    ask(server.metrics(), &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await
}

/// Waits until a line is in the metrics.
async fn wait_for(server: &TestServer, line: &str) {
    let deadline = cug_server::clock::monotonic() + PATIENCE;
    loop {
        let text = get(server, "/metrics").await;
        if text.lines().any(|l| l == line) {
            return;
        }
        assert!(cug_server::clock::monotonic() < deadline, "{line} is not in\n{text}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted() {
    let server = TestServer::start(METRICS).await;
    let [a, b, ..] = server.patent().await;
    let answer = get(&server, "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("application/openmetrics-text"), "{answer}");
    assert!(answer.lines().any(|l| l == "cug_logins_total{outcome=\"granted\"} 0"));
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let _tb = b.sit_down(&server, "terminal-2").await;
    let wrong = Attempt { password: "wrong".into(), ..b.attempt() };
    assert!(matches!(wrong.run(&server).await, LoginResult::Outcome(Outcome::Denied(_), _)));
    let (card, fingerprint) = strangers_key(4);
    let stranger = Person { card, fingerprint, ..a.clone() };
    assert!(matches!(stranger.attempt().run(&server).await, LoginResult::Rejected));
    server.done(Request::GroupRotate("VPN2".parse().unwrap())).await;
    server.done(Request::GroupAdd { group: "VPN3".parse().unwrap(), prefix4: None, prefix6: None }).await;
    ta.heartbeat().await;
    for line in [
        "cug_logins_total{outcome=\"granted\"} 2",
        "cug_logins_total{outcome=\"wrong-password\"} 1",
        "cug_logins_total{outcome=\"rejected\"} 1",
        "cug_login_duration_seconds_count 4",
        "cug_terminals_attached 2",
        "cug_sessions 2",
        "cug_groups 3",
        "cug_groups_omitted 1",
        "cug_group_members{group=\"VPN1\"} 2",
        "cug_group_sessions{group=\"VPN1\"} 2",
        "cug_group_epoch{group=\"VPN2\"} 2",
        "cug_group_rotations_total 1",
        "cug_argon2_pending 0",
        "cug_store_faults_total 0",
        "cug_lease_expiries_total 0",
    ] {
        wait_for(&server, line).await;
    }
    let text = get(&server, "/metrics").await;
    assert!(!text.contains("VPN3"), "more groups than wanted");
    let end: i64 = text
        .lines()
        .find_map(|l| l.strip_prefix("cug_tls_certificate_end_timestamp_seconds "))
        .expect("the certificate's end")
        .parse()
        .unwrap();
    assert!(end > cug_server::clock::unix_now() + 360 * 86_400);
    ta.clear().await;
    wait_for(&server, "cug_terminals_attached 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_is_counted() {
    let extra = format!("lease-seconds = 2\nheartbeat-seconds = 1\n{METRICS}");
    let server = TestServer::start(&extra).await;
    let [a, ..] = server.patent().await;
    drop(a.sit_down(&server, "terminal-1").await);
    wait_for(&server, "cug_lease_expiries_total 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_and_nothing_else() {
    let server = TestServer::start(METRICS).await;
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(&server, "/").await.starts_with("HTTP/1.1 404"));
    let post = "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx";
    assert!(ask(server.metrics(), post).await.starts_with("HTTP/1.1 405"));
    for nonsense in ["\u{0}\r\n\r\n", "GET /\r\n\r\n", &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000))] {
        let answer = ask(server.metrics(), nonsense).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_written_is_not_ready_but_alive() {
    let server = TestServer::start(METRICS).await;
    let database = rusqlite::Connection::open(cug_server::admin::database(&server.config.state_dir)).unwrap();
    // What a probe does, fails.
    database
        .execute_batch(
            "CREATE TRIGGER no_insert BEFORE INSERT ON setting BEGIN SELECT RAISE(ABORT, 'full'); END;
             CREATE TRIGGER no_update BEFORE UPDATE ON setting BEGIN SELECT RAISE(ABORT, 'full'); END;",
        )
        .unwrap();
    let ready = get(&server, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("database"), "{ready}");
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200"));
    wait_for(&server, "cug_store_faults_total 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_in_number_and_time() {
    let server = TestServer::start(METRICS).await;
    let mut idle = vec![];
    for _ in 0..16 {
        idle.push(TcpStream::connect(server.metrics()).await.unwrap());
    }
    assert_eq!(get(&server, "/healthz").await, "", "one too many");
    // Whoever says nothing is cut off, and the place is free again.
    for mut stream in idle {
        let mut rest = vec![];
        let cut = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(cut.is_ok(), "still open");
    }
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_is_off_unless_wanted() {
    let config = Config::parse("", Path::new("server.toml")).unwrap();
    assert_eq!(config.metrics, None);
    let mut server = TestServer::start("").await;
    server.stop().await;
    let running = Server::start(server.config.clone()).await.unwrap();
    assert_eq!(running.metrics_address(), None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_asks_for_metrics_that_exist() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/grafana/cug-server.json");
    let dashboard: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut expressions = vec![];
    collect(&dashboard, &mut expressions);
    assert!(expressions.len() >= 10, "{expressions:?}");
    let server = TestServer::start(METRICS).await;
    server.patent().await;
    let text = get(&server, "/metrics").await;
    let known: Vec<&str> =
        text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
    let mut used = std::collections::BTreeSet::new();
    for expression in &expressions {
        let names =
            expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|w| w.starts_with("cug_"));
        for name in names {
            assert!(known.contains(&name), "{name} of {expression} is not told");
            used.insert(name);
        }
    }
    // And everything that is told is shown, but for the parts of histograms.
    for name in known.iter().filter(|n| n.starts_with("cug_") && !n.ends_with("_sum") && !n.ends_with("_count")) {
        assert!(used.contains(name), "{name} is not on the dashboard");
    }
}

fn collect(value: &serde_json::Value, expressions: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            expressions.extend(map.get("expr").and_then(|e| e.as_str()).map(str::to_owned));
            map.values().for_each(|v| collect(v, expressions));
        }
        serde_json::Value::Array(all) => all.iter().for_each(|v| collect(v, expressions)),
        _ => {}
    }
}
