//! The protocol as its two sides use it, and as an attacker would.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use cug_proto::{
    ProtocolError,
    envelope::{EnvelopeKey, SealedEnvelope},
    frame,
    hours::{Closed, Opening, Weekday},
    local::{CardBinding, ReaderBinding},
    login::{self, LoginKeys, Transcript},
    message::*,
    policy::{MAX_ALLOW, Policy},
    secret::{Secret, SecretBytes},
    session::{ChannelKeys, preshared_key},
};
use getrandom::{SysRng, rand_core::UnwrapErr};
use minicbor::{Decode, Encode};
use proptest::prelude::*;
use rsa::{Oaep, RsaPrivateKey, sha2::Sha256};
use std::sync::LazyLock;

static SERVER: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::new(&mut rng(), 2048).unwrap());

fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

fn credentials() -> Credentials {
    Credentials {
        user: "USER-A".parse().unwrap(),
        password: SecretBytes::copy_from(b"passwd1").unwrap(),
        purpose: Purpose::Open,
        wg_public_key: [3; 32],
        host_name: "terminal-1".parse().unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        outcome_secret: Secret::fill(|s| s.fill(0x0c)),
        new_password: None,
    }
}

fn group(key: u8) -> GroupGrant {
    GroupGrant {
        id: 7,
        name: "VPN1".parse().unwrap(),
        epoch: 3,
        key: Secret::fill(|k| k.fill(key)),
        prefix4: Prefix4 { address: "100.96.0.0".parse().unwrap(), len: 20 },
        prefix6: Prefix6 { address: "fd00:1::".parse().unwrap(), len: 64 },
        address4: "100.96.0.1".parse().unwrap(),
        address6: "fd00:1::1".parse().unwrap(),
        policy: Policy::Open,
    }
}

fn grant() -> Grant {
    Grant { session: [9; 16], secret: Secret::fill(|k| k.fill(5)), groups: vec![group(1)], attach_within: 60 }
}

fn unwrap_key(envelope: &SealedEnvelope, key: &RsaPrivateKey) -> Secret<32> {
    Secret::copy_from(&key.decrypt(Oaep::<Sha256>::new(), envelope.wrapped_key()).unwrap()).unwrap()
}

#[test]
fn only_the_challenged_card_on_this_connection_proves_itself() {
    let challenge = Secret::random(&mut rng());
    let transcript = Transcript::new(b"hello", b"challenge").with_envelope(b"envelope");
    let keys = |exporter: u8| LoginKeys::new(&challenge, &[exporter; 32]);
    let proof = keys(1).proof(&transcript);

    assert_eq!(keys(1).verify_proof(&transcript, &proof), Ok(()));
    let elsewhere = keys(2).verify_proof(&transcript, &proof);
    assert_eq!(elsewhere, Err(ProtocolError::NotAuthentic), "another TLS connection");
    for other in [
        Transcript::new(b"hello!", b"challenge").with_envelope(b"envelope"),
        Transcript::new(b"hello", b"other").with_envelope(b"envelope"),
        Transcript::new(b"hello", b"challenge").with_envelope(b"other"),
        Transcript::new(b"hellochal", b"lenge").with_envelope(b"envelope"),
    ] {
        assert_eq!(keys(1).verify_proof(&other, &proof), Err(ProtocolError::NotAuthentic));
    }
}

#[test]
fn an_outcome_opens_only_for_the_card_the_connection_and_the_key_it_was_made_for() {
    let challenge = Secret::random(&mut rng());
    let transcript = Transcript::new(b"hello", b"challenge").with_envelope(b"envelope");
    let keys = || LoginKeys::new(&challenge, &[1; 32]);
    let binding = credentials().outcome_binding();
    let sealed = keys().seal_outcome(&transcript, &binding, &Outcome::Grant(grant())).unwrap();

    let Ok(Outcome::Grant(opened)) = keys().open_outcome(&transcript, &binding, &sealed) else {
        panic!("does not open")
    };
    assert!(opened.secret.matches(grant().secret.expose()));
    let other_wg = Credentials { wg_public_key: [4; 32], ..credentials() };
    assert!(keys().open_outcome(&transcript, &other_wg.outcome_binding(), &sealed).is_err(), "another WireGuard key");
    let stranger = Credentials { outcome_secret: Secret::random(&mut rng()), ..credentials() };
    assert!(keys().open_outcome(&transcript, &stranger.outcome_binding(), &sealed).is_err(), "another outcome secret");
    assert!(LoginKeys::new(&challenge, &[2; 32]).open_outcome(&transcript, &binding, &sealed).is_err());
    let mut altered = sealed.clone();
    altered[20] ^= 1;
    assert!(keys().open_outcome(&transcript, &binding, &altered).is_err());

    let mac = login::ack_mac(&opened, &transcript, &sealed);
    assert_eq!(login::verify_ack(&grant(), &transcript, &sealed, &mac), Ok(()));
    assert!(login::verify_ack(&grant(), &transcript, &altered, &mac).is_err());
}

