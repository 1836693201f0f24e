//! A session that begins while no server can be reached (`offline = "local"`): what was typed goes to a waiting login, which opens the closed group later.

use crate::{
    daemon::{DaemonError, ORDINARY},
    host::{Host, Later},
    options::Options,
    parts::Parts,
    session::member,
};
use cug_login::Failure as LoginFailure;
use cug_proto::local::{Reply, Request, Wait};
use pam::constants::PamFlag;
use std::{path::Path, time::Duration};

/// Told when the server is away, before the other modules decide.
pub const AWAY: &str =
    "The management server cannot be reached; this workstation alone decides whether you may log in.";

/// Told when the closed group will not open by itself.
const NOT_WAITING: &str =
    "You are logged in without the closed group; log in again once the management server can be reached.";

/// A process has to start for it first, on a workstation where everybody logs in again after a power cut.
const HAND_OVER: Duration = Duration::from_secs(5);

/// `PAM_REINITIALIZE_CRED` and `PAM_REFRESH_CRED` of _pam_types.h: a locker that was unlocked, or sudo.
const RENEW: PamFlag = 0x8 | 0x10;

/// A locker opens no session. Its last word after a login that succeeded is this.
pub fn unlocks(flags: PamFlag) -> bool {
    flags & RENEW != 0
}

/// The session of this user that is there already waits from now on, if it has no tunnel and does not wait yet. Else what was typed stays, in case a session is opened.
pub fn unlocked(host: &mut dyn Host, options: &Options, parts: &Parts<'_>) {
    let Some(later) = host.take_for_later() else { return };
    if member(host, options, parts).is_none_or(|user| user != later.user) {
        return;
    }
    if let Some(later) = wait(host, parts, later, false)
        && let Err(code) = host.keep_for_later(later)
    {
        host.log(libc::LOG_WARNING, &format!("what was typed cannot be kept: {code:?}"));
    }
}

/// The session that begins waits from now on. It begins in any case.
pub fn begin(host: &mut dyn Host, parts: &Parts<'_>, later: Later) {
    let _wiped = wait(host, parts, later, true);
}

/// Gives back what was typed when there is no session to wait for.
fn wait(host: &mut dyn Host, parts: &Parts<'_>, later: Later, leads: bool) -> Option<Later> {
    let Later { user, typed, card } = later;
    let request =
        Request::Wait(Wait { user: user.clone(), service: host.service(), tty: host.tty(), card: card.clone(), leads });
    let begun = match parts.daemon.call(&request, ORDINARY) {
        Ok(Reply::Waiting(place)) => {
            let handed = parts.daemon.hand_over(Path::new(&place.socket), &typed, HAND_OVER);
            handed.map(|()| place.minutes).map_err(LoginFailure::Daemon)
        }
        Ok(Reply::NoGrant) if !leads => return Some(Later { user, typed, card }),
        Ok(Reply::Refused(why)) => Err(LoginFailure::Refused(why)),
        Ok(_) => Err(LoginFailure::Daemon(DaemonError::Unexpected)),
        Err(error) => Err(LoginFailure::Daemon(error)),
    };
    match begun {
        Ok(minutes) => {
            host.log(libc::LOG_INFO, &format!("{user} waits for a management server, for {minutes} minutes at most"));
            host.info(&format!(
                "You are logged in without the closed group; it opens by itself when the management server answers \
                 within {minutes} minutes and your card stays inserted."
            ));
        }
        Err(failure) => {
            host.log(libc::LOG_WARNING, &format!("{user} does not wait for a server: {}", failure.chain()));
            host.info(NOT_WAITING);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doubles::{Asked, Line, ScriptDaemon, ScriptHost, World, binding, user_a},
        session,
    };
    use cug_proto::{
        local::{Refusal, Waiting},
        secret::SecretBytes,
        waiting::HandOver,
    };
    use pam::constants::PamResultCode;

    const WAITS: &str = "You are logged in without the closed group; it opens by itself when the management server answers within 60 minutes and your card stays inserted.";

    fn host(user: &str, lines: Vec<Line>) -> ScriptHost {
        let mut host = ScriptHost::new(user, lines);
        let typed = HandOver { password: SecretBytes::copy_from(b"passwd1").unwrap(), pin: None };
        host.later = Some(Later { user: user_a(), typed, card: binding() });
        host
    }

    fn waiting() -> Reply {
        Reply::Waiting(Waiting { socket: "/run/cugd/wait".into(), minutes: 60 })
    }

    #[test]
    fn a_session_begins_to_wait_and_nothing_stays_on_the_handle() {
        for (line, script) in [
            (WAITS, vec![(Asked::Wait, Ok(waiting())), (Asked::HandOver, Ok(Reply::Done))]),
            (NOT_WAITING, vec![(Asked::Wait, Ok(waiting())), (Asked::HandOver, Err(DaemonError::Closed))]),
            (NOT_WAITING, vec![(Asked::Wait, Ok(Reply::Refused(Refusal::CardGone)))]),
            (NOT_WAITING, vec![(Asked::Wait, Err(DaemonError::Timeout))]),
        ] {
            let mut host = host("USER-A", vec![Line::Info(line)]);
            let world = World::with_daemon(ScriptDaemon::new(script));
            let code = session::open(&mut host, &Options::default(), &world.parts());
            assert_eq!(code, PamResultCode::PAM_IGNORE);
            assert!(host.later.is_none() && host.env.is_empty());
        }
    }

    #[test]
    fn the_session_of_somebody_else_wipes_it() {
        for user in ["root", "not a member"] {
            let mut host = host(user, vec![]);
            let world = World::with_daemon(ScriptDaemon::new([]));
            assert_eq!(session::open(&mut host, &Options::default(), &world.parts()), PamResultCode::PAM_IGNORE);
            assert!(host.later.is_none());
        }
    }

    #[test]
    fn an_unlocked_session_waits_and_without_one_it_is_kept() {
        let mut unlocking = host("USER-A", vec![Line::Info(WAITS)]);
        let script = [(Asked::WaitToo, Ok(waiting())), (Asked::HandOver, Ok(Reply::Done))];
        unlocked(&mut unlocking, &Options::default(), &World::with_daemon(ScriptDaemon::new(script)).parts());
        assert!(unlocking.later.is_none());
        let mut before = host("USER-A", vec![]);
        let script = [(Asked::WaitToo, Ok(Reply::NoGrant))];
        unlocked(&mut before, &Options::default(), &World::with_daemon(ScriptDaemon::new(script)).parts());
        assert!(before.later.is_some());
        assert!(unlocks(0x8) && unlocks(0x10 | 0x8000) && !unlocks(0x2) && !unlocks(0x4));
    }
}
