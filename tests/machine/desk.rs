//! What logind says, and what happens to the OS sessions when the tunnel ends.

use crate::scene::{LIMIT, Scene};
use anyhow::{Context, ensure};
use cug_tests::card::PIN;
use cug_tests::machine::Console;
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::password;
use std::path::Path;

impl Scene {
    /// Puts the card that was pulled back into the reader.
    pub fn put_back(&mut self, card: cug_tests::card::PivCard) -> anyhow::Result<()> {
        self.card = Some(self.machine.insert(card)?);
        Ok(())
    }

    /// Pulls it.
    pub fn pull(&mut self) -> anyhow::Result<cug_tests::card::PivCard> {
        Ok(self.card.take().context("no card")?.pull())
    }

    /// USER-A's session as root sees it.
    fn session(&self) -> anyhow::Result<serde_json::Value> {
        // It says with its exit status when something is not well.
        let status = self.machine.run("cugctl", &["status", "--json"])?;
        let mut status: serde_json::Value = serde_json::from_str(&status.out)?;
        Ok(status["sessions"][0].take())
    }

    /// Its state.
    pub fn state(&self) -> anyhow::Result<String> {
        Ok(self.session()?["state"].as_str().unwrap_or_default().to_owned())
    }

    fn wait_journal(&self, text: &str) -> anyhow::Result<()> {
        wait::for_true(text, LIMIT, || self.machine.journal("cugd").contains(text))
            .with_context(|| self.machine.journal("cugd"))
    }

    /// Types answers at the console's prompts. vlock throws away what was typed before it has switched the echo off, which it does after the prompt.
    fn answer(&mut self, answers: &[(&str, &str)]) -> anyhow::Result<()> {
        for (prompt, answer) in answers {
            self.machine.console().expect(prompt, LIMIT)?;
            let silent = || {
                let settings = self.machine.run("stty", &["-F", "/dev/console", "-a"]).and_then(|done| done.ok());
                settings.is_ok_and(|settings| settings.contains(" -echo "))
            };
            wait::for_true("the prompt to be ready", LIMIT, silent)?;
            self.machine.console().type_line(answer)?;
        }
        Ok(())
    }

    /// The others know of this terminal again.
    pub fn wait_open(&self) -> anyhow::Result<()> {
        wait::for_true("the tunnel to be back", LIMIT, || self.session().is_ok_and(|session| session["open"] == true))
            .with_context(|| self.machine.journal("cugd"))
    }

    /// logind tells the sessions' lockers to lock; the words are written to a file from now on.
    fn listen_for_locks(&self) -> anyhow::Result<std::process::Child> {
        let filter = "type=signal,interface=org.freedesktop.login1.Session,member=Lock";
        let mut command =
            self.machine.command("sh", &["-c", &format!("exec dbus-monitor --system {filter} >/tmp/locks")]);
        let child = command.spawn()?;
        let file = self.machine.path("/tmp/locks");
        wait::for_true("dbus-monitor", LIMIT, || {
            std::fs::read_to_string(&file).is_ok_and(|text| text.contains("NameAcquired"))
        })?;
        Ok(child)
    }

    fn locks(&self) -> usize {
        let text = std::fs::read_to_string(self.machine.path("/tmp/locks")).unwrap_or_default();
        text.matches("member=Lock").count()
    }

    /// Makes the machine think that it can sleep; instead of sleeping it writes its interfaces and processes to `/run/slept` and `/run/slept-beside`.
    pub fn let_it_sleep(&self) -> anyhow::Result<()> {
        let script = "mount -t tmpfs power /sys/power && echo freeze mem >/sys/power/state && echo '[s2idle]' >/sys/power/mem_sleep && \
            mkdir -p /run/systemd/system/systemd-suspend.service.d && \
            printf '[Service]\\nExecStart=\\nExecStart=/bin/sh -c \"ls /sys/class/net >/run/sleeps; cat /proc/net/dev >>/run/sleeps; ps -eo args >/run/slept-beside; mv /run/sleeps /run/slept\"\\n' \
                >/run/systemd/system/systemd-suspend.service.d/test.conf && systemctl daemon-reload";
        self.machine.run("sh", &["-c", script])?.ok().map(drop)
    }