#[test]
fn a_challenge_is_of_a_supported_size_and_opens_with_the_card() {
    let card = RsaPrivateKey::new(&mut rng(), 2048).unwrap();
    let challenge = Secret::random(&mut rng());
    let ciphertext = login::encrypt_challenge(&card.to_public_key(), &challenge, &mut rng()).unwrap();
    assert_eq!(ciphertext.len(), 256);
    assert!(challenge.matches(&card.decrypt(Oaep::<Sha256>::new(), &ciphertext).unwrap()));
    let odd = RsaPrivateKey::new(&mut rng(), 2176).unwrap();
    assert_eq!(login::encrypt_challenge(&odd.to_public_key(), &challenge, &mut rng()), Err(ProtocolError::Key));
}

#[test]
fn an_envelope_opens_with_the_server_key_only() {
    let key = EnvelopeKey::new(SERVER.to_public_key()).unwrap();
    let sealed = key.seal(&credentials(), &mut rng()).unwrap();
    let envelope = SealedEnvelope::parse(&sealed).unwrap();
    assert_eq!(envelope.key_id(), key.key_id());
    let opened = envelope.open(&unwrap_key(&envelope, &SERVER)).unwrap();
    assert_eq!(opened.user.as_str(), "USER-A");
    assert_eq!(opened.password.expose(), b"passwd1");
    assert_eq!(opened.addresses, credentials().addresses);
    assert!(envelope.open(&Secret::fill(|k| k.fill(1))).is_err());
    assert!(!sealed.windows(7).any(|w| w == b"passwd1"));
}

#[test]
fn the_session_channel_authenticates_both_ends() {
    let secret = Secret::random(&mut rng());
    let keys = ChannelKeys::new([1; 16], &secret, &[2; 32]);
    let same = ChannelKeys::new([1; 16], &secret, &[2; 32]);
    assert_eq!(same.verify_terminal(&keys.terminal_proof()), Ok(()));
    assert_eq!(same.verify_server(&keys.server_proof()), Ok(()));
    assert!(same.verify_server(&keys.terminal_proof()).is_err(), "a proof cannot be reflected");
    assert!(ChannelKeys::new([1; 16], &secret, &[3; 32]).verify_terminal(&keys.terminal_proof()).is_err());
    assert!(ChannelKeys::new([4; 16], &secret, &[2; 32]).verify_terminal(&keys.terminal_proof()).is_err());
}

#[test]
fn a_sealed_group_cannot_be_passed_off_as_another() {
    let secret = Secret::random(&mut rng());
    let keys = ChannelKeys::new([1; 16], &secret, &[2; 32]);
    let sealed = keys.seal_group(&group(8), [1; 12]).unwrap();
    assert!(keys.open_group(&sealed).unwrap().key.matches(&[8; 32]));
    let other = SealedGroup { epoch: 4, group: sealed.group, sealed: sealed.sealed.clone(), nonce: sealed.nonce };
    assert!(keys.open_group(&other).is_err(), "an old key as a new epoch");
    assert!(
        ChannelKeys::new([1; 16], &secret, &[3; 32]).open_group(&sealed).is_err(),
        "replayed on another connection"
    );
}

#[test]
fn a_preshared_key_depends_on_everything_and_is_the_same_on_both_sides() {
    let key = Secret::fill(|k| k.fill(1));
    let psk = preshared_key(&key, 1, 1, &[1; 32], &[2; 32]);
    assert!(preshared_key(&key, 1, 1, &[2; 32], &[1; 32]).matches(psk.expose()));
    for other in [
        preshared_key(&Secret::fill(|k| k.fill(2)), 1, 1, &[1; 32], &[2; 32]),
        preshared_key(&key, 2, 1, &[1; 32], &[2; 32]),
        preshared_key(&key, 1, 2, &[1; 32], &[2; 32]),
        preshared_key(&key, 1, 1, &[1; 32], &[3; 32]),
    ] {
        assert!(!other.matches(psk.expose()));
    }
}

