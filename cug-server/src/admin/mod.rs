//! What an administrator can ask for: one [`Request`], one [`Reply`].
//!
//! [`AdminService`] carries requests out. It does so in the running server, asked over a socket that only root, the server's own user and a configured group may
//! use, or in the administrator's own process when no server runs. [`ask`] finds out which.

mod accounts;
mod check;
mod directory;
mod enrol;
mod password;
mod peer;
mod service;
mod socket;
mod state;
mod status;

pub use check::{Finding, Verdict, check};
pub use directory::{Export, ExportGroup, ExportUser};
pub use enrol::{Code, EnrolRequest, Invited, LONGEST as LONGEST_INVITATION};
pub use password::Password;
pub use service::{AdminService, card_fingerprint};
pub use socket::{listen, serve};
pub use state::{StateLock, back_up, database, initialise, open_store, restore};
pub use status::{StatusInfo, UserDetail};

use crate::{
    config::Config,
    keys::{KeyError, Keys, StoragePlace, TlsInfo},
    store::{
        AuditQuery, AuditRow, AuditVerdict, CardInfo, Directory, EventInfo, GroupInfo, InvitationInfo, LineProblem,
        MemberInfo, PolicyUpdate, SessionInfo, UserInfo, UserSettings,
    },
};
use anyhow::{Context, Result};
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
        /// What else is set of the user.
        #[serde(default)]
        settings: UserSettings,
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
        /// It must be changed at the next login.
        #[serde(default)]
        must_change: bool,
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
    /// End a session by its number: 32 hexadecimal digits, or the first 8 or more of them.
    SessionEndNumber(String),
    /// Change what the members of a group may reach.
    GroupSet(GroupName, PolicyUpdate),
    /// Delete a group: who is logged in leaves it.
    GroupDelete(GroupName),
    /// Delete a user: the session ends, the cards are revoked, the groups' keys change.
    UserDelete(UserId),
    /// One user with cards and session.
    UserDetail(UserId),
    /// How the server is.
    Status,
    /// Rows of the audit.
    Audit(AuditQuery),
    /// Check the audit's chain; with the code of a row that an earlier check answered with.
    AuditVerify(Option<String>),
    /// Add users, groups and memberships: all or nothing.
    Import(Directory),
    /// All users, groups and memberships.
    Export {
        /// With the hashes of passwords.
        secrets: bool,
    },
    /// A new key for what is wrapped in the database.
    ServerKeyRotate,
    /// The TLS certificate.
    TlsShow,
    /// A new TLS key, certified here.
    TlsRotate,
    /// A new TLS key that is not used yet; a request for its certificate.
    TlsRequest,
    /// Sign a management server's request (PEM).
    TlsSign(String),
    /// Use the certificate (PEM) for the last request.
    TlsInstall(String),
    /// What `top` shows.
    Snapshot,
    /// Set something of a user.
    UserSet(UserId, UserSettings),
    /// Forget a user's wrong passwords.
    UserUnlock(UserId),
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
    /// A user with cards and session.
    UserDetail(UserDetail),
    /// How the server is.
    Status(StatusInfo),
    /// Rows of the audit.
    Audit(Vec<AuditRow>),
    /// What checking the audit found.
    AuditVerdict(AuditVerdict),
    /// All users, groups and memberships.
    Export(Export),
    /// Nothing was imported; what is wrong with which line.
    BadLines(Vec<LineProblem>),
    /// Not the reply yet: so much of a long request is done.
    Progress {
        /// Of `total`.
        done: u64,
        /// All.
        total: u64,
    },
    /// A request or a certificate.
    Pem(String),
    /// The TLS certificate.
    Tls(TlsInfo),
    /// What `top` shows.
    Snapshot(Box<Snapshot>),
    /// A one-time code.
    Invited(Invited),
    /// Invitations.
    Invitations(Vec<InvitationInfo>),
}

/// The server at one moment.
#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    /// When, RFC 3339.
    pub at: String,
    /// Groups, by name.
    pub groups: Vec<GroupInfo>,
    /// Who is where: at most [`SNAPSHOT_SESSIONS`] rows, the first by group and user.
    pub sessions: Vec<SessionInfo>,
    /// How many rows there are in all.
    pub all_sessions: usize,
    /// The last events, newest first.
    pub events: Vec<EventInfo>,
    /// Terminals whose session channel stands.
    pub attached: usize,
    /// The TLS certificate.
    pub tls: TlsInfo,
}

/// Rows of sessions in a [`Snapshot`]: nobody reads more on a screen.
pub const SNAPSHOT_SESSIONS: usize = 2000;

/// Events in a [`Snapshot`].
pub const SNAPSHOT_EVENTS: u32 = 100;

/// Has a request carried out: by the running server, or here when none runs. Blocks.
///
/// # Errors
/// A sentence: no permission, not initialised, a server that does not answer. A refusal is a [`Reply`].
pub fn ask(config: &Config, request: &Request) -> Result<Reply> {
    ask_telling(config, request, &mut |_, _| {})
}

/// Like [`ask`], for a request that takes long: `progress` hears how much of how much is done.
///
/// # Errors
/// As [`ask`].
pub fn ask_telling(config: &Config, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
    if let Some(reply) = socket::ask(&config.admin_socket, request, progress)? {
        return Ok(reply);
    }
    let _lock = StateLock::take(&config.state_dir)?;
    let keys = Arc::new(keys_of(config)?);
    let store = Arc::new(open_store(&config.state_dir, &keys)?);
    let service = AdminService::new(store, keys, Arc::new(config.clone()), None);
    let reply = service.carry_out_telling(request, nix::unistd::geteuid().as_raw(), progress);
    state::give_to_owner(&config.state_dir)?;
    Ok(reply)
}

/// Has a request carried out by the running server only. Blocks.
///
/// # Errors
/// A sentence: no permission, no server, a server that does not answer. A refusal is a [`Reply`].
pub fn ask_server(config: &Config, request: &Request) -> Result<Reply> {
    socket::ask(&config.admin_socket, request, &mut |_, _| {})?
        .with_context(|| format!("no server runs here (nothing listens on {})", config.admin_socket.display()))
}

/// The keys, with the storage key from where the configuration says.
///
/// # Errors
/// [`KeyError`]
pub fn keys_of(config: &Config) -> Result<Keys, KeyError> {
    Keys::load_with(&config.state_dir, StoragePlace::of(&config.state_dir, config.storage_key.as_deref()))
}
