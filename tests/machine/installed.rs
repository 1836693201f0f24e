//! The product as it is installed from its packages: a server and two workstations, by the commands of the README; and that nobody is locked out, whatever is
//! done with the packages.

use crate::older;
use anyhow::{Context, ensure};
use cug_tests::accounts::{LOCAL_USER, ROOT_PASSWORD};
use cug_tests::card::PIN;
use cug_tests::installed::{self, NEW, OLD, PASSWORDS, TERMINAL, apt, install, server, shell, shell_with};
use cug_tests::lan::Lan;
use cug_tests::machine::{Machine, SUITE};
use cug_tests::space::scenario;
use cug_tests::wait;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// A server and two workstations, everything from packages.
struct Site {
    server: Machine,
    desks: Vec<Machine>,
    config: String,
    _lan: Lan,
}

impl Site {
    fn new(logs: &Path, suite: &'static str) -> anyhow::Result<Self> {
        let lan = Lan::new(logs)?;
        let server = server(&lan, logs, suite)?;
        let config = installed::terminal_config(&server)?;
        let mut site = Self { server, desks: Vec::new(), config, _lan: lan };
        for number in [20, 21] {
            let desk = installed::boot(&site._lan, logs, number, suite)?;
            install(&desk, &TERMINAL, OLD)?;
            site.desks.push(desk);
        }
        Ok(site)
    }

    /// Writes the two lines; the daemon waits for them.
    fn configure(&self) -> anyhow::Result<()> {
        for desk in &self.desks {
            shell(desk, "! systemctl is-active cugd && ! systemctl is-failed cugd")?;
            shell_with(desk, "cat >/etc/cug/cugd.toml", &self.config)?;
            desk.wait_active("cugd")?;
        }
        Ok(())
    }

    fn log_in(&mut self, desk: usize) -> anyhow::Result<()> {
        let (user, password) = PASSWORDS[desk];
        let machine = &mut self.desks[desk];
        let said = machine.console().log_in(user, &[("PIN: ", PIN), ("assword: ", password)]);
        said.with_context(|| machine.journal("cugd"))?;
        ensure!(machine.tunnels().len() == 1, "{user}: {:?}\n{}", machine.tunnels(), machine.journal("cugd"));
        Ok(())
    }

    /// The sessions' numbers.
    fn sessions(&self) -> anyhow::Result<Vec<String>> {
        let text = shell(&self.server, "cug-server --json session list")?;
        let rows: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
        let mut numbers: Vec<_> = rows.iter().filter_map(|row| row["id"].as_str()).map(str::to_owned).collect();
        numbers.sort();
        Ok(numbers)
    }

    /// USER-A pings USER-B by name.
    fn reaches(&mut self) -> anyhow::Result<()> {
        let name = || self.desks[0].run("getent", &["hosts", "user-b.vpn1.cug"]).is_ok_and(|found| found.ok().is_ok());
        wait::for_true("USER-B's name", LIMIT, name).with_context(|| self.desks[0].journal("cugd"))?;
        let ping = self.desks[0].console().shell("ping -c 3 -i 0.2 -W 2 user-b.vpn1.cug")?;
        ensure!(ping.contains(" 0% packet loss"), "{ping}");
        Ok(())
    }

    /// Waits until the first desk has no tunnel and the server no session of its user.
    fn closed(&self) -> anyhow::Result<()> {
        self.desks[0].wait_no_tunnel(LIMIT)?;
        let gone = || shell(&self.server, "cug-server session list").is_ok_and(|list| !list.contains("USER-A"));
        wait::for_true("the server to clear USER-A", LIMIT, gone)
    }
}

