//! `backup` and `restore`.

use super::output::Output;
use crate::{admin, config::Config};
use anyhow::Result;
use std::{path::PathBuf, process::ExitCode};

/// The keys are left out on purpose: with them, whoever gets hold of the file has the organisation.
#[derive(clap::Args)]
#[command(
    after_help = "The keys are not in the file: without the state directory's `keys`, a backup cannot be restored, and with them it is \
    the whole organisation. Keep a copy of `keys` in another place than the backups."
)]
pub(super) struct Backup {
    /// Where to; the file has mode 0600
    file: PathBuf,
    /// Replace the file if it is there already
    #[arg(long)]
    force: bool,
}

impl Backup {
    pub(super) fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        let backup = admin::back_up(config, &self.file, self.force)?;
        output.done(&format!(
            "{} has {} users, {} groups and {} rows of audit; the keys are not in it: keep a copy of {} in another place",
            self.file.display(),
            backup.users,
            backup.groups,
            backup.audit_rows,
            config.state_dir.join("keys").display()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(clap::Args)]
#[command(
    after_help = "All sessions end and all groups get new keys. What was changed after the backup was made is undone: \
    see in the old database's audit whom to disable and which cards to revoke again."
)]
pub(super) struct Restore {
    /// A file that `backup` made
    file: PathBuf,
    /// Also when the backup's audit is not as it was written
    #[arg(long)]
    force: bool,
}

impl Restore {
    pub(super) fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        let kept = admin::restore(config, &self.file, self.force)?;
        let kept = kept.map(|path| format!("; the old database is {}", path.display())).unwrap_or_default();
        output.done(&format!(
            "{} is restored: nobody is logged in, and all groups have new keys{kept}",
            self.file.display()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
