//! EME-OAEP decoding (RFC 8017 section 7.1.2 step 3) with SHA-256, MGF1-SHA-256 and an empty label, for messages of exactly 32 bytes.
//!
//! PIV cards do the bare RSA operation, so the padding is taken off here. The length of the message is known, so every byte has its fixed place
//! and nothing depends on where a byte was found: one comparison in constant time over the whole block.

use cug_proto::secret::Secret;
use sha2::{Digest, Sha256};
use subtle::{ConstantTimeEq, ConstantTimeGreater as _};
use zeroize::Zeroize;

const HASH: usize = 32;
const MESSAGE: usize = 32;

/// The block is not the encoding of 32 bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct NotOaep;

/// Decodes in place and wipes `encoded`, whatever comes of it.
///
/// # Errors
/// [`NotOaep`], in the same time wherever the fault lies (except for the length of `encoded`, which is public).
pub fn decode(encoded: &mut [u8]) -> Result<Secret<MESSAGE>, NotOaep> {
    let message = decode_in_place(encoded);
    encoded.zeroize();
    message
}

fn decode_in_place(encoded: &mut [u8]) -> Result<Secret<MESSAGE>, NotOaep> {
    let (first, rest) = encoded.split_first_mut().ok_or(NotOaep)?;
    let (seed, block) = rest.split_at_mut_checked(HASH).ok_or(NotOaep)?;
    xor_mgf1(seed, block);
    xor_mgf1(block, seed);

    let padding_end = block.len().checked_sub(MESSAGE + 1).ok_or(NotOaep)?;
    let (head, tail) = block.split_at(padding_end);
    let (label_hash, padding) = head.split_at_checked(HASH).ok_or(NotOaep)?;
    let (marker, message) = tail.split_first().ok_or(NotOaep)?;

    let padding_sum = padding.iter().fold(0, |sum, byte| sum | byte);
    let bad_padding = padding_sum.ct_gt(&0);
    let good = first.ct_eq(&0) & label_hash.ct_eq(&Sha256::digest([])) & marker.ct_eq(&1) & !bad_padding;
    if bool::from(good) { Secret::copy_from(message).ok_or(NotOaep) } else { Err(NotOaep) }
}

/// MGF1 (RFC 8017 appendix B.2.1): `target` ^= mask generated from `seed`.
fn xor_mgf1(target: &mut [u8], seed: &[u8]) {
    for (counter, chunk) in (0u32..).zip(target.chunks_mut(HASH)) {
        let mut mask = Sha256::new().chain_update(seed).chain_update(counter.to_be_bytes()).finalize();
        for (byte, mask) in chunk.iter_mut().zip(&mask) {
            *byte ^= mask;
        }
        mask.as_mut_slice().zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 8017 section 7.1.1 step 2, written the other way round.
    fn encode(size: usize, message: &[u8], seed: [u8; 32]) -> Vec<u8> {
        let mut block = Sha256::digest([]).to_vec();
        block.resize(size - 1 - HASH - 1 - message.len(), 0);
        block.push(1);
        block.extend_from_slice(message);
        let mut seed = seed.to_vec();
        xor_mgf1(&mut block, &seed);
        xor_mgf1(&mut seed, &block);
        [vec![0], seed, block].concat()
    }

    #[test]
    fn every_key_size_decodes_and_is_wiped() {
        for size in [256, 384, 512] {
            let mut block = encode(size, &[7; 32], [9; 32]);
            assert!(decode(&mut block).is_ok_and(|k| k.matches(&[7; 32])));
            assert!(block.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn messages_of_other_lengths_are_refused() {
        for length in [0, 31, 33, 100] {
            assert!(decode(&mut encode(256, &vec![0; length], [1; 32])).is_err());
        }
        assert!(decode(&mut encode(256, &[[1; 1].as_slice(), &[0; 32]].concat(), [1; 32])).is_err());
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_refused(bit in 0usize..2048, seed in any::<[u8; 32]>()) {
            let mut block = encode(256, &[3; 32], seed);
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&mut block).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut block in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&mut block).is_err());
        }
    }
}
