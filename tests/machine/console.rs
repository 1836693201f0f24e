//! Logins that are typed at the console, and every way in which they end.

use crate::scene::{LIMIT, Scene};
use anyhow::{Context, ensure};
use cug_tests::accounts::{LOCAL_USER, ROOT_PASSWORD};
use cug_tests::process::Finished;
use cug_tests::space::scenario;

/// Card, PIN and password at the login prompt; the other member answers; after logging out nothing is left.
#[test]
fn a_member_logs_in_and_out() {
    scenario("machine-console", |logs| {
        let mut scene = Scene::new(logs)?;
        let said = scene.log_in()?;
        ensure!(said.contains("PIN: ") && said.contains("Password: "), "{said}");
        scene.reaches_the_other()?;
        let status = scene.machine.console().shell("cugctl status; cugctl peers")?;
        ensure!(status.contains("VPN1") && status.contains("USER-B"), "the member's own status: {status}");
        ensure!(status.contains("bpf+nft"), "the guard's two layers: {status}");
        ensure!(scene.machine.logind_users()? == ["USER-A"], "{:?}", scene.machine.logind_users());
        scene.machine.console().log_out()?;
        scene.closed()
    });
}

/// Where the kernel allows no BPF, packet filter rules guard alone; they need the session's cgroup, which pam_systemd makes before.
#[test]
fn without_bpf() {
    scenario("machine-nft", |logs| {
        let mut scene = Scene::with(logs, "", false)?;
        scene.log_in()?;
        scene.reaches_the_other()?;
        let status = scene.machine.console().shell("cugctl status")?;
        ensure!(status.contains("nft") && !status.contains("bpf"), "{status}");
        scene.machine.console().log_out()?;
        scene.closed()
    });
}

/// The card is pulled: the tunnel is gone, the OS session stays.
#[test]
fn the_card_is_pulled() {
    scenario("machine-pulled", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.log_in()?;
        scene.reaches_the_other()?;
        let _card = scene.card.take().context("no card")?.pull();
        scene.closed()?;
        let shell = scene.machine.console().shell("id -un")?;
        ensure!(shell.contains("USER-A"), "{shell}");
        scene.machine.console().log_out()
    });
}

/// logind ends the session: all its processes die, and with them the tunnel.
#[test]
fn logind_terminates_the_session() {
    scenario("machine-terminate", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.log_in()?;
        let session = scene.machine.console().shell("echo $XDG_SESSION_ID")?;
        scene.machine.run("loginctl", &["terminate-session", session.trim()])?.ok()?;
        scene.closed()?;
        scene.machine.console().expect_login(LIMIT)
    });
}

/// The session's leader is killed without a chance to close anything, while a process of the member lives on.
#[test]
fn the_leader_is_killed() {
    scenario("machine-leader", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.log_in()?;
        let session = scene.machine.console().shell("setsid -f sleep 1000; echo $XDG_SESSION_ID")?;
        let shown =
            scene.machine.run("loginctl", &["show-session", session.trim(), "-p", "Leader", "--value"])?.ok()?;
        // As a number of the machine's, so it is the machine that kills it.
        scene.machine.run("kill", &["-9", shown.trim()])?.ok()?;
        scene.closed()?;
        let lives = scene.machine.run("pgrep", &["-u", "USER-A", "sleep"])?;
        ensure!(lives.ok().is_ok(), "the member's process should have lived on, or this test shows nothing");
        Ok(())
    });
}

/// cugd is killed: no tunnel stays, and systemd starts it again; the next login works.
#[test]
fn the_daemon_is_killed() {
    scenario("machine-daemon", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.log_in()?;
        let id = scene.machine.run("systemctl", &["show", "-p", "MainPID", "--value", "cugd"])?.ok()?;
        scene.machine.run("kill", &["-9", id.trim()])?.ok()?;
        scene.machine.wait_no_tunnel(LIMIT)?;
        scene.machine.console().log_out()?;
        scene.machine.wait_active("cugd")?;
        scene.log_in()?;
        scene.reaches_the_other()?;
        scene.machine.console().log_out()?;
        scene.closed()
    });
}

/// pcscd is killed: nobody watches the card any more, so the tunnel goes.
#[test]
fn the_card_service_is_killed() {
    scenario("machine-pcscd", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.log_in()?;
        let id = scene.machine.run("systemctl", &["show", "-p", "MainPID", "--value", "pcscd"])?.ok()?;
        scene.machine.run("kill", &["-9", id.trim()])?.ok()?;
        scene.closed()?;
        scene.machine.console().log_out()
    });
}

/// root and local users log in at the console whatever is broken.
#[test]
fn nobody_is_locked_out() {
    scenario("machine-broken", |logs| {
        let mut scene = Scene::with(logs, "exempt = [\"porter\"]", true)?;
        let broken: [(&str, &[&str]); 4] = [
            ("with everything in order", &["true"]),
            ("without pcscd", &["systemctl", "mask", "--now", "pcscd.socket", "pcscd.service"]),
            (
                "with a broken configuration",
                &["sh", "-c", "echo nonsense >/etc/cug/cugd.toml; systemctl restart cugd; true"],
            ),
            ("without cugd", &["systemctl", "mask", "--now", "cugd"]),
        ];
        for (what, breaks) in broken {
            let [program, arguments @ ..] = breaks else { continue };
            scene.machine.run(program, arguments).and_then(Finished::ok).context(what)?;
            for (user, password) in [("root", ROOT_PASSWORD), LOCAL_USER] {
                let said = scene.machine.console().log_in(user, &[("assword: ", password)]);
                said.with_context(|| format!("{user} {what}"))?;
                scene.machine.console().log_out()?;
            }
        }
        Ok(())
    });
}

/// The whole machine goes down in order: the server hears of the end of the session.
#[test]
fn the_machine_is_shut_down() {
    scenario("machine-shutdown", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.log_in()?;
        ensure!(scene.registered()?, "USER-A should be registered");
        scene.machine.run("systemctl", &["poweroff", "--no-block"])?.ok()?;
        scene.unregistered()
    });
}
