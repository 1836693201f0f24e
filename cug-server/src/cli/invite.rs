//! `user invite`, `user approve`, ...: enrolment by the users themselves.

use super::{group::group_name, output::Output, user::user_id};
use crate::{
    admin::{EnrolRequest, Invited, LONGEST_INVITATION, Request},
    config::Config,
    store::InvitationInfo,
};
use anyhow::Result;
use cug_proto::id::{GroupName, UserId};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Invite {
    /// User ID; need not be added before
    #[arg(value_parser = user_id)]
    user: UserId,
    /// A group that the user joins by enrolling; may be given several times
    #[arg(long = "group", value_name = "GROUP", value_parser = group_name)]
    groups: Vec<GroupName>,
    /// How long the code works: a number with m, h or d
    #[arg(long, value_name = "TIME", default_value = "3d", value_parser = seconds)]
    expires: u32,
    /// The card stays without effect until `user approve`
    #[arg(long)]
    approve: bool,
    /// The new card replaces the user's older ones: they are revoked when it is enrolled
    #[arg(long)]
    replace: bool,
}

#[derive(clap::Args)]
pub(super) struct Approve {
    /// User ID
    #[arg(value_parser = user_id)]
    user: UserId,
    /// Approve only the card whose fingerprint begins so: as the user read it at the terminal
    #[arg(long, value_name = "FINGERPRINT")]
    card: Option<String>,
}

impl Invite {
    pub(super) fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        let Self { user, groups, expires, approve, replace } = self;
        ask(config, output, EnrolRequest::Invite { user, groups, expires_in: expires, approve, replace })
    }
}

impl Approve {
    pub(super) fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        ask(config, output, EnrolRequest::Approve { user: self.user, card: self.card })
    }
}

pub(super) fn uninvite(config: &Config, output: &Output, user: UserId) -> Result<ExitCode> {
    ask(config, output, EnrolRequest::Uninvite(user))
}

pub(super) fn list(config: &Config, output: &Output) -> Result<ExitCode> {
    ask(config, output, EnrolRequest::Invitations)
}

fn ask(config: &Config, output: &Output, request: EnrolRequest) -> Result<ExitCode> {
    super::ask(config, output, &Request::Enrol(request))
}

/// "3d", "12h", "90m".
fn seconds(text: &str) -> Result<u32, String> {
    let wrong = || "not a time such as 3d, 12h or 90m".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let factor = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u32>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)?;
    match seconds {
        0 => Err("a code must work for a while".into()),
        s if s > LONGEST_INVITATION => Err("a code may work for 90 days at most".into()),
        s => Ok(s),
    }
}

/// What the administrator gives to the user.
pub(super) fn invited_text(invited: &Invited) -> String {
    format!(
        "code for user {}: {}\nIt works once, until {}, at any terminal: cugctl enrol --user {}\n",
        invited.user,
        invited.code.expose(),
        invited.expires,
        invited.user
    )
}

pub(super) const HEAD: [&str; 9] =
    ["USER", "STATE", "GROUPS", "EXPIRES", "APPROVAL", "ENROLLED", "HOST", "TERMINAL", "CARD"];

pub(super) fn row(info: &InvitationInfo) -> [String; 9] {
    let dash = || "-".to_owned();
    let groups: Vec<_> = info.groups.iter().map(GroupName::as_str).collect();
    let card = info.fingerprint.as_ref().map(|fingerprint| {
        let kind = info.kind.as_deref().unwrap_or_default();
        info.bits.map_or(fingerprint.clone(), |bits| format!("{fingerprint} ({kind}, {bits})"))
    });
    [
        info.user.to_string(),
        info.state.clone(),
        if groups.is_empty() { dash() } else { groups.join(",") },
        info.expires.clone(),
        if info.approve { "required".into() } else { dash() },
        info.enrolled.clone().unwrap_or_else(dash),
        info.host.as_ref().map_or_else(dash, ToString::to_string),
        info.address.as_ref().map_or_else(dash, ToString::to_string),
        card.unwrap_or_else(dash),
    ]
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_are_read() {
        assert_eq!((seconds("3d"), seconds("12h"), seconds("90m")), (Ok(259_200), Ok(43_200), Ok(5400)));
        for bad in ["", "d", "3", "3s", "-1d", "0h", "91d", "99999999999d", "3 d", "\u{e4}", "3\u{e4}"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