    /// OS sessions of USER-A that hold the tunnel.
    fn os_sessions(&self) -> anyhow::Result<u64> {
        Ok(self.session()?["os_sessions"].as_u64().unwrap_or_default())
    }

    /// A program on a terminal of its own in the machine.
    fn on_a_terminal(&self, logs: &Path, name: &str, program: &str, args: &[&str]) -> anyhow::Result<Console> {
        let inner = self.machine.command(program, args);
        let mut command = std::process::Command::new(cug_tests::paths::built("rig")?);
        command.arg("pty").arg(inner.get_program()).args(inner.get_args());
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("TERM", "dumb");
        Console::start(command, "", &logs.join(format!("{name}.log")))
    }
}

/// logind's whole sequence of going to sleep, with the sleep itself replaced: the tunnel is gone before, and comes back with card and password. What
/// merely looks like logind's word counts for nothing.
#[test]
fn the_machine_sleeps() {
    scenario("machine-sleep", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.let_it_sleep()?;
        scene.log_in()?;
        let inhibitors = scene.machine.run("systemd-inhibit", &["--list", "--no-legend"])?.ok()?;
        ensure!(inhibitors.lines().any(|line| line.contains("cugd") && line.contains("delay")), "{inhibitors}");

        let says = ["/org/freedesktop/login1", "org.freedesktop.login1.Manager", "PrepareForSleep", "b", "true"];
        let emit = [&["-u", "USER-A", "busctl", "emit"], &says[..]].concat();
        scene.machine.run("runuser", &emit)?.ok()?;
        scene.machine.run("busctl", &[&["emit"], &says[..]].concat())?.ok()?;
        let names = scene.machine.run("busctl", &["list", "--unique", "--no-legend"])?.ok()?;
        let cugd =
            names.lines().filter(|line| line.contains(" cugd ")).filter_map(|line| line.split_whitespace().next());
        let cugd: Vec<String> = cugd.map(|name| format!("--dest={name}")).collect();
        ensure!(!cugd.is_empty(), "{names}");
        for destination in &cugd {
            let signal = "org.freedesktop.login1.Manager.PrepareForSleep";
            let send = ["--system", "--type=signal", destination, "/org/freedesktop/login1", signal, "boolean:true"];
            scene.machine.run("dbus-send", &send)?.ok()?;
        }
        scene.reaches_the_other()?;
        ensure!(scene.state()? == "up", "a stranger's word ended the session");

        scene.machine.run("systemctl", &["suspend"])?.ok()?;
        wait::for_true("the machine to have slept", LIMIT, || scene.machine.path("/run/slept").exists())
            .with_context(|| scene.machine.journal("systemd-logind"))?;
        // Written by what stands in for the sleep: at that moment everything was gone.
        let slept = std::fs::read_to_string(scene.machine.path("/run/slept"))?;
        ensure!(!slept.contains("cug"), "a tunnel was there when the machine slept: {slept}");
        scene.unregistered()?;
        ensure!(scene.state()? == "suspended", "{}", scene.machine.journal("cugd"));
        let back = || {
            let inhibitors =
                scene.machine.run("systemd-inhibit", &["--list", "--no-legend"]).and_then(|done| done.ok());
            inhibitors.is_ok_and(|list| list.lines().any(|line| line.contains("cugd")))
        };
        wait::for_true("the inhibitor to be taken anew", LIMIT, back)?;

        // The card was there all the time; the password brings the tunnel back.
        let mut locker = scene.on_a_terminal(logs, "unlock", "pamtester", &["vlock", "USER-A", "authenticate"])?;
        for (prompt, answer) in [("PIN: ", PIN), ("assword: ", password("USER-A"))] {
            locker.expect(prompt, LIMIT)?;
            locker.type_line(answer)?;
        }
        locker.expect("successfully authenticated", LIMIT)?;
        scene.wait_open()?;
        scene.reaches_the_other()?;
        scene.machine.console().log_out()?;
        scene.closed()
    });
}

