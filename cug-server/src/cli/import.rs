//! `import` and `export`.

use super::output::Output;
use crate::{
    admin::{self, Reply, Request},
    config::Config,
    import::{self, Format},
};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    fs::File,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(clap::Args)]
#[command(
    after_help = "CSV: the first line names the columns: user, groups (with semicolons between), disabled (yes or no). \
    JSON: as export writes it. Imported users have no password until it is set. Nothing is imported when one line is wrong."
)]
pub(super) struct Import {
    /// A .csv or .json file
    file: PathBuf,
    /// Make groups that are named but not there
    #[arg(long)]
    make_groups: bool,
    /// Leave users, groups and memberships that are there already as they are, instead of refusing the file
    #[arg(long)]
    merge: bool,
}

impl Import {
    pub(super) fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        let content = read(&self.file)?;
        let mut directory = match import::parse(format(&self.file)?, &content) {
            Ok(directory) => directory,
            Err(problems) => {
                output.reply(&Reply::BadLines(problems))?;
                return Ok(ExitCode::FAILURE);
            }
        };
        drop(content);
        (directory.make_groups, directory.merge) = (self.make_groups, self.merge);
        let bar = progress_bar(output);
        let reply = admin::ask_telling(config, &Request::Import(directory), &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let reply = reply?;
        output.reply(&reply)?;
        Ok(if matches!(reply, Reply::Done(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn format(path: &Path) -> Result<Format> {
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => Ok(Format::Csv),
        Some("json") => Ok(Format::Json),
        _ => bail!("{}: the name must end in .csv or .json", path.display()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("cannot read {}", path.display());
    let mut content = Vec::new();
    File::open(path).with_context(what)?.take(import::MAX_FILE + 1).read_to_end(&mut content).with_context(what)?;
    if u64::try_from(content.len())? > import::MAX_FILE {
        bail!("{} is larger than {} MiB: import it in parts", path.display(), import::MAX_FILE >> 20);
    }
    Ok(content)
}

/// On a terminal, for a person.
fn progress_bar(output: &Output) -> ProgressBar {
    if output.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos} of {len} users, {eta} left") {
        bar.set_style(style);
    }
    bar
}

#[derive(clap::Args)]
pub(super) struct Export {
    /// With the hashes of the passwords: who gets them can try passwords without the server
    #[arg(long)]
    secrets: bool,
}

impl Export {
    pub(super) fn run(&self, config: &Config, output: &Output) -> Result<ExitCode> {
        super::ask(config, output, &Request::Export { secrets: self.secrets })
    }
}
