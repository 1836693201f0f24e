//! Runs the nft program: one transaction each, on its standard input. It reads that to its end before it looks at anything else, so one may be
//! started beforehand ([`Standby`]): the loading of its libraries is most of what a run takes.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::timeout,
};

use super::{
    GuardError,
    plan::Plan,
    rules::{self, Beside, TABLE},
};

/// Where nft may be; a service has no PATH of its own to trust.
const PROGRAMS: [&str; 2] = ["/usr/sbin/nft", "/sbin/nft"];
/// Limit of one run.
const RUN: Duration = Duration::from_secs(5);
/// Where nft looks for cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Arguments of a run that reads a transaction.
const TRANSACTION: [&str; 2] = ["-f", "-"];

/// An nft that waits for its transaction. It ends when this is dropped, and by itself when this process does.
pub struct Standby(Child);

impl Standby {
    /// Starts one.
    ///
    /// # Errors
    /// [`GuardError::NoNft`], [`GuardError::Run`]
    pub fn start() -> Result<Self, GuardError> {
        start(&TRANSACTION).map(Self)
    }

    /// Unless somebody has ended it meanwhile.
    fn waiting(mut self) -> Option<Child> {
        matches!(self.0.try_wait(), Ok(None)).then_some(self.0)
    }
}

/// Replaces the rules by those of `plan`, all or nothing. `first`: there should be none of ours yet. By `standby`, if it is there.
///
/// # Errors
/// [`GuardError::NoNft`], [`GuardError::Nft`] with what nft said; the former rules stay. [`GuardError::NoSlice`] when listeners could not be
/// told apart.
pub async fn apply(plan: &Plan, beside: Beside, first: bool, standby: Option<Standby>) -> Result<(), GuardError> {
    if beside == Beside::Nothing {
        for uid in plan.fences.values().map(|fence| fence.uid) {
            let slice = Path::new(CGROUPS).join(rules::slice(uid));
            if !slice.is_dir() {
                return Err(GuardError::NoSlice(slice));
            }
        }
    }
    let first = first && !plan.is_empty();
    let input = if first { rules::first_transaction(plan, beside) } else { rules::transaction(plan, beside) };
    let standby = standby.and_then(Standby::waiting);
    let again = first || standby.is_some();
    match finish(standby.map_or_else(|| start(&TRANSACTION), Ok)?, &input).await {
        // A table of our name is there, or somebody ended the one that waited, or it will be refused in any case.
        Err(GuardError::Nft(_)) if again => run(&TRANSACTION, &rules::transaction(plan, beside)).await.map(drop),
        other => other.map(drop),
    }
}

/// All tables that bear our mark, as `family name`: ours, and what somebody made to look like ours.
///
/// # Errors
/// [`GuardError::NoNft`], [`GuardError::Nft`]
pub async fn tables() -> Result<Vec<String>, GuardError> {
    let text = run(&["list", "tables"], "").await?;
    Ok(text.lines().filter_map(own_table).map(str::to_owned).collect())
}

fn own_table(line: &str) -> Option<&str> {
    let table = line.strip_prefix("table ")?.trim();
    let (_, name) = table.split_once(' ')?;
    (name == TABLE || name.starts_with("cug_")).then_some(table)
}

/// Removes a table that [`tables`] named.
///
/// # Errors
/// As [`apply`].
pub async fn remove(table: &str) -> Result<(), GuardError> {
    run(&TRANSACTION, &format!("delete table {table}\n")).await.map(drop)
}

async fn run(arguments: &[&str], input: &str) -> Result<String, GuardError> {
    finish(start(arguments)?, input).await
}

fn start(arguments: &[&str]) -> Result<Child, GuardError> {
    let program = PROGRAMS.iter().find(|path| Path::new(path).exists()).ok_or(GuardError::NoNft)?;
    Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| GuardError::Run { source })
}

async fn finish(mut child: Child, input: &str) -> Result<String, GuardError> {
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A program that ends early says why on standard error.
            let _ended_early = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = timeout(RUN, work).await.map_err(|_| GuardError::Slow)?;
    let output = output.map_err(|source| GuardError::Run { source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it does not say why");
    Err(GuardError::Nft(first.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::own_table;

    #[test]
    fn only_our_own_tables_are_ours() {
        assert_eq!(own_table("table inet cug"), Some("inet cug"));
        assert_eq!(own_table("table ip cug_left"), Some("ip cug_left"));
        for foreign in ["table inet cuggy", "table inet filter", "", "table cug"] {
            assert_eq!(own_table(foreign), None, "{foreign}");
        }
    }
}
