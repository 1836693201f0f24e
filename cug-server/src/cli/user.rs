//! `user ...`

use super::{invite, output::Output, prompt};
use crate::{admin::Request, config::Config};
use anyhow::Result;
use cug_proto::id::UserId;
use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Add a user; the password is asked for
    Add(WithPassword),
    /// List all users
    List,
    /// Show one user
    Show(User),
    /// Disable a user: ends the session, changes the keys of the user's groups
    Disable(User),
    /// Enable a user again
    Enable(User),
    /// Change a user's password; it is asked for
    SetPassword(WithPassword),
    /// Make a one-time code with which the user sets the password and enrols a card at any terminal (cugctl enrol)
    Invite(invite::Invite),
    /// List invitations, and what waits for an approval
    Invitations,
    /// Take an invitation, or what waits for an approval, back
    Uninvite(User),
    /// Put into force what a user has enrolled
    Approve(invite::Approve),
}

#[derive(clap::Args)]
pub(super) struct User {
    /// User ID: the name of the account on the workstations
    #[arg(value_parser = user_id)]
    user: UserId,
}

#[derive(clap::Args)]
pub(super) struct WithPassword {
    #[command(flatten)]
    user: User,
    /// Read the password from standard input (one line) instead of asking for it
    #[arg(long)]
    password_stdin: bool,
}

/// A user ID from the command line.
pub(super) fn user_id(text: &str) -> Result<UserId, &'static str> {
    text.parse().map_err(|_| "a user ID has 1 to 32 of A-Z a-z 0-9 . _ - and does not begin with . or -")
}

impl Command {
    pub(super) fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        let request = match self {
            Self::Add(add) => Request::UserAdd {
                password: prompt::new_password(add.password_stdin, &add.user.user)?,
                user: add.user.user,
            },
            Self::SetPassword(set) => Request::UserSetPassword {
                password: prompt::new_password(set.password_stdin, &set.user.user)?,
                user: set.user.user,
            },
            Self::List => Request::UserList,
            Self::Show(user) => Request::UserShow(user.user),
            Self::Disable(user) => Request::UserDisable(user.user),
            Self::Enable(user) => Request::UserEnable(user.user),
            Self::Invite(invite) => return invite.run(config, output),
            Self::Invitations => return invite::list(config, output),
            Self::Uninvite(user) => return invite::uninvite(config, output, user.user),
            Self::Approve(approve) => return approve.run(config, output),
        };
        super::ask(config, output, &request)
    }
}
