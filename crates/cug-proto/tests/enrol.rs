//! The key schedule of an enrolment, as its two sides use it and as others would.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use cug_proto::{
    ProtocolError::{self, NotAuthentic},
    enrol::*,
    frame, kdf,
    message::{ClientMessage, ServerMessage},
    secret::{Secret, SecretBytes},
    trust::{self, signed_server_object},
};
use getrandom::{SysRng, rand_core::UnwrapErr};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyIdMethod, KeyPair, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize,
};
use sha2::{Digest, Sha256};

fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

fn user(name: &str) -> cug_proto::id::UserId {
    name.parse().unwrap()
}

fn code(text: &str) -> EnrolCode {
    EnrolCode::parse(text.as_bytes()).unwrap()
}

const CODE: &str = "01230-4567M-89AB9-CDEFS-GHJKJ";

fn exchange() -> Exchange {
    Exchange::new([1; 32], b"hello", b"offer")
}

#[test]
fn a_claim_is_good_for_one_code_one_user_one_connection() {
    let token = token(&code(CODE), &user("USER-A"));
    let kept = verifier(&token);
    let claim = exchange().seal_claim(&token).unwrap();
    assert!(exchange().open_claim(&kept, &claim).unwrap().matches(token.expose()));

    let others = [
        cug_proto::enrol::token(&code(CODE), &user("USER-B")),
        cug_proto::enrol::token(&EnrolCode::random(&mut rng()), &user("USER-A")),
    ];
    for other in others {
        assert_eq!(exchange().open_claim(&verifier(&other), &claim).err(), Some(NotAuthentic));
    }
    for elsewhere in [
        Exchange::new([2; 32], b"hello", b"offer"),
        Exchange::new([1; 32], b"hullo", b"offer"),
        Exchange::new([1; 32], b"hello", b"other"),
        Exchange::new([1; 32], b"hellooffer", b""),
    ] {
        assert_eq!(elsewhere.open_claim(&kept, &claim).err(), Some(NotAuthentic));
    }
    // Who has read the database has the verifier, and can seal; but not the token.
    let transcript = kdf::hash_parts(&[b"cug/1 enrol", b"hello", b"offer"]);
    let key = kdf::derive(&[1; 32], kept.expose(), &[b"cug/1 enrol claim"]);
    let sealed =
        |token: &Secret<32>| EnrolClaim { sealed: kdf::seal(&key, &[0; 12], &transcript, token.expose()).unwrap() };
    assert!(exchange().open_claim(&kept, &sealed(&token)).is_ok(), "this is how claims are made");
    assert_eq!(exchange().open_claim(&kept, &sealed(&kept)).err(), Some(NotAuthentic));
}

#[test]
fn every_step_covers_what_went_before_and_what_it_says() {
    let token = token(&code(CODE), &user("USER-A"));
    let kept = verifier(&token);
    let (mut terminal, mut server) = (exchange(), exchange());
    let ready = EnrolReady { approval: false, proof: server.ready_proof(&kept, false) };
    terminal.verify_ready(&token, &ready).unwrap();
    assert_eq!(terminal.verify_ready(&token, &EnrolReady { approval: true, ..ready }), Err(NotAuthentic));
    terminal.absorb(b"ready");
    assert_eq!(
        server.verify_key(&token, &key(&terminal, &token)),
        Err(NotAuthentic),
        "a frame that one side did not see"
    );
    server.absorb(b"ready");
    let sent = key(&terminal, &token);
    server.verify_key(&token, &sent).unwrap();
    for other in [
        EnrolKey { kind: CardKind::Medium, ..key(&terminal, &token) },
        EnrolKey { public_key: vec![8], ..key(&terminal, &token) },
    ] {
        assert_eq!(server.verify_key(&token, &other), Err(NotAuthentic));
    }
    let mac = server.challenge_mac(&token, b"certificate", b"challenge");
    let challenge = |certificate: &[u8], ciphertext: &[u8]| EnrolChallenge {
        certificate: certificate.to_vec(),
        ciphertext: ciphertext.to_vec(),
        mac,
    };
    terminal.verify_challenge(&token, &challenge(b"certificate", b"challenge")).unwrap();
    for (certificate, ciphertext) in
        [(&b"other"[..], &b"challenge"[..]), (b"certificate", b"other"), (b"certificatec", b"hallenge")]
    {
        assert_eq!(terminal.verify_challenge(&token, &challenge(certificate, ciphertext)), Err(NotAuthentic));
    }
}

