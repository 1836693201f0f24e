//! Machines on which the product is installed from its packages, and nothing of it lies there before.

use crate::lan::{self, Lan};
use crate::machine::{Machine, Setup};
use crate::paths;
use crate::process::{self, Finished};
use crate::space::RUN_LIMIT;
use anyhow::{Context, ensure};
use std::path::Path;

/// Where the packages are on each machine.
const PACKAGES: &str = "/mnt";

/// The two versions of the same packages: the one that is installed first, and the one after it.
pub const OLD: &str = "1";
/// The later one.
pub const NEW: &str = "2";

/// Boots machine `number` with the packages at hand.
///
/// # Errors
/// When image or packages are missing, or it does not come up.
pub fn boot(lan: &Lan, logs: &Path, number: u8, suite: &'static str) -> anyhow::Result<Machine> {
    let packages = paths::programs().parent().context("no target directory")?.join("package/debug");
    ensure!(packages.is_dir(), "{} is missing; make it with `make packages-for-tests`", packages.display());
    let driver = (paths::built("libcug_ifd.so")?, "/usr/lib/cug-test/libcug_ifd.so");
    let setup = Setup { suite, bpf: true, binds: vec![(packages, PACKAGES), driver] };
    Machine::boot_with(lan, logs, number, &setup, |space| {
        let place = format!("{}/usr/lib/cug-test/libcug_ifd.so", crate::machine::ROOT);
        space.write(&place, "", 0o644)
    })
}

/// Installs, upgrades or downgrades to this revision.
///
/// # Errors
/// With what apt says.
pub fn install(machine: &Machine, packages: &[&str], revision: &str) -> anyhow::Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let files: Vec<_> =
        packages.iter().map(|name| format!("{PACKAGES}/{name}_{version}-{revision}_amd64.deb")).collect();
    for file in &files {
        let there = machine.path(file);
        ensure!(there.exists(), "{} is missing; make it with `make packages-for-tests`", there.display());
    }
    let mut args = vec!["install", "--allow-downgrades"];
    args.extend(files.iter().map(String::as_str));
    apt(machine, &args)?.ok()
}

/// `apt-get` without questions.
///
/// # Errors
/// When it cannot be run.
pub fn apt(machine: &Machine, args: &[&str]) -> anyhow::Result<Finished> {
    let mut command = machine.command("apt-get", &["--quiet", "--yes", "--no-install-recommends"]);
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    process::run(command, b"", RUN_LIMIT)
}

/// A shell command as root, outside of every session.
///
/// # Errors
/// With what it says, when it fails.
pub fn shell(machine: &Machine, script: &str) -> anyhow::Result<String> {
    shell_with(machine, script, "")
}

/// The same with standard input.
///
/// # Errors
/// As [`shell`].
pub fn shell_with(machine: &Machine, script: &str, input: &str) -> anyhow::Result<String> {
    let finished = process::run(machine.command("sh", &["-ec", script]), input.as_bytes(), RUN_LIMIT)?;
    finished.ok().with_context(|| script.to_owned())
}

/// The reader of the machine, as PC/SC calls it.
pub fn reader_name() -> String {
    cug_cards::rig::reader_name(0)
}

/// The address of machine `number`.
pub fn address(number: u8) -> String {
    lan::address4(number).to_string()
}
