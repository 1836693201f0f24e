//! The cards' command interface, without a reader.

use cug_cards::{
    Card, Management, ManagementAlgorithm, OwnCard, OwnOptions, PinPolicy, PivAuthenticatorCard, host, sw,
};
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, RsaPublicKey};

fn status(card: &mut dyn Card, header: [u8; 4], data: &[u8]) -> u16 {
    host::exchange(card, header, data).unwrap().1
}

/// Raw RSA both ways with the key of `bits` in 9D.
fn works(card: &mut dyn Card, key: &RsaPublicKey, bits: usize) {
    let mut message = vec![5; bits / 8];
    message[0] = 0;
    let number = BoxedUint::from_be_slice(&message, key.n().as_ref().bits_precision()).unwrap();
    let sealed = rsa::hazmat::rsa_encrypt(key, &number).unwrap().to_be_bytes();
    assert_eq!(host::raw_decrypt(card, 0x9D, bits, &sealed).unwrap(), message);
}

fn both() -> [Box<dyn Card>; 2] {
    [Box::new(OwnCard::new(OwnOptions::default()).unwrap()), Box::new(PivAuthenticatorCard::new("123456").unwrap())]
}

#[test]
fn keys_are_made_on_both_cards_and_differ() {
    for mut card in both() {
        let card = &mut *card;
        host::select(card).unwrap();
        assert!(host::generate(card, 0x9D, 2048, None).is_err(), "without the management key");
        host::authenticate(card, &Management::default()).unwrap();
        let first = host::generate(card, 0x9D, 2048, None).unwrap();
        let second = host::generate(card, 0x9D, 2048, None).unwrap();
        assert_ne!(first, second);
        assert!(host::raw_decrypt(card, 0x9D, 2048, &[1; 256]).is_err(), "without the PIN");
        host::verify(card, "123456").unwrap();
        works(card, &second, 2048);
        card.reset();
        host::select(card).unwrap();
        assert!(host::raw_decrypt(card, 0x9D, 2048, &[1; 256]).is_err(), "the reset forgot the PIN");
    }
    let key = |mut card: PivAuthenticatorCard| {
        host::select(&mut card).unwrap();
        host::authenticate(&mut card, &Management::default()).unwrap();
        host::generate(&mut card, 0x9D, 2048, None).unwrap()
    };
    let [one, two] = [(); 2].map(|()| key(PivAuthenticatorCard::new("123456").unwrap()));
    assert_ne!(one, two, "two cards must not have one key");
}

#[test]
fn longer_keys_work_on_the_own_card() {
    let mut card = OwnCard::new(OwnOptions::default()).unwrap();
    for bits in [3072, 4096] {
        card.make_key(0x9D, bits, Some(PinPolicy::Never)).unwrap();
        let key = card.key(0x9D).unwrap().to_public_key();
        host::select(&mut card).unwrap();
        works(&mut card, &key, bits);
    }
}

#[test]
fn pin_tries_run_out_and_the_puk_brings_them_back() {
    for mut card in both() {
        let card = &mut *card;
        host::select(card).unwrap();
        assert_eq!(status(card, [0, 0x20, 0, 0x80], &[]), sw::TRIES | 3);
        for left in [2, 1, 0] {
            let code = status(card, [0, 0x20, 0, 0x80], b"999999\xFF\xFF");
            assert!(code == (sw::TRIES | left) || left == 0 && code == sw::BLOCKED, "{code:04X}");
        }
        assert_eq!(status(card, [0, 0x20, 0, 0x80], b"123456\xFF\xFF"), sw::BLOCKED);
        assert_eq!(status(card, [0, 0x2C, 0, 0x80], b"12345678654321\xFF\xFF"), sw::OK);
        assert_eq!(status(card, [0, 0x20, 0, 0x80], b"654321\xFF\xFF"), sw::OK);
    }
}

#[test]
fn objects_of_any_length_are_kept() {
    for mut card in both() {
        let card = &mut *card;
        host::select(card).unwrap();
        let value = vec![0xA5; 1100];
        assert!(host::put_object(card, 0x5F_C10D, &value).is_err(), "without the management key");
        host::authenticate(card, &Management::default()).unwrap();
        assert_eq!(host::get_object(card, 0x5F_C10D).unwrap(), None);
        host::put_object(card, 0x5F_C10D, &value).unwrap();
        assert_eq!(host::get_object(card, 0x5F_C10D).unwrap(), Some(value));
    }
}

#[test]
fn all_management_algorithms_authenticate() {
    use ManagementAlgorithm::{Aes128, Aes192, Aes256, Tdes};
    for algorithm in [Tdes, Aes128, Aes192, Aes256] {
        let management = Management::new(algorithm, vec![0x3C; algorithm.key_length()]).unwrap();
        let options = OwnOptions { management: management.clone(), ..OwnOptions::default() };
        let mut card = OwnCard::new(options).unwrap();
        host::select(&mut card).unwrap();
        let wrong = Management::new(algorithm, vec![0x42; algorithm.key_length()]).unwrap();
        assert!(host::authenticate(&mut card, &wrong).is_err());
        host::authenticate(&mut card, &management).unwrap();
        host::put_object(&mut card, 0x5F_0001, b"any tag").unwrap();
    }
}

#[test]
fn the_policies_ask_for_the_pin_as_they_say() {
    let mut card = OwnCard::new(OwnOptions::default()).unwrap();
    let uses = |card: &mut OwnCard| host::raw_decrypt(card, 0x9D, 2048, &[1; 256]).is_ok();
    for (policy, expected) in [
        (PinPolicy::Never, [true, true, true]),
        (PinPolicy::Once, [false, true, true]),
        (PinPolicy::Always, [false, true, false]),
    ] {
        card.make_key(0x9D, 2048, Some(policy)).unwrap();
        card.reset();
        host::select(&mut card).unwrap();
        let before = uses(&mut card);
        host::verify(&mut card, "123456").unwrap();
        assert_eq!([before, uses(&mut card), uses(&mut card)], expected, "{policy:?}");
    }
}

#[test]
fn the_state_file_is_the_card() {
    let directory = std::env::temp_dir().join(format!("cug-cards-state-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("own.json");
    let mut card = OwnCard::open(&file, OwnOptions::default()).unwrap();
    card.make_key(0x9D, 2048, None).unwrap();
    let key = card.key(0x9D).unwrap().to_public_key();
    host::select(&mut card).unwrap();
    assert!(host::verify(&mut card, "999999").is_err());
    drop(card);
    let mut card = OwnCard::open(&file, OwnOptions::default()).unwrap();
    assert_eq!((card.pin_tries_left(), card.key(0x9D).unwrap().to_public_key()), (2, key));
    assert!(PivAuthenticatorCard::open(&file, "123456").is_err(), "another kind of card");

    let file = directory.join("other.json");
    let mut other = PivAuthenticatorCard::open(&file, "123456").unwrap();
    host::select(&mut other).unwrap();
    host::authenticate(&mut other, &Management::default()).unwrap();
    let key = host::generate(&mut other, 0x9D, 2048, None).unwrap();
    host::put_object(&mut other, 0x5F_C10D, &[9; 700]).unwrap();
    drop(other);
    let mut other = PivAuthenticatorCard::open(&file, "123456").unwrap();
    host::select(&mut other).unwrap();
    assert_eq!(host::get_object(&mut other, 0x5F_C10D).unwrap(), Some(vec![9; 700]));
    host::verify(&mut other, "123456").unwrap();
    works(&mut other, &key, 2048);
    card.reset();
    std::fs::remove_dir_all(&directory).unwrap();
}
