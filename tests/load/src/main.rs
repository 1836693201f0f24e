//! `make bench`: what the product costs, as ratios that were measured in one run. It reports; nothing here passes or fails.

mod bench;
mod module;
mod operation;

use anyhow::Context;
use clap::Parser;
use cug_load::figures::Report;
use std::fs;
use std::path::PathBuf;

/// Runs the benchmarks and prints a table; the raw figures go into a file.
#[derive(Parser)]
struct Args {
    /// Which ones, as B4; all of them without
    names: Vec<String>,
    /// A tenth of the size, to see whether it runs
    #[arg(long)]
    quick: bool,
    /// Where the raw figures go
    #[arg(long, default_value = "target/bench/report.json")]
    report: PathBuf,
    /// Load a PAM module and say what that took, in milliseconds and KiB
    #[arg(long, hide = true)]
    load_module: Option<PathBuf>,
    /// Have the card of this host's reader work, so many times, and say how long that took in milliseconds
    #[arg(long, hide = true, requires = "pin")]
    card_operations: Option<usize>,
    /// Its PIN
    #[arg(long, hide = true)]
    pin: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(path) = &args.load_module {
        let (took, memory) = module::load(path)?;
        println!("{} {memory}", took.as_secs_f64() * 1000.0);
        return Ok(());
    }
    if let (Some(times), Some(pin)) = (args.card_operations, &args.pin) {
        for took in operation::time(times, pin)? {
            println!("{}", took.as_secs_f64() * 1000.0);
        }
        return Ok(());
    }
    raise_file_limit()?;
    let wanted = |name: &str| args.names.is_empty() || args.names.iter().any(|n| n.eq_ignore_ascii_case(name));
    let scale = bench::Scale { quick: args.quick };
    let mut report = Report { about: about(), ..Report::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for (name, run) in bench::ALL {
        if wanted(name) {
            println!("{name}");
            runtime.block_on(run(scale, &mut report)).with_context(|| (*name).to_owned())?;
            save(&report, &args.report)?;
        }
    }
    println!("\n{}", report.table());
    Ok(())
}

fn save(report: &Report, path: &PathBuf) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, serde_json::to_vec_pretty(report)?).with_context(|| path.display().to_string())
}

fn about() -> Vec<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("", |(_, value)| value).trim().to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    [
        ("processor", after(&read("/proc/cpuinfo"), "model name")),
        ("processors", processors.to_string()),
        ("memory", after(&read("/proc/meminfo"), "MemTotal")),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("profile", if cfg!(debug_assertions) { "dev" } else { "release" }.to_owned()),
        ("seconds since 1970", seconds.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

/// Ten thousand connections are ten thousand files.
fn raise_file_limit() -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
