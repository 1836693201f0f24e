//! What goes into [`super::step`] and what comes out.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use cug_proto::{
    id::{GroupId, GroupName, HostName, UserId},
    local::{CardBinding, Deliver, OfferId, Open, PeerStatus, Prepare, Reply, Wait},
    message::{
        ClearReason, ClientMessage, EndReason, Fingerprint, GroupGrant, KeyAck, Known, Peers, SessionId, WgPublicKey,
    },
    notice::Notice,
    policy::Policy,
    secret::Secret,
    trust::CaPin,
};
use ipnet::IpNet;

use super::{Deed, LogindEvent, Removal, Sight, Time};
use crate::{
    names::{Place, zone::Zone},
    tunnel::InterfaceName,
};

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

/// A new key pair and a name for the offer.
pub struct FreshKeys {
    /// Random.
    pub offer: OfferId,
    /// X25519 private key.
    pub private: Arc<Secret<32>>,
    /// Its public key.
    pub public: WgPublicKey,
}

/// Something happened.
pub enum Event {
    /// A permitted caller asks.
    Request {
        /// For the answer.
        token: Token,
        /// What is asked.
        request: Request,
    },
    /// A process named by [`Action::WatchLeader`] has ended.
    LeaderDied(Leader),
    /// From the watch of a card.
    Watch {
        /// Whose.
        number: Number,
        /// What.
        event: WatchEvent,
    },
    /// From a session channel.
    Channel {
        /// Which.
        link: LinkId,
        /// What.
        event: ChannelEvent,
    },
    /// From a tunnel.
    Tunnel {
        /// Whose.
        number: Number,
        /// What.
        event: TunnelEvent,
    },
    /// Who knows the names of a group's members.
    Names {
        /// Whose.
        number: Number,
        /// Of which group.
        group: GroupId,
        /// Who.
        place: Place,
    },
    /// From the process of a login that waits for a server.
    Waiting {
        /// Whose.
        number: Number,
        /// What.
        event: WaitingEvent,
    },
    /// Addresses or routes of this terminal changed: its addresses, each with its subnet.
    Addresses(Vec<IpNet>),
    /// The time of [`super::State::deadline`] has come.
    Tick,
    /// The daemon is to stop.
    Shutdown,
    /// From logind.
    Logind(LogindEvent),
}

/// What is asked.
pub enum Request {
    /// A login begins; the keys were made for it.
    Prepare(Prepare, FreshKeys),
    /// The server granted.
    Deliver(Box<Deliver>),
    /// Forget it.
    Cancel(OfferId),
    /// An OS session begins; the user's account here has this user ID, never 0.
    Open(Open, Leader, u32, OsSession),
    /// An OS session ends.
    Close(UserId, Leader),
    /// What is going on.
    Status(Viewer),
    /// Who else is there.
    Peers(Viewer),
    /// Which organisation this workstation belongs to.
    Servers,
    /// What is going on, to begin with.
    Watch(Viewer),
    /// A user's own process begins to unlock; its user ID, which is that of the account.
    PrepareUnlock(u32, Prepare, FreshKeys),
    /// A user's own process delivers.
    DeliverUnlock(u32, Box<Deliver>),
    /// A user's own process gives up.
    CancelUnlock(u32, OfferId),
    /// An OS session begins without a server; the user's account here has this user ID, never 0.
    Wait(Box<Wait>, Leader, u32, OsSession),
    /// Who logs in without a card.
    Exempt,
}

/// From the process of a login that waits for a server.
pub enum WaitingEvent {
    /// It has password and PIN.
    Ready,
    /// The try was in vain, and nobody refused anything: why, and a random number for the backoff.
    Away {
        /// For the log and for the status.
        cause: String,
        /// Any number.
        jitter: u32,
    },
    /// It is not going to succeed: a sentence for the person.
    Refused(String),
    /// The grant was delivered and acknowledged.
    LoggedIn,
    /// The process has ended by itself, or could not be started.
    Ended(String),
}

/// From the watch of a card.
pub enum WatchEvent {
    /// It is the very card of the login, and it is watched.
    Started,
    /// It is gone, or cannot be watched (any more), or was not found ([`Action::AwaitCard`]); why, for the log.
    Ended(String),
    /// [`Action::AwaitCard`] has found it.
    Back(CardBinding),
}

