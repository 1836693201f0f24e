//! Is the server well? For `/healthz`, `/readyz` and the service manager's watchdog.

use crate::{clock, hub::HubHandle, metrics::Metrics, service::blocking, store::Store};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

/// For the hub to answer somebody who asks over HTTP.
const HUB_TIME: Duration = Duration::from_secs(3);

/// For the store to write something.
const STORE_TIME: Duration = Duration::from_secs(5);

/// A finding about the store holds for so long: a write costs a sync of the disk, and anybody may ask.
const HOLDS: Duration = Duration::from_secs(5);

/// Looks at the hub and the store.
pub struct Health {
    store: Arc<dyn Store>,
    hub: HubHandle,
    metrics: Metrics,
    found: Mutex<Option<(Instant, Verdict)>>,
}

/// What was found.
type Verdict = Result<(), &'static str>;

impl Health {
    /// Of these.
    pub fn new(store: Arc<dyn Store>, hub: HubHandle, metrics: Metrics) -> Self {
        Self { store, hub, metrics, found: Mutex::new(None) }
    }

    /// The loop that everything goes through goes round.
    pub async fn alive(&self) -> bool {
        tokio::time::timeout(HUB_TIME, self.hub.ping()).await.is_ok_and(|answered| answered)
    }

    /// Logins can be served: the hub answers, the store can be read and written. The server listens if it answers at all.
    ///
    /// # Errors
    /// What does not work, in a few words.
    pub async fn ready(&self) -> Verdict {
        if !self.alive().await {
            return Err("the hub does not answer");
        }
        let mut found = self.found.lock().await;
        if let Some((at, verdict)) = *found
            && clock::monotonic().duration_since(at) < HOLDS
        {
            return verdict;
        }
        let verdict = match tokio::time::timeout(STORE_TIME, self.try_store()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "not ready");
                Err("the database cannot be used; see the log")
            }
            Err(_) => Err("the database does not answer"),
        };
        *found = Some((clock::monotonic(), verdict));
        verdict
    }

    async fn try_store(&self) -> crate::store::Result<()> {
        let now = clock::unix_now();
        let tried = blocking(self.store.clone(), move |s| s.revision().and_then(|_| s.probe(now)));
        self.metrics.store(tried).await
    }

    /// Whether hub and store answer at all within `limit`. A store that answers with an error is no reason to start anew: a full disk is
    /// as full afterwards.
    async fn answers(&self, limit: Duration) -> bool {
        let both = async {
            let hub = self.hub.ping().await;
            if let Err(error) = self.try_store().await {
                tracing::error!(%error, "the database cannot be used");
            }
            hub
        };
        tokio::time::timeout(limit, both).await.is_ok_and(|hub| hub)
    }
}

/// Tells the service manager every now and then that the server lives, as long as it does. Returns at once when nobody wants to know.
pub async fn feed_watchdog(health: Arc<Health>, mut stop: watch::Receiver<bool>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        if health.answers(limit / 3).await {
            if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]) {
                tracing::warn!(%error, "the service manager cannot be told");
            }
        } else {
            tracing::error!("the hub or the database does not answer; the service manager will restart this server");
        }
        tokio::select! {
            () = tokio::time::sleep(limit / 3) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}
