//! `top`: a live view of the running server. [`view`] draws what [`poll`] brings; nothing here changes anything.

mod poll;
mod view;

use super::output::Output;
use crate::{
    admin::{self, Reply, Request},
    config::Config,
};
use anyhow::{Context, Result, bail};
use poll::Poll;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::{
    io::IsTerminal,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use view::View;

/// How often keys, signals and news are looked for.
const STEP: Duration = Duration::from_millis(100);

/// Shows the view until the user quits, or with JSON prints one snapshot.
pub(super) fn run(config: &Config, output: &Output) -> Result<ExitCode> {
    if output.is_json() {
        return once(config, output);
    }
    if !std::io::stdout().is_terminal() {
        bail!("`top` needs a terminal; `--json top` prints one snapshot");
    }
    let stopped = stop_on_signals()?;
    let poll = Poll::start(config.clone());
    // From here on the terminal is given back on every way out: by the guard, by a panic's hook, and after the signals above.
    let _restored = Restore;
    let mut terminal = ratatui::try_init().context("cannot use this terminal")?;
    let mut view = View::default();
    while !stopped.load(Ordering::Relaxed) {
        if let Some(news) = poll.latest() {
            view.update(news);
        }
        terminal.draw(|frame| view.draw(frame))?;
        if event::poll(STEP)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press && quits(key) => break,
                Event::Key(key) => view.key(key),
                _ => {}
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn once(config: &Config, output: &Output) -> Result<ExitCode> {
    let reply = admin::ask_server(config, &Request::Snapshot)?;
    let refused = matches!(reply, Reply::Refused(_));
    output.reply(&reply)?;
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// In raw mode Ctrl-C is a key.
fn quits(key: KeyEvent) -> bool {
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    interrupt || matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc)
}

struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = stopped.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
            let [Ok(mut terminate), Ok(mut hangup), Ok(mut interrupt)] = kinds.map(signal) else { return };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
                _ = interrupt.recv() => {}
            }
            flag.store(true, Ordering::Relaxed);
        });
    });
    Ok(stopped)
}
