//! The use-cases: a login, a session, and what administrators ask for goes through [`crate::admin`].

mod enrol;
mod limits;
mod locks;
mod login;
mod password;
mod renewal;
mod session;
mod tries;

pub use enrol::{Claimed, Enrolling, NewKey};
pub use limits::{Admission, Admitted};
pub use login::{Answer, Challenged, Granted};
pub use password::{HashMemory, PasswordPool};
pub use session::{Attached, acceptable};

use crate::{
    clock,
    config::Config,
    hub::HubHandle,
    keys::Keys,
    metrics::Metrics,
    store::{Result, Store, StoreError},
};
use std::sync::Arc;

/// What all connections share.
pub struct Service {
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
    config: Arc<Config>,
    hub: HubHandle,
    passwords: PasswordPool,
    users: locks::UserLocks,
    rejections: limits::Rejections,
    metrics: Metrics,
    tries: tries::Tries,
}

impl Service {
    /// Puts the parts together.
    pub fn new(store: Arc<dyn Store>, keys: Arc<Keys>, config: Arc<Config>, hub: HubHandle, metrics: Metrics) -> Self {
        let passwords = PasswordPool::new(config.argon2, config.password_pool);
        let (users, rejections) = (locks::UserLocks::default(), limits::Rejections::new(clock::monotonic()));
        Self { store, keys, config, hub, passwords, users, rejections, metrics, tries: tries::Tries::default() }
    }

    /// The hub that tells terminals what changed.
    pub fn hub(&self) -> &HubHandle {
        &self.hub
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs a store operation where blocking is allowed.
    async fn store<T: Send + 'static>(&self, work: impl FnOnce(&dyn Store) -> Result<T> + Send + 'static) -> Result<T> {
        self.metrics.store(blocking(self.store.clone(), work)).await
    }
}

/// Runs a store operation where blocking is allowed.
///
/// # Errors
/// Those of the operation, and a fault when it panicked.
pub async fn blocking<T: Send + 'static>(
    store: Arc<dyn Store>,
    work: impl FnOnce(&dyn Store) -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(move || work(&*store)).await {
        Ok(result) => result,
        Err(panicked) => Err(StoreError::Fault(panicked.into())),
    }
}
