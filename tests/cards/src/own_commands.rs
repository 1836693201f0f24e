//! The commands of our own PIV card.

use getrandom::SysRng;
use rand_core::UnwrapErr;
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, RsaPrivateKey};

use crate::apdu::{Command, sw};
use crate::management::{Management, ManagementAlgorithm};
use crate::own::{OwnCard, PinPolicy, Secret, Session, SlotKey, algorithm, bits};
use crate::tlv;

/// Response data, or a status word that is not 9000.
type Answer = Result<Vec<u8>, u16>;

const PIV_AID: [u8; 11] = [0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00, 0x01, 0x00];
/// Shortest accepted prefix of the AID: the registered provider, which is all that yubico-piv-tool sends.
const SHORT_AID: usize = 5;
/// The firmware that we claim: its tools expect metadata (INS F7) from 5.3 on.
const VERSION: [u8; 3] = [5, 4, 3];
/// Data objects that want the PIN: fingerprints, face, printed information, iris.
const PIN_OBJECTS: [u32; 4] = [0x5F_C103, 0x5F_C108, 0x5F_C109, 0x5F_C121];

impl OwnCard {
    pub(crate) fn execute(&mut self, command: &Command) -> (Vec<u8>, u16) {
        let fresh = std::mem::take(&mut self.session.pin_fresh);
        match self.run(command, fresh) {
            Ok(data) => (data, sw::OK),
            Err(code) => (Vec::new(), code),
        }
    }

    fn run(&mut self, command: &Command, fresh: bool) -> Answer {
        let Command { cla, ins, p1, p2, ref data, .. } = *command;
        if cla != 0 {
            return Err(sw::CLASS);
        }
        if ins == 0xA4 {
            return self.select(p1, data);
        }
        if !self.session.selected {
            return Err(sw::INSTRUCTION);
        }
        match (ins, p1, p2) {
            (0x20, ..) => self.verify(p1, p2, data),
            (0x24, 0, _) => self.change_reference(p2, data),
            (0x2C, 0, 0x80) => self.reset_retry_counter(data),
            (0x47, 0, _) => self.generate(p2, data),
            (0x87, ..) => self.general_authenticate(p1, p2, data, fresh),
            (0xCB, 0x3F, 0xFF) => self.get_data(data),
            (0xDB, 0x3F, 0xFF) => self.put_data(data),
            (0xF7, 0, _) => self.metadata(p2),
            (0xF8, 0, 0) => Ok(self.serial.to_be_bytes().to_vec()),
            (0xFA, ..) => self.set_tries(p1, p2),
            (0xFB, 0, 0) => self.factory_reset(),
            (0xFD, 0, 0) => Ok(VERSION.to_vec()),
            (0xFE, ..) => self.import(p1, p2, data),
            (0xFF, 0xFF, 0xFE | 0xFF) => self.set_management_key(data),
            (0x24 | 0x2C | 0x47 | 0xCB | 0xDB | 0xFF, ..) => Err(sw::PARAMETERS),
            _ => Err(sw::INSTRUCTION),
        }
    }

    /// SELECT. Selecting PIV again keeps the security states (SP 800-73-4 part 2, 3.1.1).
    fn select(&mut self, p1: u8, aid: &[u8]) -> Answer {
        if p1 != 0x04 || aid.len() < SHORT_AID || !PIV_AID.starts_with(aid) {
            return Err(sw::NOT_FOUND);
        }
        self.session.selected = true;
        let mut template = tlv::make(0x4F, &PIV_AID[5..]);
        tlv::push(&mut template, 0x79, &tlv::make(0x4F, &PIV_AID[..5]));
        tlv::push(&mut template, 0x50, b"CUG virtual PIV card");
        Ok(tlv::make(0x61, &template))
    }

    fn verify(&mut self, p1: u8, reference: u8, data: &[u8]) -> Answer {
        if reference != 0x80 {
            return Err(sw::REFERENCE);
        }
        match (p1, data.len()) {
            (0xFF, 0) => self.session.pin_verified = false,
            (0x00, 0) if self.session.pin_verified => {}
            (0x00, 0) if self.pin.left == 0 => return Err(sw::BLOCKED),
            (0x00, 0) => return Err(sw::TRIES | u16::from(self.pin.left)),
            (0x00, _) => {
                self.session.pin_verified = false;
                self.dirty = true;
                check(&mut self.pin, data)?;
                self.session.pin_verified = true;
                self.session.pin_fresh = true;
            }
            _ => return Err(sw::PARAMETERS),
        }
        Ok(Vec::new())
    }

