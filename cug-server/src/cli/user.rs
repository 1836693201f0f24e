//! `user ...`

use super::{output::Output, prompt};
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
    /// Delete a user with password, memberships and cards: ends the session, changes the keys of the user's groups
    Delete(User),
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
            Self::Show(user) => Request::UserDetail(user.user),
            Self::Disable(user) => Request::UserDisable(user.user),
            Self::Delete(user) => Request::UserDelete(user.user),
            Self::Enable(user) => Request::UserEnable(user.user),
        };
        super::ask(config, output, &request)
    }
}
