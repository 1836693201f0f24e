//! The server is gone, or the daemon is of another version, on a distribution's own workstation with the shipped profile.

use crate::scene::{LIMIT, Scene};
use anyhow::{Context, ensure};
use cug_tests::accounts::{LOCAL_USER, ROOT_PASSWORD};
use cug_tests::card::PIN;
use cug_tests::doctor::{Doctor, Doctored};
use cug_tests::process::{self, beside, own_number, waiting_login};
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::password;
use std::fs;
use std::time::Duration;

/// root and a local user log in at the console.
fn locals_log_in(scene: &mut Scene, what: &str) -> anyhow::Result<()> {
    for (user, password) in [("root", ROOT_PASSWORD), LOCAL_USER] {
        let said = scene.machine.console().log_in(user, &[("assword: ", password)]);
        let said = said.with_context(|| format!("{user} {what}"))?;
        ensure!(!said.contains("server") && !said.contains("version"), "{user} {what}: {said}");
        scene.machine.console().log_out()?;
    }
    Ok(())
}

fn set_local_password(scene: &Scene, password: &str) -> anyhow::Result<()> {
    let command = scene.machine.command("usermod", &["-p", &hash(scene, password)?, "USER-A"]);
    process::run(command, b"", LIMIT)?.ok().map(drop)
}

fn hash(scene: &Scene, password: &str) -> anyhow::Result<String> {
    Ok(scene.world.server.space().run("openssl", &["passwd", "-6", password])?.ok()?.trim().to_owned())
}

/// Without a server everybody else logs in as before; a member with a local password too, and the tunnel comes by itself.
#[test]
fn the_server_is_gone() {
    scenario("machine-server-gone", |logs| {
        let mut scene = Scene::with(logs, "exempt = [\"porter\"]\noffline = \"local\"", true)?;
        scene.world.server.kill()?;
        locals_log_in(&mut scene, "without a server")?;
        let own = password("USER-A");
        set_local_password(&scene, own)?;
        let said = scene.machine.console().log_in("USER-A", &[("PIN: ", PIN), ("assword: ", own)])?;
        ensure!(said.contains("decides whether you may log in") && said.contains("opens by itself"), "{said}");
        ensure!(scene.machine.tunnels().is_empty(), "{:?}", scene.machine.tunnels());
        let status = scene.machine.console().shell("cugctl status || true")?;
        ensure!(status.contains("waits for the management server"), "{status}");
        closed_up(&scene, waits(&scene).context("no login waits")?)?;
        scene.world.server.serve()?;
        let up = || scene.machine.tunnels().len() == 1;
        wait::for_true("the tunnel", Duration::from_secs(60), up).with_context(|| scene.machine.journal("cugd"))?;
        ensure!(scene.registered()?, "the server has no session");
        scene.machine.console().log_out()?;
        scene.closed()
    });
}

/// The login of `scene` that waits, as this host numbers it.
fn waits(scene: &Scene) -> Option<i32> {
    waiting_login(&beside(scene.machine.leader()))
}

/// Under the shipped unit: without the right to trace, not even root looks into the process, because it is not to be dumped; it gets no new rights, and few
/// calls of the kernel.
fn closed_up(scene: &Scene, waiting: i32) -> anyhow::Result<()> {
    let status = fs::read_to_string(format!("/proc/{waiting}/status"))?;
    ensure!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    // What of the unit's own comes by the same way can be looked into: it is not the rights of the process that keep root out.
    let control = "systemd-run --quiet --unit=control -p CapabilityBoundingSet='CAP_NET_ADMIN CAP_BPF CAP_DAC_READ_SEARCH' -p NoNewPrivileges=yes sleep 1000";
    scene.machine.run("sh", &["-c", control])?.ok()?;
    let control = scene.machine.process("sleep")?;
    for (pid, open) in [(control, true), (waiting, false), (scene.machine.daemon()?, false)] {
        let look = format!("exec 3</proc/{0}/mem && cat /proc/{0}/environ /proc/{0}/maps", own_number(pid)?);
        let seen = scene.machine.run("setpriv", &["--bounding-set=-sys_ptrace", "--", "sh", "-c", &look])?;
        ensure!(seen.status.success() == open, "{pid}: {}{}", seen.out, seen.err);
    }
    scene.machine.run("systemctl", &["stop", "control"])?.ok().map(drop)
}

