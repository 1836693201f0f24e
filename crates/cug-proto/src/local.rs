//! What the PAM module and `cugctl` say to `cugd` over `/run/cugd/cugd.sock`.
//!
//! Frames as in [`crate::frame`], at most [`crate::frame::MAX_SESSION`]; requests by others than root at most [`crate::frame::MAX_LOGIN`]. One request, one
//! reply, several in turn on a connection. The kernel says who asks (SO_PEERCRED): root may ask everything; another user `Status`, `Peers`, `Servers` and `Watch`, and hears only of
//! their own sessions; and, for screen lockers, `Prepare` for their own account, and `Deliver` and `Cancel` of their own offers. Such a delivery has
//! no groups ([`Offer::without_groups`]) and counts only for an own session that is suspended.
//!
//! | request | reply | when |
//! |---|---|---|
//! | `Prepare` | `Offer` | the PAM module begins a login |
//! | `Deliver` | `Delivered` | the server granted; the offer is used up |
//! | `Cancel` | `Done` | the login failed after `Prepare`; the offer or the grant that came of it is wiped |
//! | `Open` | `Opened` or `NoGrant` | an OS session begins; the caller is its leader |
//! | `Close` | `Done` | it ends; the tunnel goes with the last one |
//! | `Status` | `Status` | any time |
//! | `Peers` | `Peers` | any time |
//! | `Servers` | `Servers` | any time, anybody: what an enrolment needs to know of this workstation; none of it is secret |
//! | `Wait` | `Waiting` | an OS session begins whose login could not be made because the server is away; see [`crate::waiting`] |
//! | `Exempt` | `Exempt` | any time; understood by daemons of every version |
//! | `Watch` | `WatchStarted`, then `Event` as often as something happens | any time; the connection is for nothing else from then on |
//!
//! Every request may be answered by `Refused`.

use crate::{
    id::{Epoch, GroupName, HostName, UserId},
    message::{Fingerprint, Grant, Purpose, WgPublicKey},
    notice::Notice,
    trust::CaPin,
};
use minicbor::{Decode, Encode, bytes::ByteArray};
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where the daemon listens.
pub const SOCKET_PATH: &str = "/run/cugd/cugd.sock";

/// The daemon's configuration. Without it there is no daemon, and the workstation belongs to nobody's organisation yet.
pub const CONFIG_PATH: &str = "/etc/cug/cugd.toml";

/// Version of these messages; module and daemon must have the same.
pub const LOCAL_VERSION: u16 = 1;

/// Names one offer: random, no secret.
pub type OfferId = [u8; 16];

