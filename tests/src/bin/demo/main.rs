//! `make demo`: the patent's own example, with real parts. One server, four terminals, four users with cards, two groups.
//!
//! Exit status 0 only if every table, every cell of the matrices and every check is right. `KEEP=1` leaves it standing.

mod checks;
mod keep;
mod matrix;
mod report;
mod screen;
mod stage;

use anyhow::ensure;
use report::Report;
use screen::Screen;
use stage::Stage;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let screen = Screen::new();
    let mut report = Report::default();
    screen.title();
    let result = play(&screen, &mut report);
    report.ok = result.is_ok();
    report.error = result.as_ref().err().map(|error| format!("{error:#}"));
    if let Err(error) = report.write() {
        screen.failure(&format!("the report cannot be written: {error:#}"));
        return ExitCode::FAILURE;
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.failure(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Who sits where in Fig. 1: terminal and user.
const FIGURE_1: [(usize, &str); 4] = [(1, "USER-A"), (2, "USER-B"), (3, "USER-C"), (4, "USER-D")];

/// Who sits where in Fig. 2: A and C have changed places.
const FIGURE_2: [(usize, &str); 4] = [(1, "USER-C"), (2, "USER-B"), (3, "USER-A"), (4, "USER-D")];

fn play(screen: &Screen, report: &mut Report) -> anyhow::Result<()> {
    if cug_tests::paths::builds() {
        screen.step("Building what is not built yet", report, |_| cug_tests::paths::build_all())?;
    }
    let started = Instant::now();
    let mut stage = Stage::build(screen, report)?;

    screen.heading("Fig. 1  Everyone at their own place");
    for (terminal, user) in FIGURE_1 {
        stage.log_in(screen, report, terminal, user)?;
    }
    let before = stage.sessions()?;
    screen.sessions(&before);
    checks::table(&before, &FIGURE_1)?;
    report.table("fig8", &before);
    stage.matrix(screen, report, "fig1", &FIGURE_1)?;
    stage.keys_are_held(screen, report, &[1, 2, 3, 4])?;

    screen.heading("Fig. 9  USER-A and USER-C pull their cards and go");
    for (terminal, user) in [(1, "USER-A"), (3, "USER-C")] {
        stage.pull(screen, report, terminal, user)?;
    }
    let between = stage.sessions()?;
    screen.sessions(&between);
    checks::table(&between, &[(2, "USER-B"), (4, "USER-D")])?;
    report.table("fig9", &between);
    stage.keys_are_gone(screen, report, &[1, 3])?;

    screen.heading("Fig. 2  They change places: USER-A at terminal 3, USER-C at terminal 1");
    for (terminal, user) in [(3, "USER-A"), (1, "USER-C")] {
        stage.log_in(screen, report, terminal, user)?;
    }
    let after = stage.sessions()?;
    screen.sessions(&after);
    checks::table(&after, &FIGURE_2)?;
    report.table("fig2", &after);
    ensure!(
        checks::addresses(&before) == checks::addresses(&after),
        "an overlay address has changed: {before:?} {after:?}"
    );
    screen.good("Nobody touched a configuration, and everyone kept their overlay address.");
    stage.matrix(screen, report, "fig2", &FIGURE_2)?;

    screen.heading("What the LAN saw");
    stage.capture_is_clean(screen, report)?;
    let took = started.elapsed();
    report.seconds = took.as_secs_f64();
    screen.summary(took);
    if keep::wanted() {
        return keep::leave(stage, screen);
    }
    screen.step("Clearing the stage", report, |_| {
        stage.strike();
        Ok(())
    })
}
