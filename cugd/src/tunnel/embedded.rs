//! WireGuard inside this process: gotatun on a TUN device.
//!
//! Each interface has a tokio runtime of its own. Keys as gotatun needs them (plain arrays) are therefore only ever on the
//! stacks of that runtime's threads, which are wiped when they end, and in its heap blocks, which the allocator wipes; and
//! ending the runtime ends every task that holds the TUN device, so the kernel removes the interface at that moment.

mod datagrams;
mod device_file;
mod engine;
mod offload;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use cug_proto::secret::Secret;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    InterfaceName, PeerConfig, PeerStats, PublicKey, Rekey, TunnelError, driver::Driver, link, memory::scrub_stack,
};
use engine::Command;

/// Threads of one interface: one may encrypt while the other decrypts.
const THREADS: usize = 2;
/// How long the engine may take to stop in good order, and its threads to end.
const STOP: Duration = Duration::from_secs(2);

/// A TUN device with its engine.
pub(super) struct EmbeddedDriver {
    commands: mpsc::UnboundedSender<Command>,
    lost: watch::Receiver<bool>,
    runtime: Mutex<Option<Runtime>>,
}

impl EmbeddedDriver {
    /// Makes the TUN device; no socket and no key yet.
    pub(super) async fn create(name: &InterfaceName, mtu: u16) -> Result<Self, TunnelError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name(name.as_str())
            .on_thread_stop(scrub_stack)
            .enable_all()
            .build()
            .map_err(TunnelError::io("threads for the tunnel"))?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let (ready, made) = oneshot::channel();
        let (lost_sender, lost) = watch::channel(false);
        runtime.spawn(engine::run(name.clone(), mtu, ready, inbox, lost_sender));
        let driver = Self { commands, lost, runtime: Mutex::new(Some(runtime)) };
        made.await.unwrap_or(Err(TunnelError::Down))?;
        Ok(driver)
    }

    /// Sends a command and waits for its answer.
    fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, TunnelError>>) -> Command,
    ) -> BoxFuture<'_, Result<T, TunnelError>> {
        let (answer, result) = oneshot::channel();
        let sent = self.commands.send(command(answer));
        async move {
            sent.map_err(|_| TunnelError::Down)?;
            result.await.unwrap_or(Err(TunnelError::Down))
        }
        .boxed()
    }

    fn take_runtime(&self) -> Option<Runtime> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Driver for EmbeddedDriver {
    fn listen<'a>(
        &'a self,
        private_key: &'a Arc<Secret<32>>,
        port: u16,
    ) -> BoxFuture<'a, Result<Option<u16>, TunnelError>> {
        self.ask(|answer| Command::Listen { private_key: Arc::clone(private_key), port, answer })
    }

    fn upsert(&self, peers: Vec<PeerConfig>) -> BoxFuture<'_, Result<(), TunnelError>> {
        self.ask(|answer| Command::Upsert { peers, answer })
    }

    fn set_preshared_keys(&self, keys: Vec<(PublicKey, Secret<32>)>) -> BoxFuture<'_, Result<(), TunnelError>> {
        self.ask(|answer| Command::PresharedKeys { keys, answer })
    }

    fn set_endpoint(&self, peer: PublicKey, endpoint: SocketAddr) -> BoxFuture<'_, Result<(), TunnelError>> {
        self.ask(|answer| Command::Endpoint { peer, endpoint, answer })
    }

    fn remove(&self, peers: Vec<PublicKey>) -> BoxFuture<'_, Result<(), TunnelError>> {
        self.ask(|answer| Command::Remove { peers, answer })
    }

    fn rekey(&self, peers: Vec<PublicKey>) -> BoxFuture<'_, Result<Rekey, TunnelError>> {
        self.ask(|answer| Command::Rekey { peers, answer })
    }

    fn call(&self, peers: Vec<(PublicKey, Option<Duration>)>) -> BoxFuture<'_, Result<(), TunnelError>> {
        let peers = peers.into_iter().map(|(peer, _)| peer).collect();
        self.ask(|answer| Command::Call { peers, answer })
    }

    fn stats(&self, _: SystemTime) -> BoxFuture<'_, Result<Vec<PeerStats>, TunnelError>> {
        self.ask(|answer| Command::Stats { answer })
    }

    fn lost(&self, index: u32) -> BoxFuture<'static, ()> {
        let mut lost = self.lost.clone();
        async move {
            // The engine notices a broken socket but not always a removed link. A sender that is gone is an engine gone.
            tokio::select! {
                _ = lost.wait_for(|lost| *lost) => {}
                () = link::until_gone(index) => {}
            }
        }
        .boxed()
    }

    fn down(&self) -> BoxFuture<'_, Result<(), TunnelError>> {
        async {
            let Some(runtime) = self.take_runtime() else { return Ok(()) };
            let stopped = timeout(STOP, self.ask(|answer| Command::Stop { answer })).await;
            // Ending a runtime blocks until its threads have ended, so another thread does it.
            let (answer, ended) = oneshot::channel();
            std::thread::Builder::new()
                .name("tunnel-end".to_owned())
                .spawn(move || {
                    runtime.shutdown_timeout(STOP);
                    let _ = answer.send(());
                })
                .map_err(TunnelError::io("a thread"))?;
            ended.await.map_err(|_| TunnelError::Down)?;
            stopped.unwrap_or(Err(TunnelError::Timeout("stopping the tunnel")))
        }
        .boxed()
    }
}

impl Drop for EmbeddedDriver {
    fn drop(&mut self) {
        if let Some(runtime) = self.take_runtime() {
            runtime.shutdown_background();
        }
    }
}
