//! What an administrator can ask for: one [`Request`], one [`Reply`].
//!
//! [`AdminService`] carries requests out. It does so in the running server, asked over a socket that only root (and the server's own user) may
//! use, or in the administrator's own process when no server runs. [`ask`] finds out which.

mod password;
mod service;
mod socket;
mod state;

pub use password::Password;
pub use service::{AdminService, card_fingerprint, unhex_bytes};
pub use socket::{listen, serve};
pub use state::{StateLock, database, initialise};

use crate::{
    config::Config,
    keys::{KeyError, Keys, StoragePlace, TlsInfo},
    store::{CardInfo, EventInfo, GroupInfo, MemberInfo, SessionInfo, Sqlite, UserInfo},
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
    /// A request or a certificate.
    Pem(String),
    /// The TLS certificate.
    Tls(TlsInfo),
    /// What `top` shows.
    Snapshot(Box<Snapshot>),
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
    if let Some(reply) = socket::ask(&config.admin_socket, request)? {
        return Ok(reply);
    }
    let _lock = StateLock::take(&config.state_dir)?;
    let keys = Arc::new(keys_of(config)?);
    let store = Arc::new(Sqlite::open(&database(&config.state_dir))?);
    keys.storage_place().settle(&*store)?;
    let service = AdminService::new(store, keys, Arc::new(config.clone()), None);
    let reply = service.carry_out(request, nix::unistd::geteuid().as_raw());
    state::give_to_owner(&config.state_dir)?;
    Ok(reply)
}

/// Has a request carried out by the running server only. Blocks.
///
/// # Errors
/// A sentence: no permission, no server, a server that does not answer. A refusal is a [`Reply`].
pub fn ask_server(config: &Config, request: &Request) -> Result<Reply> {
    socket::ask(&config.admin_socket, request)?
        .with_context(|| format!("no server runs here (nothing listens on {})", config.admin_socket.display()))
}

/// The keys, with the storage key from where the configuration says.
///
/// # Errors
/// [`KeyError`]
pub fn keys_of(config: &Config) -> Result<Keys, KeyError> {
    Keys::load_with(&config.state_dir, StoragePlace::of(&config.state_dir, config.storage_key.as_deref()))
}
