//! B5: what attached terminals cost. B6: what a change costs.

use super::Scale;
use cug_load::echo;
use cug_load::figures::{Report, Row, Sample};
use cug_load::fleet::{Fleet, Heard};
use cug_load::host::{CHEAP, Host, Site, Size};
use cug_proto::id::UserId;
use std::time::{Duration, Instant};

/// What servers tell terminals unless they are configured otherwise.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// For anything that thousands do.
const LIMIT: Duration = Duration::from_secs(300);

/// Terminals that come first, so that what every server has is not counted as theirs.
const FIRST: usize = 200;

/// Changes that are measured.
const CHANGES: usize = 100;

pub(super) async fn run(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    for (groups, members, limit) in [(100, 100, 100.0), (10, 1000, 500.0)] {
        // They have groups of their own.
        let first = members.max(FIRST);
        let groups = scale.of(groups);
        let site = Site::new(Size { groups: groups + first / members, members, with_cards: usize::MAX }, CHEAP)?;
        let host = site.serve()?;
        let organisation = site.organisation(&host)?;
        let (first, rest) = site.members.split_at(first);
        let name = format!("{} terminals in {groups} groups of {members}", rest.len());
        let one = Fleet::sit_down(&organisation, first, HEARTBEAT).await?;
        let before = host.memory()?;
        let begin = Instant::now();
        let mut fleet = Fleet::sit_down(&organisation, rest, HEARTBEAT).await?;
        println!("  {} logged in and attached in {:.0} s", rest.len(), begin.elapsed().as_secs_f64());
        let each = (host.memory()? - before) as f64 / rest.len() as f64 / 1024.0;
        one.announce_all(members - 1, LIMIT).await?;
        fleet.announce_all(members - 1, LIMIT).await?;
        let announced = (host.memory()? - before) as f64 / rest.len() as f64 / 1024.0;
        let idle = idle(&host).await?;
        report.row(Row {
            bench: "B5",
            what: format!("memory of the server for each of {name}"),
            figure: format!("{announced:.1} KiB when all are announced, {each:.1} KiB before"),
            beside: "40 KiB".into(),
            ratio: Some(announced / 40.0),
            aim: "<= 40 KiB".into(),
            reached: Some(announced <= 40.0),
        });
        idle_row(report, &name, rest.len(), idle).await?;
        let users: Vec<UserId> = rest.iter().map(|member| member.user.clone()).collect();
        let measured: Vec<usize> = (0..CHANGES).map(|n| (n * 7919) % users.len()).collect();
        let changes = changes(&mut fleet, &users, &measured, members - 1).await?;
        let known: Sample = changes.iter().map(|change| change.known).collect();
        report.keep(format!("B5 change known, {name}"), &known);
        report.row(Row {
            bench: "B5",
            what: format!("a change is known to all {} others, {name}", members - 1),
            figure: format!("median {:.0} ms, p99 {:.0} ms", known.median(), known.p99()),
            beside: format!("{limit} ms"),
            ratio: Some(known.p99() / limit),
            aim: format!("p99 <= {limit} ms"),
            reached: Some(known.p99() <= limit),
        });
        anyhow::ensure!(fleet.lost() + one.lost() == 0, "{} terminals lost their connection", fleet.lost());
    }
    Ok(())
}

/// Idle terminals beside the aim, and beside as many TLS connections with nothing behind them.
async fn idle_row(report: &mut Report, name: &str, count: usize, idle: f64) -> anyhow::Result<()> {
    let floor = tokio::task::spawn_blocking(move || echo::idle_apart(count, HEARTBEAT, HEARTBEAT)).await??;
    let aim = 0.02 * count as f64 / 10_000.0;
    let what = format!("processor time of the server while {name} are idle, heartbeats each {} s", HEARTBEAT.as_secs());
    let figure = format!("{:.2} % of a processor", idle * 100.0);
    report.row(Row {
        bench: "B5",
        what: what.clone(),
        figure: figure.clone(),
        beside: format!("{:.1} %: 2 % for 10,000", aim * 100.0),
        ratio: Some(idle / aim),
        aim: "<= 2 % for 10,000".into(),
        reached: Some(idle <= aim),
    });
    report.row(Row {
        bench: "B5",
        what,
        figure,
        beside: format!("{:.2} %: a bare TLS echo, as many connections as often", floor * 100.0),
        ratio: Some(idle / floor),
        aim: "the floor".into(),
        reached: None,
    });
    Ok(())
}

