//! Before something is ended or deleted: what that is, and a question.

use super::{output::Output, text::printable};
use crate::{
    admin::{self, Reply, Request},
    config::Config,
    store::SessionInfo,
};
use anyhow::{Result, bail};
use std::{
    fmt::Write as _,
    io::{BufRead, IsTerminal, Write},
};

/// Sessions that are named one by one.
const NAMED: usize = 10;

/// Asks, where the request ends or deletes something that cannot be had back as it was. `--yes` answers beforehand; without a terminal
/// nobody can, and the request is not made.
///
/// # Errors
/// The answer was no, or nobody could give one, or what the request names is not there.
pub(super) fn confirm(config: &Config, output: &Output, request: &Request) -> Result<()> {
    let Some(what) = what(request) else { return Ok(()) };
    if output.agreed() {
        return Ok(());
    }
    exists(config, request)?;
    let mut text = format!("{what}\n");
    text += &ends(&sessions(config, request)?);
    if !std::io::stdin().is_terminal() {
        bail!("{text}there is no terminal to ask on: give --yes to do it without being asked");
    }
    let mut ask = std::io::stderr().lock();
    ask.write_all(format!("{text}Go on? [y/N] ").as_bytes())?;
    ask.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was changed"),
    }
}

/// What the request does, if it is one to ask about. Locks out or deletes: asked. Only changes a key or a policy: not, it can be changed back.
fn what(request: &Request) -> Option<String> {
    Some(match request {
        Request::UserDisable(user) => format!("User {user} cannot log in any more, until enabled again."),
        Request::UserDelete(user) => format!("User {user} is deleted with password, memberships and cards, for ever."),
        Request::GroupLeave(group, user) => format!("User {user} is no longer a member of group {group}."),
        Request::GroupDelete(group) => format!("Group {group} is deleted with its keys and memberships, for ever."),
        Request::CardRevoke(card) => format!("The card {} is revoked, for ever.", printable(card)),
        Request::SessionEnd(user) => format!("User {user} is thrown out, and may log in again."),
        Request::SessionEndNumber(number) => {
            format!("The user of session {} is thrown out, and may log in again.", printable(number))
        }
        _ => return None,
    })
}

/// A question about something that is not there would be a wrong one.
fn exists(config: &Config, request: &Request) -> Result<()> {
    let look = match request {
        Request::UserDisable(user) | Request::UserDelete(user) | Request::SessionEnd(user) => {
            Request::UserShow(user.clone())
        }
        Request::GroupLeave(group, _) | Request::GroupDelete(group) => Request::GroupShow(group.clone()),
        _ => return Ok(()),
    };
    match admin::ask(config, &look)? {
        Reply::Refused(sentence) => bail!(sentence),
        _ => Ok(()),
    }
}

/// The sessions that the request ends, or takes a group from: one row for each of their groups.
fn sessions(config: &Config, request: &Request) -> Result<Vec<SessionInfo>> {
    let owner = match request {
        Request::CardRevoke(prefix) => match admin::ask(config, &Request::CardList(None))? {
            Reply::Cards(cards) => {
                let prefix = prefix.to_ascii_lowercase();
                cards.into_iter().find(|c| c.fingerprint.starts_with(&prefix)).map(|c| c.user)
            }
            _ => None,
        },
        _ => None,
    };
    let Reply::Sessions(all) = admin::ask(config, &Request::SessionList)? else {
        bail!("the sessions cannot be listed")
    };
    let concerned = |s: &SessionInfo| match request {
        Request::UserDisable(user) | Request::UserDelete(user) | Request::SessionEnd(user) => s.user == *user,
        Request::GroupLeave(group, user) => s.group == *group && s.user == *user,
        Request::GroupDelete(group) => s.group == *group,
        Request::CardRevoke(_) => owner.as_ref() == Some(&s.user),
        Request::SessionEndNumber(prefix) => s.id.starts_with(&prefix.to_ascii_lowercase()),
        _ => false,
    };
    Ok(all.into_iter().filter(concerned).collect())
}

fn ends(sessions: &[SessionInfo]) -> String {
    if sessions.is_empty() {
        return "No session is concerned.\n".into();
    }
    let mut text = String::from("This takes the tunnel from:\n");
    for s in sessions.iter().take(NAMED) {
        let host = s.host.to_string();
        let _always_fits = writeln!(text, "  {} at {} ({}), group {}", s.user, printable(&host), s.address, s.group);
    }
    if let Some(more) = sessions.len().checked_sub(NAMED).filter(|n| *n > 0) {
        let _always_fits = writeln!(text, "  and {more} more");
    }
    text
}
