//! Passwords: Argon2id (RFC 9106) in a bounded pool, so that a storm of logins takes neither all memory nor all processors.

use crate::{config::Argon2Cost, store::PasswordRecord};
use argon2::{Algorithm, Argon2, Params, Version};
use cug_proto::secret::{Secret, SecretBytes};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::Semaphore;

/// Logins that may wait for each worker.
const QUEUE_PER_WORKER: usize = 64;

/// The pool. As many workers as processors.
pub struct PasswordPool {
    cost: Argon2Cost,
    workers: Arc<Semaphore>,
    queued: Arc<AtomicUsize>,
    most_queued: usize,
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

/// Counts a waiting login, also when it gives up.
struct Queued(Arc<AtomicUsize>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PasswordPool {
    /// A pool that hashes at `cost`.
    pub fn new(cost: Argon2Cost) -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cost,
            workers: Arc::new(Semaphore::new(workers)),
            queued: Arc::default(),
            most_queued: workers * (1 + QUEUE_PER_WORKER),
        }
    }

    /// Whether `password` is the one of `record`.
    ///
    /// # Errors
    /// [`PasswordError`]
    pub async fn verify(&self, password: SecretBytes, record: PasswordRecord) -> Result<bool, PasswordError> {
        if self.queued.fetch_add(1, Ordering::Relaxed) >= self.most_queued {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(PasswordError::Busy);
        }
        let queued = Queued(self.queued.clone());
        let worker = self.workers.clone().acquire_owned().await.map_err(|_| PasswordError::Busy)?;
        let verified = tokio::task::spawn_blocking(move || {
            let result = verify(&password, &record);
            drop((worker, queued));
            result
        });
        verified.await.map_err(|e| PasswordError::Fault(e.to_string()))?
    }

    /// The record of a new password. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// [`PasswordError::Fault`]
    pub fn hash(cost: Argon2Cost, password: &SecretBytes, salt: [u8; 16]) -> Result<PasswordRecord, PasswordError> {
        let Argon2Cost { memory_kib, iterations, lanes } = cost;
        let mut record = PasswordRecord { salt, hash: [0; 32], memory_kib, iterations, lanes };
        record.hash = *derive(password, &record)?.expose();
        Ok(record)
    }

    /// What a new password costs.
    pub fn cost(&self) -> Argon2Cost {
        self.cost
    }
}

fn verify(password: &SecretBytes, record: &PasswordRecord) -> Result<bool, PasswordError> {
    Ok(derive(password, record)?.matches(&record.hash))
}

fn derive(password: &SecretBytes, record: &PasswordRecord) -> Result<Secret<32>, PasswordError> {
    let fault = |e: argon2::Error| PasswordError::Fault(e.to_string());
    let params = Params::new(record.memory_kib, record.iterations, record.lanes, Some(32)).map_err(fault)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    Secret::try_fill(|out| argon2.hash_password_into(password.expose(), &record.salt, out)).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_verifies() {
        let cost = Argon2Cost { memory_kib: 64, iterations: 1, lanes: 1 };
        let bytes = |text: &str| SecretBytes::copy_from(text.as_bytes()).unwrap();
        let pool = PasswordPool::new(cost);
        let record = PasswordPool::hash(cost, &bytes("passwd1"), [7; 16]).unwrap();
        assert!(pool.verify(bytes("passwd1"), record.clone()).await.unwrap());
        assert!(!pool.verify(bytes("passwd2"), record.clone()).await.unwrap());
        assert_eq!(pool.queued.load(Ordering::Relaxed), 0);
        assert_ne!(PasswordPool::hash(cost, &bytes("passwd1"), [8; 16]).unwrap().hash, record.hash);
    }
}
