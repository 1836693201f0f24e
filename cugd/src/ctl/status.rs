//! `cugctl status`: what was measured, and what of it is not as it should be.
//!
//! JSON, which only grows: the members of [`Status`] and its parts (times in milliseconds), in each group `members` (see [`PeerStatus`]), in each
//! session `problems`, a list of sentences, and on the outside `healthy`, which is `false` when there is any problem.

use std::{fmt::Write as _, process::ExitCode};

use cug_proto::local::{GroupPeers, NamesStatus, OpenedGroup, PeerStatus, Reply, Request, SessionStatus, Status};
use serde_json::{Value, json};

use super::{
    Connection, CtlError, NOT_WELL, peers, print,
    text::{age, plain},
};

pub(super) fn run(mut daemon: Connection, json: bool) -> Result<ExitCode, CtlError> {
    let Reply::Status(status) = daemon.ask(&Request::Status)? else { return Err(CtlError::Strange) };
    let peers = peers::ask(&mut daemon)?;
    let healthy = status.sessions.iter().all(|session| problems(session).is_empty());
    print(&if json {
        let shown = as_json(&status, &peers).ok_or(CtlError::Strange)?;
        serde_json::to_string_pretty(&shown).map_err(|_| CtlError::Strange)? + "\n"
    } else {
        as_text(&status, &peers)
    })?;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) })
}

/// What is not as it should be, each in a sentence. A login that is under way has no problem, and a member that is silent is none: without traffic
/// WireGuard makes no handshake.
fn problems(session: &SessionStatus) -> Vec<String> {
    let mut problems = Vec::new();
    match session.state.as_str() {
        "suspended" => problems.push("no tunnel; log in or unlock with the card to come back".to_owned()),
        "waiting" => problems.push(waiting(session)),
        "ended" => problems.push("the session ended before it was open; log in again".to_owned()),
        "up" => {
            if !session.attached {
                let left =
                    session.lease_left_ms.map(|ms| format!("; the session ends in {} if it stays away", age(ms)));
                problems.push(format!("the management server is away{}", left.unwrap_or_default()));
            }
            if session.card_watched == Some(false) {
                problems.push("the card is not watched".to_owned());
            }
            if session.open == Some(false) {
                problems.push(
                    "the closed group is not open: an interface is missing, or the other members were not told yet"
                        .to_owned(),
                );
            }
            for group in &session.groups {
                if guard(group).is_some_and(|guard| guard.is_empty() || guard.starts_with("none")) {
                    problems.push(format!(
                        "the tunnel of {} is not guarded against other users of this workstation",
                        group.name
                    ));
                }
            }
        }
        _ => {}
    }
    problems
}

fn waiting(session: &SessionStatus) -> String {
    let Some(waiting) = &session.waiting else { return "the login waits for the management server".to_owned() };
    let last = waiting.last.as_ref().map(|last| format!(", the last one: {}", plain(last))).unwrap_or_default();
    format!(
        "no tunnel: the login waits for the management server, {} more at most, as long as the card stays inserted ({} tries{last})",
        age(waiting.left_ms),
        waiting.tries
    )
}

/// How the group's tunnel is kept to its user, where the daemon says so.
fn guard(group: &OpenedGroup) -> Option<String> {
    serde_json::to_value(group).ok()?.get("guard")?.as_str().map(plain)
}

fn members<'a>(peers: &'a [GroupPeers], session: &SessionStatus, group: &OpenedGroup) -> &'a [PeerStatus] {
    let own = peers.iter().find(|peers| peers.user == session.user && peers.group == group.name);
    own.map(|own| own.peers.as_slice()).unwrap_or_default()
}

fn as_json(status: &Status, peers: &[GroupPeers]) -> Option<Value> {
    let mut shown = serde_json::to_value(status).ok()?;
    let mut healthy = true;
    for (session, value) in status.sessions.iter().zip(shown.get_mut("sessions")?.as_array_mut()?) {
        for (group, value) in session.groups.iter().zip(value.get_mut("groups")?.as_array_mut()?) {
            let members = serde_json::to_value(members(peers, session, group)).ok()?;
            value.as_object_mut()?.insert("members".to_owned(), members);
        }
        let problems = problems(session);
        healthy &= problems.is_empty();
        value.as_object_mut()?.insert("problems".to_owned(), json!(problems));
    }
    shown.as_object_mut()?.insert("healthy".to_owned(), json!(healthy));
    Some(shown)
}