    fn change_reference(&mut self, reference: u8, data: &[u8]) -> Answer {
        let secret = match reference {
            0x80 => &mut self.pin,
            0x81 => &mut self.puk,
            _ => return Err(sw::REFERENCE),
        };
        let (old, new) = data.split_at_checked(8).ok_or(sw::DATA)?;
        well_formed(new)?;
        self.dirty = true;
        check(secret, old)?;
        secret.value = new.to_vec();
        Ok(Vec::new())
    }

    fn reset_retry_counter(&mut self, data: &[u8]) -> Answer {
        let (puk, pin) = data.split_at_checked(8).ok_or(sw::DATA)?;
        well_formed(pin)?;
        self.dirty = true;
        check(&mut self.puk, puk)?;
        self.pin.value = pin.to_vec();
        self.pin.left = self.pin.tries;
        Ok(Vec::new())
    }

    fn get_data(&self, data: &[u8]) -> Answer {
        let tag = object_tag(tlv::find(data, 0x5C).ok_or(sw::DATA)?)?;
        if tag == 0x7E {
            // Discovery object: the PIV PIN is the only one.
            let mut discovery = tlv::make(0x4F, &PIV_AID);
            tlv::push(&mut discovery, 0x5F2F, &[0x40, 0x00]);
            return Ok(tlv::make(0x7E, &discovery));
        }
        if PIN_OBJECTS.contains(&tag) && !self.session.pin_verified {
            return Err(sw::SECURITY);
        }
        let value = self.objects.get(&tag).ok_or(sw::NOT_FOUND)?;
        Ok(tlv::make(0x53, value))
    }

    fn put_data(&mut self, data: &[u8]) -> Answer {
        if !self.session.administrator {
            return Err(sw::SECURITY);
        }
        let (first, name, rest) = tlv::next(data).ok_or(sw::DATA)?;
        if first != 0x5C {
            return Err(sw::DATA);
        }
        let tag = object_tag(name)?;
        let (outer, value, _) = tlv::next(rest).ok_or(sw::DATA)?;
        if outer != 0x53 {
            return Err(sw::DATA);
        }
        if value.is_empty() {
            self.objects.remove(&tag);
        } else {
            self.objects.insert(tag, value.to_vec());
        }
        self.dirty = true;
        Ok(Vec::new())
    }

    fn general_authenticate(&mut self, algorithm_id: u8, slot: u8, data: &[u8], fresh: bool) -> Answer {
        let template = tlv::find(data, 0x7C).ok_or(sw::DATA)?;
        if slot == 0x9B {
            return self.authenticate_administrator(algorithm_id, template);
        }
        let key = self.keys.get(&slot).ok_or(sw::REFERENCE)?;
        let allowed = match key.policy {
            PinPolicy::Never => true,
            PinPolicy::Once => self.session.pin_verified,
            PinPolicy::Always => self.session.pin_verified && fresh,
        };
        if !allowed {
            return Err(sw::SECURITY);
        }
        if algorithm_id != algorithm(&key.key) {
            return Err(sw::PARAMETERS);
        }
        let input = tlv::find(template, 0x81).ok_or(sw::DATA)?;
        let output = raw_rsa(&key.key, input).ok_or(sw::DATA)?;
        Ok(tlv::make(0x7C, &tlv::make(0x82, &output)))
    }

    /// Mutual (witness) or external (challenge) authentication with the management key.
    fn authenticate_administrator(&mut self, algorithm_id: u8, template: &[u8]) -> Answer {
        if ManagementAlgorithm::from_id(algorithm_id) != Some(self.management.algorithm) {
            return Err(sw::PARAMETERS);
        }
        let block = self.management.algorithm.block_length();
        let (witness, challenge, response) =
            (tlv::find(template, 0x80), tlv::find(template, 0x81), tlv::find(template, 0x82));
        let fresh_block = || {
            let mut bytes = vec![0; block];
            getrandom::fill(&mut bytes).map_err(|_| sw::FAILURE)?;
            Ok::<_, u16>(bytes)
        };
        match (witness, challenge, response) {
            (Some([]), ..) => {
                let plain = fresh_block()?;
                let hidden = self.management.encrypt(&plain).map_err(|_| sw::FAILURE)?;
                self.session.witness = Some(plain);
                Ok(tlv::make(0x7C, &tlv::make(0x80, &hidden)))
            }
            (Some(witness), Some(challenge), _) => {
                if self.session.witness.take().as_deref() != Some(witness) {
                    return Err(sw::SECURITY);
                }
                let answer = self.management.encrypt(challenge).map_err(|_| sw::DATA)?;
                self.session.administrator = true;
                Ok(tlv::make(0x7C, &tlv::make(0x82, &answer)))
            }
            (None, Some([]), _) => {
                let plain = fresh_block()?;
                self.session.challenge = Some(plain.clone());
                Ok(tlv::make(0x7C, &tlv::make(0x81, &plain)))
            }
            (None, None, Some(response)) => {
                let plain = self.session.challenge.take().ok_or(sw::CONDITIONS)?;
                let expected = self.management.encrypt(&plain).map_err(|_| sw::FAILURE)?;
                if expected != response {
                    return Err(sw::SECURITY);
                }
                self.session.administrator = true;
                Ok(Vec::new())
            }
            _ => Err(sw::DATA),
        }
    }