fn key(exchange: &Exchange, token: &Secret<32>) -> EnrolKey {
    EnrolKey { public_key: vec![7], kind: CardKind::Piv, mac: exchange.key_mac(token, &[7], CardKind::Piv) }
}

#[test]
fn a_commit_needs_the_code_and_the_opened_challenge() {
    let token = token(&code(CODE), &user("USER-A"));
    let challenge = Secret::<32>::random(&mut rng());
    let (terminal, server) = (exchange(), exchange());
    let kept = server.commit_keys(&token, Some(&challenge));
    let commit = |keys: &CommitKeys| EnrolCommit { envelope: vec![5], proof: keys.proof(&terminal, &[5]) };
    kept.verify(&server, &commit(&terminal.commit_keys(&token, Some(&challenge)))).unwrap();
    let zero = Secret::<32>::fill(|_| ());
    for wrong in [
        terminal.commit_keys(&token, None),
        terminal.commit_keys(&token, Some(&Secret::random(&mut rng()))),
        terminal.commit_keys(&verifier(&token), Some(&challenge)),
    ] {
        assert_eq!(kept.verify(&server, &commit(&wrong)), Err(NotAuthentic));
    }
    // A challenge of zeros is not the same as none.
    let password_only = server.commit_keys(&token, None);
    assert_eq!(password_only.verify(&server, &commit(&terminal.commit_keys(&token, Some(&zero)))), Err(NotAuthentic));
}

#[test]
fn verdicts_come_in_order_and_once() {
    let token = token(&code(CODE), &user("USER-A"));
    let (exchange, other) = (exchange(), exchange());
    let (mut server, mut terminal) = (exchange.commit_keys(&token, None), other.commit_keys(&token, None));
    let refused = EnrolVerdict::PasswordRefused("too short".into());
    let first = server.seal(&exchange, &refused).unwrap();
    let second = server.seal(&exchange, &EnrolVerdict::Active).unwrap();
    assert_eq!(terminal.open(&other, &first).unwrap(), refused);
    assert_eq!(terminal.open(&other, &first), Err(NotAuthentic), "the same once more");
    let mut again = other.commit_keys(&token, None);
    assert_eq!(again.open(&other, &second), Err(NotAuthentic), "out of order");
    assert_eq!(again.open(&other, &second).unwrap(), EnrolVerdict::Active);
}

/// A CA, and a certificate for an RSA key that it signed, both in DER.
fn organisation(name_of_ca_key: Option<[u8; 32]>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let ca_key = KeyPair::generate().unwrap();
    let own: [u8; 32] = Sha256::digest(ca_key.subject_public_key_info()).into();
    let pin = name_of_ca_key.unwrap_or(own);
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_identifier_method = KeyIdMethod::PreSpecified(pin.to_vec());
    let certificate = ca.self_signed(&ca_key).unwrap().der().to_vec();
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let mut object = CertificateParams::default();
    object.use_authority_key_identifier_extension = true;
    let object = object.signed_by(&rsa, &Issuer::new(ca, ca_key)).unwrap().der().to_vec();
    let pin = trust::spki_sha256(&certificate).unwrap();
    (object, certificate, pin.to_vec())
}

