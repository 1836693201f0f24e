//! PIV against a card that follows a script: every answer that a real card, a broken one or an enemy may give.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod common;

use common::Organisation;
use cug_card::{
    CardError, PinRequest,
    apdu::{Answer, Channel, Command, MAX_REPLY, Transmit},
    personalise::RsaKey,
    piv::{PinState, Piv},
    tlv,
};
use cug_proto::{
    login,
    secret::{Secret, SecretBytes},
};
use proptest::prelude::*;
use rand_core::UnwrapErr;
use rsa::pkcs8::DecodePrivateKey;
use std::collections::VecDeque;

/// Answers in turn; keeps what it was asked.
#[derive(Default)]
struct Script {
    answers: VecDeque<Vec<u8>>,
    asked: Vec<Vec<u8>>,
    t0: bool,
    extended: bool,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { answers: answers.into_iter().collect(), ..Self::default() }
    }

    /// A long answer in parts of at most 256 bytes, as a card cuts it.
    fn answer(&mut self, data: &[u8], status: u16) {
        let parts: Vec<&[u8]> = data.chunks(256).collect();
        for (n, part) in parts.iter().enumerate() {
            let left = data.len() - (n * 256 + part.len());
            let sw = if left == 0 { status } else { 0x6100 | u16::try_from(left).unwrap_or(0).min(0xFF) };
            self.answers.push_back([part, sw.to_be_bytes().as_slice()].concat());
        }
    }

    fn piv(&mut self) -> Piv<'_> {
        Piv::new(Channel::new(self))
    }
}

impl Transmit for Script {
    fn transmit(&mut self, apdu: &[u8], receive: &mut [u8]) -> Result<usize, CardError> {
        self.asked.push(apdu.to_vec());
        let answer = self.answers.pop_front().ok_or(CardError::Removed)?;
        receive[..answer.len()].copy_from_slice(&answer);
        Ok(answer.len())
    }

    fn is_t0(&self) -> bool {
        self.t0
    }

    fn is_extended(&self) -> bool {
        self.extended
    }
}

fn sw(status: u16) -> Vec<u8> {
    status.to_be_bytes().to_vec()
}

fn pin(text: &str) -> SecretBytes {
    SecretBytes::copy_from(text.as_bytes()).unwrap()
}

