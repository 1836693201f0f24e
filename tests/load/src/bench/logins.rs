//! B4: logins per second, against what Argon2id and the RSA operation cost alone.

use super::Scale;
use anyhow::Context;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use cug_load::figures::{Report, Row, Sample};
use cug_load::host::{Site, Size};
use cug_load::terminal::{Member, Organisation, PASSWORD};
use cug_proto::secret::SecretBytes;
use cug_server::config::Argon2Cost;
use cug_server::service::HashMemory;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Logins at a time: all processors have work, and none waits for long.
const AT_ONCE: usize = 8;

/// Logins and the floor take turns so many times.
const ROUNDS: usize = 20;

/// The default cost of a password.
pub(super) const COST: Argon2Cost = Argon2Cost { memory_kib: 19_456, iterations: 2, lanes: 1 };

pub(super) async fn run(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let users = scale.of(400);
    let processors = std::thread::available_parallelism()?.get();
    // All processors are there for passwords: nothing else is to be served here.
    let site = Site::new(
        Size { groups: users.div_ceil(20), members: 20, with_cards: users },
        &format!("password.workers = {processors}\n"),
    )?;
    let host = site.serve()?;
    let organisation = site.organisation(&host)?;
    // The first ones find nothing in memory.
    for member in site.members.iter().take(8) {
        member.log_in(&organisation).await?;
    }
    let floors = Floors::start(processors);
    let mut rounds = Vec::new();
    for some in site.members.chunks(site.members.len().div_ceil(ROUNDS)) {
        let (before, begin) = (host.cpu()?, Instant::now());
        log_in_all(&organisation, some).await?;
        let count = u32::try_from(some.len())?;
        let (each, wall) = ((host.cpu()? - before) / count, begin.elapsed() / count);
        // In turn, so that both meet the same machine; on all processors at once, as the logins were.
        let (argon2, rsa) = tokio::task::block_in_place(|| floors.measure())?;
        rounds.push(Round { each, wall, argon2, rsa });
    }
    report_rounds(report, processors, site.members.len(), &rounds);
    Ok(())
}

/// What came of a part of the logins, and of the floor after it. For one login each.
struct Round {
    each: Duration,
    wall: Duration,
    argon2: Duration,
    rsa: Duration,
}

fn report_rounds(report: &mut Report, processors: usize, count: usize, rounds: &[Round]) {
    let sample = |value: fn(&Round) -> Duration| rounds.iter().map(value).collect::<Sample>();
    let (each, wall) = (sample(|r| r.each), sample(|r| r.wall));
    let (argon2, rsa) = (sample(|r| r.argon2), sample(|r| r.rsa));
    let shares: Sample = rounds.iter().map(|r| (r.argon2 + r.rsa).as_secs_f64() / r.each.as_secs_f64()).collect();
    report.keep("B4 processor time of a login at the server", &each);
    report.keep("B4 Argon2id alone", &argon2);
    report.keep("B4 RSA alone", &rsa);
    let share = shares.median();
    report.row(Row {
        bench: "B4",
        what: format!("processor time of one login at the server, {count} logins in {} rounds", rounds.len()),
        figure: format!(
            "{:.1} ms: {:.0} logins a second on {processors} processors ({:.0} while the terminals ran on them too)",
            each.median(),
            processors as f64 / each.median() * 1e3,
            1e3 / wall.median(),
        ),
        beside: format!("Argon2id {:.1} ms + RSA {:.1} ms, on all processors at once", argon2.median(), rsa.median()),
        ratio: Some(share),
        aim: ">= 0.85 of what Argon2id and RSA alone allow".into(),
        reached: Some(share >= 0.85),
    });
}

async fn log_in_all(to: &Arc<Organisation>, members: &[Member]) -> anyhow::Result<()> {
    let mut members = members.iter().cloned();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE {
            let Some(member) = members.next() else { break };
            let to = to.clone();
            running.spawn(async move { member.log_in(&to).await.map(drop) });
        }
        match running.join_next().await {
            Some(done) => done??,
            None => return Ok(()),
        }
    }
}

/// The floor on all processors at once: they share caches and memory, as they do when they serve. A thread for each, which measures when it is told to.
struct Floors {
    threads: Vec<(Sender<()>, Receiver<anyhow::Result<Times>>)>,
}

/// Processor time of one password and of one private-key operation, as the server does them.
type Times = (Duration, Duration);

impl Floors {
    fn start(processors: usize) -> Self {
        let start = |_| {
            let ((go, told), (tell, answer)) = (channel(), channel());
            std::thread::spawn(move || {
                if let Err(error) = floor(&told, &tell) {
                    let _nobody_asks = tell.send(Err(error));
                }
            });
            (go, answer)
        };
        Self { threads: (0..processors).map(start).collect() }
    }

    /// The average of all processors. Blocks for less than a second.
    fn measure(&self) -> anyhow::Result<Times> {
        for (go, _) in &self.threads {
            go.send(())?;
        }
        let mut sum = Times::default();
        for (_, answer) in &self.threads {
            let (argon2, rsa) = answer.recv()??;
            sum = (sum.0 + argon2, sum.1 + rsa);
        }
        let count = u32::try_from(self.threads.len())?;
        Ok((sum.0 / count, sum.1 / count))
    }
}

/// Measures each time that it is told to.
fn floor(told: &Receiver<()>, tell: &Sender<anyhow::Result<Times>>) -> anyhow::Result<()> {
    const TIMES: u32 = 10;
    let password = SecretBytes::copy_from(PASSWORD.as_bytes()).context("too long")?;
    let mut memory = HashMemory::default();
    with_rsa_key(|rsa| {
        while told.recv().is_ok() {
            let argon2 = cpu_of(TIMES, || memory.hash(COST, &password, [7; 16]).map(drop).map_err(Into::into));
            tell.send(argon2.and_then(|argon2| Ok((argon2, cpu_of(TIMES, &mut *rsa)?))))?;
        }
        Ok(())
    })
}

/// Hands over the private-key operation of a server's key, to be repeated and measured.
pub(super) fn with_rsa_key<T>(
    measure: impl FnOnce(&mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let key = PrivateDecryptingKey::generate(KeySize::Rsa3072)?;
    let public = key.public_key().as_der()?;
    let public = OaepPublicEncryptingKey::new(aws_lc_rs::rsa::PublicEncryptingKey::from_der(public.as_ref())?)?;
    let (mut wrapped, mut plain) = (vec![0; public.ciphertext_size()], vec![0; public.key_size_bytes()]);
    let wrapped = public.encrypt(&OAEP_SHA256_MGF1SHA256, &[7; 32], &mut wrapped, None)?.to_vec();
    let key = OaepPrivateDecryptingKey::new(key)?;
    measure(&mut || {
        key.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut plain, None)?;
        Ok(())
    })
}

fn cpu_of(rounds: u32, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    work()?;
    let before = Duration::from(clock.now()?);
    for _ in 0..rounds {
        work()?;
    }
    Ok((Duration::from(clock.now()?) - before) / rounds)
}