#[test]
fn a_frame_is_bounded_before_anything_is_allocated() {
    assert_eq!(frame::body_len([0xff; 4], frame::MAX_LOGIN), Err(ProtocolError::TooLarge));
    assert_eq!(frame::body_len([0; 4], frame::MAX_LOGIN), Err(ProtocolError::Malformed));
    assert_eq!(frame::body_len([0, 0, 0, 9], frame::MAX_LOGIN), Ok(9));
    let framed = frame::encode(&ClientMessage::Heartbeat(3), frame::MAX_LOGIN).unwrap();
    assert_eq!(frame::body_len(framed[..4].try_into().unwrap(), 16), Ok(framed.len() - 4));
    let mut longer = framed[4..].to_vec();
    longer.push(0);
    assert_eq!(
        frame::decode::<ClientMessage>(&longer).map(|_| ()),
        Err(ProtocolError::Malformed),
        "bytes after the message"
    );
}

/// The largest group: every field as long as it gets, and every exception an IPv6 one.
fn largest_group(id: u32) -> GroupGrant {
    let allow =
        (0..MAX_ALLOW).map(|i| format!("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff{i:02x}]:65535").parse().unwrap());
    GroupGrant {
        id: u32::MAX - id,
        name: "g".repeat(32).parse().unwrap(),
        epoch: u32::MAX,
        prefix4: Prefix4 { address: [255; 4].into(), len: 32 },
        prefix6: Prefix6 { address: [255; 16].into(), len: 128 },
        policy: Policy::Closed(allow.collect()),
        ..group(1)
    }
}

/// A user in as many groups as there may be, each with as many exceptions as there may be, can log in.
#[test]
fn the_largest_grant_fits_into_a_frame() {
    let groups = (0..u32::try_from(MAX_GROUPS).unwrap()).map(largest_group).collect();
    let grant = Grant { groups, attach_within: u32::MAX, ..grant() };
    let (transcript, keys) = (Transcript::new(b"hello", b"challenge").with_envelope(b"envelope"), login_keys());
    let binding = credentials().outcome_binding();
    let sealed = keys.seal_outcome(&transcript, &binding, &Outcome::Grant(grant.duplicate())).unwrap();
    assert!(sealed.len() > frame::MAX_LOGIN, "{} bytes: else the larger frame is not needed", sealed.len());
    let message = ServerMessage::Outcome(SealedOutcome { sealed: sealed.clone() });
    assert!(frame::encode(&message, frame::MAX_SESSION).is_ok());
    let Ok(Outcome::Grant(back)) = login_keys().open_outcome(&transcript, &binding, &sealed) else {
        panic!("no grant")
    };
    assert_eq!(back.groups[31].policy, grant.groups[31].policy);

    let deliver = cug_proto::local::Deliver {
        offer: [1; 16],
        grant,
        server: "s".repeat(300),
        ca_pin: [1; 32],
        card: CardBinding::Reader(ReaderBinding {
            reader: "r".repeat(255),
            event_count: u32::MAX,
            atr: vec![1; 33],
            fingerprint: [1; 32],
        }),
    };
    assert!(frame::encode(&cug_proto::local::Request::Deliver(deliver), frame::MAX_SESSION).is_ok());

    let channel = ChannelKeys::new([1; 16], &Secret::random(&mut rng()), &[2; 32]);
    let sealed = channel.seal_group(&largest_group(0), [1; 12]).unwrap();
    assert_eq!(channel.open_group(&sealed).unwrap().policy, largest_group(0).policy);
}

fn login_keys() -> LoginKeys {
    LoginKeys::new(&Secret::fill(|k| k.fill(1)), &[2; 32])
}

/// Every message survives the way over the wire, byte for byte.
#[test]
fn messages_round_trip() {
    let peer = Peer {
        user: "USER-B".parse().unwrap(),
        host_name: "terminal-2".parse().unwrap(),
        wg_public_key: [1; 32],
        endpoints: vec!["10.0.0.2:51820".parse().unwrap(), "[fd00::2]:51820".parse().unwrap()],
        address4: "100.96.0.2".parse().unwrap(),
        address6: "fd00:1::2".parse().unwrap(),
    };
    let peers = Peers { group: 1, revision: 44, full: true, present: vec![peer], gone: vec!["x".parse().unwrap()] };
    let bytes = frame::encode(&ServerMessage::Peers(peers.clone()), frame::MAX_SESSION).unwrap();
    match frame::decode::<ServerMessage>(&bytes[4..]).unwrap() {
        ServerMessage::Peers(back) => assert_eq!(back, peers),
        _ => panic!("another message"),
    }
    for reason in [EndReason::Displaced("t3".parse().unwrap()), EndReason::Unknown, EndReason::LeaseExpired] {
        let bytes = frame::encode(&ServerMessage::End(reason.clone()), frame::MAX_SESSION).unwrap();
        assert!(matches!(frame::decode(&bytes[4..]).unwrap(), ServerMessage::End(r) if r == reason));
    }
}