/// What may be asked.
#[derive(Encode, Decode)]
pub enum Request {
    /// Keys for a login that begins.
    #[n(0)]
    Prepare(#[n(0)] Prepare),
    /// The grant.
    #[n(1)]
    Deliver(#[n(0)] Deliver),
    /// Forget this offer and what came of it.
    #[n(2)]
    Cancel(#[cbor(n(0), with = "minicbor::bytes")] OfferId),
    /// An OS session of this user begins in the calling process.
    #[n(3)]
    Open(#[n(0)] Open),
    /// The OS session of this user that began in the calling process ends.
    #[n(4)]
    Close(#[n(0)] UserId),
    /// What is going on.
    #[n(5)]
    Status,
    /// Who else is there.
    #[n(6)]
    Peers,
    /// Which organisation this workstation belongs to.
    #[n(7)]
    Servers,
    /// What is going on, and from then on what happens. A caller that does not keep up with reading is cut off.
    #[n(8)]
    Watch,
    /// An OS session of this user begins in the calling process without the closed group, because no server could be reached: log in later.
    #[n(10)]
    Wait(#[n(0)] Wait),
    /// Which accounts of this workstation log in without a card. This request, its reply, key 0 of [`Prepare`], [`Reply::Refused`] and [`Refusal::Version`] never change:
    /// a module of another version must be able to let these accounts in.
    #[n(11)]
    Exempt,
}

/// What is answered.
#[derive(Encode, Decode)]
pub enum Reply {
    /// To `Prepare`.
    #[n(0)]
    Offer(#[n(0)] Offer),
    /// To `Deliver`. `true`: the user's suspended session is up again already.
    #[n(1)]
    Delivered(#[n(0)] bool),
    /// To `Cancel` and `Close`.
    #[n(2)]
    Done,
    /// To `Open`.
    #[n(3)]
    Opened(#[n(0)] Opened),
    /// To `Open`: this user did not log in with a card, or not for this session. Not an error.
    #[n(4)]
    NoGrant,
    /// To `Status`.
    #[n(5)]
    Status(#[n(0)] Status),
    /// To `Peers`.
    #[n(6)]
    Peers(#[n(0)] Vec<GroupPeers>),
    /// Not done, and why.
    #[n(7)]
    Refused(#[n(0)] Refusal),
    /// To `Servers`.
    #[n(8)]
    Servers(#[n(0)] Servers),
    /// Unasked, after `WatchStarted`.
    #[n(9)]
    Event(#[n(0)] Notice),
    /// To `Watch`: how things stand. All that happens afterwards comes as `Event`.
    #[n(10)]
    WatchStarted(#[n(0)] Status),
    /// To `Wait`: where the password goes.
    #[n(25)]
    Waiting(#[n(0)] Waiting),
    /// To `Exempt`: names, and groups as `@GROUP`.
    #[n(26)]
    Exempt(#[n(0)] Vec<String>),
}

/// Which organisation this workstation belongs to, and where it looks for cards.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Servers {
    /// Management servers as `host:port`, in the order in which to try them.
    #[n(0)]
    pub servers: Vec<String>,
    /// Whom this workstation trusts.
    #[n(1)]
    pub ca_pins: Vec<ByteArray<32>>,
    /// PC/SC reader names in which to look, each a prefix; empty means all.
    #[n(2)]
    pub readers: Vec<String>,
    /// Directories on removable media in which to look; a last component `*` stands for every directory there.
    #[n(3)]
    pub media: Vec<String>,
    /// Milliseconds for one answer of the server.
    #[n(4)]
    pub server_timeout_ms: u32,
    /// Milliseconds to wait for a card.
    #[n(5)]
    pub card_wait_ms: u32,
    /// Name of this workstation.
    #[n(6)]
    pub host_name: HostName,
}

/// Why a request was not done.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[cbor(index_only)]
pub enum Refusal {
    /// The caller's user may not ask this.
    #[error("this request is for the system only")]
    #[n(0)]
    NotPermitted,
    /// [`LOCAL_VERSION`] differs: module and daemon are of different packages.
    #[error(
        "the login module and the VPN service are of different versions; ask the administrator to restart the service"
    )]
    #[n(1)]
    Version,
    /// No such offer, or it expired.
    #[error("the login took too long; please try again")]
    #[n(2)]
    UnknownOffer,
    /// The card of the login is not in its reader any more.
    #[error("the card was removed; insert it and log in again")]
    #[n(3)]
    CardGone,
    /// The tunnel could not be brought up; all of it was undone.
    #[error("the closed group could not be opened; ask the administrator to look at the log of cugd")]
    #[n(4)]
    TunnelFailed,
    /// The server did not answer in time.
    #[error("the management server does not answer; try again or ask the administrator")]
    #[n(5)]
    ServerAway,
    /// The server ended the session.
    #[error("the management server has ended this session; log in again")]
    #[n(6)]
    Ended,
    /// The daemon is stopping, or has too much to do.
    #[error("the VPN service is busy; try again")]
    #[n(7)]
    Busy,
    /// The request was not understood.
    #[error("the request was not understood")]
    #[n(8)]
    Malformed,
    /// The card trusts another CA than this workstation.
    #[error("this card is not of this organisation")]
    #[n(9)]
    ForeignCard,
    /// The OS session is a greeter's, a lock screen's or a job's: nobody works in it.
    #[error("the closed group is opened for people's sessions only, and this is not one")]
    #[n(20)]
    NoDesk,
}

/// A login begins.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Prepare {
    /// [`LOCAL_VERSION`].
    #[n(0)]
    pub version: u16,
    /// Who.
    #[n(1)]
    pub user: UserId,
    /// PAM service name, for the log and for policy.
    #[n(2)]
    pub service: String,
}

/// What the PAM module needs for a login.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// To be given back with `Deliver` or `Cancel`.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub id: OfferId,
    /// The session's public key; the private key stays in the daemon. Made for this offer alone, also when it is only a check.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub wg_public_key: WgPublicKey,
    /// `Verify` when this user's session is up at this terminal already.
    #[n(2)]
    pub purpose: Purpose,
    /// Management servers as `host:port`, in the order in which to try them.
    #[n(3)]
    pub servers: Vec<String>,
    /// Milliseconds for the whole conversation with the server.
    #[n(4)]
    pub server_timeout_ms: u32,
    /// Name of this workstation.
    #[n(5)]
    pub host_name: HostName,
    /// Addresses of this workstation.
    #[n(6)]
    pub addresses: Vec<IpAddr>,
    /// Milliseconds to wait for a card; 0 means not at all.
    #[n(7)]
    pub card_wait_ms: u32,
    /// PC/SC reader names in which to look, each a prefix; empty means all.
    #[n(8)]
    pub readers: Vec<String>,
    /// Directories on removable media in which to look; a last component `*` stands for every directory there.
    #[n(9)]
    pub media: Vec<String>,
    /// Whom this workstation trusts. A card that names another CA is not this organisation's: without this check anybody with a card,
    /// a CA and a server of their own, and a hand on the network cable, could log in as anybody.
    #[n(10)]
    pub ca_pins: Vec<ByteArray<32>>,
    /// Accounts of this workstation that log in without a card: names, and groups as `@GROUP`.
    #[n(11)]
    pub exempt: Vec<String>,
    /// Readers by full name, and directories, where the cards of other people's sessions are: not to be looked at.
    #[cbor(n(12), default)]
    pub taken: Vec<String>,
    /// The groups of the grant are not to be delivered: the daemon takes nothing from the caller but the session's name and secret, and the rest from
    /// the server. So it is when the caller is not root.
    #[cbor(n(20), default)]
    pub without_groups: bool,
    /// [`LOCAL_VERSION`] of the daemon.
    #[cbor(n(25), default)]
    pub version: u16,
    /// When no server can be reached: the other modules decide about the OS login, and the closed group may be waited for.
    #[cbor(n(26), default)]
    pub offline_local: bool,
}

/// The server granted.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Deliver {
    /// From the `Offer`.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub offer: OfferId,
    /// As the server sealed it for the card's holder.
    #[n(1)]
    pub grant: Grant,
    /// The server that granted, as `host:port`.
    #[n(2)]
    pub server: String,
    /// Whom to trust on the session channel, from the card.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub ca_pin: CaPin,
    /// The card to watch.
    #[n(4)]
    pub card: CardBinding,
}

/// The very card of a login, so that its removal can be noticed.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
pub enum CardBinding {
    /// A card in a PC/SC reader.
    #[n(0)]
    Reader(#[n(0)] ReaderBinding),
    /// A removable medium.
    #[n(1)]
    Medium(#[n(0)] MediumBinding),
}

/// A card in a PC/SC reader. Another card, or the same one inserted again, has another `event_count`.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct ReaderBinding {
    /// PC/SC name of the reader.
    #[n(0)]
    pub reader: String,
    /// Insertions and removals in this reader until the login (high word of the PC/SC event state).
    #[n(1)]
    pub event_count: u32,
    /// Answer to reset.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub atr: Vec<u8>,
    /// Which card.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub fingerprint: Fingerprint,
}

/// A directory on a removable medium.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct MediumBinding {
    /// Absolute path of the directory.
    #[n(0)]
    pub directory: String,
    /// `st_dev` of the directory at the login.
    #[n(1)]
    pub device: u64,
    /// `st_ino` of the key file at the login.
    #[n(2)]
    pub inode: u64,
    /// Which key.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub fingerprint: Fingerprint,
}

/// An OS session begins. The caller is its leader.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Open {
    /// Who.
    #[n(0)]
    pub user: UserId,
    /// PAM service name.
    #[n(1)]
    pub service: String,
    /// PAM_TTY, may be empty.
    #[n(2)]
    pub tty: String,
    /// The person who begins this session logged in with the card: the tunnel stays as long as this session. Else (root's `su`, a job of
    /// the user's) the session may use a tunnel that stands, and neither opens nor keeps one.
    #[n(3)]
    pub holds: bool,
}

/// An OS session begins without the closed group. The caller is its leader; or, when a session of this user waits for its card and password already
/// (a screen locker asked for them), anybody.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Wait {
    /// Who.
    #[n(0)]
    pub user: UserId,
    /// PAM service name.
    #[n(1)]
    pub service: String,
    /// PAM_TTY, may be empty.
    #[n(2)]
    pub tty: String,
    /// The card that was there when the person typed.
    #[n(3)]
    pub card: CardBinding,
    /// The caller leads the session; else it only unlocks one that is there.
    #[n(4)]
    pub leads: bool,
}

/// A login waits for a server.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Waiting {
    /// UNIX socket that takes one [`crate::waiting::HandOver`], from root, within seconds.
    #[n(0)]
    pub socket: String,
    /// For how long it waits at most, in minutes.
    #[n(1)]
    pub minutes: u32,
}

/// The group is open.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Opened {
    /// What the session is a member of.
    #[n(0)]
    pub groups: Vec<OpenedGroup>,
}

/// A group that the session is a member of.
#[derive(Encode, Decode, Clone, Serialize)]
#[cbor(map)]
pub struct OpenedGroup {
    /// Its name.
    #[n(0)]
    pub name: GroupName,
    /// The WireGuard interface.
    #[n(1)]
    pub interface: String,
    /// The user's overlay address.
    #[n(2)]
    pub address4: Ipv4Addr,
    /// The user's overlay address.
    #[n(3)]
    pub address6: Ipv6Addr,
    /// Generation of the group key in use.
    #[n(4)]
    pub epoch: Epoch,
    /// What keeps other users of this workstation out: `bpf+nft` or `nft`.
    #[cbor(n(5), default)]
    pub guard: String,
}

/// What is going on at this terminal.
#[derive(Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Status {
    /// Version of the daemon.
    #[n(0)]
    pub version: String,
    /// `kernel` or `embedded`.
    #[n(1)]
    pub backend: String,
    /// The sessions that the caller may see.
    #[n(2)]
    pub sessions: Vec<SessionStatus>,
    /// Things that ended sessions left over since the start of the daemon; the log names them.
    #[cbor(n(3), default)]
    pub leftovers: u64,
    /// Tunnels that were taken down, and looked after, since then.
    #[cbor(n(4), default)]
    pub teardowns: u64,
    /// Milliseconds since the daemon started.
    #[n(5)]
    pub uptime_ms: Option<u64>,
    /// Name of this workstation.
    #[n(6)]
    pub host_name: Option<HostName>,
}

/// One session.
#[derive(Encode, Decode, Serialize)]
#[cbor(map)]
pub struct SessionStatus {
    /// Whose.
    #[n(0)]
    pub user: UserId,
    /// `offered`, `granted`, `up` or `suspended`.
    #[n(1)]
    pub state: String,
    /// Management server, `host:port`.
    #[n(2)]
    pub server: String,
    /// The session channel stands.
    #[n(3)]
    pub attached: bool,
    /// Milliseconds since the server was last heard; `None` before the first time.
    #[n(4)]
    pub server_heard_ms: Option<u64>,
    /// OS sessions that hold the tunnel.
    #[n(5)]
    pub os_sessions: u32,
    /// Where the card is.
    #[n(6)]
    pub card: String,
    /// Its groups.
    #[n(7)]
    pub groups: Vec<OpenedGroup>,
    /// Milliseconds until the lease ends, and the session with it, unless the server is heard again; `None` without a tunnel.
    #[n(8)]
    pub lease_left_ms: Option<u64>,
    /// Milliseconds since the channel was attached, or since it was lost.
    #[n(9)]
    pub channel_since_ms: Option<u64>,
    /// Why the channel was lost or not reached, the last time; stays when it stands again.
    #[n(10)]
    pub channel_error: Option<String>,
    /// The card is there and is watched.
    #[n(11)]
    pub card_watched: Option<bool>,
    /// The OS sessions that hold the tunnel.
    #[n(12)]
    pub leaders: Option<Vec<LeaderStatus>>,
    /// Where the members of each group are named.
    #[n(13)]
    pub names: Option<Vec<NamesStatus>>,
    /// All interfaces stand, and the other members were told of them.
    #[n(14)]
    pub open: Option<bool>,
    /// A login waits for a server.
    #[n(25)]
    pub waiting: Option<WaitingStatus>,
}

/// A login that waits for a server.
#[derive(Encode, Decode, Clone, Serialize)]
#[cbor(map)]
pub struct WaitingStatus {
    /// Milliseconds until it gives up.
    #[n(0)]
    pub left_ms: u64,
    /// Tries so far, without the person's own.
    #[n(1)]
    pub tries: u32,
    /// What came of the last one.
    #[n(2)]
    pub last: Option<String>,
}

/// A process that leads an OS session.
#[derive(Encode, Decode, Clone, Serialize)]
#[cbor(map)]
pub struct LeaderStatus {
    /// Process ID in the daemon's namespace.
    #[n(0)]
    pub pid: u32,
    /// OS sessions that it opened.
    #[n(1)]
    pub sessions: u32,
}

/// How a group's members can be found by name.
#[derive(Encode, Decode, Clone, Serialize)]
#[cbor(map)]
pub struct NamesStatus {
    /// The group.
    #[n(0)]
    pub group: GroupName,
    /// What the names end with.
    #[n(1)]
    pub domain: String,
    /// Who answers for them: `systemd-resolved` or `/etc/hosts`; empty when nobody does.
    #[n(2)]
    pub by: String,
    /// Why nobody does.
    #[n(3)]
    pub problem: Option<String>,
}

/// The other members of a group.
#[derive(Encode, Decode, Serialize)]
#[cbor(map)]
pub struct GroupPeers {
    /// The group.
    #[n(0)]
    pub group: GroupName,
    /// Whose session this is seen from.
    #[n(1)]
    pub user: UserId,
    /// The others, by name.
    #[n(2)]
    pub peers: Vec<PeerStatus>,
}

/// Another member, as measured.
#[derive(Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PeerStatus {
    /// Who.
    #[n(0)]
    pub user: UserId,
    /// At which workstation.
    #[n(1)]
    pub host_name: HostName,
    /// Its address and port in the network below.
    #[n(2)]
    pub endpoint: Option<SocketAddr>,
    /// Overlay address.
    #[n(3)]
    pub address4: Ipv4Addr,
    /// Overlay address.
    #[n(4)]
    pub address6: Ipv6Addr,
    /// Milliseconds since the last WireGuard handshake; `None` when there was none.
    #[n(5)]
    pub handshake_ms: Option<u64>,
    /// Bytes received.
    #[n(6)]
    pub received: u64,
    /// Bytes sent.
    #[n(7)]
    pub sent: u64,
    /// Its domain name, if it has one.
    #[n(8)]
    pub name: Option<String>,
}
