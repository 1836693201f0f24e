//! What the store keeps of invitations and enrolments.

use super::{NewCard, PasswordRecord};
use crate::clock::UnixTime;
use cug_proto::{
    id::{GroupName, HostName, UserId},
    secret::Secret,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// An invitation to be.
pub struct NewInvitation<'a> {
    /// Whom; need not be a user yet.
    pub user: &'a UserId,
    /// Hash of the code, see [`cug_proto::enrol::verifier`].
    pub verifier: &'a [u8; 32],
    /// Groups to join.
    pub groups: &'a [GroupName],
    /// An administrator must approve what was enrolled.
    pub approve: bool,
    /// Cards that the user has are revoked when the new one is registered.
    pub replace: bool,
    /// Until when the code works.
    pub expires: UnixTime,
}

/// An invitation whose code works.
pub struct Invitation {
    /// Hash of the code.
    pub verifier: Secret<32>,
    /// An administrator must approve.
    pub approve: bool,
}

/// What a terminal has proved and wants registered.
pub struct NewEnrolment<'a> {
    /// Who.
    pub user: &'a UserId,
    /// Of the code that was proved: the invitation must still have it.
    pub verifier: &'a [u8; 32],
    /// The new password.
    pub password: &'a PasswordRecord,
    /// The card that has answered; `None` for the password only.
    pub card: Option<NewCard<'a>>,
    /// An administrator must approve, whatever the invitation says.
    pub approve: bool,
    /// The terminal, as seen by the server.
    pub source: IpAddr,
    /// The terminal's name.
    pub host_name: &'a HostName,
    /// When.
    pub now: UnixTime,
}

/// What became of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    /// Registered.
    Active,
    /// Kept until an administrator approves it.
    Waiting,
    /// The code does not work any more.
    Withdrawn,
    /// The card is registered already, or waits for an approval.
    CardTaken,
}

/// An invitation, for the administrator.
#[derive(Serialize, Deserialize, Debug)]
pub struct InvitationInfo {
    /// Whom.
    pub user: UserId,
    /// `open`, `expired`, or `waiting` for an approval.
    pub state: String,
    /// Names.
    pub groups: Vec<GroupName>,
    /// An administrator must approve.
    pub approve: bool,
    /// Older cards go.
    pub replace: bool,
    /// Who invited.
    pub by: String,
    /// When, RFC 3339.
    pub created: String,
    /// Until when the code works, RFC 3339.
    pub expires: String,
    /// When it was used, RFC 3339.
    pub enrolled: Option<String>,
    /// At which workstation.
    pub host: Option<HostName>,
    /// The workstation's address.
    pub address: Option<IpAddr>,
    /// The card: 64 hexadecimal digits; none when only a password was set.
    pub fingerprint: Option<String>,
    /// Of its modulus.
    pub bits: Option<u32>,
    /// `piv`, `medium` or `registered`.
    pub kind: Option<String>,
}