/// The card is pulled, the desk is locked; a locker that runs as the user brings the tunnel back with card and password.
#[test]
fn lock_and_unlock() {
    scenario("machine-lock", |logs| {
        let mut scene = Scene::with(logs, "removal = \"lock\"", true)?;
        scene.log_in()?;
        let mut locks = scene.listen_for_locks()?;
        let card = scene.pull()?;
        scene.closed()?;
        let locked = wait::for_true("the desk to be locked", LIMIT, || scene.locks() == 1);
        locks.kill()?;
        locks.wait()?;
        locked.with_context(|| scene.machine.journal("cugd"))?;

        let (pin, password) = (("PIN: ", PIN), ("assword: ", password("USER-A")));
        // vlock offers to be unlocked by root after each failure.
        let refused = [("root's Password: ", "")];
        scene.machine.console().type_line("vlock")?;
        scene.machine.console().expect("ENTER", LIMIT)?;
        // Without the card the desk stays locked.
        scene.machine.console().type_line("")?;
        scene.machine.console().expect("insert your card", LIMIT)?;
        scene.answer(&refused)?;
        scene.machine.console().expect("ENTER", LIMIT)?;
        scene.put_back(card)?;
        scene.machine.console().type_line("")?;
        scene.answer(&[pin, password])?;
        scene.machine.console().expect("\n$ ", LIMIT)?;
        scene.wait_open()?;
        scene.reaches_the_other()?;
        // The tunnel is up: the same locker only checks, and a wrong password does not unlock.
        let tunnels = scene.machine.tunnels();
        scene.machine.console().type_line("vlock")?;
        scene.machine.console().expect("ENTER", LIMIT)?;
        scene.machine.console().type_line("")?;
        scene.answer(&[pin, ("assword: ", "wrong")])?;
        scene.machine.console().expect("try again", LIMIT)?;
        scene.answer(&refused)?;
        scene.machine.console().expect("ENTER", LIMIT)?;
        scene.machine.console().type_line("")?;
        scene.answer(&[pin, password])?;
        scene.machine.console().expect("\n$ ", LIMIT)?;
        ensure!(scene.machine.tunnels() == tunnels, "a check changed the tunnel");
        scene.machine.console().log_out()?;
        scene.closed()
    });
}

/// The grace: traffic is cut at once, the same card within it keeps the desk, without it the person is logged out.
#[test]
fn logged_out_after_the_grace() {
    scenario("machine-logout", |logs| {
        let mut scene = Scene::with(logs, "removal = \"logout\"\nremoval-grace-seconds = 5", true)?;
        scene.log_in()?;
        let card = scene.pull()?;
        scene.closed()?;
        scene.put_back(card)?;
        scene.wait_journal("the card of USER-A is back")?;
        ensure!(scene.machine.tunnels().is_empty(), "the tunnel is back without a password");
        ensure!(scene.machine.logind_users()? == ["USER-A"], "logged out all the same");
        let _card = scene.pull()?;
        scene.machine.console().expect_login(LIMIT)?;
        ensure!(scene.machine.tunnels().is_empty());
        Ok(())
    });
}

/// The same user on the console and over ssh on the same machine: the tunnel goes with the last of them.
#[test]
fn logged_in_twice() {
    scenario("machine-twice", |logs| {
        let mut scene = Scene::new(logs)?;
        scene.machine.write("/etc/ssh/sshd_config.d/test.conf", "KbdInteractiveAuthentication yes\n")?;
        scene.machine.run("systemctl", &["restart", "ssh"])?.ok()?;
        scene.log_in()?;
        let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o PreferredAuthentications=keyboard-interactive";
        let mut ssh =
            scene.on_a_terminal(logs, "ssh", "sh", &["-c", &format!("exec ssh {options} USER-A@127.0.0.1")])?;
        for (prompt, answer) in [("PIN: ", PIN), ("assword: ", password("USER-A"))] {
            ssh.expect(prompt, LIMIT).with_context(|| scene.machine.journal("ssh"))?;
            ssh.type_line(answer)?;
        }
        ssh.expect("$ ", LIMIT)?;
        let tunnels = scene.machine.tunnels();
        ensure!(scene.os_sessions()? == 2, "{}", scene.machine.journal("cugd"));
        scene.machine.console().log_out()?;
        wait::for_true("the console's session to be over", LIMIT, || scene.os_sessions().is_ok_and(|count| count == 1))
            .with_context(|| scene.machine.journal("cugd"))?;
        ensure!(scene.machine.tunnels() == tunnels && scene.registered()?, "{}", scene.machine.journal("cugd"));
        ssh.type_line("exit")?;
        scene.closed()
    });
}

