//! What goes into the store and comes out of it.

use super::{Result, StoreError};
use crate::{clock::UnixTime, policy::overlay};
use cug_proto::{
    hours::Rule,
    id::{Epoch, GroupId, GroupName, HostName, UserId},
    message::{EndReason, Fingerprint, GroupGrant, GroupPort, Lapse, Peer, SessionId, WgPublicKey},
    policy::{Allow, Policy},
    secret::Secret,
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A registered card.
pub struct Card {
    /// Whose.
    pub user: UserId,
    /// DER `SubjectPublicKeyInfo`.
    pub public_key: Vec<u8>,
    /// No longer valid.
    pub revoked: bool,
}

/// What a login is decided on.
pub struct Account {
    /// The password, hashed.
    pub password: PasswordRecord,
    /// By an administrator.
    pub disabled: bool,
    /// Wrong passwords since the last right one.
    pub failures: u32,
    /// When the last one was.
    pub last_failure: UnixTime,
    /// When the password was set.
    pub password_set: UnixTime,
    /// By an administrator: it must be changed at the next login.
    pub must_change: bool,
    /// From then on nobody logs in here.
    pub expires: Option<UnixTime>,
    /// When the user may log in, if not always.
    pub hours: Option<Rule>,
}

/// What an administrator sets of a user; `None` leaves it as it is.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UserSettings {
    /// The password must be changed at the next login.
    #[serde(default)]
    pub must_change: Option<bool>,
    /// From then on nobody logs in; `Some(None)` for never.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub expires: Option<Option<UnixTime>>,
    /// When the user may log in; `Some(None)` for always.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub hours: Option<Option<Rule>>,
}

/// A field that is there, and perhaps null, as against one that is missing.
fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Option<T>>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// A session that must be looked at, with what it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Which.
    pub session: SessionId,
    /// When its user's account ends.
    pub expires: Option<UnixTime>,
    /// When its user may be logged in, as it is stored.
    pub hours: Option<String>,
}

/// What was found about a [`Watched`] session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its time is over; the reason is for the audit.
    Over(Lapse, &'static str),
    /// Look again then, or never.
    Again(Option<UnixTime>),
}

/// Argon2id of a password, with its cost. All zero for an account that has no password: see [`PasswordRecord::none`].
#[derive(Clone)]
pub struct PasswordRecord {
    /// Random.
    pub salt: [u8; 16],
    /// The hash.
    pub hash: [u8; 32],
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes.
    pub iterations: u32,
    /// Lanes.
    pub lanes: u32,
}

impl PasswordRecord {
    /// The record that no password matches, for an account that has none (yet). Checking one costs as much as checking any other.
    pub fn none() -> Self {
        Self { salt: [0; 16], hash: [0; 32], memory_kib: 0, iterations: 0, lanes: 0 }
    }

    /// Whether this is [`PasswordRecord::none`]: no Argon2 has a cost of 0.
    pub fn is_none(&self) -> bool {
        self.memory_kib == 0
    }
}

/// A group with a key of it, wrapped, and one member's place in it.
pub struct GroupKey {
    /// The group.
    pub id: GroupId,
    /// Its name.
    pub name: GroupName,
    /// Of the key.
    pub epoch: Epoch,
    /// The key, wrapped by [`crate::keys::StorageKey`].
    pub wrapped: Vec<u8>,
    /// Overlay network.
    pub prefix4: Ipv4Net,
    /// Overlay network.
    pub prefix6: Ipv6Net,
    /// The member's number in it.
    pub host: u32,
    /// What the member's processes may reach besides it.
    pub policy: Policy,
}

impl GroupKey {
    /// As terminals get it, with the key unwrapped.
    ///
    /// # Errors
    /// [`StoreError::Fault`] when the member's number does not fit the network: the database was altered.
    pub fn grant(&self, key: Secret<32>) -> Result<GroupGrant> {
        let (address4, address6) = addresses(self.prefix4, self.prefix6, self.host)?;
        Ok(GroupGrant {
            id: self.id,
            name: self.name.clone(),
            epoch: self.epoch,
            key,
            prefix4: self.prefix4.into(),
            prefix6: self.prefix6.into(),
            address4,
            address6,
            policy: self.policy.clone(),
        })
    }
}

/// Both addresses of member number `host`.
pub(super) fn addresses(prefix4: Ipv4Net, prefix6: Ipv6Net, host: u32) -> Result<(Ipv4Addr, Ipv6Addr)> {
    overlay::address4(prefix4, host)
        .zip(overlay::address6(prefix6, host))
        .ok_or_else(|| StoreError::Fault(format!("member number {host} is outside of {prefix4}").into()))
}

/// What became of a session number.
pub enum SessionState {
    /// Registered.
    Live(LiveSession),
    /// It was, and why it is no longer.
    Ended(EndReason),
    /// Never was, or long ago.
    Unknown,
}

/// A registered session.
pub struct LiveSession {
    /// Whose.
    pub user: UserId,
    /// Its secret, wrapped by [`crate::keys::StorageKey`].
    pub wrapped_secret: Vec<u8>,
}

