//! Every way in which the module can fail: one sentence for the person (`Display`), a cause for the log (`source`), a code for libpam.

use cug_card::CardError;
use cug_login::Failure as LoginFailure;
use cug_proto::{local::Refusal, message::DenyReason};
use pam::constants::PamResultCode;

pub use cug_login::failure::denied_sentence;

/// Why the module failed. Sentences end in the step that the person can take.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No name could be had from the program.
    #[error("No user ID was entered.")]
    NoUser(PamResultCode),
    /// The name is not one that a member can have. The same sentence as for a wrong one.
    #[error("User ID, card or password is not right.")]
    NotAUserId,
    /// The program could not ask.
    #[error("The password could not be asked for.")]
    Conversation(PamResultCode),
    /// Nothing was typed.
    #[error("No password was entered.")]
    NoPassword,
    /// `use_first_pass`, and there is none.
    #[error("No earlier step of this login asked for the password; please tell the administrator (use_first_pass).")]
    NoEarlierPassword,
    /// The new password was not typed twice the same.
    #[error("The new password was not typed twice the same; the old one stays.")]
    NotTheSame,
    /// `use_authtok`, and no earlier module has asked for a new password.
    #[error("No earlier step asked for the new password; please tell the administrator (use_authtok).")]
    NoNewPassword,
    /// The login, or what it needs.
    #[error(transparent)]
    Login(#[from] LoginFailure),
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
            Self::Conversation(_) | Self::NoPassword => PamResultCode::PAM_AUTH_ERR,
            Self::NotTheSame | Self::NoNewPassword => PamResultCode::PAM_AUTHTOK_ERR,
            Self::Login(failure) => login_code(failure),
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
        cug_login::failure::chain(self)
    }
}

fn login_code(failure: &LoginFailure) -> PamResultCode {
    match failure {
        LoginFailure::Daemon(_)
        | LoginFailure::NoServer
        | LoginFailure::Server(_)
        | LoginFailure::Unavailable(_)
        | LoginFailure::Protocol(_) => PamResultCode::PAM_AUTHINFO_UNAVAIL,
        LoginFailure::Refused(Refusal::UnknownOffer | Refusal::CardGone | Refusal::ForeignCard) => {
            PamResultCode::PAM_AUTH_ERR
        }
        LoginFailure::Refused(_) => PamResultCode::PAM_AUTHINFO_UNAVAIL,
        LoginFailure::Card(error) => card_code(error),
        LoginFailure::Rejected | LoginFailure::ForeignCard => PamResultCode::PAM_AUTH_ERR,
        LoginFailure::Denied(DenyReason::WrongPassword) => PamResultCode::PAM_AUTH_ERR,
        LoginFailure::Denied(DenyReason::TooManyAttempts(_)) => PamResultCode::PAM_MAXTRIES,
        LoginFailure::Denied(reason) => account_code(*reason),
        LoginFailure::Unsure(_) => PamResultCode::PAM_AUTHTOK_ERR,
        LoginFailure::Internal(_) => PamResultCode::PAM_SYSTEM_ERR,
    }
}

/// The code with which the server's refusal of a member is told in the account phase, and, but for the password, in the auth phase.
/// A password that must be changed is a refusal until it is: the codes that send the person to `passwd` let the login go on.
pub fn account_code(reason: DenyReason) -> PamResultCode {
    match reason {
        DenyReason::Expired => PamResultCode::PAM_ACCT_EXPIRED,
        DenyReason::MustChangePassword => PamResultCode::PAM_AUTHTOK_EXPIRED,
        DenyReason::WrongPassword | DenyReason::TooManyAttempts(_) => PamResultCode::PAM_AUTH_ERR,
        DenyReason::Disabled | DenyReason::CardRevoked | DenyReason::NoGroup | DenyReason::OutsideHours(_) => {
            PamResultCode::PAM_PERM_DENIED
        }
        DenyReason::BadRequest => PamResultCode::PAM_SYSTEM_ERR,
        DenyReason::NewPassword(_) => PamResultCode::PAM_AUTHTOK_ERR,
    }
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
            DenyReason::OutsideHours(None),
            DenyReason::BadRequest,
            DenyReason::NewPassword(PasswordProblem::TooShort(8)),
        ]
    }

    #[test]
    fn each_refusal_has_its_own_sentence_and_no_code_lets_anybody_in() {
        let sentences: std::collections::BTreeSet<_> = all_reasons().iter().map(denied_sentence).collect();
        assert_eq!(sentences.len(), all_reasons().len());
        for reason in all_reasons() {
            for code in [account_code(reason), Failure::from(LoginFailure::Denied(reason)).code()] {
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
        assert_eq!(Failure::NotAUserId.to_string(), Failure::from(LoginFailure::Rejected).to_string());
    }

    #[test]
    fn what_the_person_can_bring_about_does_not_count_as_unavailable() {
        for error in
            [CardError::NoCard, CardError::Redirected, CardError::NotOurs, CardError::Removed, CardError::PinFormat]
        {
            assert_eq!(Failure::from(LoginFailure::Card(error)).code(), PamResultCode::PAM_AUTH_ERR);
        }
        assert_eq!(Failure::from(LoginFailure::Card(CardError::NoReader)).code(), PamResultCode::PAM_AUTHINFO_UNAVAIL);
        assert_eq!(Failure::from(LoginFailure::Card(CardError::PinBlocked)).code(), PamResultCode::PAM_MAXTRIES);
    }
}
