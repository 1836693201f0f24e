//! `cugd`: the terminal's daemon. See [`cugd::daemon`].

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use cugd::{config, daemon, tunnel::memory::WipingAllocator, waiting};

#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

/// Opens the closed groups of the users who are logged in at this terminal.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// A login that waits for a server. Started by the daemon only.
    #[command(hide = true, name = waiting::ARGUMENT)]
    WaitingLogin,
}

/// EX_CONFIG of sysexits.h: the unit does not try again (`RestartPreventExitStatus`), for the file would be the same.
const BAD_CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Role::WaitingLogin) = arguments.role {
        daemon::start_log();
        return waiting::process::run();
    }
    match daemon::run(&arguments.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("cugd cannot run: {error:#}");
            if error.is::<config::ConfigError>() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::FAILURE }
        }
    }
}