/// What was typed does not sleep with the machine.
#[test]
fn a_waiting_login_ends_with_sleep() {
    scenario("machine-waiting-sleep", |logs| {
        let mut scene = Scene::with(logs, "offline = \"local\"", true)?;
        scene.let_it_sleep()?;
        scene.world.server.kill()?;
        let own = password("USER-A");
        set_local_password(&scene, own)?;
        scene.machine.console().log_in("USER-A", &[("PIN: ", PIN), ("assword: ", own)])?;
        let waiting = wait::until("a login that waits", LIMIT, || waits(&scene))?;
        scene.machine.run("systemctl", &["suspend"])?.ok()?;
        wait::for_true("the machine to have slept", LIMIT, || scene.machine.path("/run/slept").exists())
            .with_context(|| scene.machine.journal("systemd-logind"))?;
        // The processes of the moment, written by what stands in for the sleep.
        let slept = fs::read_to_string(scene.machine.path("/run/slept-beside"))?;
        ensure!(slept.contains("systemd") && !slept.contains("waiting-login"), "process {waiting} slept, too: {slept}");
        ensure!(scene.state()? == "suspended" && waits(&scene).is_none(), "{}", scene.machine.journal("cugd"));
        scene.machine.console().log_out()
    });
}

/// A daemon of another version than the login module: one sentence for a member, none for others.
#[test]
fn the_daemon_is_of_another_version() {
    scenario("machine-version", |logs| {
        let lines = "exempt = [\"porter\"]\nsocket = \"/run/cugd/real.sock\"";
        let mut scene = Scene::with(logs, lines, true)?;
        let doctor =
            Doctor::at(&scene.machine.path("/run/cugd/cugd.sock"), &scene.machine.path("/run/cugd/real.sock"))?;
        for how in [Doctored::LaterModule, Doctored::StrangeDaemon] {
            doctor.set(how);
            locals_log_in(&mut scene, &format!("{how:?}"))?;
            let console = scene.machine.console();
            console.type_line("USER-A")?;
            console.expect("are of different versions", LIMIT)?;
            // The shipped profile leaves the rest to the local password, of which there is none.
            console.expect("assword: ", LIMIT)?;
            console.type_line("none")?;
            console.expect("incorrect", LIMIT)?;
            console.expect_login(LIMIT)?;
        }
        ensure!(scene.machine.tunnels().is_empty());
        Ok(())
    });
}

/// What other programs do for a member: root's runuser opens nothing, a member's own `su -l` is a login with the card.
#[test]
fn runuser_and_su_by_a_member() {
    scenario("machine-runuser", |logs| {
        let mut scene = Scene::new(logs)?;
        let said = scene.machine.run("runuser", &["-l", "USER-A", "-c", "echo groups:$CUG_GROUPS."])?.ok()?;
        ensure!(said.contains("groups:.") && scene.machine.tunnels().is_empty(), "{said}");
        scene.log_in()?;
        let console = scene.machine.console();
        console.type_line("su -l USER-A -c 'echo groups:$CUG_GROUPS.'")?;
        for (prompt, answer) in [("PIN: ", PIN), ("assword: ", password("USER-A"))] {
            console.expect(prompt, LIMIT)?;
            console.type_line(answer)?;
        }
        console.expect("groups:VPN1.", LIMIT)?;
        scene.reaches_the_other()?;
        scene.machine.console().log_out()?;
        scene.closed()
    });
}
