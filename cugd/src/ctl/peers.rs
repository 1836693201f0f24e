//! `cugctl peers`.

use std::{fmt::Write as _, process::ExitCode};

use cug_proto::local::{GroupPeers, PeerStatus, Reply, Request};

use super::{Connection, CtlError, print, text::age};

pub(super) fn run(mut daemon: Connection, json: bool) -> Result<ExitCode, CtlError> {
    let groups = ask(&mut daemon)?;
    print(&if json {
        serde_json::to_string_pretty(&groups).map_err(|_| CtlError::Strange)? + "\n"
    } else {
        all(&groups)
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn ask(daemon: &mut Connection) -> Result<Vec<GroupPeers>, CtlError> {
    match daemon.ask(&Request::Peers)? {
        Reply::Peers(groups) => Ok(groups),
        _ => Err(CtlError::Strange),
    }
}

fn all(groups: &[GroupPeers]) -> String {
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
            let _infallible = writeln!(text, "  {}", line(peer));
        }
    }
    text
}

/// One member: what was measured, not what is believed.
pub(super) fn line(peer: &PeerStatus) -> String {
    let endpoint = peer.endpoint.map_or_else(|| "unknown".to_owned(), |endpoint| endpoint.to_string());
    let heard = peer.handshake_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", age(ms)));
    let name = peer.name.as_deref().unwrap_or_default();
    format!(
        "{:<20} {:<15} {:<28} {name} at {} ({endpoint}), last handshake {heard}, {} B in, {} B out",
        peer.user, peer.address4, peer.address6, peer.host_name, peer.received, peer.sent
    )
}