/// From a session channel.
pub enum ChannelEvent {
    /// Both sides have proved who they are.
    Attached {
        /// Which server, `host:port`.
        server: String,
        /// How long the server keeps the session without a sign of life.
        lease: Duration,
        /// This terminal's address on that connection.
        local: Option<IpAddr>,
        /// The same as the server sees it: another one behind a router that translates addresses. `None` from servers that do not say.
        seen: Option<IpAddr>,
    },
    /// Members of a group.
    Peers(Peers),
    /// The snapshots are complete.
    Synced,
    /// A group's key, opened.
    Group(GroupGrant),
    /// Use this epoch.
    Activate(KeyAck),
    /// No longer a member.
    Left(GroupId),
    /// Answer to the heartbeat of this number.
    Alive(u64),
    /// The server ended the session.
    Ended(EndReason),
    /// The connection is over, or never came about: why, and a random number for the backoff.
    Closed {
        /// For the log.
        cause: String,
        /// Any number.
        jitter: u32,
    },
}

/// From a tunnel.
pub enum TunnelEvent {
    /// A group's interface stands.
    Raised {
        /// The group.
        group: GroupId,
        /// The UDP port it listens on.
        port: u16,
    },
    /// It could not be brought up or kept; why, for the log.
    Failed(String),
    /// All of this number is gone, as was looked for, but for what is named.
    Down {
        /// What is left over, by name.
        leftovers: Vec<String>,
    },
    /// Answer to [`Action::Look`].
    Seen {
        /// The group.
        group: GroupId,
        /// Its members, by key.
        sights: Vec<(WgPublicKey, Sight)>,
    },
}

/// Something to do.
pub enum Action {
    /// Answer.
    Reply {
        /// Whom.
        token: Token,
        /// What.
        reply: Reply,
    },
    /// Measure the peers, fill the figures in and answer.
    ReplyPeers {
        /// Whom.
        token: Token,
        /// The groups.
        groups: Vec<GroupView>,
    },
    /// Watch a card.
    StartWatch {
        /// For whom.
        number: Number,
        /// Which.
        card: CardBinding,
    },
    /// Stop the watch, if there is one.
    StopWatch {
        /// Whose.
        number: Number,
    },
    /// Report the end of this process.
    WatchLeader(Leader),
    /// No longer.
    ForgetLeader(Leader),
    /// Attach a session channel.
    Connect {
        /// Its name.
        link: LinkId,
        /// To whom and as whom.
        attachment: Attachment,
    },
    /// Send on an attached channel.
    Send {
        /// Which.
        link: LinkId,
        /// What.
        message: ClientMessage,
    },
    /// Say `Clear` as soon as the channel is attached, and close it when the server has answered.
    Farewell {
        /// Which.
        link: LinkId,
        /// Why.
        reason: ClearReason,
    },
    /// Cut a channel; nothing more comes from it.
    Disconnect {
        /// Which.
        link: LinkId,
    },
    /// Make a group's interface.
    TunnelUp {
        /// Whose.
        number: Number,
        /// The session's private key.
        private: Arc<Secret<32>>,
        /// How.
        interface: InterfaceSpec,
    },
    /// Add or change peers.
    UpsertPeers {
        /// Whose.
        number: Number,
        /// In which group.
        group: GroupId,
        /// Who.
        peers: Vec<PeerSpec>,
    },
    /// Remove peers.
    RemovePeers {
        /// Whose.
        number: Number,
        /// In which group.
        group: GroupId,
        /// Who.
        peers: Vec<WgPublicKey>,
    },
    /// Change preshared keys, then start new handshakes with some.
    Rekey {
        /// Whose.
        number: Number,
        /// In which group.
        group: GroupId,
        /// The new keys.
        keys: Vec<(WgPublicKey, Secret<32>)>,
        /// With whom this side begins.
        begin: Vec<WgPublicKey>,
    },
    /// Remove a group's interface.
    GroupDown {
        /// Whose.
        number: Number,
        /// Which group.
        group: GroupId,
    },
    /// Change what the user's processes may reach besides a group.
    Confine {
        /// Whose.
        number: Number,
        /// Which group.
        group: GroupId,
        /// The group's new policy.
        policy: Policy,
    },
    /// Remove all interfaces and report [`TunnelEvent::Down`].
    TunnelDown {
        /// Whose.
        number: Number,
    },
    /// For the log.
    Log {
        /// How bad it is.
        level: tracing::Level,
        /// One sentence, no secrets.
        text: String,
    },
    /// All is down; end the process.
    Exit,
    /// Find out whether an attached channel still works, soon: the network changed. It closes if it does not.
    Check {
        /// Which.
        link: LinkId,
    },
    /// Send to these members from now on there (`None`: where it goes already), and begin handshakes at once.
    Reach {
        /// Whose.
        number: Number,
        /// In which group.
        group: GroupId,
        /// Who and where.
        peers: Vec<(WgPublicKey, Option<SocketAddr>)>,
    },
    /// Measure the members of a group; [`TunnelEvent::Seen`] follows.
    Look {
        /// Whose.
        number: Number,
        /// Which group.
        group: GroupId,
    },
    /// The names of a group's members; `None`: there are none any more.
    Names {
        /// Whose.
        number: Number,
        /// Of which group.
        group: GroupId,
        /// The names.
        zone: Option<Arc<Zone>>,
    },
    /// For those who watch.
    Tell(Notice),
    /// Look for a card that was here before, and report [`WatchEvent::Back`] or [`WatchEvent::Ended`].
    AwaitCard {
        /// For whom.
        number: Number,
        /// Which card.
        fingerprint: Fingerprint,
        /// Places not to look at: the cards of other people.
        taken: Vec<String>,
        /// For how long.
        within: Duration,
    },
    /// Lock or end OS sessions.
    Desk {
        /// Which of the two.
        deed: Deed,
        /// As logind calls them.
        sessions: Vec<String>,
    },
    /// The machine may sleep or go down now.
    LetGo,
    /// Start the process of a waiting login and answer with [`Reply::Waiting`].
    StartWaiting {
        /// Whom to answer.
        token: Token,
        /// Its name.
        number: Number,
        /// Whose.
        user: UserId,
        /// Which card.
        card: CardBinding,
        /// For how long, for the answer.
        minutes: u32,
    },
    /// Let it try to log in.
    TryWaiting {
        /// Which.
        number: Number,
    },
    /// End it at once. Nothing of what was typed is left then.
    StopWaiting {
        /// Which.
        number: Number,
    },
}

