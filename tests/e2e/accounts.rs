//! Passwords that are changed, must be, or are tried too often; accounts that have ended. With the real PAM programs.

use crate::support::{SOON, one_sentence, refused, refused_at, still_works, wait_seats};
use crate::tools::Console;
use anyhow::ensure;
use cug_tests::accounts::LOCAL_USER;
use cug_tests::card::PIN;
use cug_tests::login::Script;
use cug_tests::memory::{self, Pattern};
use cug_tests::process;
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::World;

const NEW: &str = "mirror-canoe-17";

/// `PAM_AUTH_ERR`, `PAM_PERM_DENIED`, `PAM_NEW_AUTHTOK_REQD`, `PAM_ACCT_EXPIRED`, `PAM_AUTHTOK_ERR`, `PAM_TRY_AGAIN`.
const AUTH_ERR: i32 = 7;
const PERM_DENIED: i32 = 6;
const NEW_AUTHTOK_REQD: i32 = 12;
const ACCT_EXPIRED: i32 = 13;
const AUTHTOK_ERR: i32 = 20;
const TRY_AGAIN: i32 = 24;

fn nothing_told(world: &World, number: usize) -> anyhow::Result<()> {
    let (server, terminal) = (world.server.log(), world.terminal(number).space().syslog());
    for secret in [NEW, "passwd1", "short"] {
        ensure!(!server.contains(secret) && !terminal.contains(secret), "`{secret}` is in a log");
    }
    Ok(())
}

#[test]
fn a_password_that_must_be_changed_is_changed_at_the_login_which_goes_on() {
    scenario("accounts-must-change", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        world.server.run(&["user", "set", "USER-A", "--must-change", "yes"])?;

        let script = Script::new("USER-A").answer("new password", NEW).password("passwd1");
        let mut login = world.terminal(1).login(&script)?;
        login.open()?;
        ensure!(login.result("acct_mgmt")? == NEW_AUTHTOK_REQD, "{}", login.story());
        wait_seats(&world, &[("USER-A", 1)])?;
        // The old password and the PIN were typed once.
        let asked = login.asked();
        let times = |part: &str| asked.iter().filter(|prompt| prompt.contains(part)).count();
        ensure!((times("PIN"), times("Password"), times("New password")) == (1, 1, 2), "{asked:?}");
        login.close()?;
        world.terminal(1).wait_clean(SOON)?;

        let old = refused(&world, 1, &Script::new("USER-A").password("passwd1"), "password is not right")?;
        ensure!(old.code == AUTH_ERR, "{old:?}");
        world.terminal(1).log_in("USER-A", NEW)?.close()?;
        nothing_told(&world, 1)
    });
}

#[test]
fn until_it_is_changed_there_is_no_session() {
    scenario("accounts-not-yet", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        world.server.run(&["user", "set", "USER-A", "--must-change", "yes"])?;
        // A program that asks who it is and no more.
        let mut login = world.terminal(1).login(&Script::new("USER-A").password("passwd1").last("authenticate"))?;
        ensure!(login.result("authenticate")? == 0);
        world.terminal(1).wait_state("USER-A", "gone", SOON)?;
        ensure!(world.terminal(1).tunnels().is_empty());
        wait_seats(&world, &[])?;
        drop(login);

        // Bad ones are told and asked again, three times at most; then the login fails, and the old one counts.
        let mut login =
            world.terminal(1).login(&Script::new("USER-A").answer("new password", "short").password("passwd1"))?;
        ensure!(login.result("chauthtok")? == AUTHTOK_ERR, "{}", login.story());
        let said = login.said();
        let told = said.iter().filter(|line| line.contains("at least 6 characters")).count();
        ensure!(told == 3, "{said:?}");
        drop(login);
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])?;

        let mut login = world.terminal(1).login(&Script::new("USER-A").password("passwd1").ask("new"))?;
        ensure!(login.result("acct_mgmt")? == NEW_AUTHTOK_REQD, "{}", login.story());
        drop(login);
        world.server.run(&["user", "set", "USER-A", "--must-change", "no"])?;
        world.terminal(1).log_in("USER-A", "passwd1")?.close()
    });
}

