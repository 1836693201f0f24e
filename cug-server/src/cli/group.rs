//! `group ...`

use super::user::user_id;
use crate::admin::Request;
use cug_proto::id::{GroupName, UserId};
use ipnet::{Ipv4Net, Ipv6Net};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Add a group
    Add {
        /// Name of the group
        #[arg(value_parser = group_name)]
        name: GroupName,
        /// Overlay network, such as 100.96.0.0/20 [default: the next free one]
        #[arg(long)]
        prefix4: Option<Ipv4Net>,
        /// Overlay network, such as fd00:1::/64 [default: the next free one]
        #[arg(long)]
        prefix6: Option<Ipv6Net>,
    },
    /// List all groups
    List,
    /// Show one group and its members
    Show {
        /// Name of the group
        #[arg(value_parser = group_name)]
        group: GroupName,
    },
    /// Make a user a member; takes effect at once if the user is logged in
    Join(Member),
    /// End a membership: the user leaves the tunnel at once, the group's key changes
    Leave(Member),
    /// Give a group a new key; no packet is lost
    Rotate {
        /// Name of the group
        #[arg(value_parser = group_name)]
        group: GroupName,
    },
}

#[derive(clap::Args)]
pub(super) struct Member {
    /// Name of the group
    #[arg(value_parser = group_name)]
    group: GroupName,
    /// User ID
    #[arg(value_parser = user_id)]
    user: UserId,
}

/// A group's name from the command line.
pub(super) fn group_name(text: &str) -> Result<GroupName, &'static str> {
    text.parse().map_err(|_| "a group name has 1 to 32 of A-Z a-z 0-9 _ - and does not begin with -")
}

impl Command {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Add { name, prefix4, prefix6 } => Request::GroupAdd { group: name, prefix4, prefix6 },
            Self::List => Request::GroupList,
            Self::Show { group } => Request::GroupShow(group),
            Self::Join(member) => Request::GroupJoin(member.group, member.user),
            Self::Leave(member) => Request::GroupLeave(member.group, member.user),
            Self::Rotate { group } => Request::GroupRotate(group),
        }
    }
}
