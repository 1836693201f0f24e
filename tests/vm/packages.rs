//! What becomes of the kernel's WireGuard, its rules and its programs when the packages change.

use crate::scene::{Scene, wait_clean};
use anyhow::ensure;
use cug_tests::accounts::{LOCAL_USER, ROOT_PASSWORD};
use cug_tests::guest::Guest;
use cug_tests::installed::{self, NEW, PASSWORDS, TERMINAL};

/// The next version over this one while USER-B's tunnel stands: the session ends as if its user had logged out, and the new daemon runs.
pub fn upgrade(scene: &Scene, untouched: &[String]) -> anyhow::Result<()> {
    let guest = &scene.two;
    let running = "systemctl show -P MainPID cugd";
    let before = guest.sh(running)?;
    let files = TERMINAL.map(|package| installed::file(package, NEW)).join(" ");
    guest.dpkg(&format!("--install {files}"))?;
    guest.wait_active("cugd")?;
    ensure!(guest.sh(running)? != before, "the old daemon runs");
    let version = guest.sh("dpkg-query -W -f '${Version} ${db:Status-Status}' cugd")?;
    ensure!(version.ends_with(&format!("-{NEW} installed")), "{version}");
    wait_clean(guest, untouched)?;
    let [_, (user, _)] = PASSWORDS;
    scene.unregistered(user)?;
    // The workstation said so itself: nobody waited for the end of a lease.
    let audit = installed::shell(&scene.server, &format!("cug-server audit --user {user}"))?;
    ensure!(audit.contains("session-clear") && !audit.contains("lease"), "{audit}");
    Ok(())
}

/// All goes, and root and a local user log in at the console.
pub fn purge(guest: &mut Guest, unconfigured: &[String]) -> anyhow::Result<()> {
    guest.console().log_out()?;
    guest.dpkg(&format!("--purge {}", TERMINAL.join(" ")))?;
    wait_clean(guest, unconfigured)?;
    let named = guest.sh("find /etc /usr /run/systemd /var/lib -xdev -name '*cug*' | grep -v -e cug-test -e ^/etc/reader.conf.d/ || true")?;
    ensure!(named.is_empty(), "left after the purge: {named}");
    guest.sh("! grep -r pam_cug /etc/pam.d")?;
    for (user, password) in [("root", ROOT_PASSWORD), LOCAL_USER] {
        guest.console().log_in(user, &[("assword: ", password)])?;
        guest.console().log_out()?;
    }
    Ok(())
}
