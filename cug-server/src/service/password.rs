//! Passwords: Argon2id (RFC 9106) in a bounded pool, so that a storm of logins takes neither all memory nor all processors.

use crate::{
    config::{Argon2Cost, PoolSize},
    store::PasswordRecord,
};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use cug_proto::secret::{Secret, SecretBytes};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::{Semaphore, oneshot};

/// The pool. Who waits is served in the order of coming; a user has one place at most, because logins of a user come one after the other.
pub struct PasswordPool {
    cost: Argon2Cost,
    workers: Arc<Semaphore>,
    queued: Arc<AtomicUsize>,
    most_queued: usize,
    /// The memory of earlier hashes that nobody uses at the moment.
    spare: Arc<Mutex<Vec<HashMemory>>>,
}

/// The memory of one hash. It is kept for the next: the kernel gives fresh memory page by page, which takes a tenth of a hash, and more on a busy
/// machine. Wiped between two, because what is in it at the end can be followed back to its first blocks, and against these a password is tried at the
/// price of a fast hash.
#[derive(Default)]
pub struct HashMemory(Vec<Block>);

/// Blocks, each a KiB, that are wiped at a time.
const PIECE: usize = 1024;

/// A password could not be checked or hashed.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The queue is full.
    #[error("too many logins at a time")]
    Busy,
    /// Out of memory, or a record that was altered.
    #[error("the password cannot be checked: {0}")]
    Fault(String),
}

