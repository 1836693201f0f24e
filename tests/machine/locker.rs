//! A locker of the desktop that really locks: xsecurelock, which xss-lock starts at logind's word, under the X session of the greeter.

use crate::desktop::Desktop;
use crate::scene::LIMIT;
use anyhow::{Context, ensure};
use cug_tests::card::PIN;
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::password;
use std::time::{Duration, Instant};

/// A terminal, and what locks the screen when logind says so.
const DESK: &str = "#!/bin/sh
xss-lock -- xsecurelock &
exec xterm -geometry 100x40+0+0 -fa Mono -fs 10
";

/// The card is pulled, the screen is locked, and what is typed does not reach the desktop; without the card it stays locked, with card, PIN and password it opens
/// and the tunnel is back, without a new login.
#[test]
fn the_screen_is_locked_until_card_and_password_are_back() {
    scenario("machine-locker", |logs| {
        let mut desktop = Desktop::new(logs, "removal = \"lock\"", DESK)?;
        desktop.log_in()?;
        desktop.in_the_terminal("ping -c 3 -i 0.2", "reached")?;
        ensure!(!locked(&desktop), "locked from the beginning");
        let sessions = desktop.scene.machine.logind_users()?;

        let card = desktop.scene.pull()?;
        desktop.scene.closed()?;
        wait::for_true("the screen to be locked", LIMIT, || locked(&desktop))
            .with_context(|| desktop.scene.machine.journal("cugd"))?;
        desktop.picture("locker-locked")?;
        desktop.answer("touch escaped")?;
        desktop.picture("locker-without-card")?;
        // What is typed into a question that is still open would be part of its answer.
        // While it shows a message the key only ends that; when nothing is asked the key would wake it again.
        let mut pressed: Option<Instant> = None;
        wait::for_true("the end of the question", LIMIT * 2, || {
            if !asks(&desktop) {
                return true;
            }
            if pressed.is_none_or(|at| at.elapsed() > Duration::from_secs(3)) {
                pressed = Some(Instant::now());
                let _gone_already = desktop.on_the_screen("xdotool", &["key", "Escape"]);
            }
            false
        })?;
        ensure!(locked(&desktop), "unlocked without a card");

        desktop.scene.put_back(card)?;
        // The first key only wakes it.
        desktop.type_text(" ")?;
        wait::for_true("the locker to ask", LIMIT, || asks(&desktop))?;
        desktop.picture("locker-pin")?;
        desktop.answer(PIN)?;
        desktop.picture("locker-password")?;
        desktop.answer(password("USER-A"))?;
        wait::for_true("the screen to be unlocked", LIMIT, || !locked(&desktop))?;
        desktop.scene.wait_open()?;
        desktop.in_the_terminal("ls escaped || ping -c 3 -i 0.2", "back")?;
        desktop.picture("locker-unlocked")?;
        ensure!(
            !desktop.scene.machine.path("/home/USER-A/escaped").exists(),
            "the desktop took keys while it was locked"
        );
        ensure!(desktop.scene.machine.logind_users()? == sessions, "another session");
        desktop.answer("exit")?;
        desktop.scene.closed()
    });
}

/// Whether the locker runs.
fn locked(desktop: &Desktop) -> bool {
    desktop.scene.machine.process("xsecurelock").is_ok()
}

/// Whether it is asking PAM.
fn asks(desktop: &Desktop) -> bool {
    desktop.scene.machine.process("authproto_pam").is_ok()
}