/// What `cugctl doctor` says of one item.
fn doctor(machine: &Machine, item: &str) -> anyhow::Result<(bool, Vec<String>)> {
    let text = shell(machine, "cugctl --json doctor || [ $? = 3 ]")?;
    let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let checks = all["checks"].as_array().context("no checks")?;
    let of = |check: &&Value| check["item"] == item;
    let verdicts = checks.iter().filter(of).filter_map(|check| check["verdict"].as_str()).map(str::to_owned).collect();
    Ok((all["healthy"] == true, verdicts))
}

fn ensure_found(machine: &Machine, what: &str, item: &str) -> anyhow::Result<()> {
    let (healthy, verdicts) = doctor(machine, item)?;
    let all = || shell(machine, "cugctl doctor || true").unwrap_or_default();
    ensure!(!healthy && verdicts.iter().any(|verdict| verdict == "failed"), "{what}: {verdicts:?}\n{}", all());
    Ok(())
}

fn a_day(logs: &Path, suite: &'static str) -> anyhow::Result<()> {
    let mut site = Site::new(logs, suite)?;
    let (card_a, card_b) = (installed::card(&site.server, "USER-A")?, installed::card(&site.server, "USER-B")?);
    site.configure()?;
    let in_a = site.desks[0].insert(card_a)?;
    let _in_b = site.desks[1].insert(card_b)?;
    site.log_in(0)?;
    site.log_in(1)?;
    site.reaches()?;
    let said = site.desks[0].console().shell("cugctl doctor")?;
    ensure!(!said.contains("FAILED"), "{said}");

    let card_a = in_a.pull();
    site.closed()?;
    site.desks[0].console().log_out()?;
    let _in_a = site.desks[0].insert(card_a)?;
    site.log_in(0)?;
    site.reaches()?;
    upgrades(&mut site)?;
    site.log_in(0)?;
    site.reaches()?;
    purges(&mut site)?;
    older::downgraded_below_a_later_one(&mut site.server)
}

/// The server's upgrade keeps the sessions, from the first version on; the workstation's ends them in order.
fn upgrades(site: &mut Site) -> anyhow::Result<()> {
    let begun = site.sessions()?;
    ensure!(begun.len() == PASSWORDS.len(), "{begun:?}");
    install(&site.server, &["cug-server"], NEW)?;
    site.server.wait_active("cug-server")?;
    site.reaches()?;
    let same = || site.sessions().is_ok_and(|now| now == begun);
    wait::for_true("the sessions to outlive the server's upgrade", LIMIT, same)?;
    older::upgraded_from_the_first(&site.server)?;
    site.reaches()?;
    let same = || site.sessions().is_ok_and(|now| now == begun);
    wait::for_true("the sessions to outlive an upgrade from the first version", LIMIT, same)
        .with_context(|| format!("{begun:?} {:?}", site.sessions()))?;
    install(&site.desks[0], &TERMINAL, NEW)?;
    site.closed()?;
    site.desks[0].wait_active("cugd")?;
    site.desks[0].console().log_out()
}

/// A purge ends the session, and nothing of the product is left.
fn purges(site: &mut Site) -> anyhow::Result<()> {
    apt(&site.desks[0], &["purge", "cugd", "libpam-cug"])?.ok()?;
    site.closed()?;
    let desk = &mut site.desks[0];
    desk.console().log_out()?;
    for (user, password) in [("root", ROOT_PASSWORD), LOCAL_USER] {
        desk.console().log_in(user, &[("assword: ", password)])?;
        desk.console().log_out()?;
    }
    left_over(desk)
}

fn left_over(desk: &Machine) -> anyhow::Result<()> {
    let find = "find / -xdev \\( -path /proc -o -path /sys -o -path /mnt -o -path /usr/lib/cug-test -o -path /var/log -o -path /var/cache \
                -o -path /etc/reader.conf.d -o -path /tmp \\) -prune -o \\( -name '*cug*' -print \\)";
    let files = shell(desk, find)?;
    // debconf and dpkg remember that there was a package; systemd that a timer or unit was once enabled is not among them.
    let left: Vec<_> =
        files.lines().filter(|file| !file.starts_with("/run/systemd/journal") && !file.contains("/journal/")).collect();
    ensure!(left.is_empty(), "left after the purge: {left:?}");
    let named = shell(desk, "grep -rl cug /etc --exclude-dir=reader.conf.d --exclude='shadow*' || true")?;
    ensure!(named.trim().is_empty(), "named after the purge: {named}");
    Ok(())
}