    fn generate(&mut self, slot: u8, data: &[u8]) -> Answer {
        if !self.session.administrator {
            return Err(sw::SECURITY);
        }
        key_slot(slot)?;
        let control = tlv::find(data, 0xAC).ok_or(sw::DATA)?;
        let size = match tlv::find(control, 0x80) {
            Some(&[id]) => bits(id).ok_or(sw::DATA)?,
            _ => return Err(sw::DATA),
        };
        let policy = self.policy(slot, tlv::find(control, 0xAA))?;
        let key = RsaPrivateKey::new_unchecked(&mut UnwrapErr(SysRng), size).map_err(|_| sw::FAILURE)?;
        let public = public_key(&key);
        self.keys.insert(slot, SlotKey { key, policy, imported: false });
        self.dirty = true;
        Ok(tlv::make(0x7F49, &public))
    }

    /// Yubico's import: 01 p, 02 q (and the CRT parts, which follow from them), AA policy; the exponent is 65537.
    fn import(&mut self, algorithm_id: u8, slot: u8, data: &[u8]) -> Answer {
        if !self.session.administrator {
            return Err(sw::SECURITY);
        }
        key_slot(slot)?;
        let size = bits(algorithm_id).ok_or(sw::PARAMETERS)?;
        let elements = tlv::all(data).ok_or(sw::DATA)?;
        let find = |tag: u32| elements.iter().find(|(found, _)| *found == tag).map(|(_, value)| *value);
        let prime = |tag| {
            let bytes = find(tag).ok_or(sw::DATA)?;
            BoxedUint::from_be_slice(bytes, (size / 2) as u32).map_err(|_| sw::DATA)
        };
        let policy = self.policy(slot, find(0xAA))?;
        let key =
            RsaPrivateKey::from_p_q(prime(0x01)?, prime(0x02)?, BoxedUint::from(65_537_u64)).map_err(|_| sw::DATA)?;
        if key.n().bits() as usize != size {
            return Err(sw::DATA);
        }
        self.keys.insert(slot, SlotKey { key, policy, imported: true });
        self.dirty = true;
        Ok(Vec::new())
    }

    fn policy(&self, slot: u8, asked: Option<&[u8]>) -> Result<PinPolicy, u16> {
        match asked {
            None | Some([0]) => Ok(self.default_policy(slot)),
            Some(&[id]) => PinPolicy::from_id(id).ok_or(sw::DATA),
            Some(_) => Err(sw::DATA),
        }
    }

    fn set_management_key(&mut self, data: &[u8]) -> Answer {
        if !self.session.administrator {
            return Err(sw::SECURITY);
        }
        let [id, 0x9B, length, key @ ..] = data else { return Err(sw::DATA) };
        let algorithm = ManagementAlgorithm::from_id(*id).ok_or(sw::DATA)?;
        if key.len() != usize::from(*length) {
            return Err(sw::LENGTH);
        }
        self.management = Management::new(algorithm, key.to_vec()).map_err(|_| sw::DATA)?;
        self.dirty = true;
        Ok(Vec::new())
    }

