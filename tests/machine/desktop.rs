//! A machine with a greeter and a desktop on an X server without a screen: what is seen there, and what is typed.

use crate::scene::{LIMIT, Scene};
use anyhow::{Context, ensure};
use cug_tests::card::PIN;
use cug_tests::machine::DESKTOP;
use cug_tests::world::password;
use cug_tests::{paths, wait};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the X server and the greeter may take to come up.
pub const START_LIMIT: Duration = Duration::from_secs(60);

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

/// The user's desktop is this program.
const SESSION: &str = "[Desktop Entry]
Type=Application
Name=Terminal
Exec=/usr/local/bin/desk
";

/// A desktop that is a terminal and nothing else.
pub const TERMINAL: &str = "#!/bin/sh
exec xterm -geometry 100x40+0+0 -fa Mono -fs 10
";

/// The machine, and what was seen on its screen last.
pub struct Desktop {
    /// The machine, the other member and the server.
    pub scene: Scene,
    lines: usize,
    last: Vec<u8>,
}

impl Desktop {
    /// A machine with these lines in its cugd.toml, whose greeter waits for a user ID; after the login the desktop is the script `desk`.
    pub fn new(logs: &Path, lines: &str, desk: &str) -> anyhow::Result<Self> {
        let mut desktop = Self { scene: Scene::on(DESKTOP, logs, lines, true, "")?, lines: 0, last: Vec::new() };
        desktop.start(desk)?;
        desktop.hears(1)?;
        Ok(desktop)
    }

    fn start(&self, desk: &str) -> anyhow::Result<()> {
        let machine = &self.scene.machine;
        machine.write("/usr/local/bin/x-without-screen", X_SERVER)?;
        machine.write("/usr/local/bin/desk", desk)?;
        machine.run("chmod", &["755", "/usr/local/bin/x-without-screen", "/usr/local/bin/desk"])?.ok()?;
        machine.write("/etc/lightdm/lightdm.conf", LIGHTDM)?;
        // lightdm counts on virtual terminals; logind knows that there are none, and would refuse a session on one.
        machine.write("/etc/security/pam_env.conf", "XDG_VTNR DEFAULT= OVERRIDE=\n")?;
        machine.run("mkdir", &["-p", "/usr/share/xsessions"])?.ok()?;
        machine.write("/usr/share/xsessions/terminal.desktop", SESSION)?;
        // Without a configuration it has given up by now.
        machine.run("systemctl", &["reset-failed", "lightdm.service"])?;
        machine.run("systemctl", &["restart", "lightdm.service"])?.ok().map(drop)
    }

    /// A member logs in at the greeter, which waits for a user ID.
    pub fn log_in(&mut self) -> anyhow::Result<()> {
        self.ready()?;
        self.answer("USER-A")?;
        // What the first field is for, and the field.
        self.hears(2)?;
        self.answer(PIN)?;
        self.hears(1)?;
        self.answer(password("USER-A"))?;
        self.opened()
    }

    /// What lightdm wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scene.machine.path("/var/log/lightdm/lightdm.log")).unwrap_or_default()
    }

    /// How often it wrote that.
    pub fn count(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until the greeter was given so many more lines: prompts, and what the module says.
    pub fn hears(&mut self, lines: usize) -> anyhow::Result<()> {
        self.lines += lines;
        let line = "Prompt greeter with";
        wait::for_true("a line for the greeter", START_LIMIT, || self.count(line) >= self.lines)
            .with_context(|| format!("{}\n{}", self.log(), self.scene.machine.journal("lightdm")))
    }

    /// Waits until the greeter's window takes keys. Without a window manager they go to where the mouse is.
    pub fn ready(&self) -> anyhow::Result<()> {
        let search = ["search", "--onlyvisible", "--class", "lightdm-gtk-greeter"];
        wait::for_true("the greeter's window", START_LIMIT, || self.on_the_screen("xdotool", &search).is_ok())?;
        self.on_the_screen("xdotool", &["mousemove", "512", "384"])?;
        let focus = || self.on_the_screen("xdotool", &["getwindowfocus", "getwindowname"]).is_ok();
        wait::for_true("the greeter's focus", START_LIMIT, focus)
    }

    /// Runs a program on the X server.
    pub fn on_the_screen(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["DISPLAY=:0", "XAUTHORITY=/var/run/lightdm/root/:0", program];
        all.extend(args);
        self.scene.machine.run("env", &all)?.ok()
    }

    /// Types.
    pub fn type_text(&self, text: &str) -> anyhow::Result<()> {
        self.on_the_screen("xdotool", &["type", "--delay", "20", text]).map(drop)
    }

    /// Types a line.
    pub fn answer(&self, text: &str) -> anyhow::Result<()> {
        self.type_text(text)?;
        self.on_the_screen("xdotool", &["key", "Return"]).map(drop)
    }

    /// Takes a picture when the screen has changed since the last one and is at rest.
    pub fn picture(&mut self, name: &str) -> anyhow::Result<PathBuf> {
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

    /// Nobody is a member here.
    pub fn no_tunnel(&self) -> anyhow::Result<()> {
        let tunnels = self.scene.machine.tunnels();
        ensure!(tunnels.is_empty() && !self.scene.registered()?, "a tunnel before the login: {tunnels:?}");
        Ok(())
    }

    /// Waits for the user's session with its tunnel.
    pub fn opened(&self) -> anyhow::Result<()> {
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
    pub fn in_the_terminal(&self, command: &str, mark: &str) -> anyhow::Result<()> {
        let window = self.window()?;
        self.on_the_screen("xdotool", &["mousemove", "--window", &window, "200", "200"])?;
        let home = self.scene.machine.path("/home/USER-A").join(mark);
        self.answer(&format!("{command} {} && touch {mark}", self.scene.other()))?;
        wait::for_true("the command in the terminal", LIMIT, || home.exists())
            .with_context(|| self.scene.machine.journal("cugd"))
    }
}
