//! What comes out of [`super::step`].

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cug_proto::{
    id::{GroupId, GroupName, UserId},
    local::{CardBinding, PeerStatus, Reply},
    message::{ClearReason, ClientMessage, Fingerprint, Known, SessionId, WgPublicKey},
    notice::Notice,
    policy::Policy,
    secret::Secret,
    trust::CaPin,
};
use ipnet::IpNet;

use super::{Deed, Leader, LinkId, Number, Token};
use crate::{names::zone::Zone, tunnel::InterfaceName};

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
    /// A login has begun that may end in a tunnel: get ready what takes long to start.
    Expect,
    /// A session is about to be opened: let the guard stand before its interfaces do.
    Fence {
        /// Whose.
        number: Number,
        /// To whom the interfaces will belong.
        user: UserId,
        /// Around what.
        fences: Vec<FenceSpec>,
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
    /// Remove all interfaces and report [`super::TunnelEvent::Down`].
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
    /// Measure the members of a group; [`super::TunnelEvent::Seen`] follows.
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
    /// Look for a card that was here before, and report [`super::WatchEvent::Back`] or [`super::WatchEvent::Ended`].
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
    /// Whose it is, in the operating system.
    pub uid: u32,
    /// What it is called, and how it is guarded.
    pub fence: FenceSpec,
}

/// What the guard has to know of an interface, but for whose it is.
pub struct FenceSpec {
    /// The interface's name.
    pub name: InterfaceName,
    /// This terminal's overlay addresses, with the group's prefixes.
    pub addresses: Vec<IpNet>,
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
