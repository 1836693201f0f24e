//! What events and actions speak of.

use std::time::Duration;

use cug_proto::{
    id::{HostName, UserId},
    trust::CaPin,
};

use super::Removal;

/// A request that is to be answered once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Token(pub u64);

/// One life of a session, from its grant to its end; names its watch and its tunnel. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Number(pub u64);

/// One connection of a session's channel. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct LinkId(pub u64);

/// The process that leads an OS session. Process IDs come back, with another start time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Leader {
    /// Process ID in the daemon's namespace.
    pub pid: u32,
    /// Start of the process in clock ticks since the machine's start.
    pub start: u64,
}

/// What logind knows of the OS session that a process belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OsSession {
    /// There is no logind, or it does not answer.
    Unknown,
    /// It knows of none.
    None,
    /// This one.
    Known(OsDesk),
}

/// An OS session as logind describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OsDesk {
    /// Its name.
    pub id: String,
    /// `user`, `greeter`, `lock-screen`, `background`, ... (sd_session_get_class(3)).
    pub class: String,
    /// Whose it is.
    pub uid: u32,
}

impl OsDesk {
    /// A person works in it. Greeters and lock screens belong to nobody who has logged in, jobs and managers to nobody who sits there.
    pub fn is_a_persons(&self) -> bool {
        matches!(self.class.as_str(), "user" | "user-early" | "user-incomplete" | "user-light" | "user-early-light")
    }
}

/// Whose sessions a caller may see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Viewer {
    /// Everybody's.
    All,
    /// This user's.
    User(UserId),
    /// Nobody's: the caller's account has no name, or none that could be a user ID.
    Nobody,
}

impl Viewer {
    /// Whether sessions of `user` may be seen.
    pub fn sees(&self, user: &UserId) -> bool {
        match self {
            Self::All => true,
            Self::User(own) => own == user,
            Self::Nobody => false,
        }
    }
}

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Management servers, `host:port`.
    pub servers: Vec<String>,
    /// The organisation's CAs: whose cards count here.
    pub ca_pins: Vec<CaPin>,
    /// Limit of a conversation with the server, and of opening.
    pub server_timeout: Duration,
    /// How long a login waits for a card.
    pub card_wait: Duration,
    /// Readers in which to look, each a prefix; empty for all.
    pub readers: Vec<String>,
    /// Accounts that log in without a card.
    pub exempt: Vec<String>,
    /// Directories in which to look.
    pub media: Vec<String>,
    /// How long a grant may wait to be opened.
    pub grant_time: Duration,
    /// This workstation.
    pub host_name: HostName,
    /// `kernel` or `embedded`.
    pub backend: String,
    /// What keeps other users out, `bpf+nft` or `nft`.
    pub guard: String,
    /// What becomes of the OS sessions when the card is gone.
    pub removal: Removal,
    /// How long the card may be back before that.
    pub removal_grace: Duration,
    /// How long a login waits for a server; `None`: not at all, and nobody logs in without one.
    pub offline_wait: Option<Duration>,
}
