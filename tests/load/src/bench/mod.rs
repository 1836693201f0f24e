//! The benchmarks.

mod attached;
mod directory;
mod floor;
mod footprint;
mod login;
mod logins;
mod permit;
mod pkcs11;
mod traffic;
mod unguarded;
mod workstation;

pub use attached::{B6_BYTES, B6_WORK};
use cug_load::figures::Report;
pub use directory::B8_LOGIN;
use std::future::Future;
use std::pin::Pin;

/// How large everything is.
#[derive(Clone, Copy)]
pub struct Scale {
    /// A tenth.
    pub quick: bool,
}

impl Scale {
    fn of(self, count: usize) -> usize {
        if self.quick { count.div_ceil(10) } else { count }
    }
}

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// A benchmark.
type Bench = for<'a> fn(Scale, &'a mut Report) -> Running<'a>;

/// All of them.
pub const ALL: &[(&str, Bench)] = &[
    ("B1", |scale, report| Box::pin(async move { apart(|| login::run(scale, report)) })),
    ("B2-B3", |scale, report| Box::pin(async move { workstation::come_and_go(scale, report) })),
    ("B4", |scale, report| Box::pin(logins::run(scale, report))),
    ("B5", |scale, report| Box::pin(attached::run(scale, report))),
    ("B6", |scale, report| Box::pin(attached::work_per_change(scale, report))),
    ("B7", |scale, report| Box::pin(async move { traffic::run(scale, report) })),
    ("B8", |scale, report| Box::pin(directory::run(scale, report))),
    ("B9", |scale, report| {
        Box::pin(async move {
            workstation::footprint(report)?;
            apart(|| footprint::run(scale, report))
        })
    }),
];

/// In a thread without a runtime, for what makes its own.
fn apart(work: impl FnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| anyhow::bail!("it panicked")))
}

/// A directory for the logs of one benchmark.
fn logs(name: &str) -> anyhow::Result<std::path::PathBuf> {
    let dir = cug_tests::paths::log_base().join(format!("bench-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Seconds of a day: times in a log have no other day than today's, or yesterday's.
const DAY: f64 = 86_400.0;

/// When this line of a log was written, in seconds of its day (UTC).
fn written_at(line: &str) -> Option<f64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let parts: Vec<f64> = time.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [hours, minutes, seconds] = parts.as_slice() else { return None };
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}
