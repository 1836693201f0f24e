//! Our own PIV card: SP 800-73-4 with the extensions of Yubico that `yubico-piv-tool` uses. RSA keys only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use getrandom::SysRng;
use rand_core::UnwrapErr;
use rsa::RsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rsa::traits::PublicKeyParts;
use serde::{Deserialize, Serialize};

use crate::apdu::{Command, Transport};
use crate::card::{self, Card};
use crate::management::{Management, ManagementAlgorithm};
use crate::{store, tlv};

/// When a key wants the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinPolicy {
    /// Never.
    Never,
    /// Once after each reset of the card.
    Once,
    /// Immediately before each use.
    Always,
}

impl PinPolicy {
    /// The policy with Yubico's identifier; 0 is the slot's default.
    pub fn from_id(id: u8) -> Option<Self> {
        Some(match id {
            1 => Self::Never,
            2 => Self::Once,
            3 => Self::Always,
            _ => return None,
        })
    }

    /// Yubico's identifier.
    pub fn id(self) -> u8 {
        match self {
            Self::Never => 1,
            Self::Once => 2,
            Self::Always => 3,
        }
    }
}

/// How a new card is made.
#[derive(Clone)]
pub struct OwnOptions {
    /// PIN, 6 to 8 bytes.
    pub pin: String,
    /// Tries for the PIN.
    pub pin_tries: u8,
    /// PIN unblocking key, 6 to 8 bytes.
    pub puk: String,
    /// Tries for the PUK.
    pub puk_tries: u8,
    /// Management key.
    pub management: Management,
    /// Policy of keys in slot 9D that do not bring their own.
    pub pin_policy: PinPolicy,
    /// Serial number.
    pub serial: u32,
    /// Says that it takes extended lengths. It takes them in any case, as many cards do that do not say so.
    pub extended: bool,
}

impl Default for OwnOptions {
    /// PIN 123456, PUK 12345678, three tries each, the delivered management key, PIN once.
    fn default() -> Self {
        Self {
            pin: "123456".to_owned(),
            pin_tries: 3,
            puk: "12345678".to_owned(),
            puk_tries: 3,
            management: Management::default(),
            pin_policy: PinPolicy::Once,
            serial: 7_531_000,
            extended: true,
        }
    }
}

/// A PIN or PUK and its tries.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secret {
    /// Padded with FF to 8 bytes.
    #[serde(with = "store::hex")]
    pub value: Vec<u8>,
    pub tries: u8,
    pub left: u8,
}

impl Secret {
    fn new(text: &str, tries: u8) -> crate::Result<Self> {
        ensure!((6..=8).contains(&text.len()), "a PIN or PUK has 6 to 8 characters");
        let mut value = text.as_bytes().to_vec();
        value.resize(8, 0xFF);
        Ok(Self { value, tries, left: tries })
    }
}

/// A private key in its slot.
pub(crate) struct SlotKey {
    pub key: RsaPrivateKey,
    pub policy: PinPolicy,
    pub imported: bool,
}

#[derive(Serialize, Deserialize)]
struct SavedKey {
    #[serde(with = "store::hex")]
    pkcs8: Vec<u8>,
    policy: PinPolicy,
    imported: bool,
}

