//! Enrolment over real TLS: a terminal in software that keeps to the protocol, and one that does not, in each state.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{
    PROTOCOL_VERSION,
    enrol::*,
    id::UserId,
    message::*,
    secret::{Secret, SecretBytes},
    trust,
};
use cug_server::{
    admin::{EnrolRequest, Reply, Request},
    clock,
    store::InvitationInfo,
};
use rsa::{Oaep, RsaPrivateKey, pkcs8::EncodePublicKey, sha2::Sha256};

const PASSWORD: &str = "correct horse";

fn invite(user: &str) -> EnrolRequest {
    let groups = vec!["VPN1".parse().unwrap()];
    EnrolRequest::Invite { user: user.parse().unwrap(), groups, expires_in: 3600, approve: false, replace: false }
}

/// Asks for a code.
async fn code(server: &TestServer, request: EnrolRequest) -> String {
    match server.ask(Request::Enrol(request)).await {
        Reply::Invited(invited) => invited.code.expose().to_owned(),
        Reply::Refused(sentence) => panic!("{sentence}"),
        _ => panic!("another reply"),
    }
}

async fn invitations(server: &TestServer) -> Vec<InvitationInfo> {
    match server.ask(Request::Enrol(EnrolRequest::Invitations)).await {
        Reply::Invitations(all) => all,
        _ => panic!("another reply"),
    }
}

async fn object(server: &TestServer) -> Vec<u8> {
    let Reply::Der(object) = server.ask(Request::ServerObject).await else { panic!("another reply") };
    object
}

/// A server with the patent's users.
async fn server(extra: &str) -> (TestServer, [Person; 4]) {
    let server = TestServer::start(extra).await;
    let people = server.patent().await;
    (server, people)
}

/// One enrolment, message by message.
struct Enrolment {
    connection: Connection,
    exchange: Exchange,
    object: Vec<u8>,
    token: Secret<32>,
    user: UserId,
}

impl Enrolment {
    /// Up to the offer.
    async fn begin(server: &TestServer, user: &str, code: &str) -> Self {
        let object = object(server).await;
        let mut connection = Connection::open(server.address(), &object).await;
        let user: UserId = user.parse().unwrap();
        let hello = connection.send(&hello(user.as_str())).await;
        let Some((ServerMessage::EnrolOffer(offer), body)) = connection.receive_raw().await else { panic!("no offer") };
        assert_eq!(offer.server_object, object);
        let exchange = Exchange::new(connection.exporter, &hello, &body);
        let token = token(&EnrolCode::parse(code.as_bytes()).unwrap(), &user);
        Self { connection, exchange, object, token, user }
    }

    /// Proves the code: what the server says.
    async fn claim(&mut self) -> Option<ServerMessage> {
        let claim = ClientMessage::EnrolClaim(self.exchange.seal_claim(&self.token).unwrap());
        let sent = self.connection.send(&claim).await;
        let (answer, body) = self.connection.receive_raw().await?;
        self.exchange.absorb(&sent);
        if let ServerMessage::EnrolReady(ready) = &answer {
            self.exchange.verify_ready(&self.token, ready).unwrap();
            self.exchange.absorb(&body);
        }
        Some(answer)
    }

    async fn claimed(server: &TestServer, user: &str, code: &str) -> Self {
        let mut enrolment = Self::begin(server, user, code).await;
        assert!(matches!(enrolment.claim().await, Some(ServerMessage::EnrolReady(_))), "not ready");
        enrolment
    }

    fn key(&self, card: &RsaPrivateKey) -> EnrolKey {
        let public_key = card.to_public_key().to_public_key_der().unwrap().into_vec();
        let mac = self.exchange.key_mac(&self.token, &public_key, CardKind::Piv);
        EnrolKey { public_key, kind: CardKind::Piv, mac }
    }

