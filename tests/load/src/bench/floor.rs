//! The parts of a login, each alone: those that no login can leave out, whatever it is for (card, Argon2id, the server's RSA operation, a TLS
//! handshake), and those without which there would be no tunnel that is its user's only.

use super::logins::{COST, with_rsa_key};
use super::permit;
use anyhow::{Context, ensure};
use cug_load::figures::{Report, Sample};
use cug_load::host::{CHEAP, Site, Size};
use cug_load::pace::Pace;
use cug_load::terminal::{Member, PASSWORD};
use cug_proto::message::{GroupPort, SessionId};
use cug_proto::secret::SecretBytes;
use cug_server::clock;
use cug_server::service::HashMemory;
use cug_server::store::{LoginFacts, NewSession, Place, Store};
use cug_tests::card::PIN;
use cug_tests::terminal::Terminal;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// A part and how long it took.
type Part = (&'static str, Sample);

/// The parts.
pub(super) struct Floor {
    cold: bool,
    needed: [Part; 4],
    /// What a tunnel of one's own needs besides.
    besides: [Part; 4],
}

impl Floor {
    /// Each `times` times, one after the other or `cold` ([`Pace`]); the card is the one in the terminal's reader.
    pub(super) fn measure(terminal: &Terminal, times: usize, cold: bool) -> anyhow::Result<Self> {
        let password = SecretBytes::copy_from(PASSWORD.as_bytes()).context("too long")?;
        let mut memory = HashMemory::default();
        let time = |work: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<Sample> {
            Ok(Pace::new(cold).time(times, work)?.into_iter().collect())
        };
        let argon2 = time(&mut || Ok(memory.hash(COST, &password, [7; 16]).map(drop)?))?;
        let rsa = with_rsa_key(|work| time(work))?;
        let operation = |name: &str| operation(terminal, name, times, cold);
        let readers = operation("readers")?;
        Ok(Self {
            cold,
            needed: [
                ("card (connect, SELECT, PIN, key)", operation("card")?),
                ("Argon2id", argon2),
                ("RSA-3072", rsa),
                ("TLS 1.3 handshake", handshakes(times, cold)?),
            ],
            besides: [
                ("libpam", permit::logins(terminal, times, cold)?),
                ("module and daemon ask for the readers", readers.times(2.0)),
                ("the server's three commits", commits(times, cold)?),
                ("guard and interface", operation("interface")?),
            ],
        })
    }

    /// The medians of what no login can leave out together, in milliseconds.
    pub(super) fn sum(&self) -> f64 {
        sum(&self.needed)
    }

    /// The medians of all parts together, in milliseconds.
    pub(super) fn whole(&self) -> f64 {
        sum(&self.needed) + sum(&self.besides)
    }

    /// Of these, what the server needs to answer a password.
    pub(super) fn answer(&self) -> f64 {
        let [_, argon2, rsa, _] = &self.needed;
        argon2.1.median() + rsa.1.median()
    }

    /// For the table: what no login can leave out.
    pub(super) fn words(&self) -> String {
        format!("{:.1} ms: {}", self.sum(), words(&self.needed))
    }

    /// For the table: all parts.
    pub(super) fn all_words(&self) -> String {
        format!("{:.1} ms: {} + {}", self.whole(), words(&self.needed), words(&self.besides))
    }

    /// Every single figure.
    pub(super) fn keep(&self, report: &mut Report) {
        let how = if self.cold { ", after a pause" } else { "" };
        for (name, sample) in self.needed.iter().chain(&self.besides) {
            report.keep(format!("B1f {name}{how}"), sample);
        }
    }
}

fn sum(parts: &[Part]) -> f64 {
    parts.iter().map(|(_, sample)| sample.median()).sum()
}

fn words(parts: &[Part]) -> String {
    let parts: Vec<_> = parts.iter().map(|(name, sample)| format!("{name} {:.1}", sample.median())).collect();
    parts.join(" + ")
}

/// On the terminal, as its root: this program again.
fn operation(terminal: &Terminal, name: &str, times: usize, cold: bool) -> anyhow::Result<Sample> {
    let mut command = terminal.space().command(std::env::current_exe()?)?;
    command.args(["--operation", name, "--times", &times.to_string(), "--pin", PIN]);
    command.args(cold.then_some("--cold"));
    let output = command.output()?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::parse::<f64>).collect::<Result<Vec<_>, _>>()?.into_iter().collect())
}

/// With a server of its own, which has the same kinds of keys and certificates as any.
fn handshakes(times: usize, cold: bool) -> anyhow::Result<Sample> {
    let site = Site::new(Size { groups: 1, members: 1, with_cards: 0 }, "")?;
    let host = site.serve()?;
    let organisation = site.organisation(&host)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let one =
        || runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), organisation.shake_hands()).await? });
    Ok(Pace::new(cold).time(times, one)?.into_iter().collect())
}

/// What a login writes to the directory: a session, its registration, and where the terminal can be reached.
fn commits(times: usize, cold: bool) -> anyhow::Result<Sample> {
    let site = Site::new(Size { groups: 1, members: times + 1, with_cards: times + 1 }, CHEAP)?;
    let store = site.store()?;
    let mut members = site.members.iter();
    let one = || log_in(&store, members.next().context("no more members")?);
    Ok(Pace::new(cold).time(times, one)?.into_iter().collect())
}

fn log_in(store: &impl Store, member: &Member) -> anyhow::Result<()> {
    let (source, now) = (IpAddr::V4(Ipv4Addr::LOCALHOST), clock::unix_now());
    let id: SessionId = clock::random();
    let groups: Vec<_> = store.group_keys(&member.user)?.iter().map(|group| (group.id, group.epoch)).collect();
    let ports: Vec<_> = groups.iter().map(|(group, _)| GroupPort { group: *group, port: 51_820 }).collect();
    store.create_session(&NewSession {
        login: LoginFacts { user: &member.user, card: &member.card.fingerprint, source, now },
        id,
        wg_public_key: clock::random(),
        host_name: &"terminal".parse()?,
        addresses: &[source],
        wrapped_secret: &[7; 60],
        groups: &groups,
        new_password: None,
    })?;
    ensure!(store.register(&id, now)?, "not registered");
    ensure!(store.announce(&id, &Place { source, addresses: &[source], ports: &ports }, now)?, "not announced");
    Ok(())
}