/// Two reasons as they were before they had a field.
#[derive(Encode, Decode, PartialEq, Debug)]
enum EarlierDenial {
    #[n(0)]
    WrongPassword,
    #[n(4)]
    TooManyAttempts(#[n(0)] u32),
    #[n(7)]
    OutsideHours,
}

/// The same for the end of a session.
#[derive(Encode, Decode, PartialEq, Debug)]
enum EarlierEnd {
    #[n(1)]
    Displaced(#[n(0)] String),
    #[n(3)]
    Disabled,
}

/// Servers and terminals are not upgraded in one moment.
#[test]
fn hours_are_understood_by_those_who_know_them_and_skipped_by_others() {
    let next = Weekday::from_monday(4).map(|weekday| Opening { days: 2, weekday, minute: 420 });
    let closed = Closed { hours: "Mon-Fri 07:00-19:00".parse().unwrap(), next, offset: Some(-90) };
    for denial in [None, Some(closed)].map(DenyReason::OutsideHours) {
        let bytes = minicbor::to_vec(denial).unwrap();
        assert_eq!(minicbor::decode::<DenyReason>(&bytes).unwrap(), denial);
        assert_eq!(minicbor::decode::<EarlierDenial>(&bytes).unwrap(), EarlierDenial::OutsideHours);
    }
    for end in [None, Some(Lapse::Expired), Some(Lapse::OutsideHours)].map(EndReason::Disabled) {
        let bytes = minicbor::to_vec(&end).unwrap();
        assert_eq!(minicbor::decode::<EndReason>(&bytes).unwrap(), end);
        assert_eq!(minicbor::decode::<EarlierEnd>(&bytes).unwrap(), EarlierEnd::Disabled);
    }
    let earlier = minicbor::to_vec(EarlierDenial::OutsideHours).unwrap();
    assert_eq!(minicbor::decode::<DenyReason>(&earlier).unwrap(), DenyReason::OutsideHours(None));
    let earlier = minicbor::to_vec(EarlierEnd::Disabled).unwrap();
    assert_eq!(minicbor::decode::<EndReason>(&earlier).unwrap(), EndReason::Disabled(None));
}

proptest! {
    /// Nothing that a peer, a card or a local user sends can panic us.
    #[test]
    fn random_bytes_decode_to_an_error_or_a_message(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = frame::decode::<ClientMessage>(&bytes);
        let _ = frame::decode::<ServerMessage>(&bytes);
        let _ = frame::decode::<Outcome>(&bytes);
        let _ = frame::decode::<cug_proto::local::Request>(&bytes);
        let _ = frame::decode::<cug_proto::local::Reply>(&bytes);
        let _ = SealedEnvelope::parse(&bytes);
        let _ = cug_proto::trust::ServerObject::parse(&bytes);
    }

    /// One flipped bit anywhere in an envelope, and it does not open.
    #[test]
    fn an_altered_envelope_does_not_open(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        static SEALED: LazyLock<Vec<u8>> =
            LazyLock::new(|| EnvelopeKey::new(SERVER.to_public_key()).unwrap().seal(&credentials(), &mut rng()).unwrap());
        let mut altered = SEALED.clone();
        let at = at.index(altered.len());
        altered[at] ^= 1 << bit;
        if let Ok(envelope) = SealedEnvelope::parse(&altered) {
            let key = SERVER.decrypt(Oaep::<Sha256>::new(), envelope.wrapped_key()).ok();
            // The key ID is a hint that nothing depends on; all else is covered.
            let opened = key.and_then(|k| Secret::copy_from(&k)).and_then(|k| envelope.open(&k).ok());
            prop_assert!(opened.is_none() || envelope.key_id() != EnvelopeKey::new(SERVER.to_public_key()).unwrap().key_id());
        }
    }
}
