//! What a person waits for at a workstation. B2: the first answer. B3: the end. B9: memory, and what the module costs its host.

use super::{DAY, Scale, logs, written_at};
use anyhow::{Context, ensure};
use cug_load::figures::{Report, Row, Sample};
use cug_tests::card::PivCard;
use cug_tests::flow::{Pings, wall};
use cug_tests::process::Daemon;
use cug_tests::world::World;
use cug_tests::{paths, wait};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// For anything at all.
const LIMIT: Duration = Duration::from_secs(20);

/// When the server granted the last login of `user`, in seconds of the day (UTC).
fn granted_at(log: &str, user: &str) -> anyhow::Result<f64> {
    let wanted = format!("login granted: {user}");
    let line = log.lines().rev().find(|line| line.contains(&wanted)).context("the server granted no login")?;
    written_at(line).with_context(|| format!("no time: {line}"))
}

/// What came of A's coming and going.
#[derive(Default)]
struct Times {
    answers: Vec<Duration>,
    gone: Vec<Duration>,
    dropped: Vec<Duration>,
}

/// B sits at terminal 2, and is told who comes and goes.
struct Ward {
    world: World,
    watch: Daemon,
}

impl Ward {
    fn left(&self) -> usize {
        self.watch.log().matches("member-left").count()
    }

    /// A logs in, is pinged, pulls the card, and logs in again while the pings go on.
    fn round(&self, card: PivCard, times: &mut Times) -> anyhow::Result<PivCard> {
        let (one, two) = (self.world.terminal(1), self.world.terminal(2));
        let in_reader = one.insert(card)?;
        let login = one.log_in("USER-A", "passwd1")?;
        let address: IpAddr = one.overlay("USER-A")?[0]["address4"].as_str().context("no overlay address")?.parse()?;
        let pings = Pings::start(two.space(), "USER-B", address)?;
        let (before, begin) = (self.left(), Instant::now());
        let card = in_reader.pull();
        let (mut down, mut told) = (None, None);
        wait::for_true("the end", LIMIT, || {
            down = down.or_else(|| one.tunnels().is_empty().then(|| begin.elapsed()));
            told = told.or_else(|| (self.left() > before).then(|| begin.elapsed()));
            down.is_some() && told.is_some()
        })?;
        times.gone.extend(down);
        times.dropped.extend(told);
        login.close()?;
        one.wait_clean(LIMIT)?;

        let in_reader = one.insert(card)?;
        let since = wall();
        let login = one.log_in("USER-A", "passwd1")?;
        let answer = pings.answer_after(since, LIMIT)?;
        let granted = granted_at(&self.world.server.log(), "USER-A")?;
        times.answers.push(Duration::from_secs_f64((answer - granted).rem_euclid(DAY)));
        let card = in_reader.pull();
        one.wait_clean(LIMIT)?;
        login.close()?;
        let _count = pings.finish()?;
        Ok(card)
    }
}

/// A comes and goes while B sits at the other terminal.
pub(super) fn come_and_go(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let logs = logs("come-and-go")?;
    let world = World::new(&logs, 2)?;
    let two = world.terminal(2);
    let _b = two.insert(world.card("USER-B")?)?;
    let _login = two.log_in("USER-B", "passwd2")?;
    let mut watch = two.space().command(paths::built("cugctl")?)?;
    watch.args(["watch", "--json"]);
    let watch = Daemon::spawn("watch", watch, &logs.join("watch.log"), false)?;
    let mut card = world.card("USER-A")?;
    let ward = Ward { world, watch };
    // The first round finds nothing in memory.
    card = ward.round(card, &mut Times::default())?;
    let mut times = Times::default();
    for _ in 0..scale.of(50) {
        card = ward.round(card, &mut times)?;
    }
    let [answers, gone, dropped] = [times.answers, times.gone, times.dropped].map(Sample::from_iter);
    report.keep("B2 granted to first answer", &answers);
    report.keep("B3 pulled to interface gone", &gone);
    report.keep("B3 pulled to member gone elsewhere", &dropped);
    let (innernet, eventmgr) = ("innernet: 5.1 s", "pkcs11_eventmgr: median 526 ms");
    for row in [
        limit("B2", "from the server's word to the first answer to a ping, pings each 10 ms", &answers, 50.0, innernet),
        limit("B3", "from pulling the card to the interface being gone", &gone, 10.0, eventmgr),
        limit("B3", "from pulling the card to the member being gone elsewhere", &dropped, 50.0, eventmgr),
    ] {
        report.row(row);
    }
    drop(ward);
    fs::remove_dir_all(logs).ok();
    Ok(())
}

