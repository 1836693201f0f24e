//! pam_sm_open_session and pam_sm_close_session: the tunnel is there as long as the session.

use crate::{
    account::authenticated_here,
    daemon::{DaemonError, OPENING, ORDINARY},
    exempt::{is_exempt, is_remote},
    host::Host,
    later,
    options::Options,
    parts::Parts,
};
use cug_login::Failure as LoginFailure;
use cug_proto::{
    id::UserId,
    local::{Open, Opened, Refusal, Reply, Request},
};
use pam::constants::PamResultCode;

/// Services that log a person in in one process and open the session in another, which therefore knows nothing of the login.
const SPLIT_LOGINS: [&str; 1] = ["sshd"];

/// Opens the group. Whoever did not log in with a card is never hindered, whatever state the daemon is in.
pub fn open(host: &mut dyn Host, options: &Options, parts: &Parts<'_>) -> PamResultCode {
    // Taken first: whoever's session this is, what was typed stays on the handle no longer.
    let later = host.take_for_later();
    let Some(user) = member(host, options, parts) else {
        return PamResultCode::PAM_IGNORE;
    };
    if let Some(later) = later.filter(|later| later.user == user) {
        later::begin(host, parts, later);
        return PamResultCode::PAM_IGNORE;
    }
    let ours = authenticated_here(host, &user);
    let service = host.service();
    let holds = ours || SPLIT_LOGINS.contains(&service.as_str());
    let request = Request::Open(Open { user, service, tty: host.tty(), holds });
    let (failure, hinders) = match parts.daemon.call(&request, OPENING) {
        Ok(Reply::Opened(opened)) => {
            announce(host, &opened);
            return PamResultCode::PAM_SUCCESS;
        }
        Ok(Reply::NoGrant) if !ours => return PamResultCode::PAM_IGNORE,
        Err(DaemonError::NotConfigured) if !ours => return PamResultCode::PAM_IGNORE,
        Ok(Reply::NoGrant) => (LoginFailure::Refused(Refusal::UnknownOffer), true),
        Ok(Reply::Refused(why)) => (LoginFailure::Refused(why), ours || only_after_a_login(why)),
        Ok(_) => (LoginFailure::Daemon(DaemonError::Unexpected), ours),
        Err(error) => (LoginFailure::Daemon(error), ours),
    };
    host.log(libc::LOG_ERR, &format!("the session was not opened: {}", failure.chain()));
    if !hinders {
        return PamResultCode::PAM_IGNORE;
    }
    host.error(&failure.to_string());
    PamResultCode::PAM_SESSION_ERR
}

/// Tells cugd that the session ends. The session ends anyway, so nothing here is an error.
pub fn close(host: &mut dyn Host, options: &Options, parts: &Parts<'_>) -> PamResultCode {
    let Some(user) = member(host, options, parts) else {
        return PamResultCode::PAM_IGNORE;
    };
    match parts.daemon.call(&Request::Close(user), ORDINARY) {
        Ok(Reply::Done) => PamResultCode::PAM_SUCCESS,
        Ok(Reply::Refused(why)) => ignored(host, &LoginFailure::Refused(why)),
        Ok(_) => ignored(host, &LoginFailure::Daemon(DaemonError::Unexpected)),
        Err(DaemonError::NotConfigured) => PamResultCode::PAM_IGNORE,
        Err(error) => ignored(host, &LoginFailure::Daemon(error)),
    }
}

fn ignored(host: &mut dyn Host, failure: &LoginFailure) -> PamResultCode {
    host.log(libc::LOG_WARNING, &format!("cugd was not told that the session ends: {}", failure.chain()));
    PamResultCode::PAM_IGNORE
}

/// The user, if this could be a session with a tunnel.
pub fn member(host: &mut dyn Host, options: &Options, parts: &Parts<'_>) -> Option<UserId> {
    let name = host.user().ok()?;
    if is_exempt(&name, options, &*parts.accounts) || is_remote(host.remote_host().as_deref(), options) {
        return None;
    }
    name.parse().ok()
}

/// The daemon says this only of a session that it has a grant for, which it may have got in another process (sshd logs in in one and opens in another).
fn only_after_a_login(why: Refusal) -> bool {
    match why {
        Refusal::UnknownOffer | Refusal::CardGone | Refusal::TunnelFailed | Refusal::ServerAway | Refusal::Ended => {
            true
        }
        Refusal::NotPermitted
        | Refusal::Version
        | Refusal::Busy
        | Refusal::Malformed
        | Refusal::ForeignCard
        | Refusal::NoDesk => false,
    }
}

