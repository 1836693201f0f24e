//! Every way in which a login can fail: one sentence for the person (`Display`), a cause for the log (`source`), a code for libpam.

use crate::{daemon::DaemonError, login::Stop, server::LinkError};
use cug_card::CardError;
use cug_proto::{
    ProtocolError,
    local::Refusal,
    message::{DenyReason, Unavailable},
};
use pam::constants::PamResultCode;

/// Why a login failed. Sentences end in the step that the person can take.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No name could be had from the program.
    #[error("No user ID was entered.")]
    NoUser(PamResultCode),
    /// The name is not one that a member can have. The same sentence as for a wrong one.
    #[error("User ID, card or password is not right.")]
    NotAUserId,
    /// cugd cannot be reached.
    #[error("The VPN service of this workstation does not answer; please tell the administrator (cugd).")]
    Daemon(#[source] DaemonError),
    /// cugd says no.
    #[error("{}.", capitalised(.0))]
    Refused(Refusal),
    /// Something with the card; its sentence is the card library's.
    #[error("{}", sentence(.0))]
    Card(#[source] CardError),
    /// The card names a CA that this workstation does not trust.
    #[error("This card is not of this organisation.")]
    ForeignCard,
    /// The program could not ask.
    #[error("The password could not be asked for.")]
    Conversation(PamResultCode),
    /// Nothing was typed.
    #[error("No password was entered.")]
    NoPassword,
    /// `use_first_pass`, and there is none.
    #[error("No earlier step of this login asked for the password; please tell the administrator (use_first_pass).")]
    NoEarlierPassword,
    /// The daemon's configuration names no server.
    #[error("No management server is configured on this workstation; please tell the administrator.")]
    NoServer,
    /// No server could be talked to.
    #[error("{}", link_sentence(.0))]
    Server(#[source] LinkError),
    /// The server is there but cannot serve now.
    #[error("{}", unavailable_sentence(.0))]
    Unavailable(Unavailable),
    /// The server does not keep to the protocol.
    #[error(
        "The management server gave an answer that was not understood; please try again, then tell the administrator."
    )]
    Protocol(#[source] ProtocolError),
    /// Unknown user, unknown card, or a card that did not answer. One sentence for all.
    #[error("User ID, card or password is not right.")]
    Rejected,
    /// The card is right, and the server says why it refuses.
    #[error("{}", denied_sentence(.0))]
    Denied(DenyReason),
    /// The new password was not typed twice the same.
    #[error("The new password was not typed twice the same; the old one stays.")]
    NotTheSame,
    /// `use_authtok`, and no earlier module has asked for a new password.
    #[error("No earlier step asked for the new password; please tell the administrator (use_authtok).")]
    NoNewPassword,
    /// The new password was sent and no answer came.
    #[error(
        "The management server did not answer in time: try the new password first, and if it is not right, the old one."
    )]
    Unsure(#[source] LinkError),
    /// A fault in this module.
    #[error("The login failed for an internal reason; please tell the administrator.")]
    Internal(String),
}

impl Failure {
    /// The code for `pam_sm_authenticate`. Never one that a `required` line of a PAM file takes for success (PAM_NEW_AUTHTOK_REQD is one).
    pub fn code(&self) -> PamResultCode {
        match self {
            Self::NoUser(PamResultCode::PAM_CONV_AGAIN) | Self::Conversation(PamResultCode::PAM_CONV_AGAIN) => {
                PamResultCode::PAM_INCOMPLETE
            }
            Self::NoUser(_) | Self::NotAUserId => PamResultCode::PAM_USER_UNKNOWN,
            Self::NoEarlierPassword => PamResultCode::PAM_AUTHTOK_RECOVERY_ERR,
            Self::Daemon(_) | Self::NoServer | Self::Server(_) | Self::Unavailable(_) | Self::Protocol(_) => {
                PamResultCode::PAM_AUTHINFO_UNAVAIL
            }
            Self::Refused(Refusal::UnknownOffer | Refusal::CardGone | Refusal::ForeignCard) => {
                PamResultCode::PAM_AUTH_ERR
            }
            Self::Refused(_) => PamResultCode::PAM_AUTHINFO_UNAVAIL,
            Self::Card(error) => card_code(error),
            Self::Conversation(_) | Self::NoPassword | Self::Rejected | Self::ForeignCard => {
                PamResultCode::PAM_AUTH_ERR
            }
            Self::Denied(DenyReason::WrongPassword) => PamResultCode::PAM_AUTH_ERR,
            Self::Denied(DenyReason::TooManyAttempts(_)) => PamResultCode::PAM_MAXTRIES,
            Self::Denied(reason) => account_code(*reason),
            Self::NotTheSame | Self::NoNewPassword | Self::Unsure(_) => PamResultCode::PAM_AUTHTOK_ERR,
            Self::Internal(_) => PamResultCode::PAM_SYSTEM_ERR,
        }
    }

