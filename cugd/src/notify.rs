//! What of all that happens is worth a notification on the desktop, and how often. No I/O: `cugctl notify` is the edge. It runs as the user whose
//! desktop it is: the daemon, which is root, never connects to a user's bus.

use std::time::Duration;

use cug_proto::notice::{Happening, Notice, SessionEnd};

/// A notification (freedesktop.org's Desktop Notifications Specification).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// One line.
    pub summary: String,
    /// The rest; markup, so what is no letter of an ID is escaped.
    pub body: String,
    /// The session is over: not to be missed.
    pub urgent: bool,
}

/// The notification for a notice, if it deserves one.
pub fn note(notice: &Notice) -> Option<Note> {
    let calm = |summary: String, body: String| Some(Note { summary, body: escape(&body), urgent: false });
    match &notice.what {
        Happening::MemberJoined { group, seat } => {
            calm(format!("{} joined {group}", seat.member), format!("at {}", seat.host_name))
        }
        Happening::MemberLeft { group, member } => calm(format!("{member} left {group}"), String::new()),
        Happening::GroupJoined { group } => calm(format!("You are now a member of {group}"), String::new()),
        Happening::GroupLeft { group } => calm(format!("You are no longer a member of {group}"), String::new()),
        Happening::WaitBegan { minutes } => calm(
            "The closed group is closed for now".to_owned(),
            format!(
                "The management server cannot be reached. It opens by itself within {minutes} minutes while your card stays inserted."
            ),
        ),
        Happening::WaitEnded { reason } => {
            Some(Note { summary: "The closed group stays closed".to_owned(), body: escape(reason), urgent: true })
        }
        Happening::SessionDown { reason, elsewhere, .. } => {
            let body = match (reason, elsewhere) {
                (SessionEnd::Displaced, Some(host)) => {
                    format!("You logged in at {host}. If that was not you, tell the administrator.")
                }
                (SessionEnd::Displaced, None) => {
                    "You logged in at another terminal. If that was not you, tell the administrator.".to_owned()
                }
                (SessionEnd::CardRemoved, _) => {
                    "The card was removed. Log in or unlock with it to come back.".to_owned()
                }
                (SessionEnd::Removed, _) => "The administrator ended the session.".to_owned(),
                (SessionEnd::Expired, _) => "Your account has expired; ask the administrator.".to_owned(),
                (SessionEnd::OutsideHours, _) => "The hours at which you may be logged in have ended.".to_owned(),
                (SessionEnd::LeaseOver, _) => "The management server was away for too long. Log in again.".to_owned(),
                (SessionEnd::TunnelFailed, _) => {
                    "The tunnel failed. Log in again, or ask the administrator.".to_owned()
                }
                (SessionEnd::Slept, _) => "The computer slept. Unlock with card and password to come back.".to_owned(),
                (SessionEnd::Stopped, _) => "The VPN service was stopped.".to_owned(),
                (SessionEnd::LoggedOut | SessionEnd::Replaced, _) => return None,
            };
            Some(Note { summary: "The closed group is closed".to_owned(), body: escape(&body), urgent: true })
        }
        Happening::SessionUp
        | Happening::MemberMoved { .. }
        | Happening::NewEpoch { .. }
        | Happening::ChannelLost { .. }
        | Happening::ChannelBack { .. } => None,
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Notifications that may come at once.
const BURST: u32 = 5;
/// Then one in this time.
const PACE: Duration = Duration::from_secs(10);

/// Keeps a busy group from filling the screen. The end of a session always passes.
pub struct Pace {
    left: u32,
    /// From when the next one is counted.
    from: Duration,
    held_back: u32,
}

impl Pace {
    /// A full burst, at `now` (any clock that does not go back).
    pub fn new(now: Duration) -> Self {
        Self { left: BURST, from: now, held_back: 0 }
    }

    /// The notification to show for `note`, if any now. The first after a pause says how many were left out.
    pub fn pass(&mut self, now: Duration, mut note: Note) -> Option<Note> {
        let earned = now.saturating_sub(self.from).as_secs() / PACE.as_secs();
        if earned > 0 {
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(BURST);
            self.from = now;
        }
        if !note.urgent {
            if self.left == 0 {
                self.held_back = self.held_back.saturating_add(1);
                return None;
            }
            self.left -= 1;
        }
        if self.held_back > 0 {
            let gap = if note.body.is_empty() { "" } else { " " };
            note.body = format!("{}{gap}({} more changes; see cugctl peers)", note.body, self.held_back);
            self.held_back = 0;
        }
        Some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cug_proto::notice::Seat;

    fn joined(n: u32) -> Notice {
        let seat = Seat {
            member: format!("USER-{n}").parse().unwrap(),
            host_name: "ward-3".parse().unwrap(),
            endpoint: None,
            address4: [10, 0, 0, 1].into(),
            address6: "::1".parse().unwrap(),
        };
        let what = Happening::MemberJoined { group: "VPN1".parse().unwrap(), seat };
        Notice { user: "USER-A".parse().unwrap(), what }
    }

    fn down(reason: SessionEnd) -> Notice {
        let what = Happening::SessionDown { reason, detail: "<b>\x07".into(), elsewhere: None };
        Notice { user: "USER-A".parse().unwrap(), what }
    }

    #[test]
    fn joining_and_the_end_are_shown_and_nothing_foreign_in_them() {
        let note_of_join = note(&joined(7)).unwrap();
        assert_eq!((note_of_join.summary.as_str(), note_of_join.body.as_str()), ("USER-7 joined VPN1", "at ward-3"));
        let note_of_end = note(&down(SessionEnd::Displaced)).unwrap();
        assert!(note_of_end.urgent && !note_of_end.body.contains('<'));
        assert_eq!(note(&down(SessionEnd::LoggedOut)), None);
        assert_eq!(escape("<a & \x1bb>"), "&lt;a &amp;  b&gt;");
    }

    #[test]
    fn a_busy_group_does_not_fill_the_screen() {
        let start = Duration::from_secs(100);
        let mut pace = Pace::new(start);
        let mut show = |at: u64, notice: &Notice| pace.pass(start + Duration::from_secs(at), note(notice).unwrap());
        assert_eq!((0..50).filter(|n| show(0, &joined(*n)).is_some()).count(), 5);
        let end = show(1, &down(SessionEnd::CardRemoved)).expect("the end always passes");
        assert!(end.body.ends_with("(45 more changes; see cugctl peers)"), "{}", end.body);
        assert!(show(2, &joined(60)).is_none());
        let later = show(11, &joined(61)).expect("one in ten seconds");
        assert!(later.body.ends_with("(1 more changes; see cugctl peers)"));
        assert_eq!((0..50).filter(|n| show(1000, &joined(*n)).is_some()).count(), 5);
    }
}
