//! Passwords: Argon2id (RFC 9106) in a bounded pool, so that a storm of logins takes neither all memory nor all processors.

mod memory;

use crate::{
    config::{Argon2Cost, PoolSize},
    store::PasswordRecord,
};
use cug_proto::secret::{Secret, SecretBytes};
pub use memory::HashMemory;
use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// The pool. Who waits is served in the order of coming; a user has one place at most, because logins of a user come one after the other.
pub struct PasswordPool {
    cost: Argon2Cost,
    size: PoolSize,
    desk: Arc<Desk>,
}

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

/// Where hashes are ordered and workers find them.
#[derive(Default)]
struct Desk(Mutex<State>);

#[derive(Default)]
struct State {
    orders: VecDeque<Order>,
    /// Threads that take orders. Each ends when there is none.
    workers: usize,
    /// Those of them that carry one out.
    hashing: usize,
    /// The memory of workers that have ended, wiped.
    spare: Vec<HashMemory>,
}

struct Order {
    password: SecretBytes,
    /// Salt and cost.
    record: PasswordRecord,
    tell: oneshot::Sender<Result<Secret<32>, PasswordError>>,
}

impl PasswordPool {
    /// A pool that hashes at `cost`.
    pub fn new(cost: Argon2Cost, size: PoolSize) -> Self {
        Self { cost, size, desk: Arc::default() }
    }

    /// Whether `password` is the one of `record`. Where there is none, nothing is, and it takes as long to say so.
    ///
    /// # Errors
    /// [`PasswordError`]
    pub async fn verify(&self, password: SecretBytes, record: PasswordRecord) -> Result<bool, PasswordError> {
        if record.is_none() {
            // The salt plays no part in the time.
            return self.derive(password, blank(self.cost, record.salt)).await.map(|_| false);
        }
        let right = record.hash;
        Ok(self.derive(password, record).await?.matches(&right))
    }

    /// The record of a new password.
    ///
    /// # Errors
    /// [`PasswordError`]
    pub async fn hash_new(&self, password: SecretBytes, salt: [u8; 16]) -> Result<PasswordRecord, PasswordError> {
        let mut record = blank(self.cost, salt);
        record.hash = *self.derive(password, record.clone()).await?.expose();
        Ok(record)
    }

    /// Whether a password of this record should be hashed again: the configuration has become more expensive since.
    pub fn is_cheap(&self, record: &PasswordRecord) -> bool {
        !record.is_none() && (record.memory_kib < self.cost.memory_kib || record.iterations < self.cost.iterations)
    }

    /// Hashes and checks that run or wait.
    pub fn queued(&self) -> usize {
        self.desk.state().queued()
    }

    /// The record of a new password. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// [`PasswordError::Fault`]
    pub fn hash(cost: Argon2Cost, password: &SecretBytes, salt: [u8; 16]) -> Result<PasswordRecord, PasswordError> {
        HashMemory::default().hash(cost, password, salt)
    }

    async fn derive(&self, password: SecretBytes, record: PasswordRecord) -> Result<Secret<32>, PasswordError> {
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.desk.state();
            // Who gave up leaves no place taken, and no password.
            state.orders.retain(|order| !order.tell.is_closed());
            if state.queued() >= self.size.workers.saturating_mul(self.size.queue.saturating_add(1)) {
                return Err(PasswordError::Busy);
            }
            state.orders.push_back(Order { password, record, tell });
            if state.workers < self.size.workers {
                state.workers += 1;
                let desk = self.desk.clone();
                tokio::task::spawn_blocking(move || desk.work());
            }
        }
        told.await.map_err(|_| PasswordError::Fault("the hash was not completed".into()))?
    }
}

/// A record with everything but the hash.
fn blank(Argon2Cost { memory_kib, iterations, lanes }: Argon2Cost, salt: [u8; 16]) -> PasswordRecord {
    PasswordRecord { salt, hash: [0; 32], memory_kib, iterations, lanes }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a worker does: orders, as long as there are any, in the same memory, which is left wiped.
    fn work(&self) {
        let mut memory = self.state().spare.pop().unwrap_or_default();
        loop {
            let mut state = self.state();
            if let Some(order) = state.orders.pop_front() {
                if !order.tell.is_closed() {
                    state.hashing += 1;
                    drop(state);
                    self.carry_out(order, &mut memory);
                }
            } else if memory.is_wiped() {
                let too_many = state.leave(memory);
                drop(state);
                return drop(too_many);
            } else {
                drop(state);
                memory.wipe();
            }
        }
    }

    fn carry_out(&self, order: Order, memory: &mut HashMemory) {
        let Order { password, record, tell } = order;
        // A worker that is lost would be missed by all who come later.
        let result = panic::catch_unwind(AssertUnwindSafe(|| memory.derive(&password, &record)));
        self.state().hashing -= 1;
        // Who asked may have given up.
        let _asker_gone = tell.send(result.unwrap_or_else(|_| Err(PasswordError::Fault("the hash panicked".into()))));
    }
}

impl State {
    fn queued(&self) -> usize {
        self.hashing + self.orders.iter().filter(|order| !order.tell.is_closed()).count()
    }