#[test]
fn login_at_a_console_asks_for_the_new_password() {
    scenario("accounts-console", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let input = "passwd1\n";
        world.server.run_with(&["user", "set-password", "USER-A", "--password-stdin", "--must-change"], input)?.ok()?;
        let mut console = Console::start(world.terminal(1).space(), &["login"])?;
        console.answer("User ID: ", "USER-A")?;
        console.answer("PIN", PIN)?;
        console.answer("assword: ", "passwd1")?;
        console.wait("must be changed")?;
        console.answer("New password: ", "short")?;
        console.answer("once more: ", "short")?;
        console.wait("at least 6 characters")?;
        console.answer("New password: ", NEW)?;
        console.answer("once more: ", "mirror-canoe-18")?;
        console.wait("not typed twice the same")?;
        console.answer("New password: ", NEW)?;
        console.answer("once more: ", NEW)?;
        console.wait("has been changed")?;
        console.wait("$ ")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        ensure!(!world.terminal(1).tunnels().is_empty());
        console.say("exit")?;
        world.terminal(1).wait_clean(SOON)?;
        world.terminal(1).log_in("USER-A", NEW)?.close()?;
        nothing_told(&world, 1)
    });
}

#[test]
fn su_asks_for_the_new_password() {
    scenario("accounts-su", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        world.server.run(&["user", "set", "USER-A", "--must-change", "yes"])?;
        let space = world.terminal(1).space();
        let mut console = Console::start_as(space, LOCAL_USER.0, &["su", "-", "USER-A", "-c", "id -un; cat"])?;
        console.answer("PIN", PIN)?;
        console.answer("assword: ", "passwd1")?;
        console.answer("New password: ", NEW)?;
        console.answer("once more: ", NEW)?;
        console.wait("has been changed")?;
        console.wait("USER-A")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        drop(console);
        world.terminal(1).wait_clean(SOON)
    });
}

#[test]
fn passwd_changes_the_password_of_a_member_who_is_logged_in() {
    scenario("accounts-passwd", |logs| {
        let world = World::new(logs, 1)?;
        let terminal = world.terminal(1);
        let _card = terminal.insert(world.card("USER-A")?)?;
        let session = terminal.log_in("USER-A", "passwd1")?;
        let mut passwd = Console::start_as(terminal.space(), "USER-A", &["passwd"])?;
        passwd.answer("PIN", PIN)?;
        passwd.answer("Current password: ", "passwd1")?;
        passwd.answer("New password: ", NEW)?;
        passwd.answer("once more: ", NEW)?;
        passwd.wait("has been changed")?;
        passwd.wait("successfully")?;
        drop(passwd);
        // The session did not notice.
        wait_seats(&world, &[("USER-A", 1)])?;
        ensure!(!terminal.tunnels().is_empty());
        session.close()?;
        terminal.wait_clean(SOON)?;
        refused(&world, 1, &Script::new("USER-A").password("passwd1"), "password is not right")?;
        terminal.log_in("USER-A", NEW)?.close()?;
        nothing_told(&world, 1)
    });
}

