//! B8: login and start-up against the size of the directory.

use super::Scale;
use cug_load::figures::{Report, Row, Sample};
use cug_load::host::{Host, Site, Size};
use cug_load::terminal::Organisation;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Logins that are measured at each size.
const LOGINS: usize = 80;

/// Logins before, which find nothing in memory.
const FIRST: usize = 5;

/// A curve.
pub const B8_LOGIN: &str = "B8 one login, ms";

/// A server with a directory of one size, and how long logins took there.
struct Place {
    users: usize,
    site: Site,
    host: Host,
    organisation: Arc<Organisation>,
    times: Vec<Duration>,
}

impl Place {
    fn new(users: usize) -> anyhow::Result<Self> {
        let members = users.min(100);
        let size = Size { groups: users / members, members, with_cards: users.min(10_000) };
        let begin = Instant::now();
        let site = Site::new(size, "")?;
        println!("  a directory of {users} users made in {:.0} s", begin.elapsed().as_secs_f64());
        let host = site.serve()?;
        let organisation = site.organisation(&host)?;
        Ok(Self { users, site, host, organisation, times: Vec::new() })
    }

    async fn log_in(&mut self, n: usize) -> anyhow::Result<()> {
        let member = &self.site.members[(n * 7919) % self.site.members.len()];
        let begin = Instant::now();
        member.log_in(&self.organisation).await?;
        self.times.push(begin.elapsed());
        Ok(())
    }
}

pub(super) async fn run(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let sizes = [100, scale.of(10_000), scale.of(100_000)];
    let mut places = sizes.into_iter().map(Place::new).collect::<anyhow::Result<Vec<_>>>()?;
    // In turn, so that all sizes meet the same machine.
    for n in 0..FIRST + LOGINS {
        for place in &mut places {
            place.log_in(n).await?;
        }
    }
    let mut smallest: Option<f64> = None;
    for place in places {
        logins_row(report, &place, &mut smallest);
        start_row(report, place)?;
    }
    Ok(())
}

fn logins_row(report: &mut Report, place: &Place, smallest: &mut Option<f64>) {
    let name = place.users;
    let login: Sample = place.times.iter().skip(FIRST).copied().collect();
    report.keep(format!("B8 login, {name} users"), &login);
    report.point(B8_LOGIN, name as f64, login.median());
    let smallest = *smallest.get_or_insert(login.median());
    report.row(Row {
        bench: "B8",
        what: format!(
            "one login among {name} users ({} with a card), in turn with the others",
            place.site.members.len()
        ),
        figure: format!("median {:.1} ms, p99 {:.1} ms", login.median(), login.p99()),
        beside: format!("{smallest:.1} ms among 100"),
        ratio: Some(login.median() / smallest),
        aim: "<= 1.1".into(),
        reached: Some(login.median() <= smallest * 1.1),
    });
}

fn start_row(report: &mut Report, place: Place) -> anyhow::Result<()> {
    let Place { users: name, site, host, .. } = place;
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
    Ok(())
}
