//! `cugctl`, the user's command: asks the daemon and shows the answer, as text or as JSON.
//!
//! Exit status: 0 when there was an answer; of `status` 3 when something is not as it should be, which the answer then says; 1 when there was no answer;
//! 2 when the command line was wrong. `doctor` too ends with 3 when something is not as it should be.

mod connection;
mod doctor;
mod manual;
mod notify;
mod peers;
mod status;
mod text;
mod watch;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use cug_proto::local::{Refusal, SOCKET_PATH};

use crate::enrol;
pub(crate) use connection::Connection;

/// Exit status of `status` when a session is not as it should be.
const NOT_WELL: u8 = 3;

/// Shows the closed groups that are open at this terminal.
#[derive(Parser)]
#[command(name = "cugctl", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    /// The daemon's socket.
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET_PATH)]
    socket: PathBuf,
}

#[derive(Subcommand, Clone)]
enum Command {
    /// Sessions at this terminal, as measured now. Exit status 0: all is well or there is no session; 3: something is not as it should be.
    Status,
    /// The other members, where they sit, and when they were last heard.
    Peers,
    /// What happens, line by line, until it is interrupted: who joins and leaves, new keys, the server away and back, the end of a session.
    Watch,
    /// Shows joining and leaving members and the end of a session as notifications on the desktop. Started with it.
    Notify,
    /// Set your password and enrol your card, with the one-time code from the administrator.
    Enrol(Box<enrol::Arguments>),
    /// Looks whether this workstation is ready for logins, and says what to do where it is not. As root it sees more. Exit status 0: nothing is
    /// wrong; 3: something is.
    Doctor,
    /// Print a script that completes this command's arguments in the shell
    Completions(manual::Completions),
    /// Write the manual pages to a directory
    #[command(hide = true)]
    Man(manual::Man),
}

/// No answer to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    #[error("the VPN service is not running (nobody listens at {0}); ask the administrator to start cugd")]
    NotRunning(PathBuf),
    #[error("the VPN service does not answer")]
    NoAnswer(#[source] io::Error),
    #[error("the VPN service gave an answer that this program does not understand; they may be of different versions")]
    Strange,
    #[error("{0}")]
    Refused(Refusal),
    #[error("the VPN service has stopped, or cut this program off because it did not keep up with reading")]
    CutOff,
    #[error("the answer cannot be shown")]
    Output(#[source] io::Error),
    #[error("there is no desktop to notify: {0}")]
    NoDesktop(String),
}

/// Asks, shows, and returns the exit status.
pub fn run(arguments: &Arguments) -> ExitCode {
    let result = match &arguments.command {
        Command::Status => Connection::open(&arguments.socket).and_then(|daemon| status::run(daemon, arguments.json)),
        Command::Peers => Connection::open(&arguments.socket).and_then(|daemon| peers::run(daemon, arguments.json)),
        Command::Watch => Connection::open(&arguments.socket).and_then(|daemon| watch::run(daemon, arguments.json)),
        Command::Notify => notify::run(&arguments.socket),
        Command::Enrol(enrolment) => return enrol::run(&arguments.socket, enrolment),
        Command::Doctor => doctor::run(&arguments.socket, arguments.json),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    };
    match result {
        Ok(code) => code,
        // Whoever reads has seen enough: `cugctl watch | head`.
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_reads = writeln!(io::stderr(), "cugctl: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CtlError::Output)
}