    /// The code for `pam_sm_chauthtok`: what pam_chauthtok(3) knows.
    pub fn change_code(&self) -> PamResultCode {
        match self.code() {
            code @ (PamResultCode::PAM_INCOMPLETE
            | PamResultCode::PAM_SYSTEM_ERR
            | PamResultCode::PAM_PERM_DENIED
            | PamResultCode::PAM_USER_UNKNOWN) => code,
            PamResultCode::PAM_ACCT_EXPIRED => PamResultCode::PAM_PERM_DENIED,
            _ => PamResultCode::PAM_AUTHTOK_ERR,
        }
    }

    /// The sentence and all its causes, for the log.
    pub fn chain(&self) -> String {
        let mut line = format!("{self:?}");
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Rejected => Self::Rejected,
            Stop::Unavailable(why) => Self::Unavailable(why),
            Stop::Protocol(error) => Self::Protocol(error),
        }
    }
}

/// The code with which the server's refusal of a member is told in the account phase, and, but for the password, in the auth phase.
/// A password that must be changed is a refusal until it is: the codes that send the person to `passwd` let the login go on.
pub fn account_code(reason: DenyReason) -> PamResultCode {
    match reason {
        DenyReason::Expired => PamResultCode::PAM_ACCT_EXPIRED,
        DenyReason::MustChangePassword => PamResultCode::PAM_AUTHTOK_EXPIRED,
        DenyReason::WrongPassword | DenyReason::TooManyAttempts(_) => PamResultCode::PAM_AUTH_ERR,
        DenyReason::Disabled | DenyReason::CardRevoked | DenyReason::NoGroup | DenyReason::OutsideHours => {
            PamResultCode::PAM_PERM_DENIED
        }
        DenyReason::BadRequest => PamResultCode::PAM_SYSTEM_ERR,
        DenyReason::NewPassword(_) => PamResultCode::PAM_AUTHTOK_ERR,
    }
}

/// The sentence for a refusal by the server.
pub fn denied_sentence(reason: &DenyReason) -> String {
    match reason {
        DenyReason::WrongPassword => "The password is not right; please try again.".into(),
        DenyReason::Disabled => "This account is disabled; please ask the administrator.".into(),
        DenyReason::CardRevoked => "This card has been revoked; please ask the administrator for a new one.".into(),
        DenyReason::NoGroup => "This account belongs to no group; please ask the administrator.".into(),
        DenyReason::TooManyAttempts(seconds) => {
            format!("Too many wrong passwords; please try again in {}.", duration(*seconds))
        }
        DenyReason::MustChangePassword => {
            "The password must be changed first; please ask the administrator for a new one.".into()
        }
        DenyReason::Expired => "This account has expired; please ask the administrator.".into(),
        DenyReason::OutsideHours => "This account may not log in at this time of day.".into(),
        DenyReason::BadRequest => {
            "The server did not accept this workstation's request; please tell the administrator.".into()
        }
        DenyReason::NewPassword(problem) => problem.to_string(),
    }
}

fn link_sentence(error: &LinkError) -> &'static str {
    match error {
        LinkError::NotTrusted(error) if is_about_time(error) => {
            "This workstation's clock and the management server's certificate disagree about the date; please tell the administrator."
        }
        LinkError::NotTrusted(_) => {
            "The management server is not the one that this card trusts; please tell the administrator."
        }
        LinkError::Timeout => {
            "The management server did not answer in time; please try again or ask the administrator."
        }
        _ => "The management server cannot be reached; please try again or ask the administrator.",
    }
}

/// A certificate of the right CA whose time has not come or has passed, by this workstation's clock.
fn is_about_time(error: &rustls::Error) -> bool {
    use rustls::CertificateError as Bad;
    let timely = |bad: &Bad| {
        matches!(bad, Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. })
    };
    matches!(error, rustls::Error::InvalidCertificate(bad) if timely(bad))
}

fn unavailable_sentence(why: &Unavailable) -> String {
    match why {
        Unavailable::Busy(seconds) => {
            format!("The management server is busy; please try again in {}.", duration(*seconds))
        }
        Unavailable::Version(_) => {
            "This workstation and the management server are of different versions; please tell the administrator."
                .into()
        }
        Unavailable::Fault => "The management server has a fault; please tell the administrator.".into(),
    }
}

