//! Completions and manual pages, from the same source as the command line itself.

use super::{Cli, output::Output};
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// The page of the configuration file, written by hand.
const SERVER_TOML: &str = include_str!("../../../packaging/man/server.toml.5");

/// What the page of the command says besides its options.
const MORE: &str = include_str!("../../../packaging/man/cug-server.8.in");

#[derive(clap::Args)]
pub(super) struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
pub(super) struct Man {
    /// Where to; made if it is not there
    dir: PathBuf,
}

impl Completions {
    pub(super) fn run(&self, output: &Output) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "cug-server", &mut script);
        output.raw(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Man {
    pub(super) fn run(&self, output: &Output) -> Result<ExitCode> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        pages(&command, "cug-server", &self.dir)?;
        write(&self.dir.join("server.toml.5"), SERVER_TOML.as_bytes())?;
        output.done(&format!("the manual is in {}", self.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A page for the command, and one for each of its subcommands.
fn pages(command: &clap::Command, name: &str, dir: &Path) -> Result<()> {
    let page = clap_mangen::Man::new(command.clone())
        .section("8")
        .source(concat!("cug-server ", env!("CARGO_PKG_VERSION")))
        .manual("System administration");
    let mut text = Vec::new();
    page.render(&mut text)?;
    if name == "cug-server" {
        text.extend_from_slice(MORE.as_bytes());
    }
    write(&dir.join(format!("{name}.8")), &text)?;
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    for sub in shown {
        pages(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(())
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The parser names all keys that it knows; the page must know them too.
    #[test]
    fn the_page_documents_every_key_of_the_configuration() {
        for table in ["", "[argon2]", "[hours]", "[keys]", "[metrics]", "[password]"] {
            let text = &format!("{table}\nno-such-key = 1");
            let error = crate::config::Config::parse(text, Path::new("x")).map(drop).unwrap_err().to_string();
            let (_, expected) = error.split_once("expected ").unwrap();
            let keys: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
            assert!(!keys.is_empty(), "{error}");
            for key in keys {
                let written = format!(".B {}", key.replace('-', "\\-"));
                assert!(SERVER_TOML.contains(&written), "server.toml(5) says nothing of {key}");
            }
        }
    }
}
