//! What was seen of a workstation. Values only.

use std::path::PathBuf;

use cug_proto::{local::Status, trust::CaPin};

use super::pam::Service;
use crate::config::Config;

/// Everything.
pub(super) struct Facts {
    /// Seconds since 1970, by this workstation's clock.
    pub now: i64,
    /// `/etc/cug/cugd.toml`.
    pub config: Configuration,
    /// Directory and file of the configuration.
    pub owners: Vec<Owner>,
    /// What the daemon says.
    pub daemon: Daemon,
    /// What the card says.
    pub card: Card,
    /// Each server of the configuration.
    pub servers: Vec<Server>,
    /// Programs that log people in, each with its PAM stack.
    pub services: Vec<Service>,
    /// The login module.
    pub module: Option<Module>,
    /// WireGuard, BPF and nft.
    pub network: Network,
    /// Who is asked for names.
    pub names: NameService,
}

/// The configuration.
pub(super) enum Configuration {
    /// There is no file.
    Missing,
    /// It cannot be used; why.
    Wrong(String),
    /// It is valid.
    Valid(Box<Config>),
}

/// To whom a file belongs.
pub(super) struct Owner {
    pub path: PathBuf,
    pub uid: u32,
    pub mode: u32,
}

/// What the daemon says.
pub(super) enum Daemon {
    /// Nobody listens.
    Away,
    /// Something went wrong; a sentence.
    Trouble(String),
    /// It answers.
    Answers(Box<Status>),
}

/// What the card says.
pub(super) enum Card {
    /// The configuration says where to look, and there is none that can be used.
    NotLookedAt,
    /// A sentence of the card library's.
    Trouble { text: String, kind: CardTrouble },
    /// A card of this kind of network.
    Found(FoundCard),
}

/// Which sort of trouble, because what is to be done differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CardTrouble {
    /// pcscd is not there.
    NoService,
    /// pcscd is there, and sees no reader.
    NoReader,
    /// A reader, and no card in it. No fault.
    NoCard,
    /// This user may not use readers.
    NotPermitted,
    /// Another program is using it.
    Busy,
    /// A card that is not of this network, or that is broken.
    Unusable,
}

/// A card.
pub(super) struct FoundCard {
    /// SHA-256 of the card's key.
    pub fingerprint: [u8; 32],
    /// Whom it trusts.
    pub ca_pin: CaPin,
    /// Validity of the server object on it.
    pub validity: Option<Validity>,
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Validity {
    pub from: i64,
    pub until: i64,
}

/// One server.
pub(super) struct Server {
    pub name: String,
    pub outcome: Outcome,
}

/// What came of a connection.
pub(super) enum Outcome {
    /// The name has no address.
    NoAddress(String),
    /// Nobody accepts the connection.
    Refused(String),
    /// Nobody answers in time.
    Silent,
    /// It is not vouched for by a pinned CA.
    NotTrusted(String),
    /// Its certificate is not valid at the time of this workstation's clock.
    NotNow { early: bool },
    /// The TLS handshake failed otherwise.
    Broken(String),
    /// It is one of this organisation's.
    Trusted { validity: Option<Validity>, ms: u64 },
}

/// The module's file.
pub(super) struct Module {
    pub path: PathBuf,
    /// The version that is written in it, if one is.
    pub version: Option<String>,
}

/// WireGuard and guard.
pub(super) struct Network {
    /// `/dev/net/tun` is there: the embedded engine's.
    pub tun: bool,
    /// The program nft is there.
    pub nft: bool,
    /// Whether the kernel takes the guard's program; `None`: only root can try.
    pub bpf: Option<Result<(), String>>,
}

/// Who is asked for names here.
pub(super) struct NameService {
    /// The C library asks systemd-resolved.
    pub resolved: bool,
    /// `/etc/hosts` can be replaced: a plain file of root's.
    pub hosts: bool,
}
