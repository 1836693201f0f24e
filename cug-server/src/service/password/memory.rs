//! What one hash works in.

use super::{PasswordError, blank};
use crate::{config::Argon2Cost, store::PasswordRecord};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use cug_proto::secret::{Secret, SecretBytes};

/// The memory of one hash. It is kept for the next: the kernel gives fresh memory page by page, which takes a tenth of a hash, and more on a busy
/// machine. Wiped before nobody uses it, because what is in it at the end can be followed back to its first blocks, and against these a password is
/// tried at the price of a fast hash. The next hash writes to every block before it reads it, so that between two nothing needs to be wiped.
#[derive(Default)]
pub struct HashMemory {
    blocks: Vec<Block>,
    /// So many of them, from the first on, hold something.
    used: usize,
}

/// Blocks, each a KiB, that are wiped at a time.
const PIECE: usize = 1024;

impl HashMemory {
    /// The record of a new password. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// [`PasswordError::Fault`]
    pub fn hash(
        &mut self,
        cost: Argon2Cost,
        password: &SecretBytes,
        salt: [u8; 16],
    ) -> Result<PasswordRecord, PasswordError> {
        let mut record = blank(cost, salt);
        record.hash = *self.derive(password, &record)?.expose();
        Ok(record)
    }

    /// The hash of a password with the salt and at the cost of `record`. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// [`PasswordError::Fault`]
    pub(super) fn derive(
        &mut self,
        password: &SecretBytes,
        record: &PasswordRecord,
    ) -> Result<Secret<32>, PasswordError> {
        let fault = |e: argon2::Error| PasswordError::Fault(e.to_string());
        let params = Params::new(record.memory_kib, record.iterations, record.lanes, Some(32)).map_err(fault)?;
        let blocks = self.room(params.block_count())?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        Secret::try_fill(|out| argon2.hash_password_into_with_memory(password.expose(), &record.salt, out, blocks))
            .map_err(fault)
    }

    /// Whether there is nothing in it.
    pub(super) fn is_wiped(&self) -> bool {
        self.used == 0
    }

    /// In pieces: who waits for the result may be waiting for this processor.
    pub(super) fn wipe(&mut self) {
        self.wipe_from(0);
    }

    fn room(&mut self, count: usize) -> Result<&mut [Block], PasswordError> {
        // What the next one will not write to.
        self.wipe_from(count);
        if self.blocks.len() < count {
            // Not grown: what is there would be copied.
            self.wipe();
            let mut blocks = Vec::new();
            blocks.try_reserve_exact(count).map_err(|e| PasswordError::Fault(e.to_string()))?;
            blocks.resize(count, Block::new());
            self.blocks = blocks;
        }
        self.used = count;
        Ok(self.blocks.get_mut(..count).unwrap_or_default())
    }

    fn wipe_from(&mut self, first: usize) {
        for piece in self.blocks.get_mut(first..self.used).unwrap_or_default().chunks_mut(PIECE) {
            piece.fill(Block::new());
            // What is about to be freed is written to all the same.
            std::hint::black_box(piece);
            std::thread::yield_now();
        }
        self.used = self.used.min(first);
    }
}

impl Drop for HashMemory {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl HashMemory {
        /// Blocks that hold something, looked at one by one.
        pub(in super::super) fn dirty(&self) -> usize {
            self.blocks.iter().filter(|block| block.as_ref().iter().any(|word| *word != 0)).count()
        }

        pub(in super::super) fn size(&self) -> usize {
            self.blocks.len()
        }
    }

    #[test]
    fn a_hash_leaves_nothing_of_a_larger_one_before_it_and_none_after_wiping() {
        let password = SecretBytes::copy_from(b"passwd1").unwrap();
        let mut memory = HashMemory::default();
        for (memory_kib, size) in [(64, 64), (256, 256), (128, 256), (128, 256)] {
            let cost = Argon2Cost { memory_kib, iterations: 1, lanes: 1 };
            let fresh = HashMemory::default().hash(cost, &password, [7; 16]).unwrap();
            let kept = memory.hash(cost, &password, [7; 16]).unwrap();
            assert_eq!(kept.hash, fresh.hash, "in {memory_kib} KiB");
            assert_eq!((memory.dirty(), memory.size()), (memory_kib as usize, size));
        }
        memory.wipe();
        assert!(memory.is_wiped());
        assert_eq!((memory.dirty(), memory.size()), (0, 256));
    }
}
