//! Another display manager: greetd, with its own text greeter.

use crate::scene::{LIMIT, Scene};
use anyhow::{Context, ensure};
use cug_tests::card::PIN;
use cug_tests::machine::DESKTOP;
use cug_tests::space::scenario;
use cug_tests::world::password;

/// There are no virtual terminals here: greetd stays on the terminal that it is started on, which it makes nobody's controlling terminal. So greeter and desktop
/// get terminals of their own.
const CONFIG: &str = "[terminal]
vt = \"none\"
[default_session]
command = \"env SHELL=/bin/sh script --quiet --flush --command '/usr/sbin/agreety --cmd /usr/local/bin/desk' /dev/null\"
user = \"_greetd\"
";

/// What the member's session is.
const DESK: &str = "#!/bin/sh
exec script --quiet --flush --command bash /dev/null
";

/// Instead of the login program of the console.
const UNIT: &str = "[Unit]
After=console-getty.service
[Service]
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/console
TTYReset=yes
TTYVHangup=yes
";

/// The greeter asks for PIN and password, says why it refuses, opens the session with its tunnel, and has none itself; the end of the session is the end of the
/// tunnel.
#[test]
fn a_member_logs_in_through_greetd() {
    scenario("machine-greetd", |logs| {
        let mut scene = Scene::on(DESKTOP, logs, "", true, "")?;
        scene.machine.write("/etc/greetd/config.toml", CONFIG)?;
        scene.machine.write("/usr/local/bin/desk", DESK)?;
        scene.machine.run("chmod", &["755", "/usr/local/bin/desk"])?.ok()?;
        let start = "mkdir -p /run/systemd/system/greetd.service.d && cat >/run/systemd/system/greetd.service.d/console.conf && \
                     systemctl daemon-reload && systemctl mask --runtime --now console-getty.service && systemctl restart greetd.service";
        let command = scene.machine.command("sh", &["-c", start]);
        cug_tests::process::run(command, UNIT.as_bytes(), LIMIT)?.ok()?;

        expect(&mut scene, "login: ")?;
        let users = scene.machine.logind_users()?;
        ensure!(users == ["_greetd"], "the greeter's session: {users:?}");
        ensure!(scene.machine.tunnels().is_empty() && !scene.registered()?, "the greeter has a tunnel");
        answer(&mut scene, &[("USER-A", "PIN: "), (PIN, "assword: "), ("wrong", "password is not right")])?;
        expect(&mut scene, "login: ")?;
        ensure!(scene.machine.tunnels().is_empty() && !scene.registered()?, "a tunnel after a wrong password");
        answer(&mut scene, &[("USER-A", "PIN: "), (PIN, "assword: "), (password("USER-A"), "$ ")])?;
        ensure!(scene.machine.tunnels().len() == 1, "{}", scene.machine.journal("cugd"));
        scene.reaches_the_other()?;
        ensure!(scene.machine.logind_users()? == ["USER-A"], "{:?}", scene.machine.logind_users());

        scene.machine.console().type_line("exit")?;
        scene.closed()?;
        scene.no_os_session()?;
        expect(&mut scene, "login: ")
    });
}

fn expect(scene: &mut Scene, text: &str) -> anyhow::Result<()> {
    let seen = scene.machine.console().expect(text, LIMIT).map(drop);
    seen.with_context(|| format!("{}\n{}", scene.machine.journal("greetd"), scene.machine.journal("cugd")))
}

/// Types lines, and waits for what comes after each.
fn answer(scene: &mut Scene, dialogue: &[(&str, &str)]) -> anyhow::Result<()> {
    for (line, then) in dialogue {
        scene.machine.console().type_line(line)?;
        expect(scene, then)?;
    }
    Ok(())
}
