//! What is on the screen: drawn from the last snapshot alone.

use super::poll::News;
use crate::{
    admin::Snapshot,
    store::{EventInfo, GroupInfo, SessionInfo},
};
use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Row, Table},
};

/// State of the view.
#[derive(Default)]
pub(super) struct View {
    snapshot: Option<Box<Snapshot>>,
    /// Why the last attempt brought nothing.
    problem: Option<String>,
    /// First session that is shown.
    first: usize,
    /// Sessions that fit at the last drawing.
    page: usize,
}

impl View {
    pub(super) fn update(&mut self, news: News) {
        match news {
            Ok(snapshot) => (self.snapshot, self.problem) = (Some(snapshot), None),
            Err(problem) => self.problem = Some(problem),
        }
    }

    /// Scrolls.
    pub(super) fn key(&mut self, key: KeyEvent) {
        self.first = match key.code {
            KeyCode::Down | KeyCode::Char('j') => self.first.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.first.saturating_sub(1),
            KeyCode::PageDown => self.first.saturating_add(self.page),
            KeyCode::PageUp => self.first.saturating_sub(self.page),
            KeyCode::Home => 0,
            KeyCode::End => usize::MAX,
            _ => self.first,
        };
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let groups = self.snapshot.as_ref().map_or(0, |s| s.groups.len());
        // Of 24 lines: groups take what they need up to a third, sessions what is left, events a third.
        let third = frame.area().height / 3;
        let groups = u16::try_from(groups + 2).unwrap_or(u16::MAX).clamp(3, third.max(3));
        let [head, upper, middle, lower, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(groups),
            Constraint::Min(3),
            Constraint::Length(third.max(3)),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.head(frame, head);
        if let Some(snapshot) = &self.snapshot {
            frame.render_widget(groups_table(&snapshot.groups, upper), upper);
            // A line for the title, one for the headings.
            self.page = usize::from(middle.height.saturating_sub(2)).max(1);
            self.first = self.first.min(snapshot.sessions.len().saturating_sub(self.page));
            frame.render_widget(sessions_table(snapshot, self.first, self.page), middle);
            frame.render_widget(events_table(&snapshot.events), lower);
        }
        let keys = "q quit   up/down, PgUp/PgDn, Home/End scroll the sessions";
        frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
    }

    fn head(&self, frame: &mut Frame<'_>, area: Rect) {
        let line = match (&self.problem, &self.snapshot) {
            (Some(problem), _) => Line::styled(clean(problem), Style::new().fg(Color::Red)),
            (None, None) => Line::raw("asking the server ..."),
            (None, Some(s)) => {
                let groups = s.groups.len();
                let until = s.tls.until.get(..10).unwrap_or_default();
                let text = format!("  {groups} groups  {} attached  TLS until {until}", s.attached);
                let name = Span::styled(format!("cug-server {}", s.at), Style::new().add_modifier(Modifier::BOLD));
                Line::from(vec![name, Span::raw(text)])
            }
        };
        frame.render_widget(Paragraph::new(line), area);
    }
}

fn titled(title: String) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(title)
}

fn heading<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

fn groups_table(groups: &[GroupInfo], area: Rect) -> Table<'static> {
    let shown = usize::from(area.height.saturating_sub(2));
    let rows = groups.iter().take(shown).map(|g| {
        let epoch = g.next_epoch.map_or(g.epoch.to_string(), |next| format!("{} -> {next}", g.epoch));
        Row::new([g.group.to_string(), g.sessions.to_string(), g.members.to_string(), epoch, g.prefix4.to_string()])
    });
    let widths = [24, 9, 9, 12, 20].map(Constraint::Max);
    let title =
        if groups.len() > shown { format!(" Groups ({shown} of {}) ", groups.len()) } else { " Groups ".into() };
    Table::new(rows, widths).header(heading(["GROUP", "LOGGED IN", "MEMBERS", "EPOCH", "IPV4"])).block(titled(title))
}

fn sessions_table(snapshot: &Snapshot, first: usize, page: usize) -> Table<'static> {
    let rows = snapshot.sessions.iter().skip(first).take(page).map(session_row);
    let widths = [16, 12, 15, 15, 15, 10].map(Constraint::Max);
    let last = (first + page).min(snapshot.sessions.len());
    let title = format!(" Who sits where ({}-{last} of {}) ", (first + 1).min(last), snapshot.all_sessions);
    Table::new(rows, widths)
        .header(heading(["USER", "GROUP", "TERMINAL", "HOST", "OVERLAY", "STATE"]))
        .block(titled(title))
}

fn session_row(s: &SessionInfo) -> Row<'static> {
    Row::new([
        s.user.to_string(),
        s.group.to_string(),
        s.address.to_string(),
        s.host.to_string(),
        s.overlay4.to_string(),
        s.state.clone(),
    ])
}