/// Counts a waiting login, also when it gives up.
struct Queued(Arc<AtomicUsize>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PasswordPool {
    /// A pool that hashes at `cost`.
    pub fn new(cost: Argon2Cost, size: PoolSize) -> Self {
        Self {
            cost,
            workers: Arc::new(Semaphore::new(size.workers)),
            queued: Arc::default(),
            most_queued: size.workers.saturating_mul(size.queue.saturating_add(1)),
            spare: Arc::default(),
        }
    }

    /// Whether `password` is the one of `record`. Where there is none, nothing is, and it takes as long to say so.
    ///
    /// # Errors
    /// [`PasswordError`]
    pub async fn verify(&self, password: SecretBytes, record: PasswordRecord) -> Result<bool, PasswordError> {
        let cost = self.cost;
        self.work(move |memory| {
            if record.is_none() {
                // The salt plays no part in the time.
                return memory.hash(cost, &password, record.salt).map(|_| false);
            }
            memory.verify(&password, &record)
        })
        .await
    }

    /// The record of a new password.
    ///
    /// # Errors
    /// [`PasswordError`]
    pub async fn hash_new(&self, password: SecretBytes, salt: [u8; 16]) -> Result<PasswordRecord, PasswordError> {
        let cost = self.cost;
        self.work(move |memory| memory.hash(cost, &password, salt)).await
    }

    /// Whether a password of this record should be hashed again: the configuration has become more expensive since.
    pub fn is_cheap(&self, record: &PasswordRecord) -> bool {
        !record.is_none() && (record.memory_kib < self.cost.memory_kib || record.iterations < self.cost.iterations)
    }

    /// Hashes and checks that run or wait.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Waits for a worker and has it do this. The memory is wiped when the result is told.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut HashMemory) -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let before = self.queued.fetch_add(1, Ordering::Relaxed);
        let queued = Queued(self.queued.clone());
        if before >= self.most_queued {
            return Err(PasswordError::Busy);
        }
        let worker = self.workers.clone().acquire_owned().await.map_err(|_| PasswordError::Busy)?;
        let (tell, told) = oneshot::channel();
        let (spare, still_queued) = (self.spare.clone(), self.queued.clone());
        tokio::task::spawn_blocking(move || {
            let spare = || spare.lock().unwrap_or_else(PoisonError::into_inner);
            let mut memory = spare().pop().unwrap_or_default();
            let result = work(&mut memory);
            drop(queued);
            // Who asked may have given up.
            let _asker_gone = tell.send(result);
            memory.wipe();
            // One is enough for logins that come one at a time; a crowd's memory goes back to the kernel with the crowd.
            let too_many = {
                let mut spare = spare();
                spare.push(memory);
                let enough = still_queued.load(Ordering::Relaxed).clamp(1, spare.len());
                spare.split_off(enough)
            };
            drop((too_many, worker));
        });
        told.await.map_err(|_| PasswordError::Fault("the hash was not completed".into()))?
    }

    /// The record of a new password. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// [`PasswordError::Fault`]
    pub fn hash(cost: Argon2Cost, password: &SecretBytes, salt: [u8; 16]) -> Result<PasswordRecord, PasswordError> {
        HashMemory::default().hash(cost, password, salt)
    }
}

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
        let Argon2Cost { memory_kib, iterations, lanes } = cost;
        let mut record = PasswordRecord { salt, hash: [0; 32], memory_kib, iterations, lanes };
        record.hash = *self.derive(password, &record)?.expose();
        Ok(record)
    }

    fn verify(&mut self, password: &SecretBytes, record: &PasswordRecord) -> Result<bool, PasswordError> {
        Ok(self.derive(password, record)?.matches(&record.hash))
    }

    fn derive(&mut self, password: &SecretBytes, record: &PasswordRecord) -> Result<Secret<32>, PasswordError> {
        let fault = |e: argon2::Error| PasswordError::Fault(e.to_string());
        let params = Params::new(record.memory_kib, record.iterations, record.lanes, Some(32)).map_err(fault)?;
        let blocks = self.room(params.block_count())?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        Secret::try_fill(|out| argon2.hash_password_into_with_memory(password.expose(), &record.salt, out, blocks))
            .map_err(fault)
    }

    fn room(&mut self, count: usize) -> Result<&mut [Block], PasswordError> {
        if self.0.len() < count {
            // Not grown: what is there would be copied.
            self.wipe();
            let mut blocks = Vec::new();
            blocks.try_reserve_exact(count).map_err(|e| PasswordError::Fault(e.to_string()))?;
            blocks.resize(count, Block::new());
            self.0 = blocks;
        }
        Ok(self.0.get_mut(..count).unwrap_or_default())
    }

    /// In pieces: who waits for the result may be waiting for this processor.
    fn wipe(&mut self) {
        for piece in self.0.chunks_mut(PIECE) {
            piece.fill(Block::new());
            // What is about to be freed is written to all the same.
            std::hint::black_box(piece);
            std::thread::yield_now();
        }
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

    const SIZE: PoolSize = PoolSize { workers: 1, queue: 2 };

    fn bytes(text: &str) -> SecretBytes {
        SecretBytes::copy_from(text.as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn only_the_password_verifies() {
        let cost = Argon2Cost { memory_kib: 64, iterations: 1, lanes: 1 };
        let pool = PasswordPool::new(cost, SIZE);
        let record = PasswordPool::hash(cost, &bytes("passwd1"), [7; 16]).unwrap();
        assert!(pool.verify(bytes("passwd1"), record.clone()).await.unwrap());
        assert!(!pool.verify(bytes("passwd2"), record.clone()).await.unwrap());
        assert_eq!(pool.queued(), 0);
        assert_ne!(PasswordPool::hash(cost, &bytes("passwd1"), [8; 16]).unwrap().hash, record.hash);
    }

    #[tokio::test]
    async fn the_memory_is_kept_and_nothing_is_left_in_it() {
        let of = |memory_kib| Argon2Cost { memory_kib, iterations: 1, lanes: 1 };
        let pool = PasswordPool::new(of(64), SIZE);
        for (memory_kib, kept) in [(64, 64), (256, 256), (128, 256)] {
            let record = PasswordPool::hash(of(memory_kib), &bytes("passwd1"), [7; 16]).unwrap();
            assert!(pool.verify(bytes("passwd1"), record).await.unwrap());
            let _its_work_is_done = pool.workers.acquire().await.unwrap();
            let spare = pool.spare.lock().unwrap();
            assert_eq!(spare.len(), 1);
            assert_eq!(spare[0].0.len(), kept, "after a hash in {memory_kib} KiB");
            assert!(spare[0].0.iter().all(|block| block.as_ref().iter().all(|word| *word == 0)));
        }
    }

    #[tokio::test]
    async fn a_crowd_leaves_one_memory_behind() {
        let cost = Argon2Cost { memory_kib: 1024, iterations: 1, lanes: 1 };
        let pool = Arc::new(PasswordPool::new(cost, PoolSize { workers: 3, queue: 10 }));
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let pool = pool.clone();
            crowd.spawn(async move { pool.hash_new(bytes("passwd1"), [7; 16]).await.map(drop) });
        }
        assert!(crowd.join_all().await.iter().all(Result::is_ok));
        let _their_work_is_done = pool.workers.acquire_many(3).await.unwrap();
        assert_eq!(pool.spare.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn where_there_is_no_password_none_is_right() {
        let pool = PasswordPool::new(Argon2Cost { memory_kib: 64, iterations: 1, lanes: 1 }, SIZE);
        for typed in ["", "x", "\0"] {
            assert!(!pool.verify(bytes(typed), PasswordRecord::none()).await.unwrap());
        }
        assert!(!pool.is_cheap(&PasswordRecord::none()));
    }

    #[tokio::test]
    async fn a_full_queue_says_so_and_empties_again() {
        let pool = Arc::new(PasswordPool::new(Argon2Cost { memory_kib: 4096, iterations: 2, lanes: 1 }, SIZE));
        let record = PasswordPool::hash(pool.cost, &bytes("passwd1"), [7; 16]).unwrap();
        let mut logins = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (pool, record) = (pool.clone(), record.clone());
            logins.spawn(async move { pool.verify(bytes("passwd1"), record).await });
        }
        let results = logins.join_all().await;
        let served = results.iter().filter(|r| matches!(r, Ok(true))).count();
        let busy = results.iter().filter(|r| matches!(r, Err(PasswordError::Busy))).count();
        assert_eq!((served, busy), (3, 7), "one at work, two waiting");
        assert!(pool.verify(bytes("passwd1"), record).await.unwrap());
        assert_eq!(pool.queued(), 0);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_queue() {
        let pool = Arc::new(PasswordPool::new(Argon2Cost { memory_kib: 4096, iterations: 2, lanes: 1 }, SIZE));
        let record = PasswordPool::hash(pool.cost, &bytes("passwd1"), [7; 16]).unwrap();
        let at_work = pool.workers.clone().acquire_owned().await.unwrap();
        for _ in 0..20 {
            let waiting = pool.verify(bytes("passwd1"), record.clone());
            assert!(tokio::time::timeout(std::time::Duration::from_millis(1), waiting).await.is_err());
        }
        assert_eq!(pool.queued(), 0);
        drop(at_work);
        assert!(pool.verify(bytes("passwd1"), record).await.unwrap());
    }
}
