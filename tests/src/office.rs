//! pcscd and a reader, at a terminal or where cards are issued.

use crate::process::Daemon;
use crate::server::ServerHost;
use crate::space::Space;
use crate::{paths, wait};
use anyhow::Context;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Where the first reader takes cards.
pub const READER: &str = "/run/reader0.sock";

/// Where the second reader takes cards, on hosts that have one.
pub const SECOND_READER: &str = "/run/reader1.sock";

/// How long a daemon may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The desk where cards are issued: a pcscd and a reader on the server's host, for as long as this lives.
pub struct Office {
    _pcscd: Daemon,
    reader: PathBuf,
}

impl Office {
    /// Opens it.
    ///
    /// # Errors
    /// When pcscd does not come up.
    pub fn open(server: &ServerHost) -> anyhow::Result<Self> {
        let (pcscd, reader) = pcscd(server.space())?;
        Ok(Self { _pcscd: pcscd, reader })
    }

    /// The reader's socket, for cards.
    pub fn reader(&self) -> PathBuf {
        self.reader.clone()
    }

    /// Name of the reader in PC/SC.
    pub fn reader_name(&self) -> String {
        cug_cards::rig::reader_name(0)
    }
}

/// Starts pcscd with one reader on a host: it, and the reader's socket.
///
/// # Errors
/// When the reader does not appear.
pub fn pcscd(space: &Space) -> anyhow::Result<(Daemon, PathBuf)> {
    pcscd_with(space, &[READER])
}

/// The same with a reader at each of these sockets; the first one is answered.
///
/// # Errors
/// When a reader does not appear.
pub fn pcscd_with(space: &Space, readers: &[&str]) -> anyhow::Result<(Daemon, PathBuf)> {
    let sockets: Vec<_> = readers.iter().map(PathBuf::from).collect();
    let conf = cug_cards::rig::reader_conf(&paths::built("libcug_ifd.so")?, &sockets);
    space.write("/etc/cug-readers/reader.conf", conf, 0o644)?;
    for old in readers.iter().chain(&["/run/pcscd/pcscd.comm", "/run/pcscd/pcscd.pid"]) {
        let _ = fs::remove_file(space.path(old));
    }
    let mut command = space.command("pcscd")?;
    command.args(["--foreground", "--config", "/etc/cug-readers"]);
    if knows_polkit() {
        command.arg("--disable-polkit");
    }
    crate::card::detach(&mut command);
    let mut daemon = space.daemon("pcscd", command)?;
    let reader = space.path(READER);
    wait::until("pcscd and its reader", START_LIMIT, || {
        if readers.iter().all(|reader| space.path(reader).exists()) && space.listens("/run/pcscd/pcscd.comm") {
            return Some(Ok(()));
        }
        daemon.exited().map(|status| Err(anyhow::anyhow!("pcscd ended: {status}")))
    })
    .and_then(|up| up)
    .with_context(|| daemon.log())?;
    Ok((daemon, reader))
}

/// Debian 13's pcscd asks polkit, which these hosts do not have; Debian 12's does not know the option.
fn knows_polkit() -> bool {
    static KNOWS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *KNOWS.get_or_init(|| {
        let help = std::process::Command::new("pcscd").arg("--help").output();
        help.is_ok_and(|help| {
            [help.stdout, help.stderr].iter().any(|text| crate::memory::contains(text, b"--disable-polkit"))
        })
    })
}
