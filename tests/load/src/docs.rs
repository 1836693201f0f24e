//! `docs/benchmarks.md` and its pictures, out of a report.

use crate::bench::{B6_BYTES, B6_WORK, B8_LOGIN};
use crate::plot::{Chart, Scale, Series};
use anyhow::Context;
use serde::Deserialize;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

#[derive(Deserialize)]
struct Stored {
    about: Vec<(String, String)>,
    rows: Vec<StoredRow>,
    raw: Vec<(String, Vec<f64>)>,
    #[serde(default)]
    curves: Vec<(String, Vec<(f64, f64)>)>,
    #[serde(default)]
    failed: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct StoredRow {
    bench: String,
    what: String,
    figure: String,
    beside: String,
    ratio: Option<f64>,
    aim: String,
    reached: Option<bool>,
}

/// What each benchmark is, in its order.
const MEANING: &[(&str, &str)] = &[
    (
        "B1",
        "one login through PAM, authentication to standing tunnel, beside password and card login by pam_unix and pam_pkcs11, and beside its own floor",
    ),
    ("B2", "from the server's acceptance to the first answered ping between two members"),
    ("B3", "from the card's removal to the interface gone here, and to the peer dropped at the others"),
    (
        "B4",
        "logins a second, beside what the processors do in Argon2id and RSA alone; both in turn, both on all processors",
    ),
    (
        "B5",
        "attached terminals: memory, idle processor time (beside as many bare TLS connections), and how long a change takes to reach all members",
    ),
    ("B6", "bytes and work of one change for each member that hears of it, against the size of the group"),
    ("B7", "throughput and latency through a member's tunnel, with the guard and without"),
    ("B8", "login and start-up against the number of users; logins at all sizes in turn"),
    ("B9", "memory of cugd and the module, and the time to load the module"),
];

/// Bytes of innernet's list of all members by the size of the group: its answer to every question of every member, as measured once.
const INNERNET: [(f64, f64); 3] = [(10.0, 3.0e3), (100.0, 34.0e3), (1000.0, 341.0e3)];

/// Writes the page and its pictures into `dir`.
///
/// # Errors
/// When there is no report, or the folder cannot be written.
pub fn write(report: &Path, dir: &Path) -> anyhow::Result<()> {
    let text = fs::read(report).with_context(|| format!("{}: run the benchmarks first", report.display()))?;
    let stored: Stored = serde_json::from_slice(&text)?;
    let mut pictures = Vec::new();
    for (name, alt, chart) in charts(&stored) {
        // A single point says nothing that the table does not.
        if chart.series.iter().any(|series| series.points.len() > 1) {
            fs::write(dir.join(name), chart.svg())?;
            pictures.push(format!("![{alt}]({name})\n"));
        } else {
            // One of an earlier run would not be of these figures.
            let _ = fs::remove_file(dir.join(name));
        }
    }
    fs::write(dir.join("benchmarks.md"), page(&stored, &pictures))?;
    println!("written: {}", dir.join("benchmarks.md").display());
    Ok(())
}

fn page(stored: &Stored, pictures: &[String]) -> String {
    let mut page = String::from(INTRODUCTION);
    for (name, meaning) in MEANING {
        let _ = writeln!(page, "| {name} | {meaning} |");
    }
    let about = |key: &str| stored.about.iter().find(|(k, _)| k == key).map_or("?", |(_, value)| value.as_str());
    let _ = writeln!(page, "\n## Results of {}, profile {}\n", about("date"), about("profile"));
    if about("profile") != "release" {
        page.push_str("**Not the final figures: this was no release build.** Ratios within the run hold; absolute times are too long.\n\n");
    }
    page.push_str("| | what | figure | beside | ratio | aim | reached |\n|---|---|---|---|---|---|---|\n");
    for row in &stored.rows {
        let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let reached = row.reached.map_or("", |reached| if reached { "yes" } else { "**no**" });
        let cells = [&row.bench, &row.what, &row.figure, &row.beside, &ratio, &row.aim, reached];
        let _ = writeln!(page, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    for (name, why) in &stored.failed {
        let _ = writeln!(page, "\n**{name} could not be run:** {why}");
    }
    page.push_str(LIMITS);
    if !pictures.is_empty() {
        let _ = write!(page, "\n## Curves\n\n{}", pictures.join("\n"));
    }
    page.push_str(
        "\n## Distributions\n\nMilliseconds.\n\n| | measurements | median | p99 | largest |\n|---|---|---|---|---|\n",
    );
    for (name, values) in &stored.raw {
        let sample: cug_load::figures::Sample = values.iter().copied().collect();
        let figures = [sample.median(), sample.p99(), sample.quantile(1.0)].map(|value| format!("{value:.2}"));
        let _ = writeln!(page, "| {name} | {} | {} |", sample.len(), figures.join(" | "));
    }
    page.push_str("\n## Machine and versions\n\n| | |\n|---|---|\n");
    for (key, value) in &stored.about {
        let _ = writeln!(page, "| {key} | {value} |");
    }
    page
}

/// Where an aim is not reached, what bounds it; each was seen in a trace of system calls of the same programs.
const LIMITS: &str = "
## What bounds what is not reached

Runs on one and the same machine differ by a tenth and more: a figure that is within that of its aim is on both sides of it in one run or another. A p99 of fifty is nearly the
largest of them. Milliseconds here are those of a trace of one login.

- **B1f.** The two rows below it say what bounds it. The first adds up what each part takes alone, in a loop: what no login can leave out, and libpam, the question for the readers,
  the server's three commits, and the interface with its guard, without which there would be no tunnel that is its user's only. The second does the same with each part after a pause
  in which others had the caches, as a login finds the machine. One after the other they take more than 1.3 of the floor. A login does a part of it side by side: the guard is raised
  while the server hears that the grant has arrived, so the sums count some milliseconds that nobody waits for. What a login takes beyond them is some hundred changes of
  process, each of which finds a processor asleep (40 us on one of these machines), further questions to the card service, and the daemon's own connection to it, which watches
  the card. The last row says where in the login that is. What could still be done while the password is checked is the interface, 2 to 3 ms: not enough.
- **B3, interface gone.** The kernel takes an interface away when no packet can be in it any more: a few milliseconds as a rule, more when processors are busy.
- **B3, gone elsewhere.** The server commits the end to disk before it tells anybody, and the others are told by the connection that each has; the rest is the taking away here.
- **B7, the guard.** Every packet passes a program at its socket and the packet filter's chains, the encrypted one as well as the plain one: eight times for a ping and its answer.
  The row below each says what a guard takes at these places that does nothing at all: the kernel's way to it and back. That it is sometimes more than the guard, or less than nothing,
  says how far to trust either: to 3 % and not to 1 %. The two terminals share a kernel here, so that each packet
  passes the programs of both, which on two machines it would not.
- **B5, idle.** A heartbeat costs more than its bare TLS echo: it is decoded, noted and answered, and wakes one of several threads. Once a minute the server writes down who was
  heard of.
";

const INTRODUCTION: &str = "\
# Benchmarks

This page and its pictures are written by `make bench-docs`; do not edit them.

    make bench                      # all, 20 minutes at most after the build
    make bench ARGS=\"B5 B8\"         # some
    make bench ARGS=\"--quick B5\"    # a tenth of the size, to see whether it runs
    make bench-docs                 # all, and this page

They report and judge nothing: no test fails on time. A ratio is a figure by what is beside it, measured in the same run; below 1 is better, except for B4, where it is the share of what is possible.
The raw figures are in `target/bench/report.json`. One that cannot be run is named at the end, and the others are run all the same.

| | what it means |
|---|---|
";

fn charts(stored: &Stored) -> Vec<(&'static str, &'static str, Chart<'static>)> {
    let curve = |name: &str| {
        let found = stored.curves.iter().find(|(curve, _)| curve == name);
        found.map(|(_, points)| points.clone()).unwrap_or_default()
    };
    let bytes = curve(B6_BYTES);
    let mut sizes = vec![Series { name: "a change, for each member that hears of it".into(), points: bytes.clone() }];
    if !bytes.is_empty() {
        sizes.push(Series { name: "innernet: the list of all members".into(), points: INNERNET.to_vec() });
    }
    let work = vec![Series { name: "a change, for each member that hears of it".into(), points: curve(B6_WORK) }];
    let logins = vec![Series { name: "median of one login".into(), points: curve(B8_LOGIN) }];
    vec![
        (
            "benchmark-b5.svg",
            "B5: how many of all changes were known to all members by then",
            Chart {
                title: "B5: a change is known to all members",
                x: ("milliseconds", Scale::Linear),
                y: ("per cent of changes", Scale::Linear),
                series: stored
                    .raw
                    .iter()
                    .filter(|(name, _)| name.starts_with("B5 change known"))
                    .map(distribution)
                    .collect(),
            },
        ),
        (
            "benchmark-b6.svg",
            "B6: bytes of a change against the size of the group",
            Chart {
                title: "B6: bytes of a change",
                x: ("members of the group", Scale::Log),
                y: ("bytes", Scale::Log),
                series: sizes,
            },
        ),
        (
            "benchmark-b6-work.svg",
            "B6: work of the server for a change against the size of the group",
            Chart {
                title: "B6: work of the server for a change",
                x: ("members of the group", Scale::Log),
                y: ("microseconds of a processor", Scale::Linear),
                series: work,
            },
        ),
        (
            "benchmark-b8.svg",
            "B8: a login against the number of users",
            Chart {
                title: "B8: a login",
                x: ("users", Scale::Log),
                y: ("milliseconds", Scale::Linear),
                series: logins,
            },
        ),
    ]
}

fn distribution((name, values): &(String, Vec<f64>)) -> Series {
    let mut sorted = values.clone();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let points = sorted.into_iter().enumerate().map(|(n, value)| (value, (n + 1) as f64 / count * 100.0)).collect();
    Series { name: name.trim_start_matches("B5 change known, ").to_owned(), points }
}