fn events_table(events: &[EventInfo]) -> Table<'static> {
    let rows = events.iter().map(|e| {
        let style = if e.outcome == "refused" { Style::new().fg(Color::Red) } else { Style::new() };
        let time = e.at.get(11..19).unwrap_or(&e.at);
        let what = match e.outcome.as_str() {
            "done" => e.event.clone(),
            outcome => format!("{} {outcome}", e.event),
        };
        let whom = e.user.as_deref().unwrap_or(&e.actor);
        let why = [e.source.as_deref(), e.reason.as_deref()].into_iter().flatten().collect::<Vec<_>>().join("  ");
        Row::new([clean(time), clean(&what), clean(whom), clean(&why)]).style(style)
    });
    let widths = [Constraint::Length(8), Constraint::Max(22), Constraint::Max(16), Constraint::Fill(1)];
    Table::new(rows, widths).block(titled(" What happened (UTC, newest first) ".into()))
}

/// What comes from a terminal or another program must not move the cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{keys::TlsInfo, store::PolicyKind};
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyModifiers};

    fn snapshot(sessions: u8) -> Box<Snapshot> {
        let group = |id, name: &str| GroupInfo {
            group: name.parse().unwrap(),
            id,
            prefix4: "100.96.0.0/20".parse().unwrap(),
            prefix6: "fd00::/64".parse().unwrap(),
            epoch: 3,
            next_epoch: (id == 2).then_some(4),
            members: 12,
            sessions: 2,
            policy: PolicyKind::Open,
            allow: vec![],
        };
        let session = |n: u8| SessionInfo {
            id: "00".repeat(16),
            group: "VPN1".parse().unwrap(),
            user: format!("USER-{n}").parse().unwrap(),
            address: [10, 0, 0, n].into(),
            host: format!("terminal{n}").parse().unwrap(),
            overlay4: [100, 96, 0, n].into(),
            overlay6: "fd00::1".parse().unwrap(),
            since: "2026-01-01T00:00:00Z".into(),
            state: "up".into(),
        };
        let event = |outcome: &str, reason: &str| EventInfo {
            at: "2026-01-02T03:04:05Z".into(),
            actor: "root".into(),
            event: "login".into(),
            user: Some("USER-1".into()),
            source: Some("10.0.0.1".into()),
            outcome: outcome.into(),
            reason: Some(reason.into()),
        };
        Box::new(Snapshot {
            at: "2026-01-02T03:04:06Z".into(),
            groups: vec![group(1, "VPN1"), group(2, "VPN2")],
            sessions: (1..=sessions).map(session).collect(),
            all_sessions: sessions.into(),
            events: vec![event("refused", "wrong password"), event("granted", "terminal1\u{1b}[2J")],
            attached: 1,
            tls: TlsInfo { until: "2027-01-01T00:00:00Z".into(), until_unix: 0, key: String::new(), renews: true },
        })
    }

    fn screen(view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(line).collect()
    }

    #[test]
    fn everything_is_on_a_small_screen() {
        let mut view = View::default();
        view.update(Ok(snapshot(3)));
        let lines = screen(&mut view, 80, 24);
        let text = lines.join("\n");
        for part in [
            "2 groups  1 attached  TLS until 2027-01-01",
            "3 -> 4",
            "USER-3       VPN1         10.0.0.3       terminal3     100.96.0.3     up",
            "Who sits where (1-3 of 3)",
            "03:04:05 login refused          USER-1           10.0.0.1  wrong password",
            "q quit",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "an escape sequence got through");
    }

    #[test]
    fn sessions_scroll_and_stop_at_the_end() {
        let mut view = View::default();
        view.update(Ok(snapshot(200)));
        screen(&mut view, 80, 24);
        let press = |view: &mut View, code| view.key(KeyEvent::new(code, KeyModifiers::NONE));
        press(&mut view, KeyCode::End);
        assert!(screen(&mut view, 80, 24).join("\n").contains("USER-200"));
        press(&mut view, KeyCode::Up);
        let text = screen(&mut view, 80, 24).join("\n");
        assert!(text.contains("USER-199") && !text.contains("USER-200"));
        press(&mut view, KeyCode::Home);
        assert!(screen(&mut view, 80, 24).join("\n").contains("USER-1 "));
    }

    #[test]
    fn any_size_and_any_news_are_drawn() {
        let mut view = View::default();
        for (width, height) in [(1, 1), (3, 5), (20, 8), (300, 100)] {
            screen(&mut view, width, height);
            view.update(Ok(snapshot(50)));
            screen(&mut view, width, height);
            view.update(Err("no server runs".into()));
            let lines = screen(&mut view, width, height);
            assert!(width < 20 || lines[0].contains("no server runs"));
        }
    }
}
