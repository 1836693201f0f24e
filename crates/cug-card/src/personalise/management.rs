//! The management key (slot 9B): who may write to a card.

use crate::{CardError, apdu::SW_OK, piv::Piv, tlv};
use aes::{Aes128, Aes192, Aes256};
use cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use cug_proto::secret::SecretBytes;
use des::TdesEde3;
use std::{fs::File, io::Read, path::Path};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Key reference of the management key.
const REFERENCE: u8 = 0x9B;
/// What PIV cards are delivered with.
const FACTORY: [u8; 24] = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8];

/// The key that allows writing to a card: 16, 24 or 32 bytes. Whether 24 bytes are 3DES or AES-192 is the card's word.
pub struct ManagementKey(SecretBytes);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cipher {
    TripleDes,
    Aes128,
    Aes192,
    Aes256,
}

impl Cipher {
    /// Algorithm identifier (SP 800-78-5 table 9).
    fn id(self) -> u8 {
        match self {
            Self::TripleDes => 0x03,
            Self::Aes128 => 0x08,
            Self::Aes192 => 0x0A,
            Self::Aes256 => 0x0C,
        }
    }

    fn block(self) -> usize {
        if self == Self::TripleDes { 8 } else { 16 }
    }

    /// One block, in place.
    fn apply(self, key: &[u8], encrypt: bool, block: &mut [u8]) -> Result<(), CardError> {
        match self {
            Self::TripleDes => one_block::<TdesEde3>(key, encrypt, block),
            Self::Aes128 => one_block::<Aes128>(key, encrypt, block),
            Self::Aes192 => one_block::<Aes192>(key, encrypt, block),
            Self::Aes256 => one_block::<Aes256>(key, encrypt, block),
        }
    }
}

/// Most bytes of a file with a management key.
const MAX_FILE: usize = 128;

fn unhex(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |d: &u8| char::from(*d).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let mut bytes = Zeroizing::new(Vec::with_capacity(pairs.len()));
    for [high, low] in pairs {
        bytes.push(digit(high)? << 4 | digit(low)?);
    }
    Some(bytes)
}

fn one_block<C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt>(
    key: &[u8],
    encrypt: bool,
    block: &mut [u8],
) -> Result<(), CardError> {
    let cipher = C::new_from_slice(key).map_err(|_| CardError::ManagementKey)?;
    let block = <&mut Array<u8, _>>::try_from(block).map_err(|_| CardError::Malformed("a witness"))?;
    if encrypt {
        cipher.encrypt_block(block)
    } else {
        cipher.decrypt_block(block)
    }
    Ok(())
}

impl ManagementKey {
    /// From its bytes.
    ///
    /// # Errors
    /// [`CardError::ManagementKey`] when there are not 16, 24 or 32.
    pub fn new(bytes: SecretBytes) -> Result<Self, CardError> {
        if matches!(bytes.expose().len(), 16 | 24 | 32) { Ok(Self(bytes)) } else { Err(CardError::ManagementKey) }
    }

    /// The publicly known key that cards are delivered with (0102..08 three times). Change it.
    ///
    /// # Errors
    /// None that comes.
    pub fn factory() -> Result<Self, CardError> {
        Self::new(SecretBytes::copy_from(&FACTORY).ok_or(CardError::ManagementKey)?)
    }

    /// The key in a file: 32, 48 or 64 hexadecimal digits, or its bytes.
    ///
    /// # Errors
    /// [`CardError::KeyFile`] when it cannot be read, [`CardError::ManagementKey`] when it is no such key.
    pub fn from_file(path: &Path) -> Result<Self, CardError> {
        let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE));
        let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX);
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut content)).map_err(CardError::KeyFile)?;
        let digits = unhex(content.trim_ascii()).filter(|bytes| matches!(bytes.len(), 16 | 24 | 32));
        let bytes = digits.as_deref().unwrap_or(&content);
        Self::new(SecretBytes::copy_from(bytes).ok_or(CardError::ManagementKey)?)
    }

    fn bytes(&self) -> &[u8] {
        self.0.expose()
    }

    fn ciphers(&self) -> &'static [Cipher] {
        match self.bytes().len() {
            16 => &[Cipher::Aes128],
            24 => &[Cipher::TripleDes, Cipher::Aes192],
            32 => &[Cipher::Aes256],
            _ => &[],
        }
    }
}