#[derive(Serialize, Deserialize)]
struct SavedBytes(#[serde(with = "store::hex")] Vec<u8>);

#[derive(Serialize, Deserialize)]
struct Saved {
    kind: String,
    serial: u32,
    pin: Secret,
    puk: Secret,
    management_algorithm: ManagementAlgorithm,
    #[serde(with = "store::hex")]
    management_key: Vec<u8>,
    pin_policy: PinPolicy,
    keys: BTreeMap<String, SavedKey>,
    objects: BTreeMap<String, SavedBytes>,
}

const KIND: &str = "own";

/// What the card has forgotten after a reset.
#[derive(Default)]
pub(crate) struct Session {
    pub selected: bool,
    pub pin_verified: bool,
    /// The PIN was verified by the command just before this one.
    pub pin_fresh: bool,
    pub administrator: bool,
    /// Plain witness or challenge that the host has to answer.
    pub witness: Option<Vec<u8>>,
    pub challenge: Option<Vec<u8>>,
}

/// Our own PIV card.
pub struct OwnCard {
    pub(crate) pin: Secret,
    pub(crate) puk: Secret,
    pub(crate) management: Management,
    pub(crate) pin_policy: PinPolicy,
    pub(crate) serial: u32,
    extended: bool,
    pub(crate) keys: BTreeMap<u8, SlotKey>,
    /// Value of each data object, without the outer tag 53.
    pub(crate) objects: BTreeMap<u32, Vec<u8>>,
    pub(crate) session: Session,
    /// Something that outlives a reset has changed.
    pub(crate) dirty: bool,
    transport: Transport,
    file: Option<PathBuf>,
}

impl OwnCard {
    /// A new card, in memory only: no keys, a CHUID and a CCC.
    pub fn new(options: OwnOptions) -> crate::Result<Self> {
        let mut card = Self {
            pin: Secret::new(&options.pin, options.pin_tries)?,
            puk: Secret::new(&options.puk, options.puk_tries)?,
            management: options.management,
            pin_policy: options.pin_policy,
            serial: options.serial,
            extended: options.extended,
            keys: BTreeMap::new(),
            objects: BTreeMap::new(),
            session: Session::default(),
            dirty: true,
            transport: Transport::default(),
            file: None,
        };
        let mut guid = [0; 16];
        getrandom::fill(&mut guid)?;
        card.objects.insert(0x5F_C102, chuid(&guid));
        card.objects.insert(0x5F_C107, ccc(&guid));
        Ok(card)
    }

    /// The card whose state is in `file`, or a new one that will keep its state there.
    pub fn open(file: &Path, options: OwnOptions) -> crate::Result<Self> {
        let mut card = match store::load::<Saved>(file)? {
            Some(saved) => Self::restore(saved)?,
            None => Self::new(options)?,
        };
        card.file = Some(file.to_owned());
        card.save()?;
        Ok(card)
    }

    fn restore(saved: Saved) -> crate::Result<Self> {
        ensure!(saved.kind == KIND, "this is the state of a card of kind {}", saved.kind);
        let mut keys = BTreeMap::new();
        for (slot, key) in saved.keys {
            let SavedKey { pkcs8, policy, imported } = key;
            let key = RsaPrivateKey::from_pkcs8_der(&pkcs8)?;
            keys.insert(u8::from_str_radix(&slot, 16)?, SlotKey { key, policy, imported });
        }
        let mut objects = BTreeMap::new();
        for (tag, SavedBytes(value)) in saved.objects {
            objects.insert(u32::from_str_radix(&tag, 16)?, value);
        }
        Ok(Self {
            pin: saved.pin,
            puk: saved.puk,
            management: Management::new(saved.management_algorithm, saved.management_key)?,
            pin_policy: saved.pin_policy,
            serial: saved.serial,
            extended: true,
            keys,
            objects,
            session: Session::default(),
            dirty: false,
            transport: Transport::default(),
            file: None,
        })
    }

    fn save(&mut self) -> crate::Result<()> {
        self.dirty = false;
        let Some(file) = &self.file else { return Ok(()) };
        let mut keys = BTreeMap::new();
        for (slot, key) in &self.keys {
            let pkcs8 = key.key.to_pkcs8_der()?.as_bytes().to_vec();
            keys.insert(format!("{slot:02x}"), SavedKey { pkcs8, policy: key.policy, imported: key.imported });
        }
        let objects = self.objects.iter().map(|(tag, value)| (format!("{tag:x}"), SavedBytes(value.clone()))).collect();
        let saved = Saved {
            kind: KIND.to_owned(),
            serial: self.serial,
            pin: self.pin.clone(),
            puk: self.puk.clone(),
            management_algorithm: self.management.algorithm,
            management_key: self.management.key.clone(),
            pin_policy: self.pin_policy,
            keys,
            objects,
        };
        store::save(file, &saved)
    }

    /// Puts a key into a slot, past the card's command interface.
    pub fn set_key(&mut self, slot: u8, key: RsaPrivateKey, policy: Option<PinPolicy>) -> crate::Result<()> {
        let policy = policy.unwrap_or_else(|| self.default_policy(slot));
        self.keys.insert(slot, SlotKey { key, policy, imported: true });
        self.save()
    }

    /// Makes a key of `bits` in a slot, past the card's command interface.
    pub fn make_key(&mut self, slot: u8, bits: usize, policy: Option<PinPolicy>) -> crate::Result<()> {
        self.set_key(slot, RsaPrivateKey::new(&mut UnwrapErr(SysRng), bits)?, policy)
    }

    /// The key in a slot.
    pub fn key(&self, slot: u8) -> Option<&RsaPrivateKey> {
        self.keys.get(&slot).map(|key| &key.key)
    }

    /// The value of a data object (without the outer tag 53).
    pub fn object(&self, tag: u32) -> Option<&[u8]> {
        self.objects.get(&tag).map(Vec::as_slice)
    }

    /// Writes a data object (without the outer tag 53), past the card's command interface.
    pub fn set_object(&mut self, tag: u32, value: &[u8]) -> crate::Result<()> {
        self.objects.insert(tag, value.to_vec());
        self.save()
    }

    /// Tries left for the PIN.
    pub fn pin_tries_left(&self) -> u8 {
        self.pin.left
    }

    pub(crate) fn default_policy(&self, slot: u8) -> PinPolicy {
        match slot {
            0x9C => PinPolicy::Always,
            0x9E => PinPolicy::Never,
            0x9D => self.pin_policy,
            _ => PinPolicy::Once,
        }
    }
}

impl Card for OwnCard {
    fn atr(&self) -> Vec<u8> {
        if self.extended { card::atr(&card::extended(b"CUG PIV")) } else { card::atr(b"CUG PIV") }
    }

    fn reset(&mut self) {
        self.session = Session::default();
        self.transport = Transport::default();
    }

    fn transmit(&mut self, apdu: &[u8]) -> Vec<u8> {
        let mut transport = std::mem::take(&mut self.transport);
        let answer = transport.transmit(apdu, |command: &Command| self.execute(command));
        self.transport = transport;
        if self.dirty
            && let Err(e) = self.save()
        {
            eprintln!("virtual card: its state could not be saved: {e:#}");
        }
        answer
    }
}

/// The algorithm identifier of an RSA key.
pub(crate) fn algorithm(key: &RsaPrivateKey) -> u8 {
    match key.n().bits() {
        1024 => 0x06,
        3072 => 0x05,
        4096 => 0x16,
        _ => 0x07,
    }
}

/// The number of bits behind an algorithm identifier.
pub(crate) fn bits(algorithm: u8) -> Option<usize> {
    Some(match algorithm {
        0x06 => 1024,
        0x07 => 2048,
        0x05 => 3072,
        0x16 => 4096,
        _ => return None,
    })
}

/// Card holder unique identifier (SP 800-73-4 part 1, table 9): fixed FASC-N, random GUID, far expiry.
fn chuid(guid: &[u8; 16]) -> Vec<u8> {
    let mut out = Vec::new();
    let fasc_n = [
        0xD4, 0xE7, 0x39, 0xDA, 0x73, 0x9C, 0xED, 0x39, 0xCE, 0x73, 0x9D, 0x83, 0x68, 0x58, 0x21, 0x08, 0x42, 0x10,
        0x84, 0x21, 0xC8, 0x42, 0x10, 0xC3, 0xEB,
    ];
    tlv::push(&mut out, 0x30, &fasc_n);
    tlv::push(&mut out, 0x34, guid);
    tlv::push(&mut out, 0x35, b"20991231");
    tlv::push(&mut out, 0x3E, &[]);
    tlv::push(&mut out, 0xFE, &[]);
    out
}

/// Card capability container (SP 800-73-4 part 1, table 8).
fn ccc(guid: &[u8; 16]) -> Vec<u8> {
    let mut identifier = vec![0xA0, 0x00, 0x00, 0x01, 0x16, 0xFF, 0x02];
    identifier.extend_from_slice(&guid[..14]);
    let mut out = Vec::new();
    tlv::push(&mut out, 0xF0, &identifier);
    tlv::push(&mut out, 0xF1, &[0x21]);
    tlv::push(&mut out, 0xF2, &[0x21]);
    tlv::push(&mut out, 0xF3, &[]);
    tlv::push(&mut out, 0xF4, &[0x00]);
    tlv::push(&mut out, 0xF5, &[0x10]);
    for tag in [0xF6, 0xF7, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE] {
        tlv::push(&mut out, tag, &[]);
    }
    out
}
