//! A display manager: lightdm with its GTK greeter, on an X server without a screen, whose pictures are for people to look at.

use crate::scene::{LIMIT, Scene};
use anyhow::{Context, ensure};
use cug_tests::card::PIN;
use cug_tests::machine::DESKTOP;
use cug_tests::space::scenario;
use cug_tests::world::password;
use cug_tests::{paths, wait};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// How long the X server and the greeter may take to come up.
const START_LIMIT: Duration = Duration::from_secs(60);

/// lightdm talks to the X server as it would to one with a screen, and passes it words that mean nothing without.
const X_SERVER: &str = "#!/bin/sh
for argument do
	shift
	case $argument in vt[0-9]*|-novtswitch|-seat|seat0) ;; *) set -- \"$@\" \"$argument\" ;; esac
done
exec Xvfb \"$@\" -screen 0 1024x768x24
";

const LIGHTDM: &str = "[LightDM]
logind-check-graphical=false
[Seat:*]
xserver-command=/usr/local/bin/x-without-screen
greeter-hide-users=true
user-session=terminal
";

/// The user's desktop: a terminal.
const SESSION: &str = "[Desktop Entry]
Type=Application
Name=Terminal
Exec=xterm -geometry 100x40+0+0 -fa Mono -fs 10
";

/// The greeter asks for PIN and password, shows why it refuses, opens the session with its tunnel, and has none itself; the end of the desktop is the
/// end of the tunnel.
#[test]
fn a_member_logs_in_at_the_greeter() {
    scenario("machine-greeter", |logs| {
        let mut desktop = Desktop { scene: Scene::on(DESKTOP, logs, "", true, "")?, lines: 0, last: Vec::new() };
        desktop.start()?;
        desktop.hears(1)?;
        let sessions = desktop.scene.machine.logind_users()?;
        ensure!(
            sessions.contains(&"lightdm".to_owned()),
            "the greeter has no session of its own: {sessions:?}\n{}\n{}",
            desktop.log(),
            desktop.scene.machine.journal("systemd-logind")
        );
        desktop.no_tunnel()?;

        desktop.ready()?;
        desktop.answer("USER-A")?;
        desktop.picture("greeter-name")?;
        // What the first field is for, and the field.
        desktop.hears(2)?;
        desktop.picture("greeter-pin")?;
        desktop.answer(PIN)?;
        desktop.hears(1)?;
        desktop.picture("greeter-password")?;
        // The greeter itself was let in by PAM, too.
        let over = "Authentication complete with return value";
        let before = desktop.count(over);
        desktop.answer("wrong")?;
        // The reason stands there for some seconds before the greeter begins again, with the same user.
        desktop.hears(1)?;
        desktop.picture("greeter-refused")?;
        ensure!(desktop.count(over) == before, "the greeter began again before anybody could have read the reason");
        wait::for_true("the refusal", START_LIMIT, || desktop.count(over) > before).with_context(|| desktop.log())?;
        desktop.no_tunnel()?;

        desktop.hears(2)?;
        desktop.answer(PIN)?;
        desktop.hears(1)?;
        desktop.answer(password("USER-A"))?;
        desktop.opened()?;
        desktop.in_the_terminal("cugctl status; ping -c 3 -i 0.2", "reached")?;
        desktop.picture("greeter-session")?;
        desktop.answer("exit")?;
        desktop.scene.closed()
    });
}

struct Desktop {
    scene: Scene,
    lines: usize,
    last: Vec<u8>,
}