fn limit(bench: &'static str, what: &str, sample: &Sample, most: f64, beside: &str) -> Row {
    Row {
        bench,
        what: format!("{what} ({} times)", sample.len()),
        figure: format!("median {:.1} ms, p99 {:.1} ms", sample.median(), sample.p99()),
        beside: beside.into(),
        ratio: Some(sample.p99() / most),
        aim: format!("p99 <= {most} ms"),
        reached: Some(sample.p99() <= most),
    }
}

/// Memory of an idle daemon, and the module beside others.
pub(super) fn footprint(report: &mut Report) -> anyhow::Result<()> {
    let logs = logs("footprint")?;
    let mut world = World::new(&logs, 1)?;
    let pid = world.terminal_mut(1).cugd()?.pid()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |key: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let (all, own) = (kib("VmRSS:")? / 1024.0, kib("RssAnon:")? / 1024.0);
    report.row(Row {
        bench: "B9",
        what: "memory of an idle cugd".into(),
        figure: format!("{all:.1} MiB resident, {own:.1} of them its own"),
        beside: "15 MB".into(),
        ratio: Some(all * 1.048_576 / 15.0),
        aim: "<= 15 MB".into(),
        reached: Some(all * 1.048_576 <= 15.0),
    });
    let ours = paths::built("libpam_cug.so")?;
    let others = [
        "/lib/x86_64-linux-gnu/security/pam_pkcs11.so",
        "/lib/x86_64-linux-gnu/security/pam_sss.so",
        // Unpacked and not installed: its package would put it into this machine's logins.
        "target/bench/peers/lib/x86_64-linux-gnu/security/pam_sss.so",
    ];
    for path in [ours.as_path()].into_iter().chain(others.iter().map(Path::new).filter(|path| path.exists())) {
        let loaded = Loaded::of(path)?;
        let is_ours = path == ours;
        report.row(Row {
            bench: "B9",
            what: format!("{} in a process", path.file_name().unwrap_or_default().to_string_lossy()),
            figure: format!(
                "{:.1} MiB on disk, loaded in {:.1} ms (median of {}), {:.0} KiB more memory of the process's own",
                fs::metadata(path)?.len() as f64 / 1_048_576.0,
                loaded.time.median(),
                loaded.time.len(),
                loaded.memory.median(),
            ),
            beside: "5 ms".into(),
            ratio: is_ours.then(|| loaded.time.median() / 5.0),
            aim: if is_ours { "<= 5 ms".into() } else { String::new() },
            reached: is_ours.then(|| loaded.time.median() <= 5.0),
        });
    }
    fs::remove_dir_all(logs).ok();
    Ok(())
}

struct Loaded {
    time: Sample,
    /// KiB.
    memory: Sample,
}

impl Loaded {
    /// In fresh processes: this program again.
    fn of(module: &Path) -> anyhow::Result<Self> {
        let mut pairs = Vec::new();
        for _ in 0..11 {
            let output = Command::new(std::env::current_exe()?).arg("--load-module").arg(module).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout)?;
            let (time, memory) = text.trim().split_once(' ').context("two numbers")?;
            pairs.push((time.parse::<f64>()?, memory.parse::<f64>()?));
        }
        Ok(Self { time: pairs.iter().map(|pair| pair.0).collect(), memory: pairs.iter().map(|pair| pair.1).collect() })
    }
}
