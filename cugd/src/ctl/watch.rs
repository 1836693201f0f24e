//! `cugctl watch`. With `--json` one object a line: first `{"event":"watch-started","time":...,"status":{...}}`, then each notice
//! ([`Notice`]) with `time`, seconds since 1970.

use std::{process::ExitCode, time::UNIX_EPOCH};

use cug_proto::{
    local::{Reply, Request, Status},
    notice::{Happening, Notice, Seat, SessionEnd},
};
use serde_json::{Value, json};

use super::{
    Connection, CtlError, print,
    text::{plain, time_of_day},
};
use crate::clock;

pub(super) fn run(mut daemon: Connection, json: bool) -> Result<ExitCode, CtlError> {
    let Reply::WatchStarted(status) = daemon.ask(&Request::Watch)? else { return Err(CtlError::Strange) };
    print(&if json {
        line(
            json!({ "event": "watch-started", "status": serde_json::to_value(&status).map_err(|_| CtlError::Strange)? }),
        )?
    } else {
        started(&status)
    })?;
    loop {
        let Reply::Event(notice) = daemon.next()? else { return Err(CtlError::Strange) };
        print(&if json {
            line(serde_json::to_value(&notice).map_err(|_| CtlError::Strange)?)?
        } else {
            format!("{} {}: {}\n", time_of_day(now()), notice.user, sentence(&notice))
        })?;
    }
}

fn now() -> u64 {
    clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn line(mut value: Value) -> Result<String, CtlError> {
    value.as_object_mut().ok_or(CtlError::Strange)?.insert("time".to_owned(), json!(now()));
    Ok(format!("{value}\n"))
}

fn started(status: &Status) -> String {
    let mut text = String::new();
    for session in &status.sessions {
        text.push_str(&format!("{} {}: {}\n", time_of_day(now()), session.user, session.state));
    }
    if text.is_empty() { format!("{} no session at this terminal\n", time_of_day(now())) } else { text }
}

/// What happened, for people.
pub(super) fn sentence(notice: &Notice) -> String {
    match &notice.what {
        Happening::SessionUp => "the closed group is open".to_owned(),
        Happening::SessionDown { reason, detail, elsewhere } => match elsewhere {
            Some(host) => format!("the session is over: {} ({host})", end(*reason)),
            None => format!("the session is over: {} ({})", end(*reason), plain(detail)),
        },
        Happening::MemberJoined { group, seat } => format!("{} joined {group} at {}", seat.member, place(seat)),
        Happening::MemberLeft { group, member } => format!("{member} left {group}"),
        Happening::MemberMoved { group, seat } => format!("{} of {group} is now at {}", seat.member, place(seat)),
        Happening::NewEpoch { group, epoch } => format!("{group} has a new key, epoch {epoch}"),
        Happening::ChannelLost { cause } => format!("the management server is away ({})", plain(cause)),
        Happening::ChannelBack { server } => format!("the management server is back ({})", plain(server)),
        Happening::GroupJoined { group } => format!("now a member of {group}"),
        Happening::WaitBegan { minutes } => {
            format!("no management server can be reached; the closed group opens by itself, within {minutes} minutes")
        }
        Happening::WaitEnded { reason } => format!("the closed group stays closed: {}", plain(reason)),
        Happening::GroupLeft { group } => format!("no longer a member of {group}"),
    }
}

fn place(seat: &Seat) -> String {
    match seat.endpoint {
        Some(endpoint) => format!("{} ({endpoint})", seat.host_name),
        None => seat.host_name.to_string(),
    }
}

/// Why a session is over.
pub(super) fn end(reason: SessionEnd) -> &'static str {
    match reason {
        SessionEnd::Slept => "the computer went to sleep",
        SessionEnd::LoggedOut => "logged out",
        SessionEnd::CardRemoved => "the card was removed",
        SessionEnd::Displaced => "logged in at another terminal",
        SessionEnd::Removed => "ended by the administrator",
        SessionEnd::LeaseOver => "the management server was away for too long",
        SessionEnd::TunnelFailed => "the tunnel failed",
        SessionEnd::Replaced => "a newer login takes its place",
        SessionEnd::Expired => "the account has expired",
        SessionEnd::OutsideHours => "the permitted hours have ended",
        SessionEnd::Stopped => "the VPN service was stopped",
    }
}