    fn metadata(&self, reference: u8) -> Answer {
        let mut out = Vec::new();
        match reference {
            0x80 | 0x81 => {
                let secret = if reference == 0x80 { &self.pin } else { &self.puk };
                tlv::push(&mut out, 0x01, &[0xFF]);
                tlv::push(&mut out, 0x05, &[0]);
                tlv::push(&mut out, 0x06, &[secret.tries, secret.left]);
            }
            0x9B => {
                tlv::push(&mut out, 0x01, &[self.management.algorithm.id()]);
                tlv::push(&mut out, 0x02, &[0, 1]);
                tlv::push(&mut out, 0x05, &[u8::from(self.management == Management::default())]);
            }
            _ => {
                let key = self.keys.get(&reference).ok_or(sw::REFERENCE)?;
                tlv::push(&mut out, 0x01, &[algorithm(&key.key)]);
                tlv::push(&mut out, 0x02, &[key.policy.id(), 1]);
                tlv::push(&mut out, 0x03, &[if key.imported { 2 } else { 1 }]);
                tlv::push(&mut out, 0x04, &public_key(&key.key));
            }
        }
        Ok(out)
    }

    fn set_tries(&mut self, pin: u8, puk: u8) -> Answer {
        if !self.session.administrator || !self.session.pin_verified {
            return Err(sw::SECURITY);
        }
        if !(1..=15).contains(&pin) || !(1..=15).contains(&puk) {
            return Err(sw::PARAMETERS);
        }
        (self.pin.tries, self.pin.left) = (pin, pin);
        (self.puk.tries, self.puk.left) = (puk, puk);
        self.dirty = true;
        Ok(Vec::new())
    }

    /// Yubico's reset, allowed when PIN and PUK are both blocked.
    fn factory_reset(&mut self) -> Answer {
        if self.pin.left != 0 || self.puk.left != 0 {
            return Err(sw::CONDITIONS);
        }
        self.keys.clear();
        self.objects.clear();
        self.management = Management::default();
        self.pin = Secret { value: b"123456\xFF\xFF".to_vec(), tries: 3, left: 3 };
        self.puk = Secret { value: b"12345678".to_vec(), tries: 3, left: 3 };
        self.session = Session { selected: true, ..Session::default() };
        self.dirty = true;
        Ok(Vec::new())
    }
}

/// Compares with a PIN or PUK, counting tries.
fn check(secret: &mut Secret, given: &[u8]) -> Result<(), u16> {
    if secret.left == 0 {
        return Err(sw::BLOCKED);
    }
    // A value of the wrong form costs no try (SP 800-73-4 part 2, 3.2.1).
    if given.len() != 8 {
        return Err(sw::DATA);
    }
    if secret.value == given {
        secret.left = secret.tries;
        return Ok(());
    }
    secret.left -= 1;
    // The last try blocks, and says so as real cards do: 63C0 first, 6983 from then on.
    Err(sw::TRIES | u16::from(secret.left))
}

/// A new PIN or PUK: 6 to 8 bytes, padded with FF to 8.
fn well_formed(value: &[u8]) -> Result<(), u16> {
    let length = value.iter().position(|&byte| byte == 0xFF).unwrap_or(value.len());
    if value.len() == 8 && length >= 6 && value[length..].iter().all(|&byte| byte == 0xFF) {
        Ok(())
    } else {
        Err(sw::DATA)
    }
}

fn object_tag(name: &[u8]) -> Result<u32, u16> {
    match *name {
        [a] => Ok(u32::from(a)),
        [a, b] => Ok(u32::from_be_bytes([0, 0, a, b])),
        [a, b, c] => Ok(u32::from_be_bytes([0, a, b, c])),
        _ => Err(sw::DATA),
    }
}

fn key_slot(slot: u8) -> Result<(), u16> {
    match slot {
        0x9A | 0x9C | 0x9D | 0x9E | 0x82..=0x95 | 0xF9 => Ok(()),
        _ => Err(sw::PARAMETERS),
    }
}

fn public_key(key: &RsaPrivateKey) -> Vec<u8> {
    let mut out = Vec::new();
    tlv::push(&mut out, 0x81, &key.n_bytes());
    tlv::push(&mut out, 0x82, &key.e_bytes());
    out
}

/// RSA without padding, as PIV cards do it: the input is exactly as long as the modulus and below it.
fn raw_rsa(key: &RsaPrivateKey, input: &[u8]) -> Option<Vec<u8>> {
    let length = key.size();
    if input.len() != length {
        return None;
    }
    let number = BoxedUint::from_be_slice(input, key.n().as_ref().bits_precision()).ok()?;
    let output = rsa::hazmat::rsa_decrypt_and_check(key, None::<&mut SysRng>, &number).ok()?;
    let bytes = output.to_be_bytes();
    // The number may be kept in more bytes than the modulus has.
    let mut answer = vec![0; length.saturating_sub(bytes.len())];
    answer.extend_from_slice(&bytes[bytes.len().saturating_sub(length)..]);
    Some(answer)
}
