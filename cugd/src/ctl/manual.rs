//! Completions and manual pages, from the same source as the command line itself.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::CommandFactory;

use super::{Arguments, CtlError, print};

/// What the page of the command says besides its options.
const MORE: &str = include_str!("../../../packaging/man/cugctl.1.in");

#[derive(clap::Args, Clone)]
pub(super) struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

#[derive(clap::Args, Clone)]
pub(super) struct Man {
    /// Where to; made if it is not there
    dir: PathBuf,
}

impl Completions {
    pub(super) fn run(&self) -> Result<ExitCode, CtlError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "cugctl", &mut script);
        print(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Man {
    pub(super) fn run(&self) -> Result<ExitCode, CtlError> {
        fs::create_dir_all(&self.dir).map_err(CtlError::Output)?;
        let mut command = Arguments::command().disable_help_subcommand(true);
        command.build();
        self.page(&command, "cugctl", MORE)?;
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            self.page(sub, &format!("cugctl-{}", sub.get_name()), ".SH SEE ALSO\n.BR cugctl (1)\n")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn page(&self, command: &clap::Command, name: &str, more: &str) -> Result<(), CtlError> {
        let page = clap_mangen::Man::new(command.clone())
            .section("1")
            .source(concat!("cugd ", env!("CARGO_PKG_VERSION")))
            .manual("User commands");
        let mut text = Vec::new();
        page.render(&mut text).map_err(CtlError::Output)?;
        text.extend_from_slice(more.as_bytes());
        fs::write(self.dir.join(format!("{name}.1")), text).map_err(CtlError::Output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// The parser names all keys that it knows; page and example must know them too.
    #[test]
    fn page_and_example_have_every_key_of_the_configuration() {
        const PAGE: &str = include_str!("../../../packaging/man/cugd.toml.5");
        const EXAMPLE: &str = include_str!("../../../packaging/examples/cugd.toml");
        let file = std::path::Path::new("cugd.toml");
        let error = crate::config::Config::parse(file, "no-such-key = 1").unwrap_err().to_string();
        let (_, expected) = error.split_once("expected ").unwrap();
        let keys: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
        assert!(keys.len() > 10, "{error}");
        for key in keys {
            assert!(PAGE.contains(&format!(".B {}", key.replace('-', "\\-"))), "cugd.toml(5) says nothing of {key}");
            // `socket` is for tests and for other layouts; an example would only invite to change it.
            assert!(key == "socket" || EXAMPLE.contains(&format!("{key} = ")), "the example has no {key}");
        }
    }

    #[test]
    fn the_example_is_valid_with_every_line_of_it_in_force() {
        const EXAMPLE: &str = include_str!("../../../packaging/examples/cugd.toml");
        let file = std::path::Path::new("cugd.toml");
        crate::config::Config::parse(file, EXAMPLE).unwrap();
        let all: Vec<_> = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") => rest,
                _ => line,
            })
            .collect();
        crate::config::Config::parse(file, &all.join("\n")).unwrap();
    }
}