/// What a terminal must be sent.
pub struct SessionView {
    /// Of this view.
    pub revision: u64,
    /// One for each group of the session.
    pub groups: Vec<GroupView>,
}

/// One group as a terminal must know it.
pub struct GroupView {
    /// With the active key.
    pub active: GroupKey,
    /// With the key that is being distributed.
    pub pending: Option<GroupKey>,
    /// Epoch that the terminal is known to have, from the grant or from what it said; 0 for none.
    pub has_epoch: Epoch,
    /// The terminal said that it knows this group already.
    pub known: bool,
    /// `present` are all members: forget the others.
    pub full: bool,
    /// Members who can be reached, other than the session's own user.
    pub present: Vec<Peer>,
    /// Members who cannot any more.
    pub gone: Vec<UserId>,
    /// The policy changed since the session's grant.
    pub policy_changed: bool,
}

/// Something that terminals must be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A member can be reached, elsewhere, or no longer.
    Member(GroupId, UserId),
    /// A session ended.
    Ended(SessionId, EndReason),
    /// A user with a session became a member.
    Joined(GroupId, SessionId),
    /// A user with a session is no longer a member.
    Left(GroupId, SessionId),
    /// A new epoch is to be distributed.
    Epoch(GroupId),
    /// An epoch is to be used.
    Activated(GroupId, Epoch),
    /// A group's policy changed.
    Policy(GroupId),
}

/// Who logs in with what from where.
#[derive(Clone, Copy)]
pub struct LoginFacts<'a> {
    /// As claimed; proved only where the card is.
    pub user: &'a UserId,
    /// As claimed or proved.
    pub card: &'a Fingerprint,
    /// As seen by the server.
    pub source: IpAddr,
    /// When.
    pub now: UnixTime,
}

/// A refused login.
pub struct LoginRefused<'a> {
    /// Who and when.
    pub login: LoginFacts<'a>,
    /// For the audit.
    pub reason: &'a str,
    /// Count it against the account.
    pub wrong_password: bool,
}

/// A session to be.
pub struct NewSession<'a> {
    /// Who and when.
    pub login: LoginFacts<'a>,
    /// Random.
    pub id: SessionId,
    /// The terminal's key of this session.
    pub wg_public_key: WgPublicKey,
    /// The terminal's name.
    pub host_name: &'a HostName,
    /// Addresses that the terminal said it has.
    pub addresses: &'a [IpAddr],
    /// The session secret, wrapped.
    pub wrapped_secret: &'a [u8],
    /// Granted groups with the epoch of the granted key.
    pub groups: &'a [(GroupId, Epoch)],
    /// The password that the user chose with this login.
    pub new_password: Option<&'a PasswordRecord>,
}

/// Where a terminal can be reached.
pub struct Place<'a> {
    /// As seen by the server.
    pub source: IpAddr,
    /// As the terminal says.
    pub addresses: &'a [IpAddr],
    /// Of each group's interface.
    pub ports: &'a [GroupPort],
}

/// The end of a session.
pub struct Ending<'a> {
    /// For the audit: `session-clear`, ...
    pub event: &'a str,
    /// Who or what ended it.
    pub by: By<'a>,
    /// For the audit.
    pub reason: &'a str,
    /// What to tell the terminal, when it was not the terminal's own wish.
    pub tell: Option<EndReason>,
}

/// Who changes something, and when.
#[derive(Clone, Copy)]
pub struct By<'a> {
    /// For the audit: a user ID, an administrator's account, or `server`.
    pub actor: &'a str,
    /// When.
    pub now: UnixTime,
}

/// A group to be.
pub struct NewGroup<'a> {
    /// Its name.
    pub name: &'a GroupName,
    /// Overlay network; chosen from `pool` when `None`.
    pub prefix4: Option<Ipv4Net>,
    /// Overlay network; chosen from `ula` when `None`.
    pub prefix6: Option<Ipv6Net>,
    /// Where IPv4 networks come from.
    pub pool: Ipv4Net,
    /// The deployment's unique local /48: the 40 bits after `fd`.
    pub ula: [u8; 5],
}

/// A card to be registered.
pub struct NewCard<'a> {
    /// SHA-256 of `public_key`.
    pub fingerprint: Fingerprint,
    /// Whose.
    pub user: &'a UserId,
    /// DER `SubjectPublicKeyInfo`.
    pub public_key: &'a [u8],
    /// Of the modulus.
    pub bits: u32,
    /// `piv`, `medium` or `registered`, for people.
    pub kind: &'a str,
}