fn announce(host: &mut dyn Host, opened: &Opened) {
    let list = |items: Vec<String>| items.join(",");
    let names = list(opened.groups.iter().map(|group| group.name.to_string()).collect());
    let addresses = list(opened.groups.iter().map(|group| group.address4.to_string()).collect());
    host.log(libc::LOG_INFO, &format!("opened {names} as {addresses}"));
    for (name, value) in [("CUG_GROUPS", names), ("CUG_ADDRESS", addresses)] {
        if let Err(code) = host.put_env(name, &value) {
            host.log(libc::LOG_WARNING, &format!("{name} cannot be set: {code:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doubles::{Asked, Line, ScriptDaemon, ScriptHost, World, user_a},
        host::{Marked, Marker},
    };
    use cug_proto::local::OpenedGroup;

    const SOCKET_DEAD: fn() -> Result<Reply, DaemonError> = || Err(DaemonError::Socket(nix::errno::Errno::ENOENT));

    fn opened() -> Reply {
        let group = |name: &str, host: u8| OpenedGroup {
            name: name.parse().unwrap(),
            interface: "cug0123456789".into(),
            address4: [100, 96, 0, host].into(),
            address6: "fd00::1".parse().unwrap(),
            epoch: 1,
            guard: String::new(),
        };
        Reply::Opened(Opened { groups: vec![group("VPN1", 1), group("VPN2", 7)] })
    }

    fn run_open(
        mut host: ScriptHost,
        answer: Option<Result<Reply, DaemonError>>,
    ) -> (PamResultCode, Vec<(String, String)>) {
        let asked = if host.marker.is_some() || host.service == "sshd" { Asked::Open } else { Asked::Join };
        let world = World::with_daemon(ScriptDaemon::new(answer.map(|answer| (asked, answer))));
        let code = open(&mut host, &Options::default(), &world.parts());
        (code, std::mem::take(&mut host.env))
    }

    fn stranger(lines: Vec<Line>) -> ScriptHost {
        ScriptHost::new("USER-A", lines)
    }

    fn ours(lines: Vec<Line>) -> ScriptHost {
        let mut host = stranger(lines);
        host.marker = Some(Marker { user: user_a(), result: Marked::Authenticated });
        host
    }

    #[test]
    fn an_opened_group_is_announced() {
        let (code, env) = run_open(stranger(vec![]), Some(Ok(opened())));
        assert_eq!(code, PamResultCode::PAM_SUCCESS);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(env, [pair("CUG_GROUPS", "VPN1,VPN2"), pair("CUG_ADDRESS", "100.96.0.1,100.96.0.7")]);
    }

    #[test]
    fn sshd_has_logged_the_person_in_elsewhere() {
        let mut host = stranger(vec![]);
        host.service = "sshd";
        assert_eq!(run_open(host, Some(Ok(opened()))).0, PamResultCode::PAM_SUCCESS);
    }

    #[test]
    fn who_did_not_log_in_with_a_card_is_never_hindered() {
        for answer in [
            Ok(Reply::NoGrant),
            SOCKET_DEAD(),
            Err(DaemonError::Timeout),
            Err(DaemonError::NotRoot(7)),
            Err(DaemonError::NotConfigured),
            Ok(Reply::Refused(Refusal::Busy)),
            Ok(Reply::Refused(Refusal::Version)),
            Ok(Reply::Done),
        ] {
            assert_eq!(run_open(stranger(vec![]), Some(answer)).0, PamResultCode::PAM_IGNORE);
        }
        let root = ScriptHost::new("root", vec![]);
        assert_eq!(run_open(root, None).0, PamResultCode::PAM_IGNORE);
        let mut remote = stranger(vec![]);
        remote.remote = Some("10.0.0.9".into());
        assert_eq!(run_open(remote, None).0, PamResultCode::PAM_IGNORE);
        assert_eq!(run_open(ScriptHost::new("not a member", vec![]), None).0, PamResultCode::PAM_IGNORE);
    }

    #[test]
    fn who_did_is_told_why_the_group_stays_closed() {
        let dead = "The VPN service of this workstation does not answer; please tell the administrator (cugd).";
        let late = "The login took too long; please try again.";
        let gone = "The card was removed; insert it and log in again.";
        assert_eq!(run_open(ours(vec![Line::Error(dead)]), Some(SOCKET_DEAD())).0, PamResultCode::PAM_SESSION_ERR);
        assert_eq!(run_open(ours(vec![Line::Error(late)]), Some(Ok(Reply::NoGrant))).0, PamResultCode::PAM_SESSION_ERR);
        let refused = || Some(Ok(Reply::Refused(Refusal::CardGone)));
        assert_eq!(run_open(ours(vec![Line::Error(gone)]), refused()).0, PamResultCode::PAM_SESSION_ERR);
        assert_eq!(run_open(stranger(vec![Line::Error(gone)]), refused()).0, PamResultCode::PAM_SESSION_ERR);
    }

    #[test]
    fn closing_is_never_an_error() {
        for (answer, code) in [
            (Ok(Reply::Done), PamResultCode::PAM_SUCCESS),
            (SOCKET_DEAD(), PamResultCode::PAM_IGNORE),
            (Ok(Reply::Refused(Refusal::Busy)), PamResultCode::PAM_IGNORE),
        ] {
            let world = World::with_daemon(ScriptDaemon::new([(Asked::Close, answer)]));
            assert_eq!(close(&mut stranger(vec![]), &Options::default(), &world.parts()), code);
        }
    }
}