fn as_text(status: &Status, peers: &[GroupPeers]) -> String {
    let mut text = format!("cugd {}", status.version);
    if let Some(host) = &status.host_name {
        let _infallible = write!(text, " on {host}");
    }
    if let Some(ms) = status.uptime_ms {
        let _infallible = write!(text, ", running for {}", age(ms));
    }
    let _infallible = writeln!(text, ", WireGuard: {}", status.backend);
    if status.sessions.is_empty() {
        text.push_str("no session at this terminal\n");
    }
    for session in &status.sessions {
        let _infallible = writeln!(text, "{}: {}", session.user, session.state);
        for problem in problems(session) {
            let _infallible = writeln!(text, "  PROBLEM  {problem}");
        }
        if !session.server.is_empty() {
            let _infallible = writeln!(text, "  server   {}", channel(session));
        }
        if !session.card.is_empty() {
            let watched = if session.card_watched == Some(true) { ", watched" } else { "" };
            let _infallible = writeln!(text, "  card     {}{watched}", plain(&session.card));
        }
        let _infallible = writeln!(text, "  logins   {}", logins(session));
        for group in &session.groups {
            let _infallible = writeln!(text, "  {}", group_line(session, group));
            let members = members(peers, session, group);
            if members.is_empty() {
                text.push_str("    nobody else is logged in\n");
            }
            for peer in members {
                let _infallible = writeln!(text, "    {}", peers::line(peer));
            }
        }
    }
    text
}

fn channel(session: &SessionStatus) -> String {
    let since = session.channel_since_ms.map_or_else(|| "some time".to_owned(), age);
    let heard =
        session.server_heard_ms.map_or_else(|| "not heard yet".to_owned(), |ms| format!("heard {} ago", age(ms)));
    let lease = session.lease_left_ms.map(|ms| format!(", lease runs {} more", age(ms))).unwrap_or_default();
    let state = if session.attached { "attached" } else { "AWAY" };
    let error = session.channel_error.as_ref().map(|error| format!("; last trouble: {}", plain(error)));
    format!("{} {state} for {since}, {heard}{lease}{}", plain(&session.server), error.unwrap_or_default())
}

fn logins(session: &SessionStatus) -> String {
    let pids: Vec<String> = session.leaders.iter().flatten().map(|leader| leader.pid.to_string()).collect();
    match pids.as_slice() {
        [] => session.os_sessions.to_string(),
        pids => format!("{} (process {})", session.os_sessions, pids.join(", ")),
    }
}

fn group_line(session: &SessionStatus, group: &OpenedGroup) -> String {
    let names = session.names.iter().flatten().find(|names| names.group == group.name);
    let guard = guard(group).map(|guard| format!(", guard: {guard}")).unwrap_or_default();
    format!(
        "{}: {} {} on {}, epoch {}{guard}{}",
        group.name,
        group.address4,
        group.address6,
        group.interface,
        group.epoch,
        names.map(names_text).unwrap_or_default()
    )
}

fn names_text(names: &NamesStatus) -> String {
    match &names.problem {
        Some(problem) => format!(", NO NAMES ({})", plain(problem)),
        None if names.by.is_empty() => String::new(),
        None => format!(", names in {} by {}", names.domain, names.by),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(state: &str) -> SessionStatus {
        SessionStatus {
            user: "USER-A".parse().unwrap(),
            state: state.into(),
            server: "vpn:7531".into(),
            attached: true,
            server_heard_ms: Some(3000),
            os_sessions: 1,
            card: "Reader 00".into(),
            groups: vec![],
            lease_left_ms: Some(87_000),
            channel_since_ms: Some(90_000),
            channel_error: None,
            card_watched: Some(true),
            leaders: None,
            names: None,
            open: Some(true),
            waiting: None,
        }
    }

    #[test]
    fn only_what_is_well_is_called_well() {
        for state in ["up", "granted", "offered"] {
            assert!(problems(&session(state)).is_empty(), "{state}");
        }
        let away = SessionStatus { attached: false, ..session("up") };
        assert_eq!(problems(&away), ["the management server is away; the session ends in 87 s if it stays away"]);
        assert_eq!(problems(&SessionStatus { open: Some(false), ..session("up") }).len(), 1);
        assert_eq!(problems(&SessionStatus { card_watched: Some(false), ..session("up") }).len(), 1);
        assert_eq!(problems(&session("suspended")).len(), 1);
        let waiting = cug_proto::local::WaitingStatus { left_ms: 87_000, tries: 3, last: Some("x\x1b".into()) };
        let waits = problems(&SessionStatus { waiting: Some(waiting), ..session("waiting") });
        assert!(waits[0].contains("waits") && waits[0].contains("87 s") && waits[0].contains("3 tries"), "{waits:?}");
        assert!(!waits[0].contains('\x1b'));
    }

    #[test]
    fn what_came_from_elsewhere_cannot_write_on_the_screen() {
        let error = Some("closed\x1b[2J\nUSER-B: up".into());
        let text = channel(&SessionStatus { attached: false, channel_error: error, ..session("up") });
        assert!(text.contains("AWAY for 90 s, heard 3 s ago") && !text.contains(['\x1b', '\n']), "{text}");
    }
}
