//! polkit decides who may use the card service, from Debian 13 on.

use crate::scene::{LIMIT, Scene};
use anyhow::{Context, ensure};
use cug_tests::accounts::LOCAL_USER;
use cug_tests::card::PIN;
use cug_tests::process;
use cug_tests::space::scenario;
use cug_tests::world::password;
use cug_tests::{paths, wait};
use std::fs;
use std::process::Command;

/// What the README points to.
const RULE: &str = "packaging/examples/cug-cards.rules";

/// What pcscd writes when polkit has said no.
const REFUSED: &str = "is NOT authorized for action";

/// `cugd` and the login program are root and need no rule. A locker that runs as the user, in a session that is not one of a local seat, is refused without the
/// rule and unlocks with it; who is not in the rule's group is refused all the same.
#[test]
fn a_rule_lets_a_locker_use_the_card() {
    scenario("machine-polkit", |logs| {
        let mut scene = Scene::on("trixie", logs, "", true, "")?;
        // pcscd wants it, and does not wait for it.
        scene.machine.wait_active("polkit")?;
        // The login program watches the card by itself and cugd does afterwards.
        scene.log_in()?;
        scene.reaches_the_other()?;
        let refusals = |scene: &Scene| scene.machine.journal("pcscd").matches(REFUSED).count();
        ensure!(refusals(&scene) == 0, "{}", scene.machine.journal("pcscd"));

        let refused = unlock(&scene, "USER-A")?;
        ensure!(!refused.contains("successfully authenticated") && !refused.contains("PIN"), "{refused}");
        ensure!(refusals(&scene) > 0, "it was not polkit that refused: {}", scene.machine.journal("pcscd"));

        let rule = fs::read_to_string(paths::workspace().join(RULE)).context(RULE)?;
        scene.machine.write("/etc/polkit-1/rules.d/50-cug-cards.rules", &rule)?;
        scene.machine.run("groupadd", &["--system", "cards"])?.ok()?;
        scene.machine.run("usermod", &["--append", "--groups", "cards", "USER-A"])?.ok()?;
        // polkit notices by itself that there is another rule.
        let mut unlocked = String::new();
        wait::for_true("the locker to be let in", LIMIT, || {
            unlocked = unlock(&scene, "USER-A").unwrap_or_default();
            unlocked.contains("successfully authenticated")
        })
        .with_context(|| format!("{unlocked}\n{}", scene.machine.journal("pcscd")))?;

        let before = refusals(&scene);
        let other = unlock(&scene, LOCAL_USER.0)?;
        ensure!(!other.contains("PIN") && refusals(&scene) > before, "{other}\n{}", scene.machine.journal("pcscd"));

        // The card is pulled and back: the locker brings the tunnel back.
        let card = scene.pull()?;
        scene.closed()?;
        scene.put_back(card)?;
        let unlocked = unlock(&scene, "USER-A")?;
        ensure!(unlocked.contains("successfully authenticated"), "{unlocked}\n{}", scene.machine.journal("cugd"));
        scene.wait_open()?;
        scene.reaches_the_other()?;
        scene.machine.console().log_out()?;
        scene.closed()
    });
}

/// What a locker of `user` shows: it checks by PAM, as that user, outside of every session.
fn unlock(scene: &Scene, user: &str) -> anyhow::Result<String> {
    let answers = format!("{PIN}\n{}\n", password("USER-A"));
    let command: Command =
        scene.machine.command("runuser", &["-u", user, "--", "pamtester", "vlock", user, "authenticate"]);
    let done = process::run(command, answers.as_bytes(), LIMIT)?;
    Ok(done.out + &done.err)
}
