//! `session ...`

use super::{group::group_name, output::Output, user::user_id};
use crate::{
    admin::{self, Reply, Request},
    config::Config,
};
use anyhow::{Result, bail};
use cug_proto::id::{GroupName, UserId};
use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List who is logged in where, one row for each group
    List {
        /// Only those of this group
        #[arg(long, value_parser = group_name)]
        group: Option<GroupName>,
        /// Only those of this user
        #[arg(long, value_parser = user_id)]
        user: Option<UserId>,
    },
    /// End a session: the terminal tears its tunnel down
    End(End),
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct End {
    /// User ID
    #[arg(value_parser = user_id)]
    user: Option<UserId>,
    /// The session's number, or its first 8 or more hexadecimal digits
    #[arg(long, value_name = "NUMBER")]
    id: Option<String>,
}

impl Command {
    pub(super) fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        match self {
            Self::List { group, user } => list(config, output, group.as_ref(), user.as_ref()),
            Self::End(End { user: Some(user), .. }) => super::ask(config, output, &Request::SessionEnd(user)),
            Self::End(End { id: Some(id), .. }) => super::ask(config, output, &Request::SessionEndNumber(id)),
            Self::End(_) => bail!("give a user ID or --id"),
        }
    }
}

fn list(config: &Config, output: &Output, group: Option<&GroupName>, user: Option<&UserId>) -> Result<ExitCode> {
    // An empty list must not hide a name that was mistyped.
    let named = [group.cloned().map(Request::GroupShow), user.cloned().map(Request::UserShow)];
    for request in named.into_iter().flatten() {
        if let Reply::Refused(sentence) = admin::ask(config, &request)? {
            bail!(sentence);
        }
    }
    let mut reply = admin::ask(config, &Request::SessionList)?;
    if let Reply::Sessions(sessions) = &mut reply {
        sessions.retain(|s| group.is_none_or(|g| s.group == *g) && user.is_none_or(|u| s.user == *u));
    }
    output.reply(&reply)?;
    Ok(if matches!(reply, Reply::Refused(_)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
