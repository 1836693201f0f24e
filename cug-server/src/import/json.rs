//! JSON. Each user and each group is parsed by itself, so that one that is wrong does not hide the next.

use super::{Lines, group, problem, settings, user};
use crate::store::{Directory, DirectoryGroup, DirectoryUser, LineProblem};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    #[serde(default, rename = "format")]
    _format: Option<IgnoredAny>,
    #[serde(borrow, default)]
    groups: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    users: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    group: String,
    prefix4: Option<Ipv4Net>,
    prefix6: Option<Ipv6Net>,
}

/// What an export says of a user; cards and passwords are not imported.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    user: String,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    expires: String,
    #[serde(default)]
    hours: String,
    #[serde(default, rename = "cards")]
    _cards: Option<IgnoredAny>,
    #[serde(default, rename = "password_hash")]
    _password_hash: Option<IgnoredAny>,
}

pub(super) fn parse(text: &str, problems: &mut Vec<LineProblem>) -> Directory {
    let mut directory = Directory::default();
    let file: File<'_> = match serde_json::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            problems.push(problem(
                u64::try_from(error.line().max(1)).unwrap_or(1),
                format!("is not as it should be: {error}"),
            ));
            return directory;
        }
    };
    let mut lines = Lines::new(text);
    let offset = |part: &str| (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    for raw in file.groups {
        let line = lines.at(offset(raw.get()));
        match one_group(raw.get(), line) {
            Ok(group) => directory.groups.push(group),
            Err(sentence) => problems.push(problem(line, sentence)),
        }
    }
    for raw in file.users {
        let line = lines.at(offset(raw.get()));
        match one_user(raw.get(), line) {
            Ok(user) => directory.users.push(user),
            Err(sentences) => problems.extend(sentences.into_iter().map(|s| problem(line, s))),
        }
    }
    directory
}

fn one_group(raw: &str, line: u64) -> Result<DirectoryGroup, String> {
    let raw: Group = serde_json::from_str(raw).map_err(|e| plain(&e))?;
    Ok(DirectoryGroup { line, group: group(&raw.group)?, prefix4: raw.prefix4, prefix6: raw.prefix6 })
}

fn one_user(raw: &str, line: u64) -> Result<DirectoryUser, Vec<String>> {
    let raw: User = serde_json::from_str(raw).map_err(|e| vec![plain(&e)])?;
    let mut wrong = Vec::new();
    let user = user(&raw.user).map_err(|s| wrong.push(s));
    let mut groups = Vec::new();
    for name in &raw.groups {
        match group(name) {
            Ok(group) => groups.push(group),
            Err(sentence) => wrong.push(sentence),
        }
    }
    let settings = settings(&raw.expires, &raw.hours, &mut wrong);
    match user {
        Ok(user) if wrong.is_empty() => Ok(DirectoryUser { line, user, disabled: raw.disabled, groups, settings }),
        _ => Err(wrong),
    }
}

/// Without the position, which is relative to the part.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    text.get(..end).unwrap_or(&text).to_owned()
}