/// Share of a processor over a minute, which is four heartbeats of everybody, and the server's housekeeping once.
async fn idle(host: &Host) -> anyhow::Result<f64> {
    let (begin, before) = (Instant::now(), host.cpu()?);
    tokio::time::sleep(4 * HEARTBEAT).await;
    Ok((host.cpu()? - before).as_secs_f64() / begin.elapsed().as_secs_f64())
}

/// A curve.
pub const B6_BYTES: &str = "B6 bytes for each informed member";
/// A curve.
pub const B6_WORK: &str = "B6 work of the server for each informed member, us";

struct Change {
    /// Until the last of the others had heard of it.
    known: Duration,
    /// Bytes for each of them.
    bytes: f64,
}

/// Terminals announce another port, one after the other; `others` hear of each.
async fn changes(fleet: &mut Fleet, users: &[UserId], who: &[usize], others: usize) -> anyhow::Result<Vec<Change>> {
    fleet.listen();
    let mut changes = Vec::with_capacity(who.len());
    for (round, index) in who.iter().enumerate() {
        let (Some(user), Some(speaker)) = (users.get(*index), fleet.speakers.get(*index).cloned()) else {
            anyhow::bail!("no terminal {index}")
        };
        let begin = Instant::now();
        speaker.announce(40_000 + u16::try_from(round)?).await?;
        let heard = fleet.hear(others, LIMIT, |heard: &Heard| heard.present.contains(user)).await?;
        let last = heard.iter().map(|heard| heard.at).max().unwrap_or(begin);
        let bytes = heard.iter().map(|heard| heard.bytes as f64).sum::<f64>() / heard.len() as f64;
        changes.push(Change { known: last - begin, bytes });
        // One at a time: the next one is not to meet the answer to this one.
        fleet.quiet(Duration::from_millis(10), LIMIT).await?;
    }
    Ok(changes)
}

pub(super) async fn work_per_change(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let mut smallest: Option<(f64, f64)> = None;
    for members in [10, 100, 1000, scale.of(10_000)] {
        let site = Site::new(Size { groups: 1, members, with_cards: usize::MAX }, CHEAP)?;
        let host = site.serve()?;
        let organisation = site.organisation(&host)?;
        let mut fleet = Fleet::sit_down(&organisation, &site.members, Duration::from_secs(50)).await?;
        let users: Vec<UserId> = site.members.iter().map(|member| member.user.clone()).collect();
        let who: Vec<usize> = (0..scale.of(50)).map(|n| n % members).collect();
        let before = host.cpu()?;
        let changes = changes(&mut fleet, &users, &who, members - 1).await?;
        let informed = (changes.len() * (members - 1)) as f64;
        let work = (host.cpu()? - before).as_secs_f64() * 1e6 / informed;
        let bytes = changes.iter().map(|change| change.bytes).sum::<f64>() / changes.len() as f64;
        let known: Sample = changes.iter().map(|change| change.known).collect();
        report.keep(format!("B6 change known, group of {members}"), &known);
        report.point(B6_BYTES, members as f64, bytes);
        report.point(B6_WORK, members as f64, work);
        let (first_bytes, first_work) = *smallest.get_or_insert((bytes, work));
        report.row(Row {
            bench: "B6",
            what: format!("one change in a group of {members}, for each member that hears of it"),
            figure: format!("{bytes:.0} bytes, {work:.0} us of the server's processor"),
            beside: format!("{first_bytes:.0} bytes, {first_work:.0} us in a group of 10"),
            ratio: Some(bytes / first_bytes),
            aim: "constant".into(),
            reached: Some(bytes <= first_bytes * 1.05 && work <= first_work * 1.05),
        });
    }
    Ok(())
}