    /// Sends the key and opens the challenge with `card`.
    async fn challenge(&mut self, card: &RsaPrivateKey) -> Secret<32> {
        let sent = self.connection.send(&ClientMessage::EnrolKey(self.key(card))).await;
        let Some((ServerMessage::EnrolChallenge(challenge), body)) = self.connection.receive_raw().await else {
            panic!("no challenge")
        };
        self.exchange.absorb(&sent);
        self.exchange.verify_challenge(&self.token, &challenge).unwrap();
        self.exchange.absorb(&body);
        let own = trust::spki_sha256(&challenge.certificate).unwrap();
        let der = card.to_public_key().to_public_key_der().unwrap();
        assert_eq!(
            own,
            <[u8; 32]>::from(<Sha256 as sha2::Digest>::digest(der.as_bytes())),
            "a certificate for this key"
        );
        let opened = card.decrypt(Oaep::<Sha256>::new(), &challenge.ciphertext).unwrap();
        Secret::copy_from(&opened).unwrap()
    }

    fn commit(&self, keys: &CommitKeys, user: &str, password: &str) -> EnrolCommit {
        let object = trust::ServerObject::parse(&self.object).unwrap();
        let credentials = EnrolCredentials {
            user: user.parse().unwrap(),
            password: SecretBytes::copy_from(password.as_bytes()).unwrap(),
        };
        let envelope = object.envelope_key().seal_value(&credentials, &mut clock::rng()).unwrap();
        let proof = keys.proof(&self.exchange, &envelope);
        EnrolCommit { envelope, proof }
    }

    /// Commits: the verdict, or `None` at the end of the connection.
    async fn verdict(&mut self, keys: &mut CommitKeys, password: &str) -> Option<EnrolVerdict> {
        let commit = ClientMessage::EnrolCommit(self.commit(keys, self.user.as_str(), password));
        let sent = self.connection.send(&commit).await;
        let (answer, body) = self.connection.receive_raw().await?;
        let ServerMessage::EnrolResult(result) = answer else { panic!("no result") };
        self.exchange.absorb(&sent);
        let verdict = keys.open(&self.exchange, &result).unwrap();
        self.exchange.absorb(&body);
        Some(verdict)
    }

    /// From the key to the verdict.
    async fn finish(mut self, card: &RsaPrivateKey) -> EnrolVerdict {
        let challenge = self.challenge(card).await;
        let mut keys = self.exchange.commit_keys(&self.token, Some(&challenge));
        self.verdict(&mut keys, PASSWORD).await.unwrap()
    }
}

fn hello(user: &str) -> ClientMessage {
    let (user, host_name) = (user.parse().unwrap(), "terminal-9".parse().unwrap());
    ClientMessage::EnrolHello(EnrolHello { version: PROTOCOL_VERSION, user, host_name })
}

/// The user with the card number `key`, as enrolled.
async fn person(server: &TestServer, user: &str, key: usize) -> Person {
    let (card, fingerprint) = strangers_key(key);
    Person { user: user.parse().unwrap(), password: PASSWORD.into(), fingerprint, card, object: object(server).await }
}

