//! B8: login and start-up against the size of the directory.

use super::Scale;
use cug_load::figures::{Report, Row, Sample};
use cug_load::host::{Site, Size};
use std::time::Instant;

/// Logins that are measured at each size.
const LOGINS: usize = 60;

pub(super) async fn run(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let mut first: Option<f64> = None;
    for (users, name) in [(100, "100"), (scale.of(10_000), "10,000"), (scale.of(100_000), "100,000")] {
        let members = users.min(100);
        let size = Size { groups: users / members, members, with_cards: users.min(10_000) };
        let begin = Instant::now();
        let site = Site::new(size, "")?;
        println!("  a directory of {users} users made in {:.0} s", begin.elapsed().as_secs_f64());
        let host = site.serve()?;
        let organisation = site.organisation(&host)?;
        let mut times = Vec::new();
        for n in 0..LOGINS + 5 {
            let member = &site.members[(n * 7919) % site.members.len()];
            let begin = Instant::now();
            member.log_in(&organisation).await?;
            times.push(begin.elapsed());
        }
        // The first ones find nothing in memory.
        let login: Sample = times.into_iter().skip(5).collect();
        report.keep(format!("B8 login, {name} users"), &login);
        let smallest = *first.get_or_insert(login.median());
        report.row(Row {
            bench: "B8",
            what: format!("one login among {name} users ({} with a card)", site.members.len()),
            figure: format!("median {:.1} ms, p99 {:.1} ms", login.median(), login.p99()),
            beside: format!("{smallest:.1} ms among 100"),
            ratio: Some(login.median() / smallest),
            aim: "<= 1.1".into(),
            reached: Some(login.median() <= smallest * 1.1),
        });
        drop(host);
        let starts: anyhow::Result<Vec<_>> = (0..5).map(|_| Ok(site.serve()?.started_in)).collect();
        let starts: Sample = starts?.into_iter().collect();
        report.keep(format!("B8 start-up, {name} users"), &starts);
        report.row(Row {
            bench: "B8",
            what: format!("start-up until it listens, {name} users"),
            figure: format!("median {:.0} ms, largest {:.0} ms", starts.median(), starts.quantile(1.0)),
            beside: "1 s".into(),
            ratio: Some(starts.median() / 1000.0),
            aim: "<= 1 s".into(),
            reached: Some(starts.median() <= 1000.0),
        });
    }
    Ok(())
}