/// A server and two workstations from packages: logins, the card pulled, upgrades with sessions open, purge.
#[test]
fn from_packages() {
    scenario("installed", |logs| a_day(logs, SUITE));
}

/// The same on the next release of the distribution, with the same packages.
#[test]
fn from_packages_on_debian_13() {
    scenario("installed-trixie", |logs| a_day(logs, "trixie"));
}

/// Each fault is found and named by `cugctl doctor`, and nothing else is needed to see it.
#[test]
fn the_doctor() {
    scenario("installed-doctor", |logs| {
        let lan = Lan::new(logs)?;
        let server = server(&lan, logs, SUITE)?;
        let config = installed::terminal_config(&server)?;
        let desk = installed::boot(&lan, logs, 20, SUITE)?;
        install(&desk, &TERMINAL, OLD)?;
        ensure_found(&desk, "without a configuration", "configuration")?;
        shell_with(&desk, "cat >/etc/cug/cugd.toml", &config)?;
        desk.wait_active("cugd")?;
        desk.run("systemctl", &["start", "pcscd.service"])?.ok()?;
        let said = shell(&desk, "cugctl doctor")?;
        ensure!(!said.contains("FAILED"), "{said}");

        let faults: [(&str, &str, &str, &str); 7] = [
            (
                "no pcscd",
                "pcscd",
                "systemctl mask --now pcscd.socket pcscd.service",
                "systemctl unmask pcscd.socket pcscd.service; systemctl start pcscd.socket pcscd.service",
            ),
            (
                "another CA",
                "server",
                "cp /etc/cug/cugd.toml /root/; sed -i 's/pins = \\[\"..../pins = [\"0000/' /etc/cug/cugd.toml",
                "cp /root/cugd.toml /etc/cug/",
            ),
            (
                "no PAM profile",
                "PAM",
                "pam-auth-update --package --remove cug cug-session",
                "pam-auth-update --enable cug cug-session",
            ),
            (
                "no account line",
                "PAM",
                "cp /etc/pam.d/common-account /root/; sed -i /pam_cug/d /etc/pam.d/common-account",
                "cp /root/common-account /etc/pam.d/",
            ),
            ("cugd stopped", "cugd", "systemctl stop cugd", "systemctl start cugd"),
            (
                "a file that others can write",
                "file modes",
                "chmod 666 /etc/cug/cugd.toml",
                "chmod 644 /etc/cug/cugd.toml",
            ),
            ("no nft", "nft", "mv /usr/sbin/nft /root/", "mv /root/nft /usr/sbin/"),
        ];
        for (what, item, breaks, mends) in faults {
            shell(&desk, breaks)?;
            ensure_found(&desk, what, item)?;
            shell(&desk, mends)?;
            let well = || doctor(&desk, item).is_ok_and(|(healthy, _)| healthy);
            wait::for_true(&format!("all to be well again after: {what}"), LIMIT, well)
                .with_context(|| shell(&desk, "cugctl doctor || true").unwrap_or_default())?;
        }
        shell(&server, "systemctl stop cug-server")?;
        ensure_found(&desk, "the server is down", "server")
    });
}

/// root and a local user at the console.
fn nobody_locked_out(desk: &mut Machine, when: &str) -> anyhow::Result<()> {
    for (user, password) in [("root", ROOT_PASSWORD), LOCAL_USER] {
        let said = desk.console().log_in(user, &[("assword: ", password)]);
        said.with_context(|| format!("{user} {when}"))?;
        desk.console().log_out()?;
    }
    Ok(())
}

