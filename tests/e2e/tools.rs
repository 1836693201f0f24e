//! Programs that were not written here: pamtester, su, login, OpenSC, openssl.

use crate::support::{SOON, wait_seats};
use anyhow::{Context, ensure};
use cug_tests::accounts::SERVICE;
use cug_tests::card::{Kind, PIN};
use cug_tests::office::Office;
use cug_tests::process;
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::World;
use cug_tests::{card, terminal};
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn pamtester_goes_through_all_steps() {
    scenario("tools-pamtester", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let mut command = world.terminal(1).space().command("pamtester")?;
        command.args([SERVICE, "USER-A", "authenticate", "acct_mgmt", "setcred", "open_session", "close_session"]);
        let input = format!("{PIN}\npasswd1\n");
        let finished = process::run(command, input.as_bytes(), Duration::from_secs(40))?;
        let said = format!("{}{}", finished.out, finished.err);
        ensure!(finished.status.success(), "{said}");
        for part in
            ["successfully authenticated", "successfully opened a session", "session has successfully been closed"]
        {
            ensure!(said.contains(part), "{said}");
        }
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])
    });
}

#[test]
fn a_real_login_at_a_console() {
    scenario("tools-login", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let mut console = Console::start(world.terminal(1).space(), &["login"])?;
        console.answer("User ID: ", "USER-A")?;
        console.answer("PIN", PIN)?;
        console.answer("assword", "passwd1")?;
        console.wait("$ ")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        console.say("id -un; echo \"shell says $((40 + 2))\"")?;
        console.wait("shell says 42")?;
        ensure!(!world.terminal(1).tunnels().is_empty());
        console.say("exit")?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])
    });
}

#[test]
fn su_from_another_user() {
    scenario("tools-su", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let mut console =
            Console::start_as(world.terminal(1).space(), "porter", &["su", "-", "USER-A", "-c", "id -un; cat"])?;
        console.answer("PIN", PIN)?;
        console.answer("assword", "passwd1")?;
        console.wait("USER-A")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        drop(console);
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])
    });
}

/// A program on a pseudo terminal.
pub struct Console {
    child: std::process::Child,
    keys: std::process::ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
    seen: usize,
}

impl Console {
    pub fn start(space: &cug_tests::space::Space, program: &[&str]) -> anyhow::Result<Self> {
        Self::start_as(space, "root", program)
    }

    pub fn start_as(space: &cug_tests::space::Space, user: &str, program: &[&str]) -> anyhow::Result<Self> {
        let mut command = space.command_as(user, cug_tests::paths::built("rig")?)?;
        command.arg("pty").args(program).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (keys, mut out) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = out.read(&mut buffer) {
                shown.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        Ok(Self { child, keys, screen, seen: 0 })
    }

    /// Waits for `text` after what was seen before.
    pub fn wait(&mut self, text: &str) -> anyhow::Result<()> {
        let at = wait::until(&format!("`{text}` on the screen"), Duration::from_secs(30), || {
            let screen = self.screen.lock().unwrap();
            screen[self.seen..].windows(text.len()).position(|window| window == text.as_bytes())
        })
        .with_context(|| String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned())?;
        self.seen += at + text.len();
        Ok(())
    }

    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    pub fn say(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.keys.write_all(format!("{text}\r").as_bytes())?)
    }

    pub fn answer(&mut self, prompt: &str, text: &str) -> anyhow::Result<()> {
        self.wait(prompt)?;
        self.say(text)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        process::kill_tree(self.child.id().cast_signed());
        let _ = self.child.wait();
    }
}

#[test]
fn opensc_reads_the_issued_card() {
    scenario("tools-opensc", |logs| {
        let world = World::new(logs, 0)?;
        let issued = world.card("USER-A")?;
        let office = Office::open(&world.server)?;
        let _card = card::InReader::insert(&office.reader(), issued)?;
        let host = world.server.space();
        let listed = host.run("pkcs15-tool", &["--list-certificates", "--list-keys"])?.ok()?;
        ensure!(listed.contains("KEY MAN"), "no key management certificate: {listed}");
        let certificate = host.run("pkcs15-tool", &["--read-certificate", "3"])?.ok()?;
        let text = openssl(host, &["x509", "-noout", "-text"], &certificate)?;
        ensure!(text.contains("2048 bit"), "{text}");
        if Kind::usual() != Kind::Own {
            // yubico-piv-tool wants a card that answers Yubico's own commands.
            return Ok(());
        }
        // The server object, as the card's retired key certificate 1.
        let read = host.run("yubico-piv-tool", &["-r", "Cug", "-a", "read-certificate", "-s", "82"])?;
        let server = read.ok().context("yubico-piv-tool does not read the server object")?;
        let text = openssl(host, &["x509", "-noout", "-text"], &server)?;
        ensure!(text.contains("Authority Key Identifier") && text.contains("rsaEncryption"), "{text}");
        Ok(())
    });
}

fn openssl(host: &cug_tests::space::Space, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut command = host.command("openssl")?;
    command.args(args);
    process::run(command, input.as_bytes(), SOON)?.ok()
}

#[test]
fn openssl_reads_a_medium() {
    scenario("tools-medium", |logs| {
        let world = World::new(logs, 1)?;
        world.medium("USER-A", 1)?;
        let host = world.terminal(1).space();
        let key = format!("{}/card.p8", terminal::MEDIUM);
        let text = host
            .run(
                "openssl",
                &["pkey", "-in", &key, "-passin", &format!("pass:{}", card::PASSPHRASE), "-noout", "-text"],
            )?
            .ok()?;
        ensure!(text.contains("Private-Key"), "{text}");
        let wrong = host.run("openssl", &["pkey", "-in", &key, "-passin", "pass:wrong", "-noout"])?;
        ensure!(!wrong.status.success(), "the key on the medium is not encrypted");
        Ok(())
    });
}

#[test]
fn wg_agrees_where_the_kernel_does_wireguard() {
    scenario("tools-wg", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let _login = world.terminal(1).log_in("USER-A", "passwd1")?;
        let status = world.terminal(1).cugctl("status")?;
        let tunnels = world.terminal(1).tunnels();
        ensure!(tunnels.len() == 1, "{tunnels:?}");
        if status["backend"] == "kernel" {
            let shown = world.terminal(1).space().run("wg", &["show", &tunnels[0]])?.ok()?;
            ensure!(shown.contains("listening port"), "{shown}");
        } else {
            // The embedded one is no WireGuard interface for the kernel: say which one was tested.
            ensure!(status["backend"] == "embedded", "{status}");
        }
        Ok(())
    });
}
