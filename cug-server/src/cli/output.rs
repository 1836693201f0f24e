//! Where results go: tables for people, JSON for programs. And whether the administrator is asked first.

use super::{
    invite, tables,
    text::{printable, printable_lines, table},
};
use crate::{
    admin::{Finding, Reply},
    keys::TlsInfo,
    store::{AuditRow, GroupInfo, MemberInfo},
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

    /// Whether programs read it.
    pub(super) fn is_json(&self) -> bool {
        self.json
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
            Reply::Audit(rows) => self.audit(rows, true),
            Reply::AuditVerdict(verdict) => self.show(verdict, || format!("{verdict:?}\n")),
            Reply::Export(export) => self.value(export),
            Reply::BadLines(problems) => {
                for one in problems {
                    self.error(&format!("line {}: {}", one.line, one.problem));
                }
                let lines = problems.len();
                self.error(&format!(
                    "nothing was imported: {lines} {}",
                    if lines == 1 { "problem" } else { "problems" }
                ));
                Ok(())
            }
            Reply::Progress { done, total } => self.done(&format!("{done} of {total}")),
            Reply::Der(der) => self.show(der, || format!("{} bytes\n", der.len())),
            Reply::UserDetail(detail) => self.show(detail, || tables::user(detail)),
            Reply::Status(status) => self.show(status, || tables::status(status)),
            Reply::Pem(pem) => self.show(&serde_json::json!({ "pem": pem }), || pem.clone()),
            Reply::Tls(tls) => self.show(tls, || tls_text(tls)),
            Reply::Snapshot(snapshot) => self.show(snapshot, || tables::sessions(&snapshot.sessions)),
            Reply::Invited(invited) => self.show(invited, || invite::invited_text(invited)),
            Reply::Invitations(all) => self.show(all, || table(invite::HEAD, all.iter().map(invite::row))),
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

    /// Rows of the audit: JSON a line each, or a table whose head is printed with the first rows only.
    pub(super) fn audit(&self, rows: &[AuditRow], with_head: bool) -> Result<()> {
        if self.json {
            let lines = rows.iter().map(|row| Ok(format!("{}\n", serde_json::to_string(row)?)));
            return self.text(&lines.collect::<Result<String>>()?);
        }
        self.text(&audit_table(rows, with_head))
    }

    pub(super) fn show(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.value(value) } else { self.text(&text()) }
    }

    pub(super) fn value(&self, value: &impl Serialize) -> Result<()> {
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

fn tls_text(tls: &TlsInfo) -> String {
    let renewal = if tls.renews { "renewed by itself" } else { "the CA's key is not on this host: see `tls request`" };
    format!("valid until {}; {renewal}\nkey {}\n", tls.until, tls.key)
}

/// Fixed widths, because `--follow` does not know what comes. The card's fingerprint is cut to what `card revoke` takes.
fn audit_table(rows: &[AuditRow], with_head: bool) -> String {
    let line = |[time, actor, event, user, outcome, source, card, reason]: [&str; 8]| {
        let text =
            format!("{time:20}  {actor:12}  {event:18}  {user:12}  {outcome:7}  {source:15}  {card:12}  {reason}");
        format!("{}\n", text.trim_end())
    };
    let head = with_head.then(|| line(["TIME", "BY", "EVENT", "USER", "OUTCOME", "FROM", "CARD", "REASON"]));
    let rows = rows.iter().map(|row| {
        let plain = |text: &Option<String>| text.as_deref().map_or("-".into(), |text| printable(text).into_owned());
        let card: String = plain(&row.card).chars().take(12).collect();
        line([
            &row.time,
            &printable(&row.actor),
            &printable(&row.event),
            &plain(&row.user),
            &printable(&row.outcome),
            &plain(&row.source),
            &card,
            &plain(&row.reason),
        ])
    });
    head.into_iter().chain(rows).collect()
}
