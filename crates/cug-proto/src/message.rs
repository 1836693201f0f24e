//! Every message of the login and of the session channel. The order in which they may come is in the crate's documentation.
//!
//! Encoding: CBOR maps with integer keys (RFC 8949); an unknown key is skipped, so that a later minor version may add one.

use crate::{
    enrol::{EnrolChallenge, EnrolClaim, EnrolCommit, EnrolHello, EnrolKey, EnrolOffer, EnrolReady, EnrolResult},
    hours::Closed,
    id::{Epoch, GroupId, GroupName, HostName, UserId},
    password::PasswordProblem,
    policy::Policy,
    secret::{Secret, SecretBytes},
};
use ipnet::{Ipv4Net, Ipv6Net};
use minicbor::{Decode, Encode};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// SHA-256 of a card key's DER `SubjectPublicKeyInfo`: which card it is.
pub type Fingerprint = [u8; 32];
/// An X25519 public key (RFC 7748), as WireGuard uses it.
pub type WgPublicKey = [u8; 32];
/// A session's number: random, unique for ever, no secret.
pub type SessionId = [u8; 16];

/// What the terminal sends, on either kind of connection.
#[derive(Encode, Decode)]
pub enum ClientMessage {
    /// First of a login.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// After `Challenge`.
    #[n(1)]
    Login(#[n(0)] Login),
    /// After a granted `Outcome`.
    #[n(2)]
    Ack(#[n(0)] Ack),
    /// First of a session channel.
    #[n(3)]
    Attach(#[n(0)] Attach),
    /// After `Synced`, and again whenever it changes: where this terminal can be reached. The first one announces the member.
    #[n(4)]
    Endpoints(#[n(0)] Endpoints),
    /// Renews the lease; answered by `Alive` with the same number.
    #[n(5)]
    Heartbeat(#[n(0)] u64),
    /// The group key of this epoch is known here.
    #[n(6)]
    KeyAck(#[n(0)] KeyAck),
    /// The session is over at this terminal: clear the user's address (patent, step S13).
    #[n(7)]
    Clear(#[n(0)] ClearReason),
    /// First of an enrolment.
    #[n(8)]
    EnrolHello(#[n(0)] EnrolHello),
    /// After `EnrolOffer`.
    #[n(9)]
    EnrolClaim(#[n(0)] EnrolClaim),
    /// After `EnrolReady`.
    #[n(10)]
    EnrolKey(#[n(0)] EnrolKey),
    /// After `EnrolChallenge`; or after `EnrolReady`, to set the password only; or after a refused password.
    #[n(11)]
    EnrolCommit(#[n(0)] EnrolCommit),
}

/// What the server sends, on either kind of connection.
#[derive(Encode, Decode)]
pub enum ServerMessage {
    /// After `Hello`.
    #[n(0)]
    Challenge(#[n(0)] Challenge),
    /// The proof was wrong: unknown user, unknown card, or a card that did not answer. One answer for all of them.
    #[n(1)]
    Rejected,
    /// The proof was right: what became of the login, sealed for the card's holder.
    #[n(2)]
    Outcome(#[n(0)] SealedOutcome),
    /// After `Ack`: the user's address is registered (patent, step S24).
    #[n(3)]
    Registered,
    /// At any time instead of an answer: try again later.
    #[n(4)]
    Unavailable(#[n(0)] Unavailable),
    /// After `Attach`.
    #[n(5)]
    Attached(#[n(0)] Attached),
    /// Members of one group: a snapshot (`full`) or what changed.
    #[n(6)]
    Peers(#[n(0)] Peers),
    /// The snapshots of all groups are complete.
    #[n(7)]
    Synced,
    /// A group of this session: a new epoch's key, or a group that the user joined just now.
    #[n(8)]
    Group(#[n(0)] SealedGroup),
    /// All terminals of the group have this epoch's key, or had their time: use it.
    #[n(9)]
    Activate(#[n(0)] KeyAck),
    /// The user is no longer a member of this group.
    #[n(10)]
    Left(#[n(0)] GroupId),
    /// Answer to `Heartbeat`.
    #[n(11)]
    Alive(#[n(0)] u64),
    /// Answer to `Clear` (patent, step S33).
    #[n(12)]
    Cleared,
    /// The session is over at the server: tear the tunnel down.
    #[n(13)]
    End(#[n(0)] EndReason),
    /// After `EnrolHello`.
    #[n(14)]
    EnrolOffer(#[n(0)] EnrolOffer),
    /// After `EnrolClaim`.
    #[n(15)]
    EnrolReady(#[n(0)] EnrolReady),
    /// After `EnrolKey`.
    #[n(16)]
    EnrolChallenge(#[n(0)] EnrolChallenge),
    /// After `EnrolCommit`.
    #[n(17)]
    EnrolResult(#[n(0)] EnrolResult),
}

/// Opens a login. Neither field is a secret, and neither is on the wire in clear: TLS hides both.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`].
    #[n(0)]
    pub version: u16,
    /// Who wants to log in.
    #[n(1)]
    pub user: UserId,
    /// The card that is in the reader.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub card: Fingerprint,
}

/// 32 random bytes under the card's public key (RSA-OAEP with SHA-256, empty label; RFC 8017). For an unknown user or
/// card a decoy of the same form: without the card's private key nobody can tell.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Challenge {
    /// 256, 384 or 512 bytes, as large as the card's modulus.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub ciphertext: Vec<u8>,
}

/// ID and password, and the proof that the card opened the challenge on this very connection.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Login {
    /// COSE_Encrypt of a [`Credentials`], see [`crate::envelope`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub envelope: Vec<u8>,
    /// See [`crate::login::LoginKeys::proof`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub proof: [u8; 32],
}

/// What the login's envelope holds.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Credentials {
    /// Must equal the `user` of [`Hello`].
    #[n(0)]
    pub user: UserId,
    /// UTF-8 as typed.
    #[n(1)]
    pub password: SecretBytes,
    /// What a right answer leads to.
    #[n(2)]
    pub purpose: Purpose,
    /// The public key that `cugd` made for this session.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub wg_public_key: WgPublicKey,
    /// The workstation's name, for people.
    #[n(4)]
    pub host_name: HostName,
    /// Addresses of the workstation besides the one that the server sees, at most [`MAX_ADDRESSES`].
    #[n(5)]
    pub addresses: Vec<IpAddr>,
    /// Random, new with every login: only who opened this envelope can seal the outcome. See [`crate::login::OutcomeBinding`].
    #[n(6)]
    pub outcome_secret: Secret<32>,
    /// UTF-8 as typed, twice the same. The password is changed to it before anything is granted, or nothing is. With [`Purpose::ChangePassword`]
    /// always, with [`Purpose::Open`] when the server said [`DenyReason::MustChangePassword`], with [`Purpose::Verify`] never.
    #[n(7)]
    pub new_password: Option<SecretBytes>,
}

/// Most addresses that a terminal may announce.
pub const MAX_ADDRESSES: usize = 8;

/// What a login is for.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
#[cbor(index_only)]
pub enum Purpose {
    /// A session at this terminal; ends the user's session elsewhere.
    #[n(0)]
    Open,
    /// Only card and password are checked (sudo, a screen locker, a second login at the same terminal).
    #[n(1)]
    Verify,
    /// The password is changed, and nothing else.
    #[n(2)]
    ChangePassword,
}

/// An [`Outcome`], sealed under the login's grant key. See [`crate::login::LoginKeys::seal_outcome`].
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct SealedOutcome {
    /// Ciphertext and tag.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
}

/// What became of a login whose proof was right.
#[derive(Encode, Decode)]
pub enum Outcome {
    /// A session (purpose `Open`). If a new password came with the login, it is the password now.
    #[n(0)]
    Grant(#[n(0)] Grant),
    /// Card and password are right (purpose `Verify`).
    #[n(1)]
    Verified,
    /// No, and why. The holder of the card may know.
    #[n(2)]
    Denied(#[n(0)] DenyReason),
    /// The new password is the password now (purpose `ChangePassword`).
    #[n(3)]
    PasswordChanged,
}

/// A session: from the server through the PAM module to `cugd`.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Grant {
    /// The session.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub session: SessionId,
    /// The secret with which `cugd` attaches, and under which later keys are sealed. Never sent again.
    #[n(1)]
    pub secret: Secret<32>,
    /// The user's groups, at most [`MAX_GROUPS`].
    #[n(2)]
    pub groups: Vec<GroupGrant>,
    /// Seconds within which `cugd` must have attached.
    #[n(3)]
    pub attach_within: u32,
}

impl Grant {
    /// A second copy, as secret as the first.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            session: self.session,
            secret: self.secret.duplicate(),
            groups: self.groups.iter().map(GroupGrant::duplicate).collect(),
            attach_within: self.attach_within,
        }
    }
}

/// Most groups that one user may be in.
pub const MAX_GROUPS: usize = 32;

/// One group of a grant: its key and this user's place in it.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct GroupGrant {
    /// The group.
    #[n(0)]
    pub id: GroupId,
    /// Its name.
    #[n(1)]
    pub name: GroupName,
    /// Generation of `key`.
    #[n(2)]
    pub epoch: Epoch,
    /// The group key (patent: communication key of the closed group).
    #[n(3)]
    pub key: Secret<32>,
    /// The group's overlay network, IPv4.
    #[n(4)]
    pub prefix4: Prefix4,
    /// The group's overlay network, IPv6.
    #[n(5)]
    pub prefix6: Prefix6,
    /// This user's address in it; the same at every terminal.
    #[n(6)]
    pub address4: Ipv4Addr,
    /// This user's address in it; the same at every terminal.
    #[n(7)]
    pub address6: Ipv6Addr,
    /// What this user's processes may reach besides the group.
    #[n(8)]
    pub policy: Policy,
}

impl GroupGrant {
    /// A second copy, as secret as the first.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self { key: self.key.duplicate(), name: self.name.clone(), policy: self.policy.clone(), ..*self }
    }
}

/// An IPv4 network on the wire: address and prefix length.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix4 {
    /// Network address.
    #[n(0)]
    pub address: Ipv4Addr,
    /// 0 to 32.
    #[n(1)]
    pub len: u8,
}

/// An IPv6 network on the wire: address and prefix length.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix6 {
    /// Network address.
    #[n(0)]
    pub address: Ipv6Addr,
    /// 0 to 128.
    #[n(1)]
    pub len: u8,
}

impl From<Ipv4Net> for Prefix4 {
    fn from(net: Ipv4Net) -> Self {
        Self { address: net.network(), len: net.prefix_len() }
    }
}

impl From<Ipv6Net> for Prefix6 {
    fn from(net: Ipv6Net) -> Self {
        Self { address: net.network(), len: net.prefix_len() }
    }
}

impl TryFrom<Prefix4> for Ipv4Net {
    type Error = crate::ProtocolError;
    fn try_from(p: Prefix4) -> Result<Self, Self::Error> {
        Self::new(p.address, p.len).map_err(|_| crate::ProtocolError::Malformed)
    }
}

impl TryFrom<Prefix6> for Ipv6Net {
    type Error = crate::ProtocolError;
    fn try_from(p: Prefix6) -> Result<Self, Self::Error> {
        Self::new(p.address, p.len).map_err(|_| crate::ProtocolError::Malformed)
    }
}

/// Why a login with the right card was refused.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
pub enum DenyReason {
    /// The password is not the user's.
    #[n(0)]
    WrongPassword,
    /// An administrator disabled the account.
    #[n(1)]
    Disabled,
    /// The card was revoked.
    #[n(2)]
    CardRevoked,
    /// The user is in no group.
    #[n(3)]
    NoGroup,
    /// Too many wrong passwords; seconds until the next try.
    #[n(4)]
    TooManyAttempts(#[n(0)] u32),
    /// Card and password are right, and the password must be changed first: the same again with a new password.
    #[n(5)]
    MustChangePassword,
    /// The account has expired.
    #[n(6)]
    Expired,
    /// Outside the hours at which this user may log in, and which these are. A terminal of before there was the field does not look at it; without
    /// it the server could not find out what time it is for this user.
    #[n(7)]
    OutsideHours(#[n(0)] Option<Closed>),
    /// Two unequal user IDs, or a key that is not one: a terminal that misbehaves.
    #[n(8)]
    BadRequest,
    /// Card and password are right, and the new password breaks a rule. The old one stays.
    #[n(9)]
    NewPassword(#[n(0)] PasswordProblem),
}

/// The terminal has the grant. Only now the address is registered (patent, step S7).
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Ack {
    /// See [`crate::login::ack_mac`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub mac: [u8; 32],
}

/// Why the server cannot serve this connection now.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unavailable {
    /// Too much to do, or too many tries from this address; seconds until the next try is welcome.
    #[n(0)]
    Busy(#[n(0)] u32),
    /// The server speaks this version.
    #[n(1)]
    Version(#[n(0)] u16),
    /// A fault at the server; its log says which.
    #[n(2)]
    Fault,
}

/// Opens a session channel.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Attach {
    /// [`crate::PROTOCOL_VERSION`].
    #[n(0)]
    pub version: u16,
    /// From the grant.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub session: SessionId,
    /// See [`crate::session::ChannelKeys::terminal_proof`].
    #[cbor(n(2), with = "minicbor::bytes")]
    pub proof: [u8; 32],
    /// What this terminal knows of its groups, so that the server may send changes only. Empty at the first attach.
    #[n(3)]
    pub known: Vec<Known>,
}

/// How far a terminal knows a group.
#[derive(Encode, Decode, Clone, Copy)]
#[cbor(map)]
pub struct Known {
    /// The group.
    #[n(0)]
    pub group: GroupId,
    /// Revision of the last [`Peers`].
    #[n(1)]
    pub revision: u64,
    /// Epoch of the last key.
    #[n(2)]
    pub epoch: Epoch,
}

/// The channel stands.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Attached {
    /// See [`crate::session::ChannelKeys::server_proof`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub proof: [u8; 32],
    /// Seconds without a heartbeat after which the server ends the session.
    #[n(1)]
    pub lease: u32,
    /// Seconds between heartbeats.
    #[n(2)]
    pub heartbeat: u32,
    /// The terminal's address on this connection as the server sees it, in canonical form. Not authenticated by more than TLS: it is good for
    /// finding out about routers that translate addresses, and for nothing else.
    #[n(20)]
    pub seen_at: Option<IpAddr>,
}

/// Where this terminal can be reached.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct Endpoints {
    /// UDP port of the interface of each group.
    #[n(0)]
    pub ports: Vec<GroupPort>,
    /// Addresses besides the one that the server sees, at most [`MAX_ADDRESSES`].
    #[n(1)]
    pub addresses: Vec<IpAddr>,
}

/// The UDP port on which a terminal listens for one group.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupPort {
    /// The group.
    #[n(0)]
    pub group: GroupId,
    /// 1 to 65535.
    #[n(1)]
    pub port: u16,
}

/// Members of a group who are logged in, other than the receiver.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct Peers {
    /// The group.
    #[n(0)]
    pub group: GroupId,
    /// The group's revision that this message leads to.
    #[n(1)]
    pub revision: u64,
    /// Forget all members that were known: this begins a snapshot.
    #[n(2)]
    pub full: bool,
    /// New or changed members.
    #[n(3)]
    pub present: Vec<Peer>,
    /// Members that are gone.
    #[n(4)]
    pub gone: Vec<UserId>,
}

/// A member at a terminal.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct Peer {
    /// Who.
    #[n(0)]
    pub user: UserId,
    /// Where, for people.
    #[n(1)]
    pub host_name: HostName,
    /// The session's public key.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub wg_public_key: WgPublicKey,
    /// Where, for packets: the address that the server saw first, then the others.
    #[n(3)]
    pub endpoints: Vec<SocketAddr>,
    /// Overlay address.
    #[n(4)]
    pub address4: Ipv4Addr,
    /// Overlay address.
    #[n(5)]
    pub address6: Ipv6Addr,
}

/// A [`GroupGrant`] on the session channel, sealed. See [`crate::session::ChannelKeys::seal_group`].
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct SealedGroup {
    /// The group.
    #[n(0)]
    pub group: GroupId,
    /// The key's generation.
    #[n(1)]
    pub epoch: Epoch,
    /// Ciphertext and tag.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
    /// Random: a group is sealed again in the same epoch when its policy changes.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub nonce: [u8; 12],
}

/// A group and one of its epochs.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyAck {
    /// The group.
    #[n(0)]
    pub group: GroupId,
    /// The epoch.
    #[n(1)]
    pub epoch: Epoch,
}

/// Why a terminal cleared its session.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum ClearReason {
    /// The last OS session of the user ended.
    #[n(0)]
    LoggedOut,
    /// The card was pulled, exchanged, or its reader failed.
    #[n(1)]
    CardRemoved,
    /// The grant was never opened.
    #[n(2)]
    NotOpened,
    /// The daemon stops, or the machine sleeps or shuts down.
    #[n(3)]
    TerminalStopped,
    /// The tunnel could not be brought up or kept.
    #[n(4)]
    TunnelFailed,
}

/// Why the server ended a session.
#[derive(Encode, Decode, Clone, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// No such session, or no longer.
    #[n(0)]
    Unknown,
    /// The user logged in at another terminal (P8); its name.
    #[n(1)]
    Displaced(#[n(0)] HostName),
    /// An administrator ended it.
    #[n(2)]
    Administrator,
    /// The account was disabled or deleted, or its time is over: see the field, at which a terminal of before there was one does not look.
    #[n(3)]
    Disabled(#[n(0)] Option<Lapse>),
    /// The card was revoked.
    #[n(4)]
    CardRevoked,
    /// No heartbeat within the lease.
    #[n(5)]
    LeaseExpired,
    /// The user is in no group any more.
    #[n(6)]
    NoGroup,
    /// The terminal did not keep to the protocol.
    #[n(7)]
    Protocol,
}

/// Whose time is over.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
#[cbor(index_only)]
pub enum Lapse {
    /// The account has expired.
    #[n(0)]
    Expired,
    /// The hours at which the user may log in have ended.
    #[n(1)]
    OutsideHours,
}
