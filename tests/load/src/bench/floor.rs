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

/// What no login can leave out.
const NEEDED: [&str; 4] = ["card (connect, SELECT, PIN, key)", "Argon2id", "RSA-3072", "TLS 1.3 handshake"];

/// What a tunnel of one's own needs besides.
const BESIDES: [&str; 4] =
    ["libpam", "module and daemon ask for the readers", "the server's three commits", "guard and interface"];

/// The parts, measured now and then among the logins that they are compared with: a machine is faster now and slower then.
pub(super) struct Floor {
    cold: bool,
    turns: Vec<Turn>,
}

/// The parts at one time.
struct Turn {
    needed: [Sample; 4],
    besides: [Sample; 4],
}

impl Floor {
    /// To be measured one after the other, or `cold` ([`Pace`]).
    pub(super) fn new(cold: bool) -> Self {
        Self { cold, turns: Vec::new() }
    }

    /// Measures each part `times` times; the card is the one in the terminal's reader.
    pub(super) fn measure(&mut self, terminal: &Terminal, times: usize) -> anyhow::Result<()> {
        let cold = self.cold;
        let password = SecretBytes::copy_from(PASSWORD.as_bytes()).context("too long")?;
        let mut memory = HashMemory::default();
        let time = |work: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<Sample> {
            Ok(Pace::new(cold).time(times, work)?.into_iter().collect())
        };
        let argon2 = time(&mut || Ok(memory.hash(COST, &password, [7; 16]).map(drop)?))?;
        let rsa = with_rsa_key(|work| time(work))?;
        let operation = |name: &str| operation(terminal, name, times, cold);
        let needed = [operation("card")?, argon2, rsa, handshakes(times, cold)?];
        let readers = operation("readers")?.times(2.0);
        let besides = [permit::logins(terminal, times, cold)?, readers, commits(times, cold)?, operation("interface")?];
        self.turns.push(Turn { needed, besides });
        Ok(())
    }

    /// How `logins`, a sample for each time that this was measured, compare with what no login can leave out.
    pub(super) fn ratio(&self, logins: &[Sample]) -> f64 {
        median_ratio(logins, self.turns.iter().map(|turn| sum(&turn.needed)))
    }

    /// How they compare with all parts.
    pub(super) fn ratio_to_all(&self, logins: &[Sample]) -> f64 {
        median_ratio(logins, self.turns.iter().map(|turn| sum(&turn.needed) + sum(&turn.besides)))
    }

    /// The medians of what no login can leave out together, in milliseconds.
    pub(super) fn sum(&self) -> f64 {
        self.needed().iter().map(Sample::median).sum()
    }

    /// Of these, what the server needs to answer a password.
    pub(super) fn answer(&self) -> f64 {
        let [_, argon2, rsa, _] = self.needed();
        argon2.median() + rsa.median()
    }

    /// For the table: what no login can leave out.
    pub(super) fn words(&self) -> String {
        format!("{:.1} ms: {}", self.sum(), words(&NEEDED, &self.needed()))
    }

    /// For the table: all parts.
    pub(super) fn all_words(&self) -> String {
        let (needed, besides) = (self.needed(), self.besides());
        let all: f64 = needed.iter().chain(&besides).map(Sample::median).sum();
        format!("{all:.1} ms: {} + {}", words(&NEEDED, &needed), words(&BESIDES, &besides))
    }

    /// Every single figure.
    pub(super) fn keep(&self, report: &mut Report) {
        let how = if self.cold { ", after a pause" } else { "" };
        let names = NEEDED.iter().chain(&BESIDES);
        for (name, sample) in names.zip(self.needed().iter().chain(&self.besides())) {
            report.keep(format!("B1f {name}{how}"), sample);
        }
    }

    fn needed(&self) -> [Sample; 4] {
        [0, 1, 2, 3].map(|part| self.turns.iter().map(|turn| &turn.needed[part]).collect())
    }

    fn besides(&self) -> [Sample; 4] {
        [0, 1, 2, 3].map(|part| self.turns.iter().map(|turn| &turn.besides[part]).collect())
    }
}

fn sum(parts: &[Sample]) -> f64 {
    parts.iter().map(Sample::median).sum()
}

fn median_ratio(logins: &[Sample], floors: impl Iterator<Item = f64>) -> f64 {
    logins.iter().zip(floors).map(|(logins, floor)| logins.median() / floor).collect::<Sample>().median()
}

fn words(names: &[&str], parts: &[Sample]) -> String {
    let parts: Vec<_> = names.iter().zip(parts).map(|(name, part)| format!("{name} {:.1}", part.median())).collect();
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