fn duration(seconds: u32) -> String {
    match seconds {
        0 | 1 => "a moment".into(),
        2..=119 => format!("{seconds} seconds"),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    }
}

/// A text of another crate as a sentence of this one.
fn capitalised(text: &impl ToString) -> String {
    let text = text.to_string();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn sentence(text: &impl ToString) -> String {
    let text = capitalised(text);
    if text.ends_with(['.', '!', '?']) { text } else { text + "." }
}

/// A PAM file may let `authinfo_unavail` fall back to another module, so that code is for what is broken, never for what the person in front of it can
/// bring about with a card, a PIN or a variable.
fn card_code(error: &CardError) -> PamResultCode {
    match error {
        CardError::PinBlocked => PamResultCode::PAM_MAXTRIES,
        CardError::NoService(_)
        | CardError::NoReader
        | CardError::Reader(_)
        | CardError::Watch(_)
        | CardError::Random => PamResultCode::PAM_AUTHINFO_UNAVAIL,
        _ => PamResultCode::PAM_AUTH_ERR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cug_proto::password::PasswordProblem;

    fn all_reasons() -> [DenyReason; 10] {
        [
            DenyReason::WrongPassword,
            DenyReason::Disabled,
            DenyReason::CardRevoked,
            DenyReason::NoGroup,
            DenyReason::TooManyAttempts(90),
            DenyReason::MustChangePassword,
            DenyReason::Expired,
            DenyReason::OutsideHours,
            DenyReason::BadRequest,
            DenyReason::NewPassword(PasswordProblem::TooShort(8)),
        ]
    }

    #[test]
    fn each_refusal_has_its_own_sentence_and_no_code_lets_anybody_in() {
        let sentences: std::collections::BTreeSet<_> = all_reasons().iter().map(denied_sentence).collect();
        assert_eq!(sentences.len(), all_reasons().len());
        for reason in all_reasons() {
            for code in [account_code(reason), Failure::Denied(reason).code()] {
                assert!(
                    !matches!(
                        code,
                        PamResultCode::PAM_SUCCESS | PamResultCode::PAM_IGNORE | PamResultCode::PAM_NEW_AUTHTOK_REQD
                    ),
                    "{reason:?}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_user_and_a_wrong_card_read_the_same() {
        assert_eq!(Failure::NotAUserId.to_string(), Failure::Rejected.to_string());
    }

    #[test]
    fn sentences_are_sentences() {
        let failures = [
            Failure::Refused(Refusal::Version),
            Failure::Server(LinkError::Timeout),
            Failure::Unavailable(Unavailable::Busy(200)),
            Failure::Daemon(DaemonError::Timeout),
        ];
        for text in failures.iter().map(ToString::to_string).chain(all_reasons().iter().map(denied_sentence)) {
            assert!(text.starts_with(char::is_uppercase) && text.ends_with('.') && !text.contains('\n'), "{text}");
        }
        assert!(Failure::Unavailable(Unavailable::Busy(200)).to_string().contains("4 minutes"));
    }

    #[test]
    fn what_the_person_can_bring_about_does_not_count_as_unavailable() {
        for error in
            [CardError::NoCard, CardError::Redirected, CardError::NotOurs, CardError::Removed, CardError::PinFormat]
        {
            assert_eq!(Failure::Card(error).code(), PamResultCode::PAM_AUTH_ERR);
        }
        assert_eq!(Failure::Card(CardError::NoReader).code(), PamResultCode::PAM_AUTHINFO_UNAVAIL);
        assert_eq!(Failure::Card(CardError::PinBlocked).code(), PamResultCode::PAM_MAXTRIES);
    }

    #[test]
    fn a_wrong_clock_is_not_taken_for_a_wrong_server() {
        use rustls::CertificateError::{Expired, NotValidYet, UnknownIssuer};
        let sentence = |bad| Failure::Server(LinkError::NotTrusted(rustls::Error::InvalidCertificate(bad))).to_string();
        for bad in [Expired, NotValidYet] {
            let text = sentence(bad);
            assert!(text.contains("clock") && text.ends_with('.'), "{text}");
        }
        assert!(!sentence(UnknownIssuer).contains("clock"));
    }

    #[test]
    fn the_log_has_the_cause() {
        let failure = Failure::Daemon(DaemonError::NotRoot(1000));
        assert!(failure.chain().contains("1000"), "{}", failure.chain());
        assert!(!failure.to_string().contains("1000"));
    }
}