    /// A worker ends. One memory is enough for logins that come one at a time; a crowd's memory goes back to the kernel with the crowd.
    #[must_use = "to be freed without the lock"]
    fn leave(&mut self, memory: HashMemory) -> Vec<HashMemory> {
        self.workers -= 1;
        self.spare.push(memory);
        self.spare.split_off(self.workers.clamp(1, self.spare.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::{task::JoinSet, time};

    const SIZE: PoolSize = PoolSize { workers: 1, queue: 2 };

    fn bytes(text: &str) -> SecretBytes {
        SecretBytes::copy_from(text.as_bytes()).unwrap()
    }

    fn cost(memory_kib: u32) -> Argon2Cost {
        Argon2Cost { memory_kib, iterations: 1, lanes: 1 }
    }

    /// All workers have ended.
    async fn idle(pool: &PasswordPool) {
        let ended = async {
            while pool.desk.state().workers > 0 {
                tokio::task::yield_now().await;
            }
        };
        time::timeout(Duration::from_secs(20), ended).await.unwrap();
    }

    #[tokio::test]
    async fn only_the_password_verifies() {
        let pool = PasswordPool::new(cost(64), SIZE);
        let record = PasswordPool::hash(cost(64), &bytes("passwd1"), [7; 16]).unwrap();
        assert!(pool.verify(bytes("passwd1"), record.clone()).await.unwrap());
        assert!(!pool.verify(bytes("passwd2"), record.clone()).await.unwrap());
        assert_eq!(pool.queued(), 0);
        assert_eq!(pool.hash_new(bytes("passwd1"), [7; 16]).await.unwrap().hash, record.hash);
        assert_ne!(PasswordPool::hash(cost(64), &bytes("passwd1"), [8; 16]).unwrap().hash, record.hash);
    }

    #[tokio::test]
    async fn the_memory_is_kept_and_nothing_is_left_in_it() {
        let pool = PasswordPool::new(cost(64), SIZE);
        for (memory_kib, kept) in [(64, 64), (256, 256), (128, 256)] {
            let record = PasswordPool::hash(cost(memory_kib), &bytes("passwd1"), [7; 16]).unwrap();
            assert!(pool.verify(bytes("passwd1"), record).await.unwrap());
            idle(&pool).await;
            let state = pool.desk.state();
            let spare: Vec<_> = state.spare.iter().map(|memory| (memory.size(), memory.dirty())).collect();
            assert_eq!(spare, [(kept, 0)], "after a hash in {memory_kib} KiB");
        }
    }

    #[tokio::test]
    async fn a_crowd_leaves_one_memory_behind() {
        let pool = Arc::new(PasswordPool::new(cost(1024), PoolSize { workers: 3, queue: 10 }));
        let mut crowd = JoinSet::new();
        for _ in 0..12 {
            let pool = pool.clone();
            crowd.spawn(async move { pool.hash_new(bytes("passwd1"), [7; 16]).await.map(drop) });
        }
        assert!(crowd.join_all().await.iter().all(Result::is_ok));
        idle(&pool).await;
        let state = pool.desk.state();
        assert_eq!(state.spare.iter().map(HashMemory::dirty).collect::<Vec<_>>(), [0]);
    }

    #[tokio::test]
    async fn where_there_is_no_password_none_is_right() {
        let pool = PasswordPool::new(cost(64), SIZE);
        for typed in ["", "x", "\0"] {
            assert!(!pool.verify(bytes(typed), PasswordRecord::none()).await.unwrap());
        }
        assert!(!pool.is_cheap(&PasswordRecord::none()));
    }

    #[tokio::test]
    async fn a_full_queue_says_so_and_empties_again() {
        let pool = Arc::new(PasswordPool::new(cost(4096), SIZE));
        let record = PasswordPool::hash(pool.cost, &bytes("passwd1"), [7; 16]).unwrap();
        let mut logins = JoinSet::new();
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
        let pool = PasswordPool::new(cost(64), SIZE);
        let record = PasswordPool::hash(pool.cost, &bytes("passwd1"), [7; 16]).unwrap();
        // No worker comes as long as all are at work.
        pool.desk.state().workers = 1;
        for _ in 0..20 {
            let waiting = pool.verify(bytes("passwd1"), record.clone());
            assert!(time::timeout(Duration::from_millis(1), waiting).await.is_err());
            assert_eq!(pool.queued(), 0);
            assert!(pool.desk.state().orders.len() <= 1, "passwords of those who gave up");
        }
        pool.desk.state().workers = 0;
        assert!(pool.verify(bytes("passwd1"), record).await.unwrap());
        assert_eq!(pool.queued(), 0);
    }

    #[tokio::test]
    async fn a_record_that_was_altered_is_a_fault_and_costs_no_worker() {
        let pool = PasswordPool::new(cost(64), SIZE);
        let right = PasswordPool::hash(pool.cost, &bytes("passwd1"), [7; 16]).unwrap();
        for altered in [PasswordRecord { lanes: 0, ..right.clone() }, PasswordRecord { memory_kib: 1, ..right.clone() }]
        {
            assert!(matches!(pool.verify(bytes("passwd1"), altered).await, Err(PasswordError::Fault(_))));
        }
        assert!(pool.verify(bytes("passwd1"), right).await.unwrap());
        idle(&pool).await;
        assert_eq!(pool.queued(), 0);
    }
}
