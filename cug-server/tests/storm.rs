//! A whole ward logs in at once: memory stays bounded, who waits too long is told so, and those who sit at their terminals notice nothing.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{message::*, secret::SecretBytes};
use cug_server::{
    admin::{Reply, Request},
    clock,
    config::{Argon2Cost, PoolSize},
    service::PasswordPool,
    store::{By, Store, UserSettings},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, task::JoinHandle};

/// Users who log in. Each has a card of their own.
const CROWD: usize = 32;

/// Memory of one hash: large enough that one for each login would be seen.
const HASH_KIB: u32 = 64 * 1024;

/// Peak memory of this process in KiB, since it was last reset.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// What an attached terminal and an administrator may have to wait, on a machine that does other things too.
const PROMPT: Duration = Duration::from_secs(2);

/// How long something took at most.
#[derive(Default, Debug)]
struct Slowest {
    longest: Duration,
    count: u32,
}

impl Slowest {
    fn note(&mut self, took: Duration) {
        (self.longest, self.count) = (self.longest.max(took), self.count + 1);
    }
}

/// Users with cards, and passwords that cost [`HASH_KIB`]; the server runs with a pool that holds a part of them.
async fn crowd(server: &mut TestServer, others: &[&Person]) -> Vec<Person> {
    let mut crowd = vec![];
    for n in 0..CROWD {
        let person = server.person_with_new_card(&format!("crowd-{n}"), "passwd-of-the-crowd").await;
        server.done(Request::GroupJoin("VPN1".parse().unwrap(), person.user.clone())).await;
        crowd.push(person);
    }
    server.stop().await;
    let cost = Argon2Cost { memory_kib: HASH_KIB, iterations: 1, lanes: 1 };
    let store = cug_server::admin::open_store(
        &server.config.state_dir,
        &cug_server::keys::Keys::load(&server.config.state_dir).unwrap(),
    )
    .unwrap();
    let by = By { actor: "test", now: clock::unix_now() };
    for person in crowd.iter().chain(others.iter().copied()) {
        let secret = SecretBytes::copy_from(person.password.as_bytes()).unwrap();
        let record = PasswordPool::hash(cost, &secret, clock::random()).unwrap();
        store.set_password(by, &person.user, &record, &UserSettings::default()).unwrap();
    }
    drop(store);
    server.config.argon2 = cost;
    server.config.password_pool = PoolSize { workers: 1, queue: 12 };
    server.resume().await;
    crowd
}

/// All of them at once: connections and challenges first, so that all passwords come together. `over` hears of the last answer.
async fn storm(server: &TestServer, crowd: &[Person], over: Arc<Notify>) -> JoinHandle<Vec<LoginResult>> {
    let mut ready = vec![];
    for person in crowd {
        let attempt = person.attempt();
        let (connection, transcript, challenge) = attempt.challenge(server).await;
        ready.push((attempt, connection, transcript, challenge));
    }
    reset_peak();
    tokio::spawn(async move {
        let mut logins = tokio::task::JoinSet::new();
        for (attempt, connection, transcript, challenge) in ready {
            logins.spawn(async move { attempt.answer(connection, transcript, challenge).await });
        }
        let results = logins.join_all().await;
        over.notify_one();
        results
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_logins_starves_nobody_who_is_attached() {
    let mut server = TestServer::start("lease-seconds = 60").await;
    let [a, b, ..] = server.patent().await;
    let crowd = crowd(&mut server, &[&a, &b]).await;
    let mut attached = a.sit_down(&server, "terminal-1").await;

    let over = Arc::new(Notify::new());
    let storm = storm(&server, &crowd, over.clone()).await;
    let before = peak_kib();
    let (mut heartbeats, mut commands) = (Slowest::default(), Slowest::default());
    let ended = over.notified();
    tokio::pin!(ended);
    while tokio::time::timeout(Duration::from_millis(1), &mut ended).await.is_err() {
        let begin = clock::monotonic();
        attached.heartbeat().await;
        heartbeats.note(begin.elapsed());
        let begin = clock::monotonic();
        assert!(matches!(server.ask(Request::SessionList).await, Reply::Sessions(_)));
        commands.note(begin.elapsed());
    }
    let grown = peak_kib().saturating_sub(before);
    let results = storm.await.unwrap();
    let granted = results.iter().filter(|r| matches!(r, LoginResult::Outcome(Outcome::Grant(_), _))).count();
    let busy = results.iter().filter(|r| matches!(r, LoginResult::Unavailable(Unavailable::Busy(_)))).count();
    eprintln!(
        "{granted} granted, {busy} busy of {CROWD}; memory +{} MiB; slowest heartbeat {heartbeats:?}, command {commands:?}",
        grown / 1024,
    );
    assert_eq!(granted + busy, CROWD, "everybody gets an answer");
    assert!(granted >= 13 && busy > 0, "one at work and twelve waiting at least");
    assert!(grown < 2 * u64::from(HASH_KIB), "memory grew by {grown} KiB");
    assert!(heartbeats.count > 3 && heartbeats.longest < PROMPT, "{heartbeats:?}");
    assert!(commands.longest < PROMPT, "{commands:?}");
    // And afterwards all is as before.
    b.log_in(&server).await;
}
