//! Every way in which a login can fail once the person has typed: one sentence for the person (`Display`), a cause for the log (`source`).

use crate::{daemon::DaemonError, login::Stop, server::LinkError};
use cug_card::CardError;
use cug_proto::{
    ProtocolError,
    local::Refusal,
    message::{DenyReason, Unavailable},
};

/// Why a login failed. Sentences end in the step that the person can take.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
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
    /// The new password was sent and no answer came.
    #[error(
        "The management server did not answer in time: try the new password first, and if it is not right, the old one."
    )]
    Unsure(#[source] LinkError),
    /// A fault in this program.
    #[error("The login failed for an internal reason; please tell the administrator.")]
    Internal(String),
}

impl Failure {
    /// The server is away, or cannot serve anybody now: nobody has refused anything. A server that is there and is not trusted is not away.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Server(error) => match error {
                LinkError::Address(_) | LinkError::Unreachable(_) | LinkError::Timeout | LinkError::Closed => true,
                LinkError::NotTrusted(_) | LinkError::Tls(_) | LinkError::Frame(_) => false,
            },
            Self::Unavailable(Unavailable::Busy(_) | Unavailable::Fault) => true,
            _ => false,
        }
    }

    /// The sentence and all its causes, for the log.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and all its causes, for the log.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = format!("{error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
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
        DenyReason::OutsideHours(Some(closed)) => closed.to_string(),
        DenyReason::OutsideHours(None) => {
            "This account may not log in at this time; please ask the administrator.".into()
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_sentences() {
        let failures = [
            Failure::Refused(Refusal::Version),
            Failure::Server(LinkError::Timeout),
            Failure::Unavailable(Unavailable::Busy(200)),
            Failure::Daemon(DaemonError::Timeout),
        ];
        for text in failures.iter().map(ToString::to_string) {
            assert!(text.starts_with(char::is_uppercase) && text.ends_with('.') && !text.contains('\n'), "{text}");
        }
        assert!(Failure::Unavailable(Unavailable::Busy(200)).to_string().contains("4 minutes"));
    }

    #[test]
    fn only_silence_is_absence() {
        for away in [
            Failure::Server(LinkError::Timeout),
            Failure::Server(LinkError::Closed),
            Failure::Server(LinkError::Address("x:1".into())),
            Failure::Unavailable(Unavailable::Fault),
        ] {
            assert!(away.is_away(), "{away:?}");
        }
        for there in [
            Failure::Server(LinkError::NotTrusted(rustls::Error::DecryptError)),
            Failure::Denied(DenyReason::WrongPassword),
            Failure::Denied(DenyReason::Disabled),
            Failure::Rejected,
            Failure::Unavailable(Unavailable::Version(2)),
            Failure::Daemon(DaemonError::Timeout),
            Failure::Protocol(ProtocolError::OutOfOrder),
            Failure::Card(CardError::Removed),
            Failure::NoServer,
        ] {
            assert!(!there.is_away(), "{there:?}");
        }
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
