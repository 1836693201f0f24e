//! `make bench`: what the product costs, as ratios that were measured in one run. It reports; nothing here passes or fails.

mod about;
mod bench;
mod docs;
mod module;
mod operation;
mod plot;

use anyhow::Context;
use clap::Parser;
use cug_load::figures::Report;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Enough for all terminals of a benchmark.
const FILES: u64 = 65_536;

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
    /// Writes the results into this folder, as benchmarks.md with pictures
    #[arg(long)]
    docs: Option<PathBuf>,
    /// Runs nothing: the results are those of the report
    #[arg(long, requires = "docs")]
    written: bool,
    /// Answer on TLS connections, and nothing else: what attached terminals cost at the least
    #[arg(long, hide = true)]
    echo: bool,
    /// Make so many connections to such a server, on each of which something comes every so many milliseconds; say what share of a processor it takes
    /// over so many
    #[arg(long, hide = true, num_args = 3, value_names = ["COUNT", "PERIOD", "MEASURED"])]
    echo_idle: Option<Vec<u64>>,
    /// Load a PAM module and say what that took, in milliseconds and KiB
    #[arg(long, hide = true)]
    load_module: Option<PathBuf>,
    /// Do one part of a login on this host, again and again, and say how long each took in milliseconds
    #[arg(long, hide = true)]
    operation: Option<operation::Operation>,
    /// How many times
    #[arg(long, hide = true, default_value_t = 1)]
    times: usize,
    /// Each after a pause in which others have the processor
    #[arg(long, hide = true)]
    cold: bool,
    /// PIN of the card
    #[arg(long, hide = true, default_value = "")]
    pin: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(path) = &args.load_module {
        let (took, memory) = module::load(path)?;
        println!("{} {memory}", took.as_secs_f64() * 1000.0);
        return Ok(());
    }
    if let Some(operation) = args.operation {
        let order = operation::Order { times: args.times, cold: args.cold, pin: &args.pin };
        for took in operation::time(operation, &order)? {
            println!("{}", took.as_secs_f64() * 1000.0);
        }
        return Ok(());
    }
    raise_file_limit()?;
    if args.echo {
        return cug_load::echo::serve();
    }
    if let Some([count, period, measured]) = args.echo_idle.as_deref() {
        let [period, measured] = [period, measured].map(|time| Duration::from_millis(*time));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        println!("{}", runtime.block_on(cug_load::echo::idle(usize::try_from(*count)?, period, measured))?);
        return Ok(());
    }
    if !args.written {
        run(&args)?;
    }
    if let Some(dir) = &args.docs {
        docs::write(&args.report, dir)?;
    }
    anyhow::ensure!(args.written || failures(&args.report)? == 0, "not every benchmark could be run");
    Ok(())
}

/// Runs what is wanted. One that fails does not keep the others from being run.
fn run(args: &Args) -> anyhow::Result<()> {
    for name in &args.names {
        anyhow::ensure!(bench::ALL.iter().any(|(known, _)| is(known, name)), "there is no benchmark {name}");
    }
    let wanted = |name: &str| args.names.is_empty() || args.names.iter().any(|wanted| is(name, wanted));
    let scale = bench::Scale { quick: args.quick };
    let mut report = Report { about: about::about(), ..Report::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for (name, run) in bench::ALL {
        if wanted(name) {
            println!("{name}");
            let begin = Instant::now();
            let ran = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(scale, &mut report))));
            if let Err(error) = ran.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))) {
                eprintln!("{name} FAILED: {error:#}");
                report.failed.push(((*name).to_owned(), format!("{error:#}")));
            }
            report.about.push((format!("{name} took"), format!("{:.0} s", begin.elapsed().as_secs_f64())));
            save(&report, &args.report)?;
        }
    }
    println!("\n{}", report.table());
    Ok(())
}

/// Whether `wanted` means this benchmark: B2 means B2-B3, too.
fn is(name: &str, wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted) || name.split('-').any(|part| part.eq_ignore_ascii_case(wanted))
}

fn failures(report: &Path) -> anyhow::Result<usize> {
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report)?)?;
    Ok(report["failed"].as_array().map_or(0, Vec::len))
}

fn save(report: &Report, path: &Path) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, serde_json::to_vec_pretty(report)?).with_context(|| path.display().to_string())
}

/// Ten thousand connections are ten thousand files.
fn raise_file_limit() -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Root may raise even that.
    if most < FILES && setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).is_ok() {
        return Ok(());
    }
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