#[test]
fn a_change_needs_the_card_the_old_password_and_the_vpn_service() {
    scenario("accounts-change", |logs| {
        let mut world = World::new(logs, 1)?;
        let card = world.card("USER-A")?;
        let passwd = |old: &str, new: &str| Script::new("USER-A").service("passwd").passwd(old, new);

        // Without a card, with another member's, with a wrong old password.
        let no_card = refused_at(world.terminal(1), world.terminal(1).login(&passwd("passwd1", NEW))?, "card")?;
        ensure!(no_card.code == AUTHTOK_ERR, "{no_card:?}");
        let other = world.terminal(1).insert(world.card("USER-B")?)?;
        refused_at(world.terminal(1), world.terminal(1).login(&passwd("passwd2", NEW))?, "not right")?;
        drop(other);
        let in_reader = world.terminal(1).insert(card)?;
        refused_at(world.terminal(1), world.terminal(1).login(&passwd("not-it", NEW))?, "password is not right")?;
        let mut same = world.terminal(1).login(&passwd("passwd1", "passwd1"))?;
        ensure!(same.result("chauthtok")? == AUTHTOK_ERR);
        ensure!(same.said().iter().any(|line| line.contains("the old one")), "{:?}", same.said());
        drop(same);

        // Nobody is logged in; it is a change all the same, and no session.
        world.terminal(1).login(&passwd("passwd1", NEW))?.changed()?;
        wait_seats(&world, &[])?;
        world.terminal(1).wait_clean(SOON)?;
        world.terminal(1).log_in("USER-A", NEW)?.close()?;

        world.terminal_mut(1).kill_cugd()?;
        let down = refused_at(world.terminal(1), world.terminal(1).login(&passwd(NEW, "another-one-9"))?, "service")?;
        ensure!(down.code == TRY_AGAIN, "{down:?}");
        world.terminal_mut(1).start_cugd()?;
        world.terminal(1).wait_clean(SOON)?;
        world.terminal(1).log_in("USER-A", NEW)?.close()?;
        drop(in_reader);

        // Somebody who is no member has a local password, and no card.
        let (user, password) = LOCAL_USER;
        world.terminal(1).login(&Script::new(user).service("passwd").passwd(password, NEW))?.changed()?;
        world.terminal(1).log_in(user, NEW)?.close()
    });
}

/// Provisioning goes on, whoever the account is for and whatever is broken.
#[test]
fn root_sets_local_passwords_as_ever() {
    scenario("accounts-root", |logs| {
        let mut world = World::new(logs, 1)?;
        let in_reader = world.terminal(1).insert(world.card("USER-A")?)?;
        let before = in_reader.control().apdu_count();
        world.terminal_mut(1).kill_cugd()?;
        let space = world.terminal(1).space();
        for user in ["USER-A", LOCAL_USER.0] {
            let changed = process::run(space.command("chpasswd")?, format!("{user}:{NEW}\n").as_bytes(), SOON)?;
            ensure!(changed.status.success(), "{}{}", changed.out, changed.err);
        }
        ensure!(in_reader.control().apdu_count() == before, "the card was used");
        world.terminal(1).log_in(LOCAL_USER.0, NEW)?.close()?;
        world.terminal_mut(1).start_cugd()?;
        world.terminal(1).wait_clean(SOON)?;
        // The member's password is what it was.
        still_works(&world, 1, "USER-A", in_reader.pull())?;
        Ok(())
    });
}

/// The profiles that the packages install, as pam-auth-update makes a stack of it.
#[test]
fn the_packaged_profile_changes_passwords_of_members_and_of_others() {
    scenario("accounts-profile", |logs| {
        let mut world = World::new(logs, 1)?;
        let space = world.terminal(1).space();
        for (name, profile) in [
            ("cug", include_str!("../../packaging/pam-configs/cug")),
            ("cug-session", include_str!("../../packaging/pam-configs/cug-session")),
        ] {
            space.write(&format!("/usr/share/pam-configs/{name}"), profile, 0o644)?;
        }
        let update = "export DEBIAN_FRONTEND=noninteractive; pam-auth-update --force --enable cug cug-session unix 2>&1 \
             && sed -i '/pam_systemd\\|pam_cap/d' /etc/pam.d/common-* && sed -i 's/pam_cug.so/& exempt=porter/' /etc/pam.d/common-* \
             && grep -q 'pam_unix.*use_authtok' /etc/pam.d/common-password";
        space.run("sh", &["-c", update])?.ok()?;
        let sections = ["auth", "account", "session", "password"];
        let stack: String = sections.iter().map(|section| format!("@include common-{section}\n")).collect();
        for service in [cug_tests::accounts::SERVICE, "passwd", "chpasswd"] {
            space.write(&format!("/etc/pam.d/{service}"), &stack, 0o644)?;
        }

        // A member whose password must be changed, and who then changes it again.
        let card = world.card("USER-A")?;
        let in_reader = world.terminal(1).insert(card)?;
        world.server.run(&["user", "set", "USER-A", "--must-change", "yes"])?;
        let mut login =
            world.terminal(1).login(&Script::new("USER-A").answer("new password", NEW).password("passwd1"))?;
        login.open()?;
        login.close()?;
        world.terminal(1).wait_clean(SOON)?;
        let mut passwd = world.terminal(1).login(&Script::new("USER-A").service("passwd").passwd(NEW, "passwd1"))?;
        passwd.changed()?;
        drop(passwd);
        still_works(&world, 1, "USER-A", in_reader.pull())?;

        // Somebody else changes a local password, with cugd dead; and so does root.
        world.terminal_mut(1).kill_cugd()?;
        let (user, password) = LOCAL_USER;
        let mut passwd = Console::start_as(world.terminal(1).space(), user, &["passwd"])?;
        passwd.answer("urrent password: ", password)?;
        passwd.answer("New password: ", "first-canoe-1")?;
        passwd.answer("Retype new password: ", "first-canoe-1")?;
        passwd.wait("successfully")?;
        world.terminal(1).log_in(user, "first-canoe-1")?.close()?;
        let space = world.terminal(1).space();
        let changed = process::run(space.command("chpasswd")?, format!("{user}:{NEW}\n").as_bytes(), SOON)?;
        ensure!(changed.status.success(), "{}{}", changed.out, changed.err);
        world.terminal(1).log_in(user, NEW)?.close()
    });
}

