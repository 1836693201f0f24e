//! `audit`: what happened, and whether the record of it is as it was written.

use super::{output::Output, user::user_id};
use crate::{
    admin::{self, Reply, Request},
    clock::{self, UnixTime},
    config::Config,
    store::{AuditQuery, AuditRow, AuditVerdict},
};
use anyhow::{Result, bail};
use cug_proto::id::UserId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{os::fd::AsFd, process::ExitCode};

/// Rows that are shown when nothing else is said.
const SHOWN: u32 = 100;

/// How often `--follow` looks, in milliseconds.
const LOOK: u16 = 500;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Audit {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Check that no row was altered, removed, moved or added outside of cug-server
    Verify(Verify),
}

#[derive(clap::Args)]
struct Verify {
    /// Also check that the audit still has the row with this code, which an earlier check printed
    #[arg(long, value_name = "CODE", value_parser = code)]
    noted: Option<String>,
}

#[derive(clap::Args)]
struct List {
    /// Only from this time on: 2026-11-22, 2026-11-22T10:00:00Z (both UTC), or a time ago like 30m, 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// Only what this user did, or what is about this user
    #[arg(long, value_parser = user_id)]
    user: Option<UserId>,
    /// Go on showing what happens, until interrupted
    #[arg(long)]
    follow: bool,
    /// Only the newest N rows, at most 10000 [default: 100; all with --since]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(AuditQuery::MOST)))]
    limit: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    At(UnixTime),
    Ago(i64),
}

fn since(text: &str) -> Result<Since, &'static str> {
    if let Some(time) = clock::parse_rfc3339(text) {
        return Ok(Since::At(time));
    }
    let ago = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let seconds = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)];
        let (_, seconds) = seconds.into_iter().find(|(name, _)| *name == unit)?;
        i64::from(number.parse::<u32>().ok()?).checked_mul(seconds)
    };
    ago().map(Since::Ago).ok_or("a time is 2026-11-22, 2026-11-22T10:00:00Z (UTC), or a time ago: 30m, 12h, 7d")
}

fn code(text: &str) -> Result<String, &'static str> {
    let valid = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if valid { Ok(text.to_owned()) } else { Err("a code has 64 hexadecimal digits") }
}

impl Audit {
    pub(super) fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        match &self.command {
            Some(Command::Verify(verify)) => verify.run(config, output),
            None => self.list.run(config, output),
        }
    }
}

impl Verify {
    fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        let verdict = match admin::ask(config, &Request::AuditVerify(self.noted.clone()))? {
            Reply::AuditVerdict(verdict) => verdict,
            Reply::Refused(sentence) => bail!(sentence),
            _ => bail!("the server gave another reply; is it of another version?"),
        };
        output.show(&verdict, || sentences(&verdict))?;
        Ok(if verdict.wrong.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn sentences(verdict: &AuditVerdict) -> String {
    if let Some(wrong) = &verdict.wrong {
        return format!(
            "the audit is NOT as it was written: {wrong}\nrows up to {} fit each other; the journal has the rows too (of an import the first 1,000): journalctl -t cug-server CUG_ROW=N\n",
            verdict.rows
        );
    }
    let begun = verdict.begun.as_ref().map(|at| format!(", chained since {at}")).unwrap_or_default();
    let head = verdict.head.as_deref().unwrap_or("-");
    format!(
        "{} rows are as they were written{begun}\nnote this code elsewhere for a later `audit verify --noted`: {head}\n",
        verdict.rows
    )
}

impl List {
    fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        let since = self.since.map(|since| match since {
            Since::At(time) => time,
            Since::Ago(seconds) => clock::unix_now().saturating_sub(seconds),
        });
        let newest = self.limit.or(since.is_none().then_some(SHOWN));
        let mut query = AuditQuery { after: 0, since, user: self.user.clone(), newest };
        let mut first = true;
        loop {
            let rows = ask(config, &query)?;
            if first || !rows.is_empty() {
                output.audit(&rows, first)?;
            }
            first = false;
            query.after = rows.last().map_or(query.after, |row| row.id);
            let all = query.newest.take().is_some() || rows.len() < usize::try_from(AuditQuery::MOST)?;
            if all && (!self.follow || nobody_reads()?) {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

fn ask(config: &Config, query: &AuditQuery) -> Result<Vec<AuditRow>> {
    match admin::ask(config, &Request::Audit(query.clone()))? {
        Reply::Audit(rows) => Ok(rows),
        Reply::Refused(sentence) => bail!(sentence),
        _ => bail!("the server gave another reply; is it of another version?"),
    }
}

/// Waits until it is time to look again; `true` when standard output was closed meanwhile.
fn nobody_reads() -> Result<bool> {
    let stdout = std::io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::from(LOOK)) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let [fd] = fds;
    Ok(fd
        .revents()
        .is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_points_or_ago() {
        assert_eq!(since("1970-01-02"), Ok(Since::At(86_400)));
        assert_eq!(since("90m"), Ok(Since::Ago(5400)));
        assert_eq!(since("2w"), Ok(Since::Ago(1_209_600)));
        for bad in ["", "m", "-1d", "1y", "yesterday", "2026-02-30", "ä", "99999999999d"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }
}
