//! One login of a user at a time: with the card alone, nobody may try passwords side by side.

use cug_proto::id::UserId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

type Turn = tokio::sync::Mutex<()>;

/// Locks of the users who log in right now.
#[derive(Default)]
pub(super) struct UserLocks(Mutex<HashMap<UserId, Weak<Turn>>>);

impl UserLocks {
    /// Waits for the user's turn; it lasts until the guard is dropped.
    pub(super) async fn turn(&self, user: &UserId) -> tokio::sync::OwnedMutexGuard<()> {
        self.of(user).lock_owned().await
    }

    fn of(&self, user: &UserId) -> Arc<Turn> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(user).and_then(Weak::upgrade) {
            return lock;
        }
        // Entries that nobody holds go when a new one comes; the map stays as small as the number of logins at a time.
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(Turn::new(()));
        locks.insert(user.clone(), Arc::downgrade(&lock));
        lock
    }
}
