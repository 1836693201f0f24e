//! `group ...`

use super::user::user_id;
use crate::{
    admin::Request,
    store::{PolicyKind, PolicyUpdate},
};
use cug_proto::{
    id::{GroupName, UserId},
    policy::Allow,
};
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
    /// Change what the members' processes may reach besides the group; takes effect at once
    Set(Set),
    /// Delete a group with its keys: whoever is logged in leaves it
    Delete {
        /// Name of the group
        #[arg(value_parser = group_name)]
        group: GroupName,
    },
}

#[derive(clap::Args)]
#[group(id = "changes", required = true, multiple = true)]
pub(super) struct Policy {
    /// open: members reach everything besides; closed: the group, the management servers and the exceptions, nothing else
    #[arg(long, value_parser = ["open", "closed"])]
    policy: Option<String>,
    /// Add an exception, such as 192.0.2.0/24, 192.0.2.7:53 or [2001:db8::/64]:443 (a port means TCP and UDP); can be repeated
    #[arg(long, value_name = "NET[:PORT]")]
    allow: Vec<Allow>,
    /// Remove an exception; can be repeated
    #[arg(long, value_name = "NET[:PORT]")]
    remove_allow: Vec<Allow>,
}

#[derive(clap::Args)]
pub(super) struct Set {
    /// Name of the group
    #[arg(value_parser = group_name)]
    group: GroupName,
    #[command(flatten)]
    policy: Policy,
}

impl Set {
    fn request(self) -> Request {
        let Policy { policy, allow, remove_allow } = self.policy;
        // The parser lets nothing else through.
        let policy = policy.map(|p| if p == "closed" { PolicyKind::Closed } else { PolicyKind::Open });
        Request::GroupSet(self.group, PolicyUpdate { policy, allow, remove: remove_allow })
    }
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
            Self::Set(set) => set.request(),
            Self::Delete { group } => Request::GroupDelete(group),
        }
    }
}