/// Whatever is done with the packages of a workstation, root and a local user log in at the console afterwards.
#[test]
fn nobody_is_locked_out_by_a_package() {
    scenario("installed-console", |logs| {
        let lan = Lan::new(logs)?;
        let mut desk = installed::boot(&lan, logs, 20, SUITE)?;
        install(&desk, &TERMINAL, OLD)?;
        shell(&desk, "grep -q pam_cug /etc/pam.d/common-auth && ! systemctl is-failed cugd")?;
        nobody_locked_out(&mut desk, "after the installation, without a configuration")?;
        shell(&desk, "echo nonsense >/etc/cug/cugd.toml")?;
        let failed = || shell(&desk, "systemctl is-failed cugd").is_ok();
        wait::for_true("cugd to refuse the configuration", LIMIT, failed)?;
        let restarts = shell(&desk, "systemctl show -p NRestarts --value cugd")?;
        ensure!(restarts.trim() == "0", "a wrong configuration is tried again: {restarts}");
        nobody_locked_out(&mut desk, "with a configuration that is none")?;
        install(&desk, &TERMINAL, NEW)?;
        nobody_locked_out(&mut desk, "after an upgrade")?;
        install(&desk, &TERMINAL, OLD)?;
        nobody_locked_out(&mut desk, "after a downgrade")?;

        // A PAM file that is kept by hand: the module must not go while it is named there.
        shell(
            &desk,
            "cp /etc/pam.d/login /root/login; sed -i '1i auth [success=ok ignore=ignore authinfo_unavail=ignore default=die] pam_cug.so' /etc/pam.d/login",
        )?;
        let refused = apt(&desk, &["remove", "libpam-cug"])?;
        ensure!(refused.ok().is_err(), "the module was removed although /etc/pam.d/login names it");
        nobody_locked_out(&mut desk, "after a removal that was refused")?;
        shell(&desk, "cp /root/login /etc/pam.d/login; rm /root/login")?;

        for (when, args) in [("removed", ["remove", "libpam-cug", "cugd"]), ("purged", ["purge", "libpam-cug", "cugd"])]
        {
            install(&desk, &TERMINAL, OLD)?;
            apt(&desk, &args)?.ok()?;
            shell(&desk, "! grep -rq pam_cug /etc/pam.d && ! ls /usr/lib/*/security/pam_cug.so")?;
            nobody_locked_out(&mut desk, when)?;
        }
        left_over(&desk)
    });
}

/// Purging without anybody to ask keeps the organisation's keys; a word beforehand lets them go.
#[test]
fn a_purge_asks_before_the_keys_go() {
    scenario("installed-purge", |logs| {
        let lan = Lan::new(logs)?;
        let server = server(&lan, logs, SUITE)?;
        // Every line of the configuration that is installed is valid when it is put in force.
        let all = "sed -E 's/^# (\\[|[a-z0-9-]+ = )/\\1/' /etc/cug/server.toml >/root/all.toml; grep -q '^listen' /root/all.toml";
        shell(
            &server,
            &format!(
                "{all} && cug-server --config /root/all.toml group list && ! grep -q '^[a-z]' /etc/cug/server.toml"
            ),
        )?;
        apt(&server, &["purge", "cug-server"])?.ok()?;
        shell(&server, "test -s /var/lib/cug-server/keys/ca.key")?;
        // What stayed is what a new installation goes on with.
        install(&server, &["cug-server"], NEW)?;
        shell(&server, "systemctl enable --now cug-server && cug-server user list | grep USER-A")?;
        shell(&server, "echo cug-server cug-server/remove-state boolean true | debconf-set-selections")?;
        apt(&server, &["purge", "cug-server"])?.ok()?;
        shell(&server, "! test -e /var/lib/cug-server && ! test -e /etc/cug")?;
        Ok(())
    });
}
