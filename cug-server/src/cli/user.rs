//! `user ...`

use super::{invite, output::Output, prompt};
use crate::{
    admin::Request,
    clock::{self, UnixTime},
    config::Config,
    store::UserSettings,
};
use anyhow::Result;
use cug_proto::{
    hours::{HoursError, Rule},
    id::UserId,
};
use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Add a user; the password is asked for
    Add(Add),
    /// List all users
    List,
    /// Show one user
    Show(User),
    /// Disable a user: ends the session, changes the keys of the user's groups
    Disable(User),
    /// Enable a user again
    Enable(User),
    /// Change a user's password; it is asked for
    SetPassword(SetPassword),
    /// Set when an account ends, when its user may log in, and whether its password must be changed
    Set(Set),
    /// Forget wrong passwords, so that the user need not wait before the next try
    Unlock(User),
    /// Delete a user with password, memberships and cards: ends the session, changes the keys of the user's groups
    Delete(User),
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

#[derive(clap::Args)]
pub(super) struct Add {
    #[command(flatten)]
    with: WithPassword,
    /// The user must change the password at the first login
    #[arg(long)]
    must_change: bool,
    /// Last day (UTC) on which the user may log in
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = last_day)]
    expires: Option<UnixTime>,
    /// When the user may log in, as "Mon-Fri 07:00-19:00; Sat 08:00-12:00"
    #[arg(long, value_name = "HOURS", value_parser = hours)]
    hours: Option<Permitted>,
}

#[derive(clap::Args)]
pub(super) struct SetPassword {
    #[command(flatten)]
    with: WithPassword,
    /// The user must change it at the next login
    #[arg(long)]
    must_change: bool,
}

#[derive(clap::Args)]
pub(super) struct Set {
    #[command(flatten)]
    user: User,
    /// Last day (UTC) on which the user may log in, or "never" for an account that does not end
    #[arg(long, value_name = "YYYY-MM-DD|never", value_parser = last_day_or_never)]
    expires: Option<Expires>,
    /// The password must be changed at the next login, or need not be any more
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    must_change: Option<bool>,
    /// When the user may log in, as "Mon-Fri 07:00-19:00; Sat 08:00-12:00", or "always"
    #[arg(long, value_name = "HOURS|always", value_parser = hours)]
    hours: Option<Permitted>,
}

/// When a user may log in; `None` for always.
#[derive(Clone)]
struct Permitted(Option<Rule>);

fn hours(text: &str) -> Result<Permitted, HoursError> {
    if text == "always" { Ok(Permitted(None)) } else { text.parse().map(|rule| Permitted(Some(rule))) }
}

/// When an account ends.
#[derive(Clone, Copy)]
struct Expires(Option<UnixTime>);

/// The end of a day: the first second on which nobody logs in any more.
fn last_day(text: &str) -> Result<UnixTime, &'static str> {
    clock::end_of_day(text).ok_or("a date is written as 2031-12-31")
}

fn last_day_or_never(text: &str) -> Result<Expires, &'static str> {
    if text == "never" { Ok(Expires(None)) } else { last_day(text).map(|end| Expires(Some(end))) }
}

fn yes_or_no(text: &str) -> Result<bool, &'static str> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("say yes or no"),
    }
}

/// A user ID from the command line.
pub(super) fn user_id(text: &str) -> Result<UserId, &'static str> {
    text.parse().map_err(|_| "a user ID has 1 to 32 of A-Z a-z 0-9 . _ - and does not begin with . or -")
}

impl Command {
    pub(super) fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        let request = match self {
            Self::Add(add) => Request::UserAdd {
                password: prompt::new_password(add.with.password_stdin, &add.with.user.user)?,
                user: add.with.user.user,
                settings: UserSettings {
                    must_change: add.must_change.then_some(true),
                    expires: add.expires.map(Some),
                    hours: add.hours.map(|hours| hours.0),
                },
            },
            Self::SetPassword(set) => Request::UserSetPassword {
                password: prompt::new_password(set.with.password_stdin, &set.with.user.user)?,
                user: set.with.user.user,
                must_change: set.must_change,
            },
            Self::Set(set) => Request::UserSet(
                set.user.user,
                UserSettings {
                    must_change: set.must_change,
                    expires: set.expires.map(|expires| expires.0),
                    hours: set.hours.map(|hours| hours.0),
                },
            ),
            Self::Unlock(user) => Request::UserUnlock(user.user),
            Self::List => Request::UserList,
            Self::Show(user) => Request::UserDetail(user.user),
            Self::Disable(user) => Request::UserDisable(user.user),
            Self::Delete(user) => Request::UserDelete(user.user),
            Self::Enable(user) => Request::UserEnable(user.user),
            Self::Invite(invite) => return invite.run(config, output),
            Self::Invitations => return invite::list(config, output),
            Self::Uninvite(user) => return invite::uninvite(config, output, user.user),
            Self::Approve(approve) => return approve.run(config, output),
        };
        super::ask(config, output, &request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_may_be_used_until_its_last_day_is_over() {
        assert_eq!(last_day("2000-02-28"), Ok(951_782_400));
        assert_eq!(last_day_or_never("never").map(|e| e.0), Ok(None));
        for bad in [
            "",
            "2000-2-28",
            "2000-02-30",
            "28.2.2000",
            "2000-13-01",
            "2000-00-10",
            "10000-01-01",
            "2000-02-28T00:00:00Z",
            "+200-01-01",
        ] {
            assert!(last_day(bad).is_err(), "{bad}");
        }
    }
}
