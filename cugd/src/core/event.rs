//! What goes into [`super::step`].

use std::{net::IpAddr, sync::Arc, time::Duration};

use cug_proto::{
    id::{GroupId, UserId},
    local::{CardBinding, Deliver, OfferId, Open, Prepare, Wait},
    message::{EndReason, GroupGrant, KeyAck, Peers, WgPublicKey},
    secret::Secret,
};
use ipnet::IpNet;

use super::{Leader, LinkId, LogindEvent, Number, OsSession, Sight, Token, Viewer};
use crate::names::Place;

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
    /// A process named by [`super::Action::WatchLeader`] has ended.
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
    /// It is gone, or cannot be watched (any more), or was not found ([`super::Action::AwaitCard`]); why, for the log.
    Ended(String),
    /// [`super::Action::AwaitCard`] has found it.
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
    /// The interfaces are gone: nothing passes any more. What the engine's threads hold, guard and traces follow.
    Gone,
    /// All of this number is gone, as was looked for, but for what is named.
    Down {
        /// What is left over, by name.
        leftovers: Vec<String>,
    },
    /// Answer to [`super::Action::Look`].
    Seen {
        /// The group.
        group: GroupId,
        /// Its members, by key.
        sights: Vec<(WgPublicKey, Sight)>,
    },
}
