//! The user's command: asks the daemon and shows the answer, as text or as JSON.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use cug_proto::{
    frame::{self, HEADER_LEN, MAX_LOGIN, MAX_SESSION},
    local::{GroupPeers, Refusal, Reply, Request, SOCKET_PATH, Status},
};

use crate::enrol;

/// How long the daemon may take.
const LIMIT: Duration = Duration::from_secs(5);

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
    /// Sessions at this terminal.
    Status,
    /// The other members, where they sit, and when they were last heard.
    Peers,
    /// Set your password and enrol your card, with the one-time code from the administrator.
    Enrol(Box<enrol::Arguments>),
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
    #[error("the answer cannot be shown")]
    Output(#[source] io::Error),
}

/// Asks, shows, and returns the exit status: 0 when there was an answer.
pub fn run(arguments: &Arguments) -> ExitCode {
    let request = match &arguments.command {
        Command::Status => Request::Status,
        Command::Peers => Request::Peers,
        Command::Enrol(enrolment) => return enrol::run(&arguments.socket, enrolment),
    };
    match ask(&arguments.socket, &request).and_then(|reply| show(&reply, arguments.json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_reads = writeln!(io::stderr(), "cugctl: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(socket: &Path, request: &Request) -> Result<Reply, CtlError> {
    let stream = UnixStream::connect(socket).map_err(|_| CtlError::NotRunning(socket.to_owned()))?;
    let body = converse(stream, request).map_err(CtlError::NoAnswer)?;
    match frame::decode(&body).map_err(|_| CtlError::Strange)? {
        Reply::Refused(refusal) => Err(CtlError::Refused(refusal)),
        reply => Ok(reply),
    }
}

pub(crate) fn converse(mut stream: UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(&frame::encode(request, MAX_LOGIN).map_err(io::Error::other)?)?;
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; frame::body_len(header, MAX_SESSION).map_err(io::Error::other)?];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn show(reply: &Reply, json: bool) -> Result<(), CtlError> {
    let text = match (reply, json) {
        (Reply::Status(status), true) => serde_json::to_string_pretty(status).map_err(|_| CtlError::Strange)? + "\n",
        (Reply::Peers(groups), true) => serde_json::to_string_pretty(groups).map_err(|_| CtlError::Strange)? + "\n",
        (Reply::Status(status), false) => status_text(status),
        (Reply::Peers(groups), false) => peers_text(groups),
        _ => return Err(CtlError::Strange),
    };
    io::stdout().write_all(text.as_bytes()).map_err(CtlError::Output)
}

fn status_text(status: &Status) -> String {
    let mut text = format!("cugd {}, WireGuard: {}\n", status.version, status.backend);
    if status.sessions.is_empty() {
        text.push_str("no session at this terminal\n");
    }
    for session in &status.sessions {
        let channel = match (session.attached, session.server_heard_ms) {
            _ if session.state == "suspended" => "no tunnel; log in or unlock with the card to come back".to_owned(),
            (true, Some(ms)) => format!("server {} heard {} ago", session.server, age(ms)),
            (true, None) => format!("server {} attached", session.server),
            (false, Some(ms)) => format!("server {} AWAY, last heard {} ago", session.server, age(ms)),
            (false, None) => "server not reached".to_owned(),
        };
        let _infallible =
            writeln!(text, "{}: {}, {} OS session(s), {channel}", session.user, session.state, session.os_sessions);
        if !session.card.is_empty() {
            let _infallible = writeln!(text, "  card in {}", session.card);
        }
        for group in &session.groups {
            let _infallible = writeln!(
                text,
                "  {}: {} {} on {}, epoch {}",
                group.name, group.address4, group.address6, group.interface, group.epoch
            );
        }
    }
    text
}

fn peers_text(groups: &[GroupPeers]) -> String {
    if groups.is_empty() {
        return "no group is open at this terminal\n".to_owned();
    }
    let mut text = String::new();
    for group in groups {
        let _infallible = writeln!(text, "{} (as {}):", group.group, group.user);
        if group.peers.is_empty() {
            text.push_str("  nobody else is logged in\n");
        }
        for peer in &group.peers {
            let endpoint = peer.endpoint.map_or_else(|| "unknown".to_owned(), |endpoint| endpoint.to_string());
            let heard = peer.handshake_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", age(ms)));
            let _infallible = writeln!(
                text,
                "  {:<20} {:<15} {:<28} at {} ({endpoint}), last handshake {heard}, {} B in, {} B out",
                peer.user, peer.address4, peer.address6, peer.host_name, peer.received, peer.sent
            );
        }
    }
    text
}

fn age(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s if s < 120 => format!("{s} s"),
        s => format!("{} min", s / 60),
    }
}
