//! What no login can leave out, each part alone: card, Argon2id, the server's RSA operation, a TLS handshake.

use super::logins::{COST, with_rsa_key};
use anyhow::{Context, ensure};
use cug_load::figures::{Report, Sample};
use cug_load::host::{Site, Size};
use cug_load::terminal::PASSWORD;
use cug_proto::secret::SecretBytes;
use cug_server::service::HashMemory;
use cug_tests::card::PIN;
use cug_tests::terminal::Terminal;
use std::time::{Duration, Instant};

/// The parts.
pub(super) struct Floor {
    parts: [(&'static str, Sample); 4],
}

impl Floor {
    /// Each `times` times; the card is the one in the terminal's reader.
    pub(super) fn measure(terminal: &Terminal, times: usize) -> anyhow::Result<Self> {
        let password = SecretBytes::copy_from(PASSWORD.as_bytes()).context("too long")?;
        let mut memory = HashMemory::default();
        let argon2 = timed(times, || memory.hash(COST, &password, [7; 16]).map(drop).map_err(Into::into))?;
        let rsa = with_rsa_key(|work| timed(times, work))?;
        let parts = [
            ("card (connect, SELECT, PIN, key)", card(terminal, times)?),
            ("Argon2id", argon2),
            ("RSA-3072", rsa),
            ("TLS 1.3 handshake", handshakes(times)?),
        ];
        Ok(Self { parts })
    }

    /// The medians together, in milliseconds.
    pub(super) fn sum(&self) -> f64 {
        self.parts.iter().map(|(_, sample)| sample.median()).sum()
    }

    /// Of these, what the server needs to answer a password.
    pub(super) fn answer(&self) -> f64 {
        let [_, argon2, rsa, _] = &self.parts;
        argon2.1.median() + rsa.1.median()
    }

    /// For the table.
    pub(super) fn words(&self) -> String {
        let parts: Vec<_> = self.parts.iter().map(|(name, sample)| format!("{name} {:.1}", sample.median())).collect();
        format!("{:.1} ms: {}", self.sum(), parts.join(" + "))
    }

    /// Every single figure.
    pub(super) fn keep(&self, report: &mut Report) {
        for (name, sample) in &self.parts {
            report.keep(format!("B1f {name}"), sample);
        }
    }
}

fn timed(times: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Sample> {
    // The first one finds nothing in memory.
    work()?;
    let mut all = Vec::with_capacity(times);
    for _ in 0..times {
        let begin = Instant::now();
        work()?;
        all.push(begin.elapsed());
    }
    Ok(all.into_iter().collect())
}

/// At the terminal's own pcscd: this program again.
fn card(terminal: &Terminal, times: usize) -> anyhow::Result<Sample> {
    let mut command = terminal.space().command(std::env::current_exe()?)?;
    command.args(["--card-operations", &times.to_string(), "--pin", PIN]);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::parse::<f64>).collect::<Result<Vec<_>, _>>()?.into_iter().collect())
}

/// With a server of its own, which has the same kinds of keys and certificates as any.
fn handshakes(times: usize) -> anyhow::Result<Sample> {
    let site = Site::new(Size { groups: 1, members: 1, with_cards: 0 }, "")?;
    let host = site.serve()?;
    let organisation = site.organisation(&host)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let one =
        || runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), organisation.shake_hands()).await? });
    timed(times, one)
}
