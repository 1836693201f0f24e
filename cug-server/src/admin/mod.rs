//! What an administrator can ask for: one [`Request`], one [`Reply`].
//!
//! [`AdminService`] carries requests out. It does so in the running server, asked over a socket that only root (and the server's own user) may
//! use, or in the administrator's own process when no server runs. [`ask`] finds out which.

mod enrol;
mod password;
mod service;
mod socket;
mod state;

pub use enrol::{Code, EnrolRequest, Invited, LONGEST as LONGEST_INVITATION};
pub use password::Password;
pub use service::{AdminService, card_fingerprint, unhex_bytes};
pub use socket::{listen, serve};
pub use state::{StateLock, database, initialise};

use crate::{
    config::Config,
    keys::Keys,
    store::{CardInfo, GroupInfo, InvitationInfo, MemberInfo, SessionInfo, Sqlite, UserInfo},
};
use anyhow::Result;
use cug_proto::id::{GroupName, UserId};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What can be asked for.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Add a user.
    UserAdd {
        /// User ID.
        user: UserId,
        /// In clear; hashed by whoever carries the request out.
        password: Password,
    },
    /// All users.
    UserList,
    /// One user.
    UserShow(UserId),
    /// Disable: the session ends, the groups' keys change.
    UserDisable(UserId),
    /// Enable again.
    UserEnable(UserId),
    /// Change a password.
    UserSetPassword {
        /// User ID.
        user: UserId,
        /// In clear.
        password: Password,
    },
    /// Add a group.
    GroupAdd {
        /// Name.
        group: GroupName,
        /// Overlay network; a free one when `None`.
        prefix4: Option<Ipv4Net>,
        /// Overlay network; a free one when `None`.
        prefix6: Option<Ipv6Net>,
    },
    /// All groups.
    GroupList,
    /// One group with its members.
    GroupShow(GroupName),
    /// Make a user a member.
    GroupJoin(GroupName, UserId),
    /// End a membership.
    GroupLeave(GroupName, UserId),
    /// New key.
    GroupRotate(GroupName),
    /// The server object for cards.
    ServerObject,
    /// A certificate for a card's key (DER `SubjectPublicKeyInfo`).
    CertifyCard {
        /// Whose.
        user: UserId,
        /// The key.
        public_key: Vec<u8>,
    },
    /// Register a card's key (DER `SubjectPublicKeyInfo`, or a certificate or PEM with one).
    CardRegister {
        /// Whose.
        user: UserId,
        /// The key.
        public_key: Vec<u8>,
        /// `piv`, `medium` or `registered`.
        kind: String,
    },
    /// Cards of a user, or all.
    CardList(Option<UserId>),
    /// Revoke a card by its fingerprint: 64 hexadecimal digits, or the first 8 or more of them.
    CardRevoke(String),
    /// Who is where.
    SessionList,
    /// End a user's session.
    SessionEnd(UserId),
    /// About enrolment.
    Enrol(EnrolRequest),
}

/// What comes back.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; a sentence for the administrator.
    Done(String),
    /// Nothing was changed; a sentence for the administrator.
    Refused(String),
    /// Users.
    Users(Vec<UserInfo>),
    /// A user.
    User(UserInfo),
    /// Groups.
    Groups(Vec<GroupInfo>),
    /// A group and its members.
    Group(GroupInfo, Vec<MemberInfo>),
    /// Cards.
    Cards(Vec<CardInfo>),
    /// A card that was registered: 64 hexadecimal digits.
    Card(String),
    /// Who is where.
    Sessions(Vec<SessionInfo>),
    /// A certificate.
    Der(Vec<u8>),
    /// A one-time code.
    Invited(Invited),
    /// Invitations.
    Invitations(Vec<InvitationInfo>),
}

/// Has a request carried out: by the running server, or here when none runs. Blocks.
///
/// # Errors
/// A sentence: no permission, not initialised, a server that does not answer. A refusal is a [`Reply`].
pub fn ask(config: &Config, request: &Request) -> Result<Reply> {
    if let Some(reply) = socket::ask(&config.admin_socket, request)? {
        return Ok(reply);
    }
    let _lock = StateLock::take(&config.state_dir)?;
    let keys = Arc::new(Keys::load(&config.state_dir)?);
    let store = Arc::new(Sqlite::open(&database(&config.state_dir))?);
    let service = AdminService::new(store, keys, Arc::new(config.clone()), None);
    let reply = service.carry_out(request, nix::unistd::geteuid().as_raw());
    state::give_to_owner(&config.state_dir)?;
    Ok(reply)
}
