//! pam_sm_acct_mgmt and pam_sm_setcred: what this module knows about a login on the same handle.

use crate::{
    failure::{account_code, denied_sentence},
    host::{Host, Marked},
};
use cug_proto::id::UserId;
use pam::constants::PamResultCode;

/// May the person in? Yes after a login here. No if the server refused the member on this handle, even if another module knew the password: an account
/// disabled at the server is not saved by a local one. Not yet, if the password must be changed: the program then asks for that. Else this is not our business.
pub fn manage(host: &mut dyn Host) -> PamResultCode {
    match result_here(host) {
        Some(Marked::Authenticated) => PamResultCode::PAM_SUCCESS,
        Some(Marked::MustChange) => {
            host.info("Your password must be changed before you go on.");
            PamResultCode::PAM_NEW_AUTHTOK_REQD
        }
        Some(Marked::Refused(reason)) => {
            host.error(&denied_sentence(&reason));
            account_code(reason)
        }
        Some(Marked::Failed | Marked::Away) | None => PamResultCode::PAM_IGNORE,
    }
}

/// There are no credentials but the grant, which cugd has.
pub fn set_credentials(host: &mut dyn Host) -> PamResultCode {
    match result_here(host) {
        Some(Marked::Authenticated) => PamResultCode::PAM_SUCCESS,
        _ => PamResultCode::PAM_IGNORE,
    }
}

/// Whether this user logged in here, on this handle. (sudo changes the user between the login and the session.)
pub fn authenticated_here(host: &dyn Host, user: &UserId) -> bool {
    host.marker().is_some_and(|marker| marker.user == *user && marker.result == Marked::Authenticated)
}

fn result_here(host: &mut dyn Host) -> Option<Marked> {
    let marker = host.marker()?;
    (host.user().ok()? == marker.user.as_str()).then_some(marker.result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doubles::{Line, ScriptHost, user_a},
        host::Marker,
    };
    use cug_proto::message::DenyReason;

    fn host(result: Option<Marked>, lines: Vec<Line>) -> ScriptHost {
        let mut host = ScriptHost::new("USER-A", lines);
        host.marker = result.map(|result| Marker { user: user_a(), result });
        host
    }

    #[test]
    fn only_a_login_here_counts() {
        for (result, code) in [
            (Some(Marked::Authenticated), PamResultCode::PAM_SUCCESS),
            (Some(Marked::Failed), PamResultCode::PAM_IGNORE),
            (Some(Marked::Away), PamResultCode::PAM_IGNORE),
            (None, PamResultCode::PAM_IGNORE),
        ] {
            assert_eq!(manage(&mut host(result, vec![])), code);
            assert_eq!(set_credentials(&mut host(result, vec![])), code);
        }
        let mut other = host(Some(Marked::Authenticated), vec![]);
        other.user = Ok("root".into());
        assert_eq!(manage(&mut other), PamResultCode::PAM_IGNORE);
        assert!(!authenticated_here(&other, &"USER-B".parse().unwrap()));
    }

    #[test]
    fn a_password_that_must_be_changed_is_no_login_yet() {
        let line = || vec![Line::Info("Your password must be changed before you go on.")];
        assert_eq!(manage(&mut host(Some(Marked::MustChange), line())), PamResultCode::PAM_NEW_AUTHTOK_REQD);
        let mut host = host(Some(Marked::MustChange), vec![]);
        assert_eq!(set_credentials(&mut host), PamResultCode::PAM_IGNORE);
        assert!(!authenticated_here(&host, &user_a()));
    }

    #[test]
    fn a_member_whom_the_server_refuses_stays_out() {
        let line = Line::Error("This account has expired; please ask the administrator.");
        let mut host = host(Some(Marked::Refused(DenyReason::Expired)), vec![line]);
        assert_eq!(manage(&mut host), PamResultCode::PAM_ACCT_EXPIRED);
        assert_eq!(set_credentials(&mut host), PamResultCode::PAM_IGNORE);
    }
}