/// Greeters and jobs get no tunnel, whatever was typed; the same login in a person's session does.
#[test]
fn session_classes() {
    scenario("machine-class", |logs| {
        let mut scene = Scene::new(logs)?;
        let steps = ["authenticate", "open_session", "close_session"];
        for (class, works) in [("greeter", false), ("background", false), ("user", true)] {
            let environment = format!("XDG_SESSION_CLASS={class}");
            let arguments = [&["-E", &environment, "login", "USER-A"], &steps[..]].concat();
            let mut screen = scene.on_a_terminal(logs, class, "pamtester", &arguments)?;
            for (prompt, answer) in [("PIN: ", PIN), ("assword: ", password("USER-A"))] {
                screen.expect(prompt, LIMIT)?;
                screen.type_line(answer)?;
            }
            let word = if works { "opened VPN1" } else { "gets no tunnel in an OS session of class" };
            let log = || {
                scene.machine.run("journalctl", &["--no-pager", "-b"]).and_then(|done| done.ok()).unwrap_or_default()
            };
            wait::for_true(class, LIMIT, || {
                log().contains(&format!("{word}{}", if works { String::new() } else { format!(" {class}") }))
            })
            .with_context(log)?;
            screen.expect("has successfully been closed", LIMIT)?;
            if !works {
                ensure!(!log().contains("opened VPN1"), "{}", log());
            }
        }
        scene.closed()?;
        // What lingers after the logout has no tunnel, and hears of none; nor has the user's manager.
        scene.machine.run("loginctl", &["enable-linger", "USER-A"])?.ok()?;
        scene.log_in()?;
        scene.machine.console().shell("systemd-run --user --quiet sleep 1000")?;
        scene.machine.console().log_out()?;
        scene.closed()?;
        let lives = scene.machine.run("pgrep", &["-u", "USER-A", "sleep"])?;
        ensure!(lives.ok().is_ok(), "the lingering process should have lived on, or this test shows nothing");
        Ok(())
    });
}

/// The reader is unplugged; the card is exchanged in an instant; cugd is restarted; the server is away for longer than its lease. Each ends the tunnel, the OS
/// session stays, and the next login works.
#[test]
fn other_ends() {
    scenario("machine-ends", |logs| {
        let mut scene = Scene::with_server(logs, "", true, "heartbeat-seconds = 1\nlease-seconds = 6")?;
        scene.log_in()?;
        let reader = scene.machine.path(cug_tests::office::READER);
        cug_cards::rig::unplug(&reader)?;
        scene.closed()?;
        scene.machine.console().log_out()?;
        let card = scene.pull()?;
        cug_cards::rig::plug(&reader)?;
        wait::for_true("the reader to come back", LIMIT, || reader.exists())?;
        scene.put_back(card)?;

        scene.log_in()?;
        let card = scene.pull()?;
        let other = scene.world.card("USER-C")?;
        scene.put_back(other)?;
        scene.closed()?;
        scene.machine.console().log_out()?;
        let _other = scene.pull()?;
        scene.put_back(card)?;

        scene.log_in()?;
        scene.machine.run("systemctl", &["restart", "cugd"])?.ok()?;
        scene.closed()?;
        ensure!(scene.machine.journal("cugd").contains("the service stops"), "{}", scene.machine.journal("cugd"));
        scene.machine.console().log_out()?;
        scene.log_in()?;
        scene.reaches_the_other()?;
        scene.world.server.kill()?;
        ensure!(scene.machine.tunnels().len() == 1, "a server that is away ends nothing at once");
        scene.machine.wait_no_tunnel(LIMIT)?;
        scene.wait_journal("away for longer than its lease")?;
        ensure!(scene.state()? == "suspended", "{}", scene.machine.journal("cugd"));
        scene.machine.console().log_out()
    });
}