/// A user, for the administrator.
#[derive(Serialize, Deserialize, Debug)]
pub struct UserInfo {
    /// User ID.
    pub user: UserId,
    /// By an administrator.
    pub disabled: bool,
    /// Names.
    pub groups: Vec<GroupName>,
    /// Valid ones.
    pub cards: u32,
    /// Where the user is logged in.
    pub address: Option<IpAddr>,
    /// Wrong passwords since the last right one.
    pub wrong_passwords: u32,
    /// When added, RFC 3339.
    pub created: String,
    /// Seconds until the next try, after wrong passwords.
    #[serde(default)]
    pub wait_seconds: u32,
    /// There is a password.
    #[serde(default)]
    pub has_password: bool,
    /// When the password was set, RFC 3339.
    #[serde(default)]
    pub password_set: String,
    /// It must be changed at the next login.
    #[serde(default)]
    pub must_change: bool,
    /// From then on nobody logs in here, RFC 3339.
    #[serde(default)]
    pub expires: Option<String>,
    /// That time has come.
    #[serde(default)]
    pub expired: bool,
    /// When the user may log in; `None` for always.
    #[serde(default)]
    pub hours: Option<Rule>,
}

/// Whether a group's members reach only the group.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyKind {
    /// They reach everything besides.
    Open,
    /// They reach the group, the management servers, loopback, and the exceptions.
    Closed,
}

impl PolicyKind {
    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

impl std::str::FromStr for PolicyKind {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "open" => Ok(Self::Open),
            "closed" => Ok(Self::Closed),
            _ => Err(StoreError::Refused("a policy is open or closed".into())),
        }
    }
}

/// What to change about a group's policy.
#[derive(Serialize, Deserialize, Clone, Default, PartialEq, Eq, Debug)]
pub struct PolicyUpdate {
    /// Another policy, if any.
    pub policy: Option<PolicyKind>,
    /// Exceptions to add.
    pub allow: Vec<Allow>,
    /// Exceptions to remove; carried out before `allow`.
    pub remove: Vec<Allow>,
}

/// A group, for the administrator.
#[derive(Serialize, Deserialize, Debug)]
pub struct GroupInfo {
    /// Name.
    pub group: GroupName,
    /// Number.
    pub id: GroupId,
    /// Overlay network.
    pub prefix4: Ipv4Net,
    /// Overlay network.
    pub prefix6: Ipv6Net,
    /// Of the key in use.
    pub epoch: Epoch,
    /// Of the key that is being distributed.
    pub next_epoch: Option<Epoch>,
    /// How many users.
    pub members: u32,
    /// How many of them are logged in.
    pub sessions: u32,
    /// What the members' processes may reach.
    pub policy: PolicyKind,
    /// Exceptions that count while the policy is `closed`.
    pub allow: Vec<Allow>,
}

/// What the store knows of itself, for the administrator.
#[derive(Serialize, Deserialize, Debug)]
pub struct StoreFacts {
    /// Users.
    pub users: u64,
    /// Groups.
    pub groups: u64,
    /// Groups whose next epoch is being distributed.
    pub rotating: u64,
    /// Cards that are not revoked.
    pub cards: u64,
    /// Registered sessions.
    pub sessions: u64,
    /// The last backup that the audit knows of, RFC 3339.
    pub last_backup: Option<String>,
}

/// A member of a group, for the administrator.
#[derive(Serialize, Deserialize, Debug)]
pub struct MemberInfo {
    /// User ID.
    pub user: UserId,
    /// Overlay address.
    pub overlay4: Ipv4Addr,
    /// Overlay address.
    pub overlay6: Ipv6Addr,
    /// Where the user is logged in.
    pub address: Option<IpAddr>,
    /// Member since, RFC 3339.
    pub since: String,
}

/// A card, for the administrator.
#[derive(Serialize, Deserialize, Debug)]
pub struct CardInfo {
    /// 64 hexadecimal digits.
    pub fingerprint: String,
    /// Whose.
    pub user: UserId,
    /// Of the modulus.
    pub bits: u32,
    /// `piv`, `medium` or `registered`.
    pub kind: String,
    /// RFC 3339.
    pub issued: String,
    /// RFC 3339.
    pub revoked: Option<String>,
}

/// Who is where in which group, for the administrator.
#[derive(Serialize, Deserialize, Debug)]
pub struct SessionInfo {
    /// Number of the session: 32 hexadecimal digits.
    pub id: String,
    /// Group.
    pub group: GroupName,
    /// User ID.
    pub user: UserId,
    /// The terminal's address, as the server sees it.
    pub address: IpAddr,
    /// The terminal's name.
    pub host: HostName,
    /// Overlay address.
    pub overlay4: Ipv4Addr,
    /// Overlay address.
    pub overlay6: Ipv6Addr,
    /// Logged in since, RFC 3339.
    pub since: String,
    /// `registered` (the terminal has the grant) or `up` (its tunnel stands and the members were told).
    pub state: String,
}

/// Since when a group has its newest key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyAge {
    /// The group.
    pub group: GroupId,
    /// Of the newest key.
    pub epoch: Epoch,
    /// When it was made.
    pub since: UnixTime,
    /// It is being distributed, and not active yet.
    pub pending: bool,
}

/// Something that happened, for the administrator.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct EventInfo {
    /// When, RFC 3339.
    pub at: String,
    /// Who did it.
    pub actor: String,
    /// What.
    pub event: String,
    /// To whom.
    pub user: Option<String>,
    /// From where.
    pub source: Option<String>,
    /// `done`, `granted`, `refused`.
    pub outcome: String,
    /// Why, or which.
    pub reason: Option<String>,
}
