//! `init` and `serve`.

use super::output::Output;
use crate::{admin, config::Config, keys::Keys, server::Server};
use anyhow::{Context, Result};
use std::{io::IsTerminal, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

#[derive(clap::Args)]
pub(super) struct Init {
    /// Name of the organisation, for certificates
    #[arg(long, default_value = "Closed User Group", value_parser = organisation)]
    name: String,
}

fn organisation(name: &str) -> Result<String, &'static str> {
    let valid = (1..=48).contains(&name.len()) && !name.chars().any(char::is_control);
    if valid { Ok(name.to_owned()) } else { Err("a name has 1 to 48 bytes and no control characters") }
}

impl Init {
    pub(super) fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        admin::initialise(config, &self.name)?;
        output.done(&format!(
            "{} is ready; keep a copy of its directory keys, apart from your backups. \
             `cug-server terminal-config SERVER` prints what terminals need",
            config.state_dir.display()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(clap::Args)]
pub(super) struct TerminalConfig {
    /// Where terminals reach the management servers, as HOST or HOST:PORT, the preferred one first
    #[arg(required = true, value_name = "SERVER")]
    servers: Vec<String>,
}

impl TerminalConfig {
    pub(super) fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        let pin = Keys::ca_pin(&config.state_dir)?;
        let digits: String = pin.iter().map(|byte| format!("{byte:02x}")).collect();
        output.terminal_config(&self.servers, &digits)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs the server until SIGTERM or SIGINT.
pub(super) fn run(config: Config) -> Result<ExitCode> {
    log_to_journal_or_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let server = Server::start(config).await?;
        notify(&[sd_notify::NotifyState::Ready]);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("the server stops; sessions stay");
        server.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// Without a service manager there is nobody to be told.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Fields in the journal are CUG_EVENT, CUG_USER, ...
fn fields() -> Option<String> {
    Some("CUG".to_owned())
}

/// What a command changes without a server is in the journal too, if there is one.
pub(super) fn audit_to_journal() {
    if let Ok(journal) = tracing_journald::layer() {
        let audit = Targets::new().with_target("cug_audit", tracing::Level::INFO);
        tracing_subscriber::registry().with(journal.with_field_prefix(fields()).with_filter(audit)).init();
    }
}

/// To the journal when standard error is connected to it, with fields; else to standard error. `RUST_LOG` sets the level.
fn log_to_journal_or_stderr() {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // The audit goes to the journal whatever the level of the rest.
    if let Ok(audit) = "cug_audit=info".parse() {
        filter = filter.add_directive(audit);
    }
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let journal = journal.map(|layer| layer.with_field_prefix(fields()));
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match journal {
        Some(journal) => journal.with_filter(filter).boxed(),
        None => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .with_filter(filter)
            .boxed(),
    };
    tracing_subscriber::registry().with(layer).init();
}
