//! The running server: all parts put together.

use crate::{admin, api::Api, clock, config::Config, hub::Hub, keys::Keys, service::Service, store::Store};
use anyhow::{Context, Result};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// How long connections may take to end when the server stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// A server that runs.
pub struct Server {
    addresses: Vec<SocketAddr>,
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
        let keys = Arc::new(Keys::load(&config.state_dir)?);
        let tls = keys.tls_config(clock::unix_now())?;
        let store: Arc<dyn Store> = Arc::new(admin::open_store(&config.state_dir, &keys)?);
        let (hub, handle) = Hub::start(store.clone(), config.lease).await?;
        let (stop, stopped) = watch::channel(false);

        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        let service = Arc::new(Service::new(store.clone(), keys.clone(), config.clone(), handle.clone()));
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
        let admins = admin::AdminService::new(store, keys, config, Some(handle));
        tasks.spawn(admin::serve(socket, Arc::new(admins), stopped));
        Ok(Self { addresses, stop, tasks, hub: tokio::spawn(hub.run()), _lock: lock })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
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