/// Mutual authentication (SP 800-73-4 part 2, section 3.2.4 and appendix A.1): the card gives an encrypted witness, gets it back in the
/// clear with a challenge, and returns that encrypted.
pub(super) fn authenticate(piv: &mut Piv<'_>, key: &ManagementKey) -> Result<u8, CardError> {
    for cipher in key.ciphers() {
        let reply = piv.send(0x87, cipher.id(), REFERENCE, &[0x7C, 0x02, 0x80, 0x00])?;
        // Another status: this card's key is for another cipher. Nothing was given away yet.
        if reply.status == SW_OK {
            answer(piv, key, *cipher, &reply.data)?;
            return Ok(cipher.id());
        }
    }
    Err(CardError::ManagementKey)
}

fn answer(piv: &mut Piv<'_>, key: &ManagementKey, cipher: Cipher, reply: &[u8]) -> Result<(), CardError> {
    const BAD: CardError = CardError::Malformed("a witness");
    let size = cipher.block();
    let witness = tlv::find(reply, 0x7C).and_then(|template| tlv::find(template, 0x80)).map_err(|_| BAD)?;
    let mut witness = Zeroizing::new(witness.to_vec());
    cipher.apply(key.bytes(), false, &mut witness)?;
    let mut challenge = Zeroizing::new(vec![0; size]);
    getrandom::fill(&mut challenge).map_err(|_| CardError::Random)?;

    let mut data = Zeroizing::new(Vec::with_capacity(64));
    // Without the empty tag 82 of the standard's example: some cards refuse it, all do without.
    tlv::push_header(&mut data, 0x7C, tlv::encoded_len(0x80, witness.len()) + tlv::encoded_len(0x81, size));
    tlv::push(&mut data, 0x80, &witness);
    tlv::push(&mut data, 0x81, &challenge);
    let reply = piv.send(0x87, cipher.id(), REFERENCE, &data)?;
    if reply.status != SW_OK {
        return Err(CardError::ManagementKey);
    }
    let response = tlv::find(&reply.data, 0x7C).and_then(|template| tlv::find(template, 0x82)).map_err(|_| BAD)?;
    cipher.apply(key.bytes(), true, &mut challenge)?;
    if bool::from(challenge.as_slice().ct_eq(response)) { Ok(()) } else { Err(CardError::ManagementKey) }
}

/// SET MANAGEMENT KEY (Yubico, INS FF), with the cipher that the present key has, or AES-256 and AES-128 by length.
pub(super) fn change(piv: &mut Piv<'_>, present: u8, new: &ManagementKey) -> Result<(), CardError> {
    let cipher = new.ciphers().iter().find(|cipher| cipher.id() == present).or(new.ciphers().last());
    let cipher = cipher.ok_or(CardError::ManagementKey)?;
    let mut data = Zeroizing::new(Vec::with_capacity(3 + new.bytes().len()));
    data.extend_from_slice(&[cipher.id(), REFERENCE]);
    data.extend(u8::try_from(new.bytes().len()));
    data.extend_from_slice(new.bytes());
    match piv.send(0xFF, 0xFF, 0xFF, &data)?.status {
        SW_OK => Ok(()),
        0x6D00 | 0x6A81 | 0x6A86 => Err(CardError::Unsupported("changing its management key")),
        other => Err(CardError::Refused(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_holds_digits_or_bytes() {
        let path = std::env::temp_dir().join(format!("cug-management-key-{}", std::process::id()));
        let digits: String = (0..24).map(|n| format!("{n:02X}")).collect();
        let bytes: Vec<u8> = (0..24).collect();
        for content in [digits.clone().into_bytes(), format!(" {digits}\n").into_bytes(), bytes.clone()] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(ManagementKey::from_file(&path).unwrap().bytes(), bytes);
        }
        for bad in [b"".as_slice(), b"0011", &[7; 25], &[b'0'; 100]] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(ManagementKey::from_file(&path), Err(CardError::ManagementKey)), "{bad:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(ManagementKey::from_file(&path), Err(CardError::KeyFile(_))));
    }
}
