//! Where things are.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The directory of the programs that were built with this one.
pub fn programs() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let dir = own.parent().unwrap_or(Path::new("."));
    // Test programs stand one level deeper.
    if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() }
}

/// The workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// A program or library of the workspace.
///
/// # Errors
/// When it was not built.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let path = programs().join(name);
    if path.exists() {
        return Ok(path);
    }
    bail!("{} is missing; build it with `cargo build --workspace`", path.display())
}

/// Packages that the harness starts and that cargo does not know to be needed.
const NEEDED: [&str; 6] = ["cug-server", "cugd", "pam_cug", "cug-ifd", "cug-cards", "cug-tests"];

/// Whether [`build_all`] builds: not when `CUG_BUILT` is set, which says that it was just done, and not under sudo, where root would own what it
/// builds and need not have a toolchain.
pub fn builds() -> bool {
    ["CUG_BUILT", "SUDO_UID"].iter().all(|name| std::env::var_os(name).is_none())
}

/// Builds everything that the harness starts, so that nothing stale is ever tested. Once per process, if [`builds`].
///
/// # Errors
/// When cargo fails.
pub fn build_all() -> anyhow::Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let result = DONE.get_or_init(|| {
        if !builds() {
            return Ok(());
        }
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace()).args(["build", "--quiet", "--lib", "--bins"]);
        for package in NEEDED {
            cargo.args(["-p", package]);
        }
        if programs().ends_with("release") {
            cargo.arg("--release");
        }
        match cargo.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("cargo build: {status}")),
            Err(e) => Err(format!("cargo build: {e}")),
        }
    });
    result.clone().map_err(anyhow::Error::msg)
}

/// Where this machine keeps its PAM modules.
///
/// # Errors
/// When there is no pam_permit.so in any of the known places.
pub fn pam_modules() -> anyhow::Result<PathBuf> {
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    ["/lib", "/usr/lib"]
        .iter()
        .flat_map(|lib| [format!("{lib}/{multiarch}/security"), format!("{lib}64/security"), format!("{lib}/security")])
        .map(PathBuf::from)
        .find(|dir| dir.join("pam_permit.so").exists())
        .context("no PAM modules found on this machine; install libpam-modules")
}

/// Where the end-to-end tests keep what is theirs.
pub fn log_base() -> PathBuf {
    programs().parent().map_or_else(std::env::temp_dir, Path::to_owned).join("e2e")
}

/// A fresh directory for the logs of one environment, under `target`.
///
/// # Errors
/// When it cannot be made.
pub fn log_dir(name: &str) -> anyhow::Result<PathBuf> {
    let dir = log_base().join(format!("{name}-{}", std::process::id()));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// Where pictures of screens are kept, for people to look at, under `target`.
///
/// # Errors
/// When it cannot be made.
pub fn pictures() -> anyhow::Result<PathBuf> {
    let dir = programs().parent().map_or_else(std::env::temp_dir, Path::to_owned).join("pictures");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}