#[test]
fn an_account_that_has_ended_or_is_disabled_is_refused() {
    scenario("accounts-ended", |logs| {
        let world = World::new(logs, 1)?;
        let in_reader = world.terminal(1).insert(world.card("USER-A")?)?;
        let script = Script::new("USER-A").password("passwd1");
        world.server.run(&["user", "set", "USER-A", "--expires", "2020-02-29"])?;
        let shown = world.server.json(&["user", "show", "USER-A"])?;
        ensure!(shown["expires"] == "2020-03-01T00:00:00Z" && shown["expired"] == true, "{shown}");
        let ended = refused(&world, 1, &script, "expired")?;
        ensure!(ended.code == ACCT_EXPIRED, "{ended:?}");
        // Whether it has is told with the right password only.
        refused(&world, 1, &Script::new("USER-A").password("wrong!"), "password is not right")?;
        world.server.run(&["user", "set", "USER-A", "--expires", "never"])?;
        world.server.run(&["user", "disable", "USER-A"])?;
        ensure!(refused(&world, 1, &script, "disabled")?.code == PERM_DENIED);
        world.server.run(&["user", "enable", "USER-A"])?;
        still_works(&world, 1, "USER-A", in_reader.pull())?;
        Ok(())
    });
}

/// A day of the week that is neither today nor next to it, whatever the time zone.
fn another_day() -> anyhow::Result<&'static str> {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    // 1970 began on a Thursday.
    let days = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let day = usize::try_from((now / 86_400 + 3) % 7)?;
    days.get(day).copied().ok_or_else(|| anyhow::anyhow!("no such day"))
}

#[test]
fn outside_of_the_hours_nobody_gets_in_and_who_is_in_goes_out() {
    scenario("accounts-hours", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let set = |hours: &str| world.server.run(&["user", "set", "USER-A", "--hours", hours]);
        let closed = format!("{} 08:00-12:00 in UTC", another_day()?);
        set(&closed)?;
        let shown = world.server.json(&["user", "show", "USER-A"])?;
        ensure!(shown["hours"] == closed, "{shown}");

        let script = Script::new("USER-A").password("passwd1");
        let outside = refused(&world, 1, &script, "08:00-12:00; the next time is on")?;
        ensure!(outside.code == PERM_DENIED, "{outside:?}");
        // Told with the right password only.
        refused(&world, 1, &Script::new("USER-A").password("wrong!"), "password is not right")?;

        set("00:00-24:00")?;
        let session = world.terminal(1).log_in("USER-A", "passwd1")?;
        wait_seats(&world, &[("USER-A", 1)])?;
        set(&closed)?;
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])?;
        ensure!(world.terminal(1).cugd_log().contains("the permitted hours have ended"));
        session.close()?;
        set("always")?;
        world.terminal(1).log_in("USER-A", "passwd1")?.close()
    });
}