impl Desktop {
    fn start(&self) -> anyhow::Result<()> {
        let machine = &self.scene.machine;
        machine.write("/usr/local/bin/x-without-screen", X_SERVER)?;
        machine.run("chmod", &["755", "/usr/local/bin/x-without-screen"])?.ok()?;
        machine.write("/etc/lightdm/lightdm.conf", LIGHTDM)?;
        // lightdm counts on virtual terminals; logind knows that there are none, and would refuse a session on one.
        machine.write("/etc/security/pam_env.conf", "XDG_VTNR DEFAULT= OVERRIDE=\n")?;
        machine.run("mkdir", &["-p", "/usr/share/xsessions"])?.ok()?;
        machine.write("/usr/share/xsessions/terminal.desktop", SESSION)?;
        // Without a configuration it has given up by now.
        machine.run("systemctl", &["reset-failed", "lightdm.service"])?;
        machine.run("systemctl", &["restart", "lightdm.service"])?.ok().map(drop)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scene.machine.path("/var/log/lightdm/lightdm.log")).unwrap_or_default()
    }

    fn count(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until the greeter was given so many more lines: prompts, and what the module says.
    fn hears(&mut self, lines: usize) -> anyhow::Result<()> {
        self.lines += lines;
        let line = "Prompt greeter with";
        wait::for_true("a line for the greeter", START_LIMIT, || self.count(line) >= self.lines)
            .with_context(|| format!("{}\n{}", self.log(), self.scene.machine.journal("lightdm")))
    }

    /// Waits until the greeter's window takes keys. Without a window manager they go to where the mouse is.
    fn ready(&self) -> anyhow::Result<()> {
        let search = ["search", "--onlyvisible", "--class", "lightdm-gtk-greeter"];
        wait::for_true("the greeter's window", START_LIMIT, || self.on_the_screen("xdotool", &search).is_ok())?;
        self.on_the_screen("xdotool", &["mousemove", "512", "384"])?;
        let focus = || self.on_the_screen("xdotool", &["getwindowfocus", "getwindowname"]).is_ok();
        wait::for_true("the greeter's focus", START_LIMIT, focus)
    }

    fn on_the_screen(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["DISPLAY=:0", "XAUTHORITY=/var/run/lightdm/root/:0", program];
        all.extend(args);
        self.scene.machine.run("env", &all)?.ok()
    }

    fn type_text(&self, text: &str) -> anyhow::Result<()> {
        self.on_the_screen("xdotool", &["type", "--delay", "20", text]).map(drop)
    }

    fn answer(&self, text: &str) -> anyhow::Result<()> {
        self.type_text(text)?;
        self.on_the_screen("xdotool", &["key", "Return"]).map(drop)
    }

    /// Takes a picture when the screen has changed since the last one and is at rest.
    fn picture(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        let mut before = Vec::new();
        let last = std::mem::take(&mut self.last);
        let rests = || -> anyhow::Result<bool> {
            self.on_the_screen("scrot", &["--overwrite", "/run/picture.png"])?;
            let now = fs::read(self.scene.machine.path("/run/picture.png"))?;
            let rests = now == before && now != last;
            before = now;
            Ok(rests)
        };
        let mut rests = rests;
        wait::for_true("the screen to come to rest", LIMIT, || rests().unwrap_or(false))?;
        let to = paths::pictures()?.join(format!("{name}.png"));
        fs::write(&to, &before)?;
        self.last = before;
        Ok(to)
    }

    fn no_tunnel(&self) -> anyhow::Result<()> {
        let tunnels = self.scene.machine.tunnels();
        ensure!(tunnels.is_empty() && !self.scene.registered()?, "a tunnel before the login: {tunnels:?}");
        Ok(())
    }

    /// Waits for the user's session with its tunnel.
    fn opened(&self) -> anyhow::Result<()> {
        let machine = &self.scene.machine;
        let open = || machine.tunnels().len() == 1 && self.window().is_ok();
        wait::for_true("the session", START_LIMIT, open)
            .with_context(|| format!("{}\n{}", self.log(), machine.journal("cugd")))?;
        let sessions = machine.logind_users()?;
        ensure!(sessions.contains(&"USER-A".to_owned()), "{sessions:?}");
        Ok(())
    }

    /// The terminal's window.
    fn window(&self) -> anyhow::Result<String> {
        let found = self.on_the_screen("xdotool", &["search", "--onlyvisible", "--class", "xterm"])?;
        found.lines().next().map(str::to_owned).context("no terminal on the screen")
    }

    /// The member runs a command with the other member's address in the terminal; `mark` is a file that says so.
    fn in_the_terminal(&self, command: &str, mark: &str) -> anyhow::Result<()> {
        let window = self.window()?;
        self.on_the_screen("xdotool", &["mousemove", "--window", &window, "200", "200"])?;
        let home = self.scene.machine.path("/home/USER-A").join(mark);
        self.answer(&format!("{command} {} && touch {mark}", self.scene.other()))?;
        wait::for_true("the command in the terminal", LIMIT, || home.exists())
            .with_context(|| self.scene.machine.journal("cugd"))
    }
}
