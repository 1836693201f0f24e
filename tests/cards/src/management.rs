//! The card management key (slot 9B): one block of 3DES or AES, raw, for the witness and challenge of SP 800-73.

use aes::{Aes128, Aes192, Aes256};
use anyhow::{Context as _, bail};
use cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use des::TdesEde3;
use serde::{Deserialize, Serialize};

/// Algorithm of the management key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManagementAlgorithm {
    /// 3DES with three keys, algorithm 03.
    Tdes,
    /// AES-128, algorithm 08.
    Aes128,
    /// AES-192, algorithm 0A.
    Aes192,
    /// AES-256, algorithm 0C.
    Aes256,
}

impl ManagementAlgorithm {
    /// The algorithm with this identifier (SP 800-78, table 6-2).
    pub fn from_id(id: u8) -> Option<Self> {
        Some(match id {
            0x00 | 0x03 => Self::Tdes,
            0x08 => Self::Aes128,
            0x0A => Self::Aes192,
            0x0C => Self::Aes256,
            _ => return None,
        })
    }

    /// Its identifier.
    pub fn id(self) -> u8 {
        match self {
            Self::Tdes => 0x03,
            Self::Aes128 => 0x08,
            Self::Aes192 => 0x0A,
            Self::Aes256 => 0x0C,
        }
    }

    /// Length of a key, in bytes.
    pub fn key_length(self) -> usize {
        match self {
            Self::Tdes | Self::Aes192 => 24,
            Self::Aes128 => 16,
            Self::Aes256 => 32,
        }
    }

    /// Length of a block, in bytes.
    pub fn block_length(self) -> usize {
        if self == Self::Tdes { 8 } else { 16 }
    }
}

/// A management key.
#[derive(Clone, PartialEq, Eq)]
pub struct Management {
    /// Its algorithm.
    pub algorithm: ManagementAlgorithm,
    /// The key itself.
    pub key: Vec<u8>,
}

impl Default for Management {
    /// The key that cards are delivered with: 3DES, 0102030405060708 three times.
    fn default() -> Self {
        Self { algorithm: ManagementAlgorithm::Tdes, key: [1, 2, 3, 4, 5, 6, 7, 8].repeat(3) }
    }
}

impl Management {
    /// A key of this algorithm, if the length is right.
    pub fn new(algorithm: ManagementAlgorithm, key: Vec<u8>) -> crate::Result<Self> {
        if key.len() != algorithm.key_length() {
            bail!("a management key of this algorithm has {} bytes, not {}", algorithm.key_length(), key.len());
        }
        Ok(Self { algorithm, key })
    }

    /// Encrypts one block.
    pub fn encrypt(&self, block: &[u8]) -> crate::Result<Vec<u8>> {
        match self.algorithm {
            ManagementAlgorithm::Tdes => encrypt::<TdesEde3>(&self.key, block),
            ManagementAlgorithm::Aes128 => encrypt::<Aes128>(&self.key, block),
            ManagementAlgorithm::Aes192 => encrypt::<Aes192>(&self.key, block),
            ManagementAlgorithm::Aes256 => encrypt::<Aes256>(&self.key, block),
        }
    }

    /// Decrypts one block.
    pub fn decrypt(&self, block: &[u8]) -> crate::Result<Vec<u8>> {
        match self.algorithm {
            ManagementAlgorithm::Tdes => decrypt::<TdesEde3>(&self.key, block),
            ManagementAlgorithm::Aes128 => decrypt::<Aes128>(&self.key, block),
            ManagementAlgorithm::Aes192 => decrypt::<Aes192>(&self.key, block),
            ManagementAlgorithm::Aes256 => decrypt::<Aes256>(&self.key, block),
        }
    }
}

fn encrypt<C: KeyInit + BlockCipherEncrypt>(key: &[u8], block: &[u8]) -> crate::Result<Vec<u8>> {
    let mut block = cipher::Block::<C>::try_from(block).context("not one block")?;
    C::new_from_slice(key).context("key length")?.encrypt_block(&mut block);
    Ok(block.to_vec())
}

fn decrypt<C: KeyInit + BlockCipherDecrypt>(key: &[u8], block: &[u8]) -> crate::Result<Vec<u8>> {
    let mut block = cipher::Block::<C>::try_from(block).context("not one block")?;
    C::new_from_slice(key).context("key length")?.decrypt_block(&mut block);
    Ok(block.to_vec())
}