fn denied(result: &LoginResult, why: DenyReason) -> bool {
    matches!(result, LoginResult::Outcome(Outcome::Denied(reason), _) if *reason == why)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_user_enrols_and_logs_in_and_the_code_is_used_up() {
    let (server, _) = server("").await;
    let code = code(&server, invite("USER-E")).await;
    let e = person(&server, "USER-E", 4).await;
    let verdict = Enrolment::claimed(&server, "USER-E", &code).await.finish(&e.card).await;
    assert_eq!(verdict, EnrolVerdict::Active);
    let grant = e.log_in(&server).await;
    assert_eq!(grant.groups[0].name.as_str(), "VPN1");
    assert!(invitations(&server).await.is_empty());
    let mut again = Enrolment::begin(&server, "USER-E", &code).await;
    assert!(matches!(again.claim().await, Some(ServerMessage::Rejected)), "a code works once");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_answer_for_all_that_is_wrong() {
    let (server, _) = server("").await;
    let right = code(&server, invite("USER-E")).await;
    let used = code(&server, invite("USER-F")).await;
    let (card, _) = strangers_key(4);
    assert_eq!(Enrolment::claimed(&server, "USER-F", &used).await.finish(&card).await, EnrolVerdict::Active);
    let expired = EnrolRequest::Invite {
        user: "USER-G".parse().unwrap(),
        groups: vec![],
        expires_in: 0,
        approve: false,
        replace: false,
    };
    let expired = code(&server, expired).await;
    let withdrawn = code(&server, invite("USER-H")).await;
    server.done(Request::Enrol(EnrolRequest::Uninvite("USER-H".parse().unwrap()))).await;
    let older = code(&server, invite("USER-I")).await;
    let newer = code(&server, invite("USER-I")).await;
    let other = EnrolCode::random(&mut clock::rng()).text();
    let mut answers = vec![];
    for (user, code) in [
        ("NOBODY", right.as_str()),
        ("USER-A", &right),
        ("USER-E", &other),
        ("USER-F", &used),
        ("USER-G", &expired),
        ("USER-H", &withdrawn),
        ("USER-I", &older),
    ] {
        let mut enrolment = Enrolment::begin(&server, user, code).await;
        let claim = ClientMessage::EnrolClaim(enrolment.exchange.seal_claim(&enrolment.token).unwrap());
        enrolment.connection.send(&claim).await;
        let (answer, body) = enrolment.connection.receive_raw().await.unwrap();
        assert!(matches!(answer, ServerMessage::Rejected), "{user}");
        answers.push(body);
        enrolment.connection.assert_closed().await;
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "byte by byte");
    for (user, code) in [("USER-E", &right), ("USER-I", &newer)] {
        Enrolment::claimed(&server, user, code).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_before_the_commit_leaves_the_code_usable() {
    let (mut server, _) = server("").await;
    let code = code(&server, invite("USER-E")).await;
    let (card, _) = strangers_key(4);
    let dropped = Enrolment::claimed(&server, "USER-E", &code).await;
    drop(dropped);
    let mut challenged = Enrolment::claimed(&server, "USER-E", &code).await;
    let challenge = challenged.challenge(&card).await;
    // The server stops between challenge and commit.
    server.stop().await;
    server.resume().await;
    let mut keys = challenged.exchange.commit_keys(&challenged.token, Some(&challenge));
    assert_eq!(challenged.verdict(&mut keys, PASSWORD).await, None);
    assert_eq!(invitations(&server).await[0].state, "open");
    let Reply::Refused(_) = server.ask(Request::UserShow("USER-E".parse().unwrap())).await else {
        panic!("the user is there before the commit")
    };
    assert_eq!(Enrolment::claimed(&server, "USER-E", &code).await.finish(&card).await, EnrolVerdict::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_does_not_answer_registers_nothing() {
    let (server, people) = server("").await;
    let code = code(&server, invite("USER-E")).await;
    // Somebody else's public key: the challenge cannot be opened.
    let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
    let (card, _) = strangers_key(4);
    enrolment.challenge(&card).await;
    let keys = enrolment.exchange.commit_keys(&enrolment.token, Some(&Secret::random(&mut clock::rng())));
    let commit = enrolment.commit(&keys, "USER-E", PASSWORD);
    enrolment.connection.send(&ClientMessage::EnrolCommit(commit)).await;
    enrolment.connection.assert_closed().await;
    // Nor does a commit without card take a key's place, or one with the keys of no card.
    let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
    enrolment.challenge(&card).await;
    let keys = enrolment.exchange.commit_keys(&enrolment.token, None);
    let commit = enrolment.commit(&keys, "USER-E", PASSWORD);
    enrolment.connection.send(&ClientMessage::EnrolCommit(commit)).await;
    enrolment.connection.assert_closed().await;
    assert_eq!(invitations(&server).await[0].state, "open");
    // A card of another user is not taken over.
    let verdict = Enrolment::claimed(&server, "USER-E", &code).await.finish(&people[0].card).await;
    assert_eq!(verdict, EnrolVerdict::CardTaken);
    assert_eq!(invitations(&server).await[0].state, "open");
    people[0].log_in(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_password_may_be_replaced_a_few_times() {
    let (server, _) = server("").await;
    let code = code(&server, invite("USER-E")).await;
    let e = person(&server, "USER-E", 4).await;
    let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
    let challenge = enrolment.challenge(&e.card).await;
    let mut keys = enrolment.exchange.commit_keys(&enrolment.token, Some(&challenge));
    for _ in 0..MAX_COMMITS - 1 {
        let verdict = enrolment.verdict(&mut keys, "short").await.unwrap();
        assert!(matches!(verdict, EnrolVerdict::PasswordRefused(why) if why.contains("characters")));
    }
    assert_eq!(enrolment.verdict(&mut keys, PASSWORD).await, Some(EnrolVerdict::Active));
    e.log_in(&server).await;
    // And not for ever.
    let code = self::code(&server, invite("USER-F")).await;
    let mut enrolment = Enrolment::claimed(&server, "USER-F", &code).await;
    let (card, _) = strangers_key(3);
    let challenge = enrolment.challenge(&card).await;
    let mut keys = enrolment.exchange.commit_keys(&enrolment.token, Some(&challenge));
    for _ in 0..MAX_COMMITS {
        assert!(enrolment.verdict(&mut keys, "short").await.is_some());
    }
    assert_eq!(enrolment.verdict(&mut keys, PASSWORD).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_waits_for_its_approval() {
    for by_setting in [false, true] {
        let (server, _) = server(if by_setting { "enrol-approval = true" } else { "" }).await;
        let request = EnrolRequest::Invite {
            user: "USER-E".parse().unwrap(),
            groups: vec!["VPN1".parse().unwrap()],
            expires_in: 3600,
            approve: !by_setting,
            replace: false,
        };
        let code = code(&server, request).await;
        let e = person(&server, "USER-E", 4).await;
        let verdict = Enrolment::claimed(&server, "USER-E", &code).await.finish(&e.card).await;
        assert_eq!(verdict, EnrolVerdict::AwaitsApproval);
        assert!(matches!(e.attempt().run(&server).await, LoginResult::Rejected), "not before the approval");
        let waiting = invitations(&server).await.remove(0);
        let hex: String = e.fingerprint.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!((waiting.state.as_str(), waiting.fingerprint.as_deref()), ("waiting", Some(hex.as_str())));
        assert_eq!(waiting.host.unwrap().as_str(), "terminal-9");
        assert!(waiting.address.unwrap().is_loopback() && waiting.enrolled.is_some());
        let mut again = Enrolment::begin(&server, "USER-E", &code).await;
        assert!(matches!(again.claim().await, Some(ServerMessage::Rejected)), "a code works once");
        let approve =
            |card: &str| Request::Enrol(EnrolRequest::Approve { user: e.user.clone(), card: Some(card.to_owned()) });
        assert!(matches!(server.ask(approve("ffffffffffffffff")).await, Reply::Refused(_)), "another card");
        assert!(matches!(server.ask(Request::Enrol(invite("USER-E"))).await, Reply::Refused(_)), "thrown away unseen");
        server.done(approve(&hex[..16])).await;
        e.log_in(&server).await;
        assert!(invitations(&server).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_card_is_replaced_and_a_password_reset() {
    let (server, [a, b, ..]) = server("").await;
    let mut terminal = a.sit_down(&server, "terminal-1").await;
    let request = |replace| EnrolRequest::Invite {
        user: "USER-A".parse().unwrap(),
        groups: vec!["VPN1".parse().unwrap()],
        expires_in: 3600,
        approve: false,
        replace,
    };
    // The password only: the card stays, and what is open stays open.
    let code = code(&server, request(false)).await;
    let mut enrolment = Enrolment::claimed(&server, "USER-A", &code).await;
    let mut keys = enrolment.exchange.commit_keys(&enrolment.token, None);
    assert_eq!(enrolment.verdict(&mut keys, PASSWORD).await, Some(EnrolVerdict::Active));
    assert!(denied(&a.attempt().run(&server).await, DenyReason::WrongPassword));
    terminal.heartbeat().await;
    let mut same_card = a.clone();
    same_card.password = PASSWORD.into();
    same_card.log_in(&server).await;
    // A second card beside the first.
    let code = self::code(&server, request(false)).await;
    let (second, third) = (person(&server, "USER-A", 4).await, person(&server, "USER-A", 3).await);
    // Number 3 is USER-D's card: taken. The code still works, with another card.
    assert_eq!(Enrolment::claimed(&server, "USER-A", &code).await.finish(&third.card).await, EnrolVerdict::CardTaken);
    assert_eq!(Enrolment::claimed(&server, "USER-A", &code).await.finish(&second.card).await, EnrolVerdict::Active);
    second.log_in(&server).await;
    same_card.log_in(&server).await;
    // Replaced: both older ones are revoked, and what was opened with them is over.
    let fresh = rcgen_key();
    let code = self::code(&server, request(true)).await;
    assert_eq!(Enrolment::claimed(&server, "USER-A", &code).await.finish(&fresh).await, EnrolVerdict::Active);
    for old in [&same_card, &second] {
        assert!(denied(&old.attempt().run(&server).await, DenyReason::CardRevoked));
    }
    b.log_in(&server).await;
    // A password alone makes no user.
    let code = self::code(&server, invite("USER-E")).await;
    let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
    let mut keys = enrolment.exchange.commit_keys(&enrolment.token, None);
    assert_eq!(enrolment.verdict(&mut keys, PASSWORD).await, Some(EnrolVerdict::Impossible));
    assert_eq!(invitations(&server).await[0].state, "open");
}

fn rcgen_key() -> RsaPrivateKey {
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    rsa::pkcs8::DecodePrivateKey::from_pkcs8_der(key.serialized_der()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_enrolments_with_one_code_register_one_card() {
    let (server, _) = server("").await;
    let code = code(&server, invite("USER-E")).await;
    let (one, other) = (strangers_key(4).0, rcgen_key());
    let (first, second) =
        (Enrolment::claimed(&server, "USER-E", &code).await, Enrolment::claimed(&server, "USER-E", &code).await);
    let (first, second) = tokio::join!(first.finish(&one), second.finish(&other));
    let mut verdicts = [format!("{first:?}"), format!("{second:?}")];
    verdicts.sort();
    assert_eq!(verdicts, ["Active", "Withdrawn"]);
    let Reply::Cards(cards) = server.ask(Request::CardList(Some("USER-E".parse().unwrap()))).await else {
        panic!("another reply")
    };
    assert_eq!(cards.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_is_withdrawn_meanwhile_registers_nothing() {
    let (server, _) = server("").await;
    let code = code(&server, invite("USER-E")).await;
    let (card, _) = strangers_key(4);
    let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
    let challenge = enrolment.challenge(&card).await;
    server.done(Request::Enrol(EnrolRequest::Uninvite("USER-E".parse().unwrap()))).await;
    let mut keys = enrolment.exchange.commit_keys(&enrolment.token, Some(&challenge));
    assert_eq!(enrolment.verdict(&mut keys, PASSWORD).await, Some(EnrolVerdict::Withdrawn));
    assert!(matches!(server.ask(Request::UserShow("USER-E".parse().unwrap())).await, Reply::Refused(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_codes_are_slowed_down_also_for_users_that_do_not_exist() {
    let (server, [a, ..]) = server("").await;
    let right = code(&server, invite("USER-E")).await;
    let other = EnrolCode::random(&mut clock::rng()).text();
    for user in ["USER-E", "NOBODY"] {
        for _ in 0..10 {
            assert!(matches!(
                Enrolment::begin(&server, user, &other).await.claim().await,
                Some(ServerMessage::Rejected)
            ));
        }
        let mut connection = Connection::open(server.address(), &object(&server).await).await;
        connection.send(&hello(user)).await;
        let answer = connection.receive().await;
        let Some(ServerMessage::Unavailable(Unavailable::Busy(1..=30))) = answer else { panic!("not slowed down") };
        connection.assert_closed().await;
    }
    assert_eq!(invitations(&server).await[0].state, "open", "nobody can burn another user's code");
    drop(right);
    // Others are not affected: neither a login nor an enrolment of another user.
    a.log_in(&server).await;
    let code = code(&server, invite("USER-F")).await;
    Enrolment::claimed(&server, "USER-F", &code).await;
}

/// Every message in every state of an enrolment where it must not come.
#[tokio::test(flavor = "multi_thread")]
async fn messages_out_of_order_end_the_connection() {
    let (server, [a, ..]) = server("").await;
    let code = code(&server, invite("USER-E")).await;
    let (card, _) = strangers_key(4);
    let claim = || ClientMessage::EnrolClaim(EnrolClaim { sealed: vec![0; 48] });
    let key = || ClientMessage::EnrolKey(EnrolKey { public_key: vec![1], kind: CardKind::Piv, mac: [0; 32] });
    let commit = || ClientMessage::EnrolCommit(EnrolCommit { envelope: vec![1], proof: [0; 32] });
    let login = || {
        [
            ClientMessage::Hello(Hello { version: 1, user: a.user.clone(), card: a.fingerprint }),
            ClientMessage::Login(Login { envelope: vec![1], proof: [0; 32] }),
            ClientMessage::Attach(Attach { version: 1, session: [0; 16], proof: [0; 32], known: vec![] }),
            ClientMessage::Clear(ClearReason::LoggedOut),
        ]
    };
    for first in [claim(), key(), commit()] {
        let mut connection = Connection::open(server.address(), &a.object).await;
        connection.send(&first).await;
        connection.assert_closed().await;
    }
    for second in [hello("USER-E"), key(), commit()].into_iter().chain(login()) {
        let mut enrolment = Enrolment::begin(&server, "USER-E", &code).await;
        enrolment.connection.send(&second).await;
        enrolment.connection.assert_closed().await;
    }
    // A key and a commit with a wrong MAC, too.
    for third in [hello("USER-E"), claim(), key(), commit()].into_iter().chain(login()) {
        let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
        enrolment.connection.send(&third).await;
        enrolment.connection.assert_closed().await;
    }
    for fourth in [hello("USER-E"), claim(), key(), commit()].into_iter().chain(login()) {
        let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
        enrolment.challenge(&card).await;
        enrolment.connection.send(&fourth).await;
        enrolment.connection.assert_closed().await;
    }
    // An enrolment's messages on a login, and on a session channel.
    for message in [hello("USER-E"), claim(), key(), commit()] {
        let (mut connection, ..) = a.attempt().challenge(&server).await;
        connection.send(&message).await;
        connection.assert_closed().await;
        let mut terminal = a.sit_down(&server, "terminal-1").await;
        terminal.connection.send(&message).await;
        terminal.connection.assert_closed().await;
    }
    assert_eq!(Enrolment::claimed(&server, "USER-E", &code).await.finish(&card).await, EnrolVerdict::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_decent_terminal_does_not_send_is_refused() {
    let (server, _) = server("").await;
    let code = code(&server, invite("USER-E")).await;
    let (card, _) = strangers_key(4);
    // A key of another size, none at all, and one with something behind it; each with a right MAC.
    let odd = RsaPrivateKey::new(&mut clock::rng(), 1024).unwrap().to_public_key().to_public_key_der().unwrap();
    let own = card.to_public_key().to_public_key_der().unwrap();
    for public_key in [odd.as_bytes().to_vec(), vec![], vec![0x30; 2000], [own.as_bytes(), &[0]].concat()] {
        let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
        let mac = enrolment.exchange.key_mac(&enrolment.token, &public_key, CardKind::Piv);
        let key = EnrolKey { public_key, kind: CardKind::Piv, mac };
        enrolment.connection.send(&ClientMessage::EnrolKey(key)).await;
        enrolment.connection.assert_closed().await;
    }
    // Another user in the envelope.
    let mut enrolment = Enrolment::claimed(&server, "USER-E", &code).await;
    let challenge = enrolment.challenge(&card).await;
    let keys = enrolment.exchange.commit_keys(&enrolment.token, Some(&challenge));
    let commit = enrolment.commit(&keys, "USER-A", PASSWORD);
    enrolment.connection.send(&ClientMessage::EnrolCommit(commit)).await;
    assert!(matches!(enrolment.connection.receive().await, Some(ServerMessage::Unavailable(Unavailable::Fault))));
    // A claim that was recorded on another connection.
    let first = Enrolment::begin(&server, "USER-E", &code).await;
    let recorded = first.exchange.seal_claim(&first.token).unwrap();
    let mut second = Enrolment::begin(&server, "USER-E", &code).await;
    second.connection.send(&ClientMessage::EnrolClaim(recorded)).await;
    assert!(matches!(second.connection.receive().await, Some(ServerMessage::Rejected)));
    // Another version.
    let mut connection = Connection::open(server.address(), &object(&server).await).await;
    let other = EnrolHello { version: 9, user: "USER-E".parse().unwrap(), host_name: "t".parse().unwrap() };
    connection.send(&ClientMessage::EnrolHello(other)).await;
    assert!(matches!(connection.receive().await, Some(ServerMessage::Unavailable(Unavailable::Version(1)))));
    assert_eq!(Enrolment::claimed(&server, "USER-E", &code).await.finish(&card).await, EnrolVerdict::Active);
}
