//! Invitations: what administrators ask for, and how it is done.

use super::{AdminService, Reply};
use crate::{
    clock::{self, rfc3339},
    store::{By, NewInvitation, Result},
};
use cug_proto::{
    enrol::{EnrolCode, token, verifier},
    id::{GroupName, UserId},
    secret::SecretBytes,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

/// What can be asked for.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnrolRequest {
    /// A one-time code for a user.
    Invite {
        /// Whom; need not be a user yet.
        user: UserId,
        /// Groups to join.
        groups: Vec<GroupName>,
        /// Seconds until the code expires.
        expires_in: u32,
        /// What is enrolled waits for [`EnrolRequest::Approve`].
        approve: bool,
        /// The user's older cards are revoked.
        replace: bool,
    },
    /// Take the code, or what waits for an approval, back.
    Uninvite(UserId),
    /// Register what a user enrolled.
    Approve {
        /// Whose.
        user: UserId,
        /// Only if the card's fingerprint begins with these hexadecimal digits.
        card: Option<String>,
    },
    /// All invitations.
    Invitations,
}

/// A code that was made just now; shown once.
#[derive(Serialize, Deserialize)]
pub struct Invited {
    /// Whom.
    pub user: UserId,
    /// The code.
    pub code: Code,
    /// Until when it works, RFC 3339.
    pub expires: String,
}

/// A one-time code as text, wiped on drop.
pub struct Code(SecretBytes);

impl Code {
    /// For the one place that shows it.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(self.0.expose()).unwrap_or_default()
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        SecretBytes::copy_from(text.as_bytes()).map(Self).ok_or_else(|| D::Error::custom("the code is too long"))
    }
}

/// Longest life of a code, in seconds.
pub const LONGEST: u32 = 90 * 86_400;

impl AdminService {
    /// Carries a request about invitations out.
    pub(super) fn enrolment(&self, request: &EnrolRequest, by: By<'_>) -> Result<Reply> {
        match request {
            EnrolRequest::Invite { user, groups, expires_in, approve, replace } => {
                let code = EnrolCode::random(&mut clock::rng());
                let expires = by.now.saturating_add((*expires_in).min(LONGEST).into());
                let verifier = verifier(&token(&code, user));
                let (approve, replace) = (*approve, *replace);
                let verifier = verifier.expose();
                self.store.invite(by, &NewInvitation { user, verifier, groups, approve, replace, expires })?;
                match SecretBytes::copy_from(code.text().as_bytes()) {
                    Some(code) => {
                        Ok(Reply::Invited(Invited { user: user.clone(), code: Code(code), expires: rfc3339(expires) }))
                    }
                    None => super::service::refuse("the code cannot be shown"),
                }
            }
            EnrolRequest::Uninvite(user) => {
                self.store.uninvite(by, user)?;
                Ok(Reply::Done(format!("the invitation of user {user} is withdrawn")))
            }
            EnrolRequest::Approve { user, card } => {
                let mint = |group, epoch| self.mint(group, epoch);
                Ok(Reply::Done(match self.store.approve(by, user, card.as_deref(), &mint)? {
                    Some(fingerprint) => format!("user {user} can log in with card {fingerprint}"),
                    None => format!("the new password of user {user} is in force"),
                }))
            }
            EnrolRequest::Invitations => Ok(Reply::Invitations(self.store.invitations(by.now)?)),
        }
    }
}
