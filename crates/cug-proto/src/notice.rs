//! What a terminal's daemon tells those who watch it (see [`crate::local`]). In JSON, as `cugctl watch --json` prints it, `event` names what happened.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::id::{Epoch, GroupName, HostName, UserId};

/// Something happened to a user's session at this terminal.
#[derive(Encode, Decode, Serialize, Clone, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct Notice {
    /// Whose session.
    #[n(0)]
    pub user: UserId,
    /// What.
    #[n(1)]
    #[serde(flatten)]
    pub what: Happening,
}

/// What can happen.
#[derive(Encode, Decode, Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// The closed groups are open.
    #[n(0)]
    SessionUp,
    /// The tunnel is gone.
    #[n(1)]
    SessionDown {
        /// Why.
        #[n(0)]
        reason: SessionEnd,
        /// The same in a sentence, for the log.
        #[n(1)]
        detail: String,
        /// The terminal at which the user logged in instead.
        #[n(2)]
        elsewhere: Option<HostName>,
    },
    /// A member logged in.
    #[n(2)]
    MemberJoined {
        /// The group.
        #[n(0)]
        group: GroupName,
        /// Who and where.
        #[n(1)]
        #[serde(flatten)]
        seat: Seat,
    },
    /// A member left.
    #[n(3)]
    MemberLeft {
        /// The group.
        #[n(0)]
        group: GroupName,
        /// Who.
        #[n(1)]
        member: UserId,
    },
    /// A member sits elsewhere, or its terminal has another address.
    #[n(4)]
    MemberMoved {
        /// The group.
        #[n(0)]
        group: GroupName,
        /// Who and where.
        #[n(1)]
        #[serde(flatten)]
        seat: Seat,
    },
    /// The group's key was changed.
    #[n(5)]
    NewEpoch {
        /// The group.
        #[n(0)]
        group: GroupName,
        /// The key in use from now on.
        #[n(1)]
        epoch: Epoch,
    },
    /// The server is away. The tunnel stays until the lease is over.
    #[n(6)]
    ChannelLost {
        /// Why, as far as it is known.
        #[n(0)]
        cause: String,
    },
    /// The server is back.
    #[n(7)]
    ChannelBack {
        /// `host:port`.
        #[n(0)]
        server: String,
    },
    /// The user became a member of a group.
    #[n(8)]
    GroupJoined {
        /// The group.
        #[n(0)]
        group: GroupName,
    },
    /// The user is no longer a member of a group.
    #[n(9)]
    GroupLeft {
        /// The group.
        #[n(0)]
        group: GroupName,
    },
    /// No server could be reached at the login: the closed group opens by itself when one answers.
    #[n(25)]
    WaitBegan {
        /// For how long at most.
        #[n(0)]
        minutes: u32,
    },
    /// The closed group will not open by itself any more.
    #[n(26)]
    WaitEnded {
        /// Why, in a sentence for the person.
        #[n(0)]
        reason: String,
    },
}

/// Another member and its place.
#[derive(Encode, Decode, Serialize, Clone, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct Seat {
    /// Who.
    #[n(0)]
    pub member: UserId,
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
}

/// Why a session ended.
#[derive(Encode, Decode, Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum SessionEnd {
    /// The last OS session is over.
    #[n(0)]
    LoggedOut,
    /// The card was pulled or exchanged, or cannot be watched.
    #[n(1)]
    CardRemoved,
    /// The user logged in at another terminal.
    #[n(2)]
    Displaced,
    /// An administrator ended it, or took the account, the card or the last membership away.
    #[n(3)]
    Removed,
    /// The server was away for longer than its lease, or ended it because it did not hear from here.
    #[n(4)]
    LeaseOver,
    /// The tunnel failed.
    #[n(5)]
    TunnelFailed,
    /// A newer login of the same user at this terminal takes its place.
    #[n(6)]
    Replaced,
    /// The daemon stops.
    #[n(7)]
    Stopped,
    /// The machine went to sleep.
    #[n(20)]
    Slept,
    /// The account has expired.
    #[n(21)]
    Expired,
    /// The user's permitted hours have ended.
    #[n(22)]
    OutsideHours,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_a_notice_is_flat() {
        let seat = Seat {
            member: "USER-B".parse().unwrap(),
            host_name: "ward-3".parse().unwrap(),
            endpoint: None,
            address4: [100, 96, 0, 2].into(),
            address6: "fd00::2".parse().unwrap(),
        };
        let what = Happening::MemberJoined { group: "VPN1".parse().unwrap(), seat };
        let notice = Notice { user: "USER-A".parse().unwrap(), what };
        let json = serde_json::to_value(&notice).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"user": "USER-A", "event": "member-joined", "group": "VPN1", "member": "USER-B",
                "host_name": "ward-3", "endpoint": null, "address4": "100.96.0.2", "address6": "fd00::2"})
        );
        let bytes = minicbor::to_vec(&notice).unwrap();
        assert_eq!(minicbor::decode::<Notice>(&bytes).unwrap(), notice);
    }
}