/// A data object as a card gives it.
fn object(fields: &[(u16, &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    fields.iter().for_each(|(tag, value)| tlv::push(&mut content, *tag, value));
    let mut object = Vec::new();
    tlv::push(&mut object, 0x53, &content);
    object
}

#[test]
fn the_pin_is_padded_and_its_state_understood() {
    let mut script = Script::new([sw(0x63C2), sw(0x6983), sw(0x9000), sw(0x63C0), sw(0x9000)]);
    let mut piv = script.piv();
    assert!(matches!(piv.verify(&pin("1234")), Err(CardError::WrongPin { tries_left: Some(2) })));
    assert!(matches!(piv.verify(&pin("123456")), Err(CardError::PinBlocked)));
    assert!(piv.verify(&pin("12345678")).is_ok());
    assert!(matches!(piv.verify(&pin("12345678")), Err(CardError::PinBlocked)));
    // Impossible ones are not sent.
    assert!(matches!(piv.verify(&pin("123")), Err(CardError::PinFormat)));
    assert!(matches!(piv.verify(&pin("123456789")), Err(CardError::PinFormat)));
    assert_eq!(piv.pin_state().unwrap(), PinState::Open);
    assert_eq!(piv.sent(), 5);
    assert_eq!(script.asked[0], [0, 0x20, 0, 0x80, 8, b'1', b'2', b'3', b'4', 0xFF, 0xFF, 0xFF, 0xFF]);
    assert_eq!(script.asked[4], [0, 0x20, 0, 0x80]);
}

#[test]
fn what_to_ask_for_follows_from_the_pin_state() {
    for (status, expected) in [
        (0x63C3, Some(PinRequest::Pin { tries_left: Some(3) })),
        (0x6300, Some(PinRequest::Pin { tries_left: None })),
        (0x6985, Some(PinRequest::Pin { tries_left: None })),
        (0x9000, Some(PinRequest::NotNeeded)),
        (0x6A88, Some(PinRequest::NotNeeded)),
        (0x63C0, None),
        (0x6983, None),
    ] {
        let state = Script::new([sw(status)]).piv().pin_state().unwrap();
        assert_eq!(state.request().ok(), expected, "{status:04X}");
    }
}

#[test]
fn a_foreign_card_is_told_from_ours() {
    assert!(matches!(Script::new([sw(0x6A82)]).piv().select(), Err(CardError::NotOurs)));
    assert!(matches!(Script::new([sw(0x6A82)]).piv().identity(), Err(CardError::NotOurs)));
    for content in [&[][..], &[0x70, 0x02, 0x30, 0x00], &[1, 2, 3]] {
        let mut script = Script::default();
        script.answer(&[&[0x53, u8::try_from(content.len()).unwrap()], content].concat(), 0x9000);
        assert!(matches!(script.piv().identity(), Err(CardError::NotOurs)));
    }
}

#[test]
fn the_identity_comes_from_the_server_object_or_from_the_certificate() {
    let organisation = Organisation::new();
    let key = RsaKey::generate(2048).unwrap().public().unwrap();
    let written =
        object(&[(0x70, &organisation.server_object), (0x71, &[0]), (0x72, &[7; 32]), (0xD0, &[1]), (0xFE, &[])]);
    let mut script = Script::default();
    script.answer(&written, 0x9000);
    let identity = script.piv().identity().unwrap();
    assert_eq!((identity.fingerprint, identity.without_pin), ([7; 32], true));
    assert!(script.asked.len() >= 3 && script.asked[1].starts_with(&[0, 0xC0, 0, 0]));

    let foreign = object(&[(0x70, &organisation.server_object), (0x71, &[0]), (0xFE, &[])]);
    let certificate = object(&[(0x70, &organisation.certify(key.der())), (0x71, &[0]), (0xFE, &[])]);
    let mut script = Script::default();
    script.answer(&foreign, 0x9000);
    script.answer(&certificate, 0x9000);
    let identity = script.piv().identity().unwrap();
    assert_eq!((identity.fingerprint, identity.without_pin), (key.fingerprint(), false));

    let mut script = Script::default();
    script.answer(&foreign, 0x9000);
    script.answers.push_back(sw(0x6A82));
    assert!(matches!(script.piv().identity(), Err(CardError::NoKey)));
}

/// A card that does the bare RSA operation on what it gets, as PIV cards do.
struct RawRsa {
    key: rsa::RsaPrivateKey,
    command: Vec<u8>,
    reply: VecDeque<u8>,
    apdus: Vec<Vec<u8>>,
}

impl Transmit for RawRsa {
    fn transmit(&mut self, apdu: &[u8], receive: &mut [u8]) -> Result<usize, CardError> {
        self.apdus.push(apdu.to_vec());
        let mut answer = Vec::new();
        if apdu[1] == 0x87 {
            let last = apdu[0] == 0;
            let data = usize::from(apdu[4]);
            self.command.extend_from_slice(&apdu[5..5 + data]);
            if !last {
                answer = sw(0x9000);
            } else {
                let template = tlv::find(&self.command, 0x7C).unwrap();
                let cipher = tlv::find(template, 0x81).unwrap();
                let number = rsa::BoxedUint::from_be_slice(cipher, u32::try_from(cipher.len() * 8).unwrap()).unwrap();
                let rng = None::<&mut UnwrapErr<getrandom::SysRng>>;
                let plain = rsa::hazmat::rsa_decrypt(rng, &self.key, &number).unwrap().to_be_bytes();
                let mut inner = Vec::new();
                tlv::push(&mut inner, 0x82, &plain);
                let mut reply = Vec::new();
                tlv::push(&mut reply, 0x7C, &inner);
                self.reply = reply.into();
            }
        }
        if answer.is_empty() {
            let part: Vec<u8> = self.reply.drain(..self.reply.len().min(256)).collect();
            let left = u8::try_from(self.reply.len()).unwrap_or(0);
            answer = [part, if self.reply.is_empty() { sw(0x9000) } else { vec![0x61, left] }].concat();
        }
        receive[..answer.len()].copy_from_slice(&answer);
        Ok(answer.len())
    }
}

#[test]
fn challenges_of_every_key_size_are_opened() {
    for (bits, algorithm, apdus) in [(2048, 0x07, 4), (3072, 0x05, 4), (4096, 0x16, 6)] {
        let mut rng = UnwrapErr(getrandom::SysRng);
        let key = {
            let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size(bits)).unwrap();
            rsa::RsaPrivateKey::from_pkcs8_der(&pair.serialize_der()).unwrap()
        };
        let challenge = Secret::<32>::random(&mut rng);
        let sealed = login::encrypt_challenge(&key.to_public_key(), &challenge, &mut rng).unwrap();
        let mut card = RawRsa { key, command: Vec::new(), reply: VecDeque::new(), apdus: Vec::new() };
        let opened = Piv::new(Channel::new(&mut card)).open_challenge(&sealed).unwrap();
        assert!(opened.matches(challenge.expose()));
        assert_eq!(card.apdus[0][..4], [0x10, 0x87, algorithm, 0x9D]);
        assert!(card.apdus.len() <= apdus, "{bits}: {} APDUs", card.apdus.len());

        // Another's challenge, and one that is above the modulus.
        let mut damaged = sealed.clone();
        damaged[100] ^= 1;
        card.command.clear();
        assert!(matches!(Piv::new(Channel::new(&mut card)).open_challenge(&damaged), Err(CardError::NotForThisCard)));
    }
}

fn size(bits: usize) -> rcgen::RsaKeySize {
    match bits {
        2048 => rcgen::RsaKeySize::_2048,
        3072 => rcgen::RsaKeySize::_3072,
        _ => rcgen::RsaKeySize::_4096,
    }
}

#[test]
fn refusals_of_the_private_key_operation_are_told_apart() {
    // The first part of the chained command is taken, the second refused.
    let open = |status| Script::new([sw(0x9000), sw(status)]).piv().open_challenge(&[1; 256]);
    assert!(matches!(open(0x6982), Err(CardError::PinRequired)));
    assert!(matches!(open(0x6A80), Err(CardError::NotForThisCard)));
    assert!(matches!(open(0x6A88), Err(CardError::NoKey)));
    assert!(matches!(open(0x6F00), Err(CardError::Refused(0x6F00))));
    assert!(matches!(Script::new([sw(0x6884)]).piv().open_challenge(&[1; 256]), Err(CardError::Refused(0x6884))));
    assert!(matches!(Script::new([]).piv().open_challenge(&[1; 256]), Err(CardError::Removed)));
    assert!(matches!(Script::new([]).piv().open_challenge(&[1; 255]), Err(CardError::NotForThisCard)));
}

#[test]
fn answers_of_the_wrong_form_are_refused() {
    for answer in [
        vec![],
        vec![0x90],
        vec![0x7C, 0x00, 0x90, 0x00],
        vec![0x7C, 0x04, 0x82, 0x02, 1, 2, 0x90, 0x00],
        vec![0xFF; 300],
    ] {
        let result = Script::new([sw(0x9000), answer.clone()]).piv().open_challenge(&[1; 256]);
        assert!(matches!(result, Err(CardError::Malformed(_) | CardError::Refused(0xFFFF))), "{answer:02X?}");
    }
}

#[test]
fn answers_without_end_are_cut_off() {
    let endless = std::iter::repeat_n([vec![0; 256], sw(0x6100)].concat(), 100);
    assert!(matches!(Script::new(endless).piv().object([0x5F, 0xC1, 0x0D]), Err(CardError::Malformed(_))));
    let empty = std::iter::repeat_n(sw(0x6110), 100);
    assert!(matches!(Script::new(empty).piv().object([0x5F, 0xC1, 0x0D]), Err(CardError::Malformed(_))));
}

#[test]
fn a_wrong_le_is_corrected_and_t0_gets_none() {
    let mut script = Script::new([sw(0x6C04), vec![0x53, 0x02, 9, 9, 0x90, 0x00]]);
    assert_eq!(script.piv().object([1, 2, 3]).unwrap().unwrap().as_slice(), [9, 9]);
    assert_eq!(script.asked[1].last(), Some(&4));

    let mut script = Script { t0: true, ..Script::new([sw(0x6104), vec![0x53, 0x02, 9, 9, 0x90, 0x00]]) };
    assert_eq!(script.piv().object([1, 2, 3]).unwrap().unwrap().as_slice(), [9, 9]);
    assert_eq!(script.asked[0].len(), 5 + 5);
}

#[test]
fn with_extended_lengths_a_command_is_one_apdu() {
    let data = [0x53, 0x82, 0x02, 0x00].iter().copied().chain(std::iter::repeat_n(7, 512)).collect::<Vec<_>>();
    let answer = [data.clone(), sw(0x9000)].concat();
    let mut script = Script { extended: true, ..Script::new([answer, sw(0x6982)]) };
    let mut piv = script.piv();
    assert_eq!(piv.object([1, 2, 3]).unwrap().unwrap().as_slice(), &data[4..]);
    assert!(matches!(piv.open_challenge(&[1; 256]), Err(CardError::PinRequired)));
    assert_eq!(script.asked[0], [0, 0xCB, 0x3F, 0xFF, 0, 0, 5, 0x5C, 3, 1, 2, 3, 0, 0]);
    assert_eq!((script.asked.len(), script.asked[1].len()), (2, 7 + 266 + 2));
    assert_eq!(script.asked[1][..7], [0, 0x87, 0x07, 0x9D, 0, 1, 10]);
    assert!(script.asked[1].ends_with(&[0, 0]));
}

#[test]
fn a_card_that_does_not_keep_its_word_gets_short_commands() {
    let object = vec![0x53, 0x02, 9, 9, 0x90, 0x00];
    let mut script = Script { extended: true, ..Script::new([sw(0x6700), object.clone(), object]) };
    let mut piv = script.piv();
    assert_eq!(piv.object([1, 2, 3]).unwrap().unwrap().as_slice(), [9, 9]);
    assert_eq!(piv.object([1, 2, 3]).unwrap().unwrap().as_slice(), [9, 9]);
    // Asked once with an extended length, and never again.
    assert_eq!(script.asked.iter().map(Vec::len).collect::<Vec<_>>(), [14, 11, 11]);
    // The private-key operation as well; a wrong length is a refusal when the command was short already.
    let mut script = Script { extended: true, ..Script::new([sw(0x6700), sw(0x9000), sw(0x6700)]) };
    assert!(matches!(script.piv().open_challenge(&[1; 256]), Err(CardError::Refused(0x6700))));
    assert_eq!((script.asked[0].len(), script.asked[1][0], script.asked[2][0]), (275, 0x10, 0));
}

proptest! {
    #[test]
    fn whatever_a_card_says_nothing_panics(answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..260), 0..12)) {
        let _ = Script::new(answers.clone()).piv().select();
        let _ = Script::new(answers.clone()).piv().identity();
        let _ = Script::new(answers.clone()).piv().pin_state();
        let _ = Script::new(answers.clone()).piv().certificate();
        let _ = Script::new(answers.clone()).piv().open_challenge(&[1; 384]);
        let _ = Script { extended: true, ..Script::new(answers) }.piv().identity();
    }

    #[test]
    fn commands_are_cut_and_put_together(data in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let mut script = Script::new(std::iter::repeat_n(sw(0x9000), 6));
        Channel::new(&mut script).send(&Command { ins: 0xDB, p1: 0x3F, p2: 0xFF, data: &data, answer: Answer::Status }).unwrap();
        let mut together = Vec::new();
        for (n, apdu) in script.asked.iter().enumerate() {
            let last = n + 1 == script.asked.len();
            prop_assert_eq!(apdu[0], if last { 0 } else { 0x10 });
            prop_assert!(apdu.len() <= 260);
            together.extend_from_slice(apdu.get(5..).unwrap_or_default());
        }
        prop_assert_eq!(together, data);
    }

    #[test]
    fn replies_are_bounded(parts in 1usize..64) {
        let mut script = Script::default();
        script.answer(&vec![5; parts * 256], 0x9000);
        let reply = Channel::new(&mut script).send(&Command { ins: 0xCB, p1: 0, p2: 0, data: &[], answer: Answer::Long });
        prop_assert_eq!(reply.is_ok(), parts * 256 <= MAX_REPLY);
    }
}
