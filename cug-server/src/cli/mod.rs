//! The command line.

mod card;
mod group;
mod invite;
mod output;
mod prompt;
mod serve;
mod session;
mod user;

use crate::{
    admin::{self, Reply, Request},
    config::Config,
};
use anyhow::Result;
use clap::{Parser, Subcommand};
use output::Output;
use std::{path::PathBuf, process::ExitCode};

/// Management server of the closed user group VPN.
#[derive(Parser)]
#[command(
    name = "cug-server",
    version,
    max_term_width = 100,
    after_help = "A command acts at once: through the running server, or directly on the state when none runs.\n\
                  Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong usage."
)]
pub struct Cli {
    /// Configuration file [default: /etc/cug/server.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the keys and the database of a new organisation
    Init(serve::Init),
    /// Run the server
    Serve,
    /// Print what a terminal's /etc/cug/cugd.toml must hold: where the server is, and whom to trust
    TerminalConfig(serve::TerminalConfig),
    /// Users
    #[command(subcommand)]
    User(user::Command),
    /// Closed groups
    #[command(subcommand)]
    Group(group::Command),
    /// Cards
    #[command(subcommand)]
    Card(card::Command),
    /// Who is logged in where
    #[command(subcommand)]
    Session(session::Command),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    match run(cli, &output) {
        Ok(code) => code,
        Err(error) => {
            output.error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, output: &Output) -> Result<ExitCode> {
    let config = Config::load(cli.config.as_deref())?;
    match cli.command {
        Command::Init(init) => init.run(&config, output),
        Command::Serve => serve::run(config),
        Command::TerminalConfig(terminal) => terminal.run(&config, output),
        Command::User(command) => command.run(&config, output),
        Command::Group(command) => ask(&config, output, &command.request()),
        Command::Card(command) => command.run(&config, output),
        Command::Session(command) => ask(&config, output, &command.request()),
    }
}

/// Has a request carried out and prints what came back.
fn ask(config: &Config, output: &Output, request: &Request) -> Result<ExitCode> {
    let reply = admin::ask(config, request)?;
    let refused = matches!(reply, Reply::Refused(_));
    output.reply(&reply)?;
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
