//! B4: logins per second, against what Argon2id and the RSA operation cost alone.

use super::Scale;
use anyhow::Context;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use cug_load::figures::{Report, Row};
use cug_load::host::{Site, Size};
use cug_load::terminal::PASSWORD;
use cug_proto::secret::SecretBytes;
use cug_server::config::Argon2Cost;
use cug_server::service::PasswordPool;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Logins at a time: all processors have work, and none waits for long.
const AT_ONCE: usize = 8;

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
    let (before, begin) = (host.cpu()?, Instant::now());
    let mut members = site.members.iter().cloned();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE {
            let Some(member) = members.next() else { break };
            let organisation = organisation.clone();
            running.spawn(async move { member.log_in(&organisation).await.map(drop) });
        }
        match running.join_next().await {
            Some(done) => done??,
            None => break,
        }
    }
    let (cpu, wall) = (host.cpu()? - before, begin.elapsed());
    let count = u32::try_from(site.members.len())?;
    let (argon2, rsa) = tokio::task::spawn_blocking(floor).await??;
    let each = cpu / count;
    let share = (argon2 + rsa).as_secs_f64() / each.as_secs_f64();
    let seconds = |d: Duration| d.as_secs_f64();
    report.row(Row {
        bench: "B4",
        what: format!("processor time of one login at the server, {count} logins"),
        figure: format!(
            "{:.1} ms: {:.0} logins a second on {processors} processors ({:.0} while the terminals ran on them too)",
            seconds(each) * 1e3,
            processors as f64 / seconds(each),
            f64::from(count) / seconds(wall),
        ),
        beside: format!("Argon2id {:.1} ms + RSA {:.1} ms", seconds(argon2) * 1e3, seconds(rsa) * 1e3),
        ratio: Some(share),
        aim: ">= 0.85 of what Argon2id and RSA alone allow".into(),
        reached: Some(share >= 0.85),
    });
    Ok(())
}

/// Processor time of one password and of one private-key operation, as the server does them.
fn floor() -> anyhow::Result<(Duration, Duration)> {
    const ROUNDS: u32 = 40;
    let password = SecretBytes::copy_from(PASSWORD.as_bytes()).context("too long")?;
    let argon2 = cpu_of(ROUNDS, || PasswordPool::hash(COST, &password, [7; 16]).map(drop).map_err(Into::into))?;
    let rsa = with_rsa_key(|work| cpu_of(ROUNDS, work))?;
    Ok((argon2, rsa))
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