impl Action {
    pub(super) fn info(text: &str) -> Self {
        Self::Log { level: tracing::Level::INFO, text: text.to_owned() }
    }

    pub(super) fn warn(text: &str) -> Self {
        Self::Log { level: tracing::Level::WARN, text: text.to_owned() }
    }

    pub(super) fn error(text: &str) -> Self {
        Self::Log { level: tracing::Level::ERROR, text: text.to_owned() }
    }
}

/// How to attach a channel.
pub struct Attachment {
    /// Servers, in the order in which to try them.
    pub servers: Vec<String>,
    /// Whom to trust.
    pub ca_pin: CaPin,
    /// Which session.
    pub session: SessionId,
    /// Its secret.
    pub secret: Secret<32>,
    /// What is known already.
    pub known: Vec<Known>,
}

/// A group's interface.
pub struct InterfaceSpec {
    /// Which group.
    pub group: GroupId,
    /// Its name.
    pub name: InterfaceName,
    /// This terminal's overlay addresses, with the group's prefixes.
    pub addresses: Vec<IpNet>,
    /// Whose it is, in the operating system.
    pub uid: u32,
    /// What the owner's processes may reach besides.
    pub policy: Policy,
}

/// A member of a group, for WireGuard.
pub struct PeerSpec {
    /// Public key.
    pub public_key: WgPublicKey,
    /// Key of the pair.
    pub preshared_key: Secret<32>,
    /// Where to send packets.
    pub endpoint: Option<SocketAddr>,
    /// Overlay addresses.
    pub allowed_ips: Vec<IpNet>,
    /// How often to send something when there is nothing to send; `None`: never.
    pub keepalive: Option<Duration>,
}

/// A group as `cugctl peers` shows it, before the figures are measured.
pub struct GroupView {
    /// Whose tunnel.
    pub number: Number,
    /// Which group.
    pub group: GroupId,
    /// Its name.
    pub name: GroupName,
    /// Whose session.
    pub user: UserId,
    /// The other members, without figures, with the key by which to find them.
    pub peers: Vec<(WgPublicKey, PeerStatus)>,
}

/// How long an offer waits for its grant: a person may take minutes to find the card and to type.
pub const OFFER_TIME: Duration = Duration::from_secs(300);
/// Most offers at a time.
pub const MAX_OFFERS: usize = 64;
/// When a channel is attached for the first time, after the card is watched, unless `Open` comes before. The login module tells the server
/// of the grant's receipt only after its delivery here; earlier the server would not know the session.
pub const ATTACH_DELAY: Duration = Duration::from_millis(200);
/// How long the server may take to answer `Clear`.
pub const FAREWELL_TIME: Duration = Duration::from_secs(2);
/// Over how long the terminals spread that find the network again at one moment, after the server had been away.
pub const SPREAD: Duration = Duration::from_secs(2);
/// How often something is sent through a router that translates addresses: most forget a way that was not used for thirty seconds.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// How long a tunnel may take to go down before the rest goes on without its word.
pub const FALL_TIME: Duration = Duration::from_secs(15);

/// Backoff before the `failures`-th attempt to attach: doubling from half a second to half a minute, times 0.5 to 1.5.
pub(super) fn backoff(now: Time, failures: u32, jitter: u32) -> Time {
    let base = 500u64.saturating_mul(1 << failures.min(6)).min(30_000);
    now + Duration::from_millis(base / 2 + u64::from(jitter) % (base + 1))
}
