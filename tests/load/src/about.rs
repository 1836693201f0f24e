//! Which machine, which versions, which day.

use std::fs;
use std::process::{Command, Stdio};

/// Packages of what is measured beside.
const PEERS: &[&str] = &["libpam-pkcs11", "opensc-pkcs11", "libpam-sss", "wireguard-go", "iperf3", "pcscd", "libpam0g"];

/// All that makes the figures what they are.
pub fn about() -> Vec<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("", |(_, value)| value).trim().to_owned()
    };
    let load = read("/proc/loadavg").split(' ').take(2).collect::<Vec<_>>().join(", ");
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let mut about = [
        ("date", cug_server::clock::rfc3339(cug_server::clock::unix_now())),
        ("processor", after(&read("/proc/cpuinfo"), "model name")),
        ("processors", processors.to_string()),
        ("memory", after(&read("/proc/meminfo"), "MemTotal")),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("system", after(&read("/etc/os-release").replace('=', ":"), "PRETTY_NAME").trim_matches('"').to_owned()),
        ("load before (1 and 5 minutes)", load),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("commit", said("git", &["describe", "--always", "--dirty", "--abbrev=12", "--match="])),
        ("compiler", said("rustc", &["--version"])),
        ("profile", if cfg!(debug_assertions) { "dev" } else { "release" }.to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    for package in PEERS {
        let version = said("dpkg-query", &["--show", "--showformat=${Version}", package]);
        if !version.is_empty() {
            about.push((format!("{package} (package)"), version));
        }
    }
    about
}

/// The first line that a program says; nothing where it is not there or fails.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}
