//! What the audience sees.

use crate::matrix::Matrix;
use crate::report::Report;
use cug_tests::server::Session;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Column in which the times stand.
const WIDTH: usize = 74;

/// Standard output, in colour where that is welcome.
pub struct Screen {
    colour: bool,
}

impl Screen {
    /// Colour on a terminal, unless `NO_COLOR` is set.
    pub fn new() -> Self {
        Self { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A line.
    pub fn line(&self, text: &str) {
        println!("{text}");
    }

    /// What this is.
    pub fn title(&self) {
        self.line("");
        self.line(&self.paint("1", "  A VPN that belongs to the person, not to the machine"));
        self.line("  The worked example of JP 2000-59357 (1998), with real parts: PAM logins, smart cards behind");
        self.line("  pcscd, TLS to one management server, WireGuard between four workstations.");
        self.line("  Everything runs in namespaces of this machine and leaves nothing behind.");
        self.line("");
    }

    /// A new part of the story.
    pub fn heading(&self, text: &str) {
        self.line("");
        self.line(&self.paint("1;36", &format!("  {text}")));
    }

    /// Does something that takes a moment, and says how long it took.
    pub fn step<T>(
        &self,
        what: &str,
        report: &mut Report,
        work: impl FnOnce(&mut Report) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        print!("  {what} ");
        let _ = std::io::stdout().flush();
        let started = Instant::now();
        let result = work(report);
        let took = started.elapsed();
        let dots = ".".repeat(WIDTH.saturating_sub(what.chars().count()));
        match &result {
            Ok(_) => self.line(&format!("{} {}", self.paint("2", &dots), time(took))),
            Err(_) => self.line(&format!("{} {}", self.paint("2", &dots), self.paint("1;31", "failed"))),
        }
        report.step(what, took);
        result
    }

    /// Something was checked and is right.
    pub fn good(&self, text: &str) {
        self.line(&format!("  {} {text}", self.paint("32", "✓")));
    }

    /// Something is wrong.
    pub fn failure(&self, text: &str) {
        self.line("");
        self.line(&format!("  {} {text}", self.paint("1;31", "✗ The demo failed:")));
        self.line("    The logs are in target/demo.");
    }

    /// The server's table, as in Fig. 8.
    pub fn sessions(&self, rows: &[Session]) {
        self.line("");
        self.line(&self.paint("2", "    group   user      terminal     overlay addresses"));
        for row in rows {
            self.line(&format!(
                "    {:<7} {:<9} {:<12} {}  {}",
                row.group, row.user, row.terminal, row.overlay4, row.overlay6
            ));
        }
        self.line("");
    }

    /// Who reaches whom.
    pub fn matrix(&self, matrix: &Matrix) {
        let label =
            |n: usize| matrix.seats.get(n).map_or(String::new(), |(terminal, user)| format!("{terminal} {user}"));
        let header: Vec<String> = (0..4).map(|n| format!("{:<10}", label(n))).collect();
        self.line(&self.paint("2", &format!("    from \\ to   {}", header.concat())));
        for (from, row) in matrix.cells.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .map(|cell| match cell {
                    None => format!("{:<10}", "·"),
                    Some(cell) if !cell.right() => self.paint("1;31", &format!("{:<10}", "WRONG")),
                    Some(cell) if cell.wanted => self.paint("32", &format!("{:<10}", "yes")),
                    Some(_) => self.paint("2", &format!("{:<10}", "no")),
                })
                .collect();
            self.line(&format!("    {:<11} {}", label(from), cells.concat()));
        }
        self.line("");
    }

    /// The end of a good story.
    pub fn summary(&self, took: Duration) {
        self.line("");
        self.line(&format!(
            "  {} in {}. The numbers are in target/demo/report.json.",
            self.paint("1;32", "Every table and every cell is as the patent has it"),
            time(took)
        ));
        self.line("");
    }
}

/// A time for people.
pub fn time(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1000.0;
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1000.0) }
}
