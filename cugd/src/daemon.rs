//! From the start to the end of the process.

use std::{
    future::Future,
    io::{self, IsTerminal},
    path::Path,
};

use anyhow::Context;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    addresses, clock,
    config::Config,
    core::{Settings, State},
    driver::{Driver, EVENT_QUEUE},
    guard::{self, Guard, Layers, Lifetime},
    hardening, host,
    leaders::Leaders,
    link::TlsLinks,
    logind::Logind,
    names::{self, Names},
    socket::Listener,
    tunnel::{self, Backend},
    tunnels::WgTunnels,
    waiting::Waitings,
    watch::CardWatches,
};

/// Requests that may wait for the loop; more are answered `Busy`.
const ASK_QUEUE: usize = 64;

/// The whole daemon. Returns after an orderly end.
///
/// One thread decides, reads and writes: its stack can be wiped when a session ends. WireGuard and the watches have threads of their own.
///
/// # Errors
/// What kept the daemon from starting.
pub fn run(config: &Path) -> anyhow::Result<()> {
    start_log();
    let config = Config::load(config)?;
    hardening::apply();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("the runtime does not start")?;
    let result = runtime.block_on(serve(config));
    // A name service or a card reader that hangs must not hold the end up.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // The socket comes first: it tells whether another daemon runs, whose interfaces must not be swept away.
    let listener = Listener::bind(&config.socket)?;
    let stop = stop_signal().context("signals cannot be handled")?;
    for name in tunnel::sweep().await.context("leftovers of an earlier run could not be removed")? {
        tracing::warn!(interface = %name, "removed an interface that an earlier run left");
    }
    for what in guard::sweep().await.context("leftovers of an earlier run could not be removed")? {
        tracing::warn!(what, "removed what an earlier run left");
    }
    sweep_names();
    let backend = Backend::select(config.backend).await.context("there is no WireGuard")?;
    let lifetime = match backend {
        Backend::Kernel => Lifetime::Pinned,
        Backend::Embedded => Lifetime::Process,
    };
    let guard = Guard::select(config.guard, lifetime).context("the tunnels cannot be guarded")?;

    let (events, event_queue) = mpsc::channel(EVENT_QUEUE);
    let (asks, ask_queue) = mpsc::channel(ASK_QUEUE);
    let names = config.names_suffix.as_ref().map(|_| Names::start(config.names, events.clone()));
    let mut driver = Driver::new(
        State::new(settings(&config, backend, guard.layers())?).following(config.names_suffix.clone(), clock::now()),
        WgTunnels::new(
            events.clone(),
            backend,
            config.listen_ports.clone(),
            guard,
            config.servers.clone(),
            host::account,
        ),
        TlsLinks::new(events.clone(), config.server_timeout),
        CardWatches::new(events.clone(), config.readers.clone(), config.media.clone()),
        Leaders::new(events.clone()),
    );
    driver.waitings = Some(Waitings::new(events.clone(), config.socket.clone()));
    driver.names = names.unwrap_or_else(Names::off);
    let logind = Logind::start(events.clone());
    driver.logind = logind.clone();
    let network = tokio::spawn(addresses::monitor(events));
    let server = tokio::spawn(listener.serve(asks, host::account, logind));
    tracing::info!(socket = %config.socket.display(), ?backend, "ready");
    let _no_service_manager = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled().map(|period| period / 2);
    driver.run(ask_queue, event_queue, stop, watchdog).await;
    server.abort();
    network.abort();
    tracing::info!("stopped");
    Ok(())
}

/// Names that an earlier run left. They lead to addresses of a tunnel that is no more, so they are no reason not to start.
fn sweep_names() {
    match names::sweep() {
        Ok(true) => tracing::warn!("removed names that an earlier run left in {}", names::HOSTS),
        Ok(false) => {}
        Err(error) => tracing::error!("names that an earlier run left stay: {:#}", anyhow::Error::from(error)),
    }
}

fn settings(config: &Config, backend: Backend, layers: Layers) -> anyhow::Result<Settings> {
    Ok(Settings {
        servers: config.servers.clone(),
        ca_pins: config.ca_pins.clone(),
        server_timeout: config.server_timeout,
        card_wait: config.card_wait,
        readers: config.readers.clone(),
        exempt: config.exempt.clone(),
        media: config.media.clone(),
        grant_time: config.grant_time,
        host_name: host::name().context("this machine has no usable host name")?,
        backend: match backend {
            Backend::Kernel => "kernel".to_owned(),
            Backend::Embedded => "embedded".to_owned(),
        },
        guard: layers.name().to_owned(),
        removal: config.removal,
        removal_grace: config.removal_grace,
        offline_wait: config.offline_wait,
    })
}

/// Ends with SIGTERM or SIGINT.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _no_service_manager = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    })
}

/// What is logged. The WireGuard engine calls it an error when its tasks end with a session; whether it works is watched here.
const LOGGED: &str = "info,gotatun=off";

/// To the journal under systemd, else to standard error. `RUST_LOG` is a filter of tracing-subscriber's form; default [`LOGGED`].
pub fn start_log() {
    let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let result = match journal {
        Some(journal) => tracing_subscriber::registry().with(filter()).with(journal).try_init(),
        None => tracing_subscriber::registry()
            .with(filter())
            .with(tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr))
            .try_init(),
    };
    // Only a second call in one process fails, and then there is a log already.
    let _started_before = result;
}