#[test]
fn a_server_object_from_the_network_must_be_signed_by_the_pinned_ca() {
    let (object, ca, pin) = organisation(None);
    let pin: [u8; 32] = pin.try_into().unwrap();
    let signed = signed_server_object(&object, &ca, &pin);
    assert_eq!(signed.map(|object| *object.ca_pin()).ok(), Some(pin));

    let (foreign, foreign_ca, foreign_pin) = organisation(None);
    let foreign_pin: [u8; 32] = foreign_pin.try_into().unwrap();
    let refused = |object: &[u8], ca: &[u8], pin| signed_server_object(object, ca, pin).err();
    assert_eq!(refused(&foreign, &foreign_ca, &pin), Some(NotAuthentic), "another organisation");
    assert_eq!(refused(&object, &foreign_ca, &foreign_pin), Some(NotAuthentic));
    assert_eq!(refused(&foreign, &ca, &pin), Some(NotAuthentic));
    // Says that it is of the pinned CA, and is signed by another key.
    let (pretending, _, _) = organisation(Some(pin));
    assert_eq!(trust::ServerObject::parse(&pretending).unwrap().ca_pin(), &pin, "which parse alone would not notice");
    assert_eq!(refused(&pretending, &ca, &pin), Some(NotAuthentic));
    // One bit of what is signed, or of the signature.
    for at in [object.len() / 2, object.len() - 5] {
        let mut altered = object.clone();
        altered[at] ^= 1;
        assert!(signed_server_object(&altered, &ca, &pin).is_err(), "{at}");
    }
}

proptest! {
    #[test]
    fn messages_survive_the_wire(
        bytes in proptest::collection::vec(any::<u8>(), 0..1500), mac in any::<[u8; 32]>(), approval in any::<bool>(),
    ) {
        let claim = ClientMessage::EnrolClaim(EnrolClaim { sealed: bytes.clone() });
        let key = ClientMessage::EnrolKey(EnrolKey { public_key: bytes.clone(), kind: CardKind::Registered, mac });
        for message in [claim, key] {
            let frame = frame::encode(&message, frame::MAX_LOGIN).unwrap();
            match frame::decode(&frame[4..]).unwrap() {
                ClientMessage::EnrolClaim(back) => prop_assert_eq!(&back.sealed, &bytes),
                ClientMessage::EnrolKey(back) => {
                    prop_assert_eq!((&back.public_key, back.kind, back.mac), (&bytes, CardKind::Registered, mac));
                }
                _ => prop_assert!(false, "another message"),
            }
        }
        let ready = ServerMessage::EnrolReady(EnrolReady { approval, proof: mac });
        let frame = frame::encode(&ready, frame::MAX_LOGIN).unwrap();
        let ServerMessage::EnrolReady(back) = frame::decode(&frame[4..]).unwrap() else { panic!("another message") };
        prop_assert_eq!((back.approval, back.proof), (approval, mac));
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = frame::decode::<ClientMessage>(&bytes);
        let _ = frame::decode::<EnrolCredentials>(&bytes);
        let token = Secret::<32>::fill(|_| ());
        let refused: Result<_, ProtocolError> = exchange().open_claim(&token, &EnrolClaim { sealed: bytes });
        prop_assert!(refused.is_err());
    }
}

#[test]
fn credentials_travel_in_an_envelope_of_their_own_kind() {
    let (object, _, _) = organisation(None);
    let object = trust::ServerObject::parse(&object).unwrap();
    let credentials =
        EnrolCredentials { user: user("USER-A"), password: SecretBytes::copy_from("pässwort".as_bytes()).unwrap() };
    let envelope = object.envelope_key().seal_value(&credentials, &mut rng()).unwrap();
    let sealed = cug_proto::envelope::SealedEnvelope::parse(&envelope).unwrap();
    assert_eq!(sealed.key_id(), object.envelope_key().key_id());
    assert_eq!(sealed.open_value::<EnrolCredentials>(&Secret::random(&mut rng())).err(), Some(NotAuthentic));
}
