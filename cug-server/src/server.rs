//! The running server: all parts put together.

use crate::{
    admin,
    api::Api,
    clock,
    config::Config,
    health::{self, Health},
    hub::{self, Hub},
    keys::Keys,
    metrics::{self, Metrics},
    service::Service,
    store::Store,
};
use anyhow::{Context, Result};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// How long connections may take to end when the server stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// How often the TLS certificate is looked at: its end, and whether another one was put in its place.
const TLS_WATCH: Duration = Duration::from_secs(3600);

/// A server that runs.
pub struct Server {
    addresses: Vec<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    hub: JoinHandle<()>,
    _lock: admin::StateLock,
}

impl Server {
    /// Opens the store, listens, and serves. Returns once connections are accepted.
    ///
    /// # Errors
    /// A sentence that says what is missing: no keys, another server on this state, an address in use, a damaged database.
    pub async fn start(config: Config) -> Result<Self> {
        let lock = admin::StateLock::take(&config.state_dir)?;
        let config = Arc::new(config);
        let keys = Arc::new(admin::keys_of(&config)?);
        let tls = keys.tls_config(clock::unix_now())?;
        let store: Arc<dyn Store> = Arc::new(admin::open_store(&config.state_dir, &keys)?);
        let metrics = Metrics::new();
        let (hub, handle) = Hub::start(store.clone(), config.lease, metrics.clone()).await?;
        let health = Arc::new(Health::new(store.clone(), handle.clone(), metrics.clone()));
        let (stop, stopped) = watch::channel(false);

        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        let mut metrics_address = None;
        let service =
            Arc::new(Service::new(store.clone(), keys.clone(), config.clone(), handle.clone(), metrics.clone()));
        let api = Api::new(service, tls, stopped.clone());
        // First the administrator's socket: who reads that the server listens may use any of its commands.
        let socket = admin::listen(&config.admin_socket, config.admin_group.as_deref())?;
        for address in &config.listen {
            let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
            let address = listener.local_addr()?;
            tracing::info!("listening on {address}");
            addresses.push(address);
            tasks.spawn(api.clone().listen(listener));
        }
        if let Some(wanted) = &config.metrics {
            let listener = TcpListener::bind(wanted.listen).await;
            let listener = listener.with_context(|| format!("cannot listen on {} for metrics", wanted.listen))?;
            let listens = listener.local_addr()?;
            tracing::info!("metrics and health on {listens}");
            metrics_address = Some(listens);
            let (store, keys, health) = (store.clone(), keys.clone(), health.clone());
            let source = metrics::Source { metrics, store, keys, health, max_groups: wanted.max_groups };
            tasks.spawn(metrics::serve(listener, source, stopped.clone()));
        }
        if let Some(every) = config.rotate_every {
            let (store, keys, hub) = (store.clone(), keys.clone(), handle.clone());
            tasks.spawn(hub::schedule::run(store, keys, hub, every, stopped.clone()));
        }
        tasks.spawn(hub::closing::run(store.clone(), config.clone(), handle.clone(), stopped.clone()));
        tasks.spawn(watch_tls(keys.clone(), stopped.clone()));
        tasks.spawn(health::feed_watchdog(health, stopped.clone()));
        let admins = admin::AdminService::new(store, keys, config, Some(handle));
        tasks.spawn(admin::serve(socket, Arc::new(admins), stopped));
        Ok(Self { addresses, metrics_address, stop, tasks, hub: tokio::spawn(hub.run()), _lock: lock })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where it tells metrics and health.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Ends all connections; sessions stay, their terminals attach again later.
    pub async fn stop(mut self) {
        // Nobody left to be told is a server that has stopped already.
        let _stopped = self.stop.send(true);
        let ended = async {
            while self.tasks.join_next().await.is_some() {}
            // The hub ends with the last connection.
            let _hub = (&mut self.hub).await;
        };
        if tokio::time::timeout(STOP_TIME, ended).await.is_err() {
            tracing::warn!("some connections did not end in time");
            self.hub.abort();
        }
    }
}

/// Renews the TLS certificate in time, or warns; sessions are not touched.
async fn watch_tls(keys: Arc<Keys>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TLS_WATCH) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let keys = keys.clone();
        let watched = tokio::task::spawn_blocking(move || keys.watch_tls(clock::unix_now())).await;
        if let Ok(Err(error)) = watched {
            tracing::error!(%error, "the TLS certificate cannot be looked after");
        }
    }
}
