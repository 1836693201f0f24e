//! The command line.

mod audit;
mod backup;
mod card;
mod confirm;
mod group;
mod import;
mod invite;
mod keys;
mod manual;
mod output;
mod prompt;
mod serve;
mod session;
mod tables;
mod text;
mod tls;
mod top;
mod user;

use crate::{
    admin::{self, Reply, Request},
    config::Config,
};
use anyhow::Result;
use clap::{Parser, Subcommand};
use output::Output;
use std::{io::Write, path::PathBuf, process::ExitCode};

/// Management server of the closed user group VPN.
#[derive(Parser)]
#[command(
    name = "cug-server",
    version,
    max_term_width = 100,
    after_help = "A command acts at once: through the running server, or directly on the state when none runs.\n\
                  What ends or deletes something says what that is and asks first; --yes answers beforehand.\n\
                  Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong usage,\n\
                  3 (status only) no server runs."
)]
pub struct Cli {
    /// Configuration file [default: /etc/cug/server.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// Do not ask before something is ended or deleted
    #[arg(long, short, global = true)]
    yes: bool,
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
    /// How the server is: exit status 0 when one runs, 3 when none does
    Status,
    /// Look for what is wrong: configuration, file modes, keys, certificates, database, addresses. Exit status 1 when something is
    Check,
    /// Print a shell's completions
    Completions(manual::Completions),
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man(manual::Man),
    /// Show what happened, newest last
    Audit(audit::Audit),
    /// Add users, groups and memberships from a CSV or JSON file: all or nothing
    Import(import::Import),
    /// Print all users, groups and memberships as JSON, in the form that import reads
    Export(import::Export),
    /// Copy the database into a file, while the server runs or not
    Backup(backup::Backup),
    /// Put a backup in the place of the database; the server must be stopped
    Restore(backup::Restore),
    /// The key that wraps what is secret in the database
    #[command(subcommand)]
    ServerKey(keys::Command),
    /// The TLS key of this server
    #[command(subcommand)]
    Tls(tls::Command),
    /// Watch groups, who sits where, and what happens; q quits
    Top,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = Output::new(cli.json, cli.yes);
    match run(cli, &output) {
        Ok(code) => code,
        Err(error) => {
            output.error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Help and version as they are; what is wrong with the arguments without what could garble a terminal: it repeats them.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        error.exit();
    }
    let text = text::printable_lines(&error.render().to_string());
    // A standard error that is closed is nobody who reads.
    let _closed = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(2)
}

fn run(cli: Cli, output: &Output) -> Result<ExitCode> {
    match &cli.command {
        Command::Completions(completions) => return completions.run(output),
        Command::Man(man) => return man.run(output),
        _ => {}
    }
    let config = Config::load(cli.config.as_deref())?;
    if !matches!(cli.command, Command::Serve) {
        serve::audit_to_journal();
    }
    match cli.command {
        Command::Init(init) => init.run(&config, output),
        Command::Serve => serve::run(config),
        Command::TerminalConfig(terminal) => terminal.run(&config, output),
        Command::User(command) => command.run(&config, output),
        Command::Group(command) => ask(&config, output, &command.request()),
        Command::Card(command) => command.run(&config, output),
        Command::Session(command) => command.run(&config, output),
        Command::Status => status(&config, output),
        Command::Check => {
            let findings = admin::check(&config);
            output.findings(&findings)?;
            let failed = findings.iter().any(|f| f.verdict == admin::Verdict::Failed);
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        // Carried out above: they need no configuration.
        Command::Completions(_) | Command::Man(_) => Ok(ExitCode::SUCCESS),
        Command::Audit(audit) => audit.run(&config, output),
        Command::Import(import) => import.run(&config, output),
        Command::Export(export) => export.run(&config, output),
        Command::Backup(backup) => backup.run(&config, output),
        Command::Restore(restore) => restore.run(&config, output),
        Command::ServerKey(command) => ask(&config, output, &command.request()),
        Command::Tls(command) => command.run(&config, output),
        Command::Top => top::run(&config, output),
    }
}

fn status(config: &Config, output: &Output) -> Result<ExitCode> {
    let reply = admin::ask(config, &Request::Status)?;
    output.reply(&reply)?;
    Ok(match reply {
        Reply::Status(status) if status.running => ExitCode::SUCCESS,
        Reply::Status(_) => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    })
}

/// Has a request carried out (first asks, where it ends or deletes something) and prints what came back.
fn ask(config: &Config, output: &Output, request: &Request) -> Result<ExitCode> {
    confirm::confirm(config, output, request)?;
    let reply = admin::ask(config, request)?;
    let refused = matches!(reply, Reply::Refused(_) | Reply::BadLines(_));
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
