//! What the administrator sees of each reply. Tables fit into 80 columns with names of usual length.

use super::text::{day, list, minute, recent, table};
use crate::{
    admin::{Finding, StatusInfo, UserDetail, Verdict},
    store::{CardInfo, GroupInfo, MemberInfo, PolicyKind, SessionInfo, UserInfo},
};

/// Digits of a card's fingerprint in a table; enough for `card revoke`.
const FINGERPRINT: usize = 16;

pub(super) fn users(users: &[UserInfo]) -> String {
    let rows = users.iter().map(|u| {
        let groups: Vec<_> = u.groups.iter().map(|g| g.as_str()).collect();
        let state = if u.disabled { "disabled" } else { "enabled" };
        [
            u.user.to_string(),
            state.into(),
            or_dash(&groups.join(",")),
            u.cards.to_string(),
            maybe(u.address.as_ref()),
            day(&u.created),
        ]
    });
    table(["USER", "STATE", "GROUPS", "CARDS", "TERMINAL", "CREATED"], rows)
}

pub(super) fn user(detail: &UserDetail) -> String {
    let mut text = users(std::slice::from_ref(&detail.user));
    if detail.user.wrong_passwords > 0 {
        text += &format!("\nwrong passwords since the last right one: {}\n", detail.user.wrong_passwords);
    }
    if let Some(hours) = &detail.user.hours {
        text += &format!("\nmay log in: {hours}\n");
    }
    for part in [
        (!detail.card_list.is_empty()).then(|| cards(&detail.card_list)),
        (!detail.session_list.is_empty()).then(|| sessions(&detail.session_list)),
    ]
    .into_iter()
    .flatten()
    {
        text = format!("{text}\n{part}");
    }
    text
}

pub(super) fn groups(groups: &[GroupInfo]) -> String {
    let rows = groups.iter().map(|g| {
        let epoch = g.next_epoch.map_or(g.epoch.to_string(), |next| format!("{} -> {next}", g.epoch));
        [
            g.group.to_string(),
            g.prefix4.to_string(),
            g.prefix6.to_string(),
            epoch,
            g.members.to_string(),
            g.sessions.to_string(),
            g.policy.as_str().into(),
        ]
    });
    table(["GROUP", "IPV4", "IPV6", "EPOCH", "MEMBERS", "ONLINE", "POLICY"], rows)
}

pub(super) fn group(group: &GroupInfo, members: &[MemberInfo]) -> String {
    let mut text = groups(std::slice::from_ref(group));
    text += match group.policy {
        PolicyKind::Open => "\npolicy: open (members reach everything besides the group)\n",
        PolicyKind::Closed => "\npolicy: closed (members reach the group, the management servers and the exceptions)\n",
    };
    if !group.allow.is_empty() {
        let networks: Vec<_> = group.allow.iter().map(ToString::to_string).collect();
        text += match group.policy {
            PolicyKind::Open => "exceptions (they count once the group is closed):\n",
            PolicyKind::Closed => "exceptions:\n",
        };
        text += &networks.iter().map(|network| format!("  {network}\n")).collect::<String>();
    }
    if !members.is_empty() {
        text = format!("{text}\n{}", member_table(members));
    }
    text
}

fn member_table(members: &[MemberInfo]) -> String {
    let rows = members.iter().map(|m| {
        [m.user.to_string(), m.overlay4.to_string(), m.overlay6.to_string(), maybe(m.address.as_ref()), day(&m.since)]
    });
    table(["USER", "OVERLAY IPV4", "OVERLAY IPV6", "TERMINAL", "MEMBER SINCE"], rows)
}

pub(super) fn cards(cards: &[CardInfo]) -> String {
    let rows = cards.iter().map(|c| {
        let state = c.revoked.as_ref().map_or("valid".into(), |at| format!("revoked {}", day(at)));
        let fingerprint = c.fingerprint.get(..FINGERPRINT).unwrap_or(&c.fingerprint);
        [fingerprint.to_owned(), c.user.to_string(), c.bits.to_string(), c.kind.clone(), day(&c.issued), state]
    });
    table(["FINGERPRINT", "USER", "BITS", "KIND", "ISSUED", "STATE"], rows)
}

pub(super) fn sessions(sessions: &[SessionInfo]) -> String {
    let rows = sessions.iter().map(|s| {
        [
            s.group.to_string(),
            s.user.to_string(),
            s.address.to_string(),
            s.host.to_string(),
            s.overlay4.to_string(),
            recent(&s.since),
            s.state.clone(),
        ]
    });
    table(["GROUP", "USER", "TERMINAL", "HOST", "OVERLAY", "SINCE (UTC)", "STATE"], rows)
}

pub(super) fn status(status: &StatusInfo) -> String {
    let none = || "-".to_owned();
    let store = &status.store;
    let rotating = if store.rotating == 0 { String::new() } else { format!(" ({} change keys)", store.rotating) };
    list(&[
        ("server", if status.running { "running".into() } else { "not running".into() }),
        ("version", status.version.clone()),
        ("uptime", status.uptime_seconds.map_or_else(none, duration)),
        ("listens on", status.listen.join(", ")),
        ("sessions", store.sessions.to_string()),
        ("attached terminals", status.attached_terminals.map_or_else(none, |n| n.to_string())),
        ("users", store.users.to_string()),
        ("groups", format!("{}{rotating}", store.groups)),
        ("valid cards", store.cards.to_string()),
        ("TLS certificate until", status.tls_certificate_expires.as_deref().map_or_else(none, day)),
        ("CA certificate until", status.ca_expires.as_deref().map_or_else(none, day)),
        ("database", format!("{}, {} KiB", status.database.display(), status.database_bytes.div_ceil(1024))),
        ("last backup", store.last_backup.as_deref().map_or_else(|| "none that is known".into(), minute)),
    ])
}

pub(super) fn findings(findings: &[Finding]) -> String {
    let rows = findings.iter().map(|f| {
        let verdict = match f.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "WARNING",
            Verdict::Failed => "FAILED",
        };
        [verdict.to_owned(), f.item.clone(), f.text.clone()]
    });
    table(["RESULT", "WHAT", "HOW IT IS"], rows)
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn maybe(value: Option<&impl ToString>) -> String {
    value.map_or("-".into(), ToString::to_string)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_fit_into_80_columns() {
        let session = SessionInfo {
            id: "0".repeat(32),
            group: "WARD-3".parse().unwrap(),
            user: "USER-AB".parse().unwrap(),
            address: "192.168.112.134".parse().unwrap(),
            host: "terminal-12".parse().unwrap(),
            overlay4: "100.96.0.12".parse().unwrap(),
            overlay6: "fd00::1".parse().unwrap(),
            since: "2026-01-31T23:59:58Z".into(),
            state: "up".into(),
        };
        assert!(sessions(&[session]).lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn an_uptime_is_readable() {
        for (seconds, text) in [(7, "7 s"), (61, "1 min"), (7260, "2 h 1 min"), (266_400, "3 d 2 h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
