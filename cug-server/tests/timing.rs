//! P4 by the clock: without the card, how long the server takes tells nothing about whether there is such a user or such a card.
//!
//! In a program of its own, so that no other test disturbs it. Samples of all cases are taken in turn, so that whatever else the machine does hits all alike,
//! and the bound is measured too: it is a part of the work that a careless server would leave out.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{login, message::*, secret::Secret};
use cug_server::clock;
use std::time::Duration;

/// Rounds; each takes one sample of every case.
const ROUNDS: usize = 400;

/// Samples of one case, in microseconds.
#[derive(Default)]
struct Samples(Vec<f64>);

impl Samples {
    fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e6);
    }

    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// How likely a sample of this case is larger than one of the other: 0.5 for the same distribution, 0 or 1 for two that do not overlap.
    fn larger_than(&self, other: &Self) -> f64 {
        let pairs = self.0.iter().flat_map(|a| other.0.iter().map(move |b| a > b));
        pairs.filter(|larger| *larger).count() as f64 / (self.0.len() * other.0.len()) as f64
    }
}

/// From `Hello` to `Challenge`, and from `Login` to `Rejected`.
async fn sample(server: &TestServer, attempt: &Attempt) -> [Duration; 2] {
    let mut connection = attempt.person.connect(server).await;
    let hello = Hello { version: 1, user: attempt.hello_user.clone(), card: attempt.person.fingerprint };
    let begin = clock::monotonic();
    connection.send(&ClientMessage::Hello(hello)).await;
    let Some((ServerMessage::Challenge(_), body)) = connection.receive_raw().await else { panic!("no challenge") };
    let challenged = begin.elapsed();
    // A guess in the place of what the card would have said: the proof is wrong, whoever this is.
    let guess = Secret::random(&mut clock::rng());
    let transcript = login::Transcript::new(b"", &body);
    let (login, ..) = attempt.login(&connection, &transcript, &guess);
    let begin = clock::monotonic();
    connection.send(&ClientMessage::Login(login)).await;
    assert!(matches!(connection.receive().await, Some(ServerMessage::Rejected)));
    [challenged, begin.elapsed()]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_does_not_tell_who_exists() {
    let mut server = TestServer::start("connections-per-second-per-source = 0").await;
    let [a, b, c, d] = server.patent().await;
    // Those who cannot log in are there too: locked, expired, outside of their hours, without a password.
    let hours = Some("Mon 00:00-00:01 in Europe/Berlin".parse().ok());
    let day = cug_server::store::UserSettings { must_change: Some(true), expires: Some(Some(1)), hours };
    server.done(cug_server::admin::Request::UserSet(c.user.clone(), day)).await;
    server.stop().await;
    let store = cug_server::admin::open_store(
        &server.config.state_dir,
        &cug_server::keys::Keys::load(&server.config.state_dir).unwrap(),
    )
    .unwrap();
    let by = cug_server::store::By { actor: "test", now: clock::unix_now() };
    let (none, nothing) = (cug_server::store::PasswordRecord::none(), Default::default());
    cug_server::store::Store::set_password(&store, by, &d.user, &none, &nothing).unwrap();
    drop(store);
    server.resume().await;

    let (card, fingerprint) = strangers_key(4);
    let stranger = Person { card, fingerprint, ..a.clone() };
    let nobody: cug_proto::id::UserId = "NOBODY".parse().unwrap();
    let as_user =
        |user: &cug_proto::id::UserId, person: &Person| Attempt { hello_user: user.clone(), ..person.attempt() };
    let cases = [
        ("a user with the right card, unopened", as_user(&a.user, &a)),
        ("nobody, with a card that nobody registered", as_user(&nobody, &stranger)),
        ("a user, with a card that nobody registered", as_user(&a.user, &stranger)),
        ("nobody, with a registered card", as_user(&nobody, &b)),
        ("a user, with another user's card", as_user(&a.user, &b)),
        ("an account that has expired", as_user(&c.user, &c)),
        ("an account without a password", as_user(&d.user, &d)),
    ];
    let mut samples: Vec<[Samples; 2]> = cases.iter().map(|_| Default::default()).collect();
    let mut rsa = Samples::default();
    for round in 0..ROUNDS + 10 {
        // Each round begins with another case, so that no case always comes after the same one.
        for turn in 0..cases.len() {
            let which = (round + turn) % cases.len();
            let took = sample(&server, &cases[which].1).await;
            // The first rounds warm everything up.
            if round >= 10 {
                samples[which].iter_mut().zip(took).for_each(|(samples, took)| samples.push(took));
            }
        }
        let (key, secret) = (a.card.to_public_key(), Secret::random(&mut clock::rng()));
        let begin = clock::monotonic();
        let _ciphertext = login::encrypt_challenge(&key, &secret, &mut clock::rng()).unwrap();
        rsa.push(begin.elapsed());
    }
    // The smallest thing that could be left out is the RSA operation of the challenge: half of it must not show.
    let bound = rsa.median() / 2.0;
    for (step, name) in [(0, "Hello to Challenge"), (1, "Login to Rejected")] {
        let first = &samples[0][step];
        for ((what, _), other) in cases.iter().zip(&samples) {
            let other = &other[step];
            let (difference, larger) = (other.median() - first.median(), other.larger_than(first));
            eprintln!(
                "{name}: {what}: median {:.0} us ({difference:+.0}, bound {bound:.0}), larger in {larger:.2}",
                other.median()
            );
            assert!(difference.abs() < bound, "{name}: {what} differs by {difference:.0} us; bound {bound:.0} us");
            assert!((0.3..0.7).contains(&larger), "{name}: {what}: larger in {larger:.2}");
        }
    }
}
