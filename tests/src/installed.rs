//! Machines on which the product is installed from its packages, and nothing of it lies there before.

use crate::card::{Kind, PIN, PivCard};
use crate::lan::{self, Lan};
use crate::machine::{Machine, ROOT, Setup};
use crate::paths;
use crate::process::{self, Finished};
use crate::server::NUMBER;
use crate::space::{RUN_LIMIT, Space};
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};

/// Where the packages are on each machine.
const PACKAGES: &str = "/mnt";

/// The two versions of the same packages: the one that is installed first, and the one after it.
pub const OLD: &str = "1";
/// The later one.
pub const NEW: &str = "2";

/// What a workstation gets.
pub const TERMINAL: [&str; 2] = ["cugd", "libpam-cug"];

/// The users of [`server`], with their passwords.
pub const PASSWORDS: [(&str, &str); 2] = [("USER-A", "seven-green-lamps"), ("USER-B", "nine-blue-doors")];

/// The file of a package, as [`boot`] puts it into a machine, or [`image`].
pub fn file(package: &str, revision: &str) -> String {
    format!("{PACKAGES}/{package}_{}-{revision}_amd64.deb", env!("CARGO_PKG_VERSION"))
}

/// Where they were made.
fn made() -> anyhow::Result<PathBuf> {
    let packages = paths::programs().parent().context("no target directory")?.join("package/debug");
    ensure!(packages.is_dir(), "{} is missing; make it with `make packages-for-tests`", packages.display());
    Ok(packages)
}

/// Boots machine `number` with the packages at hand.
///
/// # Errors
/// When image or packages are missing, or it does not come up.
pub fn boot(lan: &Lan, logs: &Path, number: u8, suite: &'static str) -> anyhow::Result<Machine> {
    let packages = made()?;
    let driver = (paths::built("libcug_ifd.so")?, "/usr/lib/cug-test/libcug_ifd.so");
    let setup = Setup { suite, bpf: true, binds: vec![(packages, PACKAGES), driver] };
    Machine::boot_with(lan, logs, number, &setup, |space| {
        let place = format!("{ROOT}/usr/lib/cug-test/libcug_ifd.so");
        space.write(&place, "", 0o644)
    })
}

/// Installs, upgrades or downgrades to this revision.
///
/// # Errors
/// With what apt says.
pub fn install(machine: &Machine, packages: &[&str], revision: &str) -> anyhow::Result<String> {
    let files: Vec<_> = packages.iter().map(|name| file(name, revision)).collect();
    for file in &files {
        let there = machine.path(file);
        ensure!(there.exists(), "{} is missing; make it with `make packages-for-tests`", there.display());
    }
    let mut args = vec!["install", "--allow-downgrades"];
    args.extend(files.iter().map(String::as_str));
    apt(machine, &args)?.ok()
}

/// Installs the workstation's packages into the files of a machine that has not booted yet, as who makes images does; the next version lies there.
///
/// # Errors
/// With what dpkg says.
pub fn image(space: &Space) -> anyhow::Result<()> {
    let from = made()?;
    for revision in [OLD, NEW] {
        for package in TERMINAL {
            let there = file(package, revision);
            let name = Path::new(&there).file_name().context("no name")?;
            std::fs::copy(from.join(name), space.path(format!("{ROOT}{there}")))
                .with_context(|| format!("{there} is missing; make it with `make packages-for-tests`"))?;
        }
    }
    let files = TERMINAL.map(|package| file(package, OLD));
    let mut dpkg = vec![ROOT, "env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--force-unsafe-io", "--install"];
    dpkg.extend(files.iter().map(String::as_str));
    space.run("chroot", &dpkg)?.ok().map(drop).context("installing into the image")
}

/// A server by the commands of the README, in a container: two users in a group.
///
/// # Errors
/// With what a command says.
pub fn server(lan: &Lan, logs: &Path, suite: &'static str) -> anyhow::Result<Machine> {
    let server = boot(lan, logs, NUMBER, suite)?;
    install(&server, &["cug-server"], OLD)?;
    shell(&server, "! systemctl is-enabled cug-server && ! systemctl is-active cug-server")?;
    shell(&server, "cug-server init --name 'Example Hospital'")?;
    // Before the server runs for the first time, commands work on its state.
    shell(&server, "cug-server group add VPN1")?;
    shell(&server, "systemctl enable --now cug-server")?;
    for (user, password) in PASSWORDS {
        shell_with(&server, &format!("cug-server user add {user} --password-stdin"), &format!("{password}\n"))?;
        shell(&server, &format!("cug-server group join VPN1 {user}"))?;
    }
    Ok(server)
}

/// What its administrator writes into cugd.toml.
///
/// # Errors
/// With what the command says.
pub fn terminal_config(server: &Machine) -> anyhow::Result<String> {
    shell(server, &format!("cug-server terminal-config {}", address(NUMBER)))
}

/// Issues a card at the server's own reader, with the installed command.
///
/// # Errors
/// With what the command says.
pub fn card(server: &Machine, user: &str) -> anyhow::Result<PivCard> {
    let card = server.insert(PivCard::blank(Kind::usual(), server.space().logs())?)?;
    let reader = reader_name();
    let issue = format!("cug-server card issue {user} --reader '{reader}' --pin-stdin --generate");
    shell_with(server, &issue, &format!("{PIN}\n"))?;
    Ok(card.pull())
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
