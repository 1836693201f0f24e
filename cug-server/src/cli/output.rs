//! Where results go: tables for people, JSON for programs. And whether the administrator is asked first.

use super::{
    tables,
    text::{printable, printable_lines},
};
use crate::{
    admin::{Finding, Reply},
    store::{GroupInfo, MemberInfo},
};
use anyhow::Result;
use serde::Serialize;
use std::io::Write;

/// Where results go.
pub(super) struct Output {
    json: bool,
    yes: bool,
}

impl Output {
    pub(super) fn new(json: bool, yes: bool) -> Self {
        Self { json, yes }
    }

    /// The administrator said yes to everything beforehand.
    pub(super) fn agreed(&self) -> bool {
        self.yes
    }

    /// A sentence about what was done.
    pub(super) fn done(&self, sentence: &str) -> Result<()> {
        if self.json {
            self.value(&serde_json::json!({ "done": sentence }))
        } else {
            self.text(&format!("{}\n", printable(sentence)))
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
            format!("cug-server: {}\n", printable_lines(sentence))
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
            Reply::Users(users) => self.show(users, || tables::users(users)),
            Reply::User(user) => self.show(user, || tables::users(std::slice::from_ref(user))),
            Reply::Groups(groups) => self.show(groups, || tables::groups(groups)),
            Reply::Group(group, members) => {
                self.show(&GroupWithMembers { group, members }, || tables::group(group, members))
            }
            Reply::Cards(cards) => self.show(cards, || tables::cards(cards)),
            Reply::Card(fingerprint) => self.show(&serde_json::json!({ "fingerprint": fingerprint }), || {
                format!("card {fingerprint} registered\n")
            }),
            Reply::Sessions(sessions) => self.show(sessions, || tables::sessions(sessions)),
            Reply::Der(der) => self.show(der, || format!("{} bytes\n", der.len())),
            Reply::UserDetail(detail) => self.show(detail, || tables::user(detail)),
            Reply::Status(status) => self.show(status, || tables::status(status)),
        }
    }

    /// What `check` found.
    pub(super) fn findings(&self, findings: &[Finding]) -> Result<()> {
        self.show(&findings, || tables::findings(findings))
    }

    /// Text for a program, such as a shell: as it is.
    pub(super) fn raw(&self, text: &[u8]) -> Result<()> {
        match std::io::stdout().write_all(text) {
            // `| head` has seen enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    fn show(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.value(value) } else { self.text(&text()) }
    }

    fn value(&self, value: &impl Serialize) -> Result<()> {
        self.text(&format!("{}\n", serde_json::to_string_pretty(value)?))
    }

    fn text(&self, text: &str) -> Result<()> {
        self.raw(text.as_bytes())
    }
}

#[derive(Serialize)]
struct GroupWithMembers<'a> {
    #[serde(flatten)]
    group: &'a GroupInfo,
    #[serde(rename = "member_list")]
    members: &'a [MemberInfo],
}
