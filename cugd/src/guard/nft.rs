//! Runs the nft program: one transaction each, on its standard input.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

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

/// Replaces the rules by those of `plan`, all or nothing. `first`: there should be none of ours yet.
///
/// # Errors
/// [`GuardError::NoNft`], [`GuardError::Nft`] with what nft said; the former rules stay. [`GuardError::NoSlice`] when listeners could not be
/// told apart.
pub async fn apply(plan: &Plan, beside: Beside, first: bool) -> Result<(), GuardError> {
    if beside == Beside::Nothing {
        for uid in plan.fences.values().map(|fence| fence.uid) {
            let slice = Path::new(CGROUPS).join(rules::slice(uid));
            if !slice.is_dir() {
                return Err(GuardError::NoSlice(slice));
            }
        }
    }
    if first && !plan.is_empty() {
        match run(&["-f", "-"], &rules::first_transaction(plan, beside)).await {
            // A table of our name is there, or it would be refused in any case.
            Err(GuardError::Nft(_)) => {}
            other => return other.map(drop),
        }
    }
    run(&["-f", "-"], &rules::transaction(plan, beside)).await.map(drop)
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
    run(&["-f", "-"], &format!("delete table {table}\n")).await.map(drop)
}

async fn run(arguments: &[&str], input: &str) -> Result<String, GuardError> {
    let program = PROGRAMS.iter().find(|path| Path::new(path).exists()).ok_or(GuardError::NoNft)?;
    let failed = |source| GuardError::Run { source };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A program that ends early says why on standard error.
            let _ended_early = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = timeout(RUN, work).await.map_err(|_| GuardError::Slow)?.map_err(failed)?;
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
