//! What the administrator sees: tables for people, JSON for programs.

use super::invite;
use crate::{
    admin::Reply,
    store::{CardInfo, GroupInfo, MemberInfo, SessionInfo, UserInfo},
};
use anyhow::Result;
use serde::Serialize;
use std::io::Write;

/// Where results go.
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// A sentence about what was done.
    pub(super) fn done(&self, sentence: &str) -> Result<()> {
        if self.json {
            self.value(&serde_json::json!({ "done": sentence }))
        } else {
            self.text(&format!("{sentence}\n"))
        }
    }

    /// The lines of a terminal's configuration. A JSON string or array of strings is also a TOML one.
    pub(super) fn terminal_config(&self, servers: &[String], ca_pin: &str) -> Result<()> {
        let (servers, pins) = (serde_json::json!(servers), serde_json::json!([ca_pin]));
        if self.json {
            return self.value(&serde_json::json!({ "servers": servers, "ca-pins": pins }));
        }
        self.text(&format!("servers = {servers}\nca-pins = {pins}\n"))
    }

    /// A sentence about what went wrong, on standard error.
    pub(super) fn error(&self, sentence: &str) {
        let line = if self.json {
            format!("{}\n", serde_json::json!({ "error": sentence }))
        } else {
            format!("cug-server: {sentence}\n")
        };
        // A standard error that is closed is nobody who reads.
        let _closed = std::io::stderr().write_all(line.as_bytes());
    }

    /// What came back.
    pub(super) fn reply(&self, reply: &Reply) -> Result<()> {
        match reply {
            Reply::Done(sentence) => self.done(sentence),
            Reply::Refused(sentence) => {
                self.error(sentence);
                Ok(())
            }
            Reply::Users(users) => self.show(users, || users_table(users)),
            Reply::User(user) => self.show(user, || users_table(std::slice::from_ref(user))),
            Reply::Groups(groups) => self.show(groups, || groups_table(groups)),
            Reply::Group(group, members) => self.show(&GroupWithMembers { group, members }, || {
                format!("{}\n{}", groups_table(std::slice::from_ref(group)), members_table(members))
            }),
            Reply::Cards(cards) => self.show(cards, || cards_table(cards)),
            Reply::Card(fingerprint) => self.show(&serde_json::json!({ "fingerprint": fingerprint }), || {
                format!("card {fingerprint} registered\n")
            }),
            Reply::Sessions(sessions) => self.show(sessions, || sessions_table(sessions)),
            Reply::Der(der) => self.show(der, || format!("{} bytes\n", der.len())),
            Reply::Invited(invited) => self.show(invited, || invite::invited_text(invited)),
            Reply::Invitations(all) => self.show(all, || table(invite::HEAD, all.iter().map(invite::row))),
        }
    }

    fn show(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.value(value) } else { self.text(&text()) }
    }

    fn value(&self, value: &impl Serialize) -> Result<()> {
        self.text(&format!("{}\n", serde_json::to_string_pretty(value)?))
    }

    fn text(&self, text: &str) -> Result<()> {
        match std::io::stdout().write_all(text.as_bytes()) {
            // `| head` has seen enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }
}

#[derive(Serialize)]
struct GroupWithMembers<'a> {
    #[serde(flatten)]
    group: &'a GroupInfo,
    #[serde(rename = "member_list")]
    members: &'a [MemberInfo],
}

fn users_table(users: &[UserInfo]) -> String {
    let rows = users.iter().map(|u| {
        let groups: Vec<_> = u.groups.iter().map(|g| g.as_str()).collect();
        let state = if u.disabled { "disabled" } else { "enabled" };
        [
            u.user.to_string(),
            state.into(),
            or_dash(&groups.join(",")),
            u.cards.to_string(),
            maybe(u.address.as_ref()),
            u.created.clone(),
        ]
    });
    table(["USER", "STATE", "GROUPS", "CARDS", "TERMINAL", "CREATED"], rows)
}

fn groups_table(groups: &[GroupInfo]) -> String {
    let rows = groups.iter().map(|g| {
        let epoch = g.next_epoch.map_or(g.epoch.to_string(), |next| format!("{} -> {next}", g.epoch));
        [
            g.group.to_string(),
            g.prefix4.to_string(),
            g.prefix6.to_string(),
            epoch,
            g.members.to_string(),
            g.sessions.to_string(),
        ]
    });
    table(["GROUP", "IPV4", "IPV6", "EPOCH", "MEMBERS", "LOGGED IN"], rows)
}

fn members_table(members: &[MemberInfo]) -> String {
    let rows = members.iter().map(|m| {
        [m.user.to_string(), m.overlay4.to_string(), m.overlay6.to_string(), maybe(m.address.as_ref()), m.since.clone()]
    });
    table(["USER", "OVERLAY IPV4", "OVERLAY IPV6", "TERMINAL", "MEMBER SINCE"], rows)
}

fn cards_table(cards: &[CardInfo]) -> String {
    let rows = cards.iter().map(|c| {
        let state = c.revoked.as_ref().map_or("valid".into(), |at| format!("revoked {at}"));
        [c.fingerprint.clone(), c.user.to_string(), c.bits.to_string(), c.kind.clone(), c.issued.clone(), state]
    });
    table(["FINGERPRINT", "USER", "BITS", "KIND", "ISSUED", "STATE"], rows)
}

fn sessions_table(sessions: &[SessionInfo]) -> String {
    let rows = sessions.iter().map(|s| {
        let overlay4 = s.overlay4.to_string();
        [
            s.group.to_string(),
            s.user.to_string(),
            s.address.to_string(),
            s.host.to_string(),
            overlay4,
            s.since.clone(),
            s.state.clone(),
        ]
    });
    table(["GROUP", "USER", "TERMINAL", "HOST", "OVERLAY", "SINCE", "STATE"], rows)
}

fn maybe(value: Option<&impl ToString>) -> String {
    value.map_or("-".into(), ToString::to_string)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// Columns as wide as their widest cell. All cells are names, numbers and times that were checked: nothing can garble a terminal.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_table_is_aligned() {
        let rows = [["USER-A".to_owned(), "1".to_owned()], ["B".to_owned(), "22".to_owned()]];
        assert_eq!(super::table(["USER", "N"], rows.into_iter()), "USER    N\nUSER-A  1\nB       22\n");
    }
}
