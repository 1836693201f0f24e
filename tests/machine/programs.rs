//! The programs of a workstation that log people in, each with its policy.

use crate::scene::{LIMIT, Scene};
use anyhow::ensure;
use cug_tests::accounts::LOCAL_USER;
use cug_tests::card::PIN;
use cug_tests::machine::Console;
use cug_tests::space::scenario;
use cug_tests::world::password;

/// A member's sudo asks for card, PIN and password, and neither disturbs the session nor makes another.
#[test]
fn sudo() {
    scenario("machine-sudo", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.machine.run("usermod", &["-aG", "sudo", "USER-A"])?.ok()?;
        scene.log_in()?;
        let tunnels = scene.machine.tunnels();
        let console = scene.machine.console();
        console.type_line("sudo id")?;
        for (prompt, answer) in [("PIN: ", PIN), ("assword", password("USER-A"))] {
            console.expect(prompt, LIMIT)?;
            console.type_line(answer)?;
        }
        console.expect("uid=0(root)", LIMIT)?;
        console.expect("\n$ ", LIMIT)?;
        ensure!(scene.machine.tunnels() == tunnels, "sudo changed the tunnel");
        scene.reaches_the_other()?;
        // A wrong password is refused, the right one then taken, and the session is still not disturbed.
        let console = scene.machine.console();
        console.type_line("sudo -k id")?;
        for (prompt, answer) in [("PIN: ", PIN), ("assword", "wrong"), ("try again", "")] {
            console.expect(prompt, LIMIT)?;
            if !answer.is_empty() {
                console.type_line(answer)?;
            }
        }
        for (prompt, answer) in [("PIN: ", PIN), ("assword", password("USER-A"))] {
            console.expect(prompt, LIMIT)?;
            console.type_line(answer)?;
        }
        console.expect("uid=0(root)", LIMIT)?;
        console.expect("\n$ ", LIMIT)?;
        scene.reaches_the_other()?;
        scene.machine.console().log_out()?;
        scene.closed()
    });
}

/// root's `su` to a member is no login with the card: it opens nothing, and it does not keep the tunnel when the member logs out.
#[test]
fn su_by_root() {
    scenario("machine-su", |logs| {
        let mut scene = Scene::new(logs)?;
        let before = scene.machine.run("su", &["-", "USER-A", "-c", "echo groups:$CUG_GROUPS."])?.ok()?;
        ensure!(before.contains("groups:.") && scene.machine.tunnels().is_empty(), "{before}");
        scene.log_in()?;
        let during = scene.machine.run("su", &["-", "USER-A", "-c", "echo groups:$CUG_GROUPS."])?.ok()?;
        ensure!(during.contains("groups:VPN1."), "{during}");
        scene.reaches_the_other()?;
        let mut held = scene.machine.command("su", &["-", "USER-A", "-c", "echo here; read line"]);
        let mut held = held.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
        let mut said = [0; 4];
        std::io::Read::read_exact(held.stdout.as_mut().ok_or_else(|| anyhow::anyhow!("stdout"))?, &mut said)?;
        scene.machine.console().log_out()?;
        let closed = scene.closed();
        held.kill()?;
        held.wait()?;
        closed
    });
}

/// From another host the card in this workstation's reader is not used: a member without a local password does not get in, a local user does.
#[test]
fn ssh_from_another_host() {
    scenario("machine-ssh", |logs| {
        let scene = Scene::new(logs)?;
        let elsewhere = scene.world.terminal(1).space();
        for (user, password, welcome) in [("USER-A", password("USER-A"), false), (LOCAL_USER.0, LOCAL_USER.1, true)] {
            let mut ssh = elsewhere.command(cug_tests::paths::built("rig")?)?;
            ssh.args(["pty", "ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
            ssh.args(["-o", "NumberOfPasswordPrompts=1", "-o", "PubkeyAuthentication=no"]);
            ssh.arg(format!("{user}@10.0.0.20")).arg("echo in as $(id -un)");
            let mut screen = Console::start(ssh, "", &logs.join(format!("ssh-{user}.log")))?;
            screen.expect("assword: ", LIMIT)?;
            screen.type_line(password)?;
            let (which, seen) = screen.expect_any(&["in as", "denied", "PIN"], LIMIT)?;
            ensure!(which == usize::from(!welcome), "{user}: {seen}");
            ensure!(scene.machine.tunnels().is_empty(), "a login from another host opened the group");
        }
        Ok(())
    });
}

/// A member's job of cron's runs, and opens nothing.
#[test]
fn cron() {
    scenario("machine-cron", |logs| {
        let scene = Scene::new(logs)?;
        let job = "* * * * * USER-A /bin/sh -c 'echo groups:$CUG_GROUPS. >/tmp/ran'\n";
        scene.machine.write("/etc/cron.d/job", job)?;
        // cron wakes up each minute.
        let ran = scene.machine.path("/tmp/ran");
        cug_tests::wait::for_true("cron's job", std::time::Duration::from_secs(90), || ran.exists())?;
        let said = cug_tests::wait::until("the job's word", LIMIT, || {
            std::fs::read_to_string(&ran).ok().filter(|said| said.ends_with('\n'))
        })?;
        ensure!(said == "groups:.\n" && scene.machine.tunnels().is_empty(), "{said}");
        Ok(())
    });
}