#[test]
fn wrong_passwords_lock_for_a_while_and_the_administrator_unlocks() {
    scenario("accounts-locked", |logs| {
        let world = World::new(logs, 1)?;
        let in_reader = world.terminal(1).insert(world.card("USER-A")?)?;
        let locked = || {
            let mut login = world.terminal(1).login(&Script::new("USER-A").password("wrong!"))?;
            let refused = login.refused()?;
            one_sentence(&login, "password")?;
            Ok::<_, anyhow::Error>(refused.said.join(" ").contains("Too many"))
        };
        wait::for_true("too many wrong passwords", SOON * 3, || locked().unwrap_or(false))?;
        let shown = world.server.json(&["user", "show", "USER-A"])?;
        ensure!(shown["wrong_passwords"].as_u64() >= Some(3), "{shown}");
        world.server.run(&["user", "unlock", "USER-A"])?;
        world.terminal(1).log_in("USER-A", "passwd1")?.close()?;
        let again = world.server.run_with(&["user", "unlock", "USER-A"], "")?;
        ensure!(!again.status.success() && again.err.contains("not locked"), "{}", again.err);
        still_works(&world, 1, "USER-A", in_reader.pull())?;
        Ok(())
    });
}

#[test]
fn the_administrator_is_told_what_a_password_lacks() {
    scenario("accounts-rules", |logs| {
        let world = World::with_config(logs, 0, "")?;
        for (password, said) in
            [("short", "at least 6 characters"), ("this is user-a2", "user ID"), ("", "no password")]
        {
            for command in
                [["user", "set-password", "USER-A", "--password-stdin"], ["user", "add", "USER-A2", "--password-stdin"]]
            {
                let finished = world.server.run_with(&command, &format!("{password}\n"))?;
                ensure!(!finished.status.success() && finished.err.contains(said), "{password}: {}", finished.err);
            }
        }
        for wrong in [["--expires", "29.2.2020"], ["--expires", "2021-02-29"], ["--must-change", "maybe"]] {
            let finished = world.server.run_with(&["user", "set", "USER-A", wrong[0], wrong[1]], "")?;
            ensure!(finished.status.code() == Some(2), "{wrong:?}: {}", finished.err);
        }
        let nobody = world.server.run_with(&["user", "set", "NOBODY", "--expires", "never"], "")?;
        ensure!(nobody.err.contains("no user NOBODY"), "{}", nobody.err);
        let nothing = world.server.run_with(&["user", "set", "USER-A"], "")?;
        ensure!(nothing.err.contains("nothing to set"), "{}", nothing.err);
        Ok(())
    });
}

/// P2: what was kept from the first phase to the last is wiped when it has done its work.
#[test]
fn a_changed_password_leaves_nothing_in_memory() {
    const OLD: &str = "velvet-anchor-4711";
    scenario("accounts-memory", |logs| {
        let mut world = World::new(logs, 1)?;
        let command = ["user", "set-password", "USER-A", "--password-stdin", "--must-change"];
        world.server.run_with(&command, &format!("{OLD}\n"))?.ok()?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let mut pin = PIN.as_bytes().to_vec();
        pin.resize(8, 0xff);
        let typed =
            [Pattern::new("old", OLD.as_bytes()), Pattern::new("new", NEW.as_bytes()), Pattern::new("PIN", &pin)];
        let script = Script::new("USER-A").answer("new password", NEW).password(OLD);
        let mut login = world.terminal(1).login(&script)?;
        login.open()?;
        let (host, cugd) = (login.pid()?, world.terminal_mut(1).cugd()?.pid()?);
        let server = world.server.process()?.pid()?;
        for (name, pid) in [("the login program", host), ("cugd", cugd), ("the server", server)] {
            let found = memory::find(pid, &typed)?;
            ensure!(found.is_empty(), "{name} holds {found:#?}");
        }
        login.close()
    });
}
