//! The login module and the daemon are of different versions: an upgrade while sessions run, or half of one.

use crate::support::{SOON, refused_at};
use anyhow::{Context, ensure};
use cug_proto::local::SOCKET_PATH;
use cug_tests::accounts::{LOCAL_USER, ROOT_PASSWORD};
use cug_tests::doctor::{Doctor, Doctored};
use cug_tests::login::Script;
use cug_tests::space::scenario;
use cug_tests::world::World;

/// `PAM_AUTHINFO_UNAVAIL`.
const UNAVAILABLE: i32 = 9;

const RELAY: &str = "/run/relay.sock";
const SERVICE: &str = "other-version";

#[test]
fn a_member_hears_one_sentence_and_nobody_else_notices() {
    scenario("versions", |logs| {
        let mut world = World::new(logs, 1)?;
        let card = world.card("USER-A")?;
        let terminal = world.terminal_mut(1);
        // Exempt in cugd.toml alone: the module of another version has to be told by the daemon.
        terminal.configure("exempt = [\"porter\"]")?;
        terminal.stop_cugd()?;
        terminal.start_cugd()?;
        let doctor = Doctor::start(terminal.space(), RELAY, SOCKET_PATH)?;
        let (module, strict) = (format!("pam_cug.so socket={RELAY}"), "[success=done ignore=ignore default=die]");
        let stack = format!(
            "auth {strict} {module}\nauth required pam_unix.so\naccount [success=ok ignore=ignore default=bad] {module}\n\
             account required pam_unix.so\nsession [success=ok ignore=ignore default=bad] {module}\nsession required pam_unix.so\n"
        );
        terminal.space().write(&format!("/etc/pam.d/{SERVICE}"), stack, 0o644)?;
        let in_reader = terminal.insert(card)?;
        let script = |user: &str, password: &str| Script::new(user).service(SERVICE).password(password);

        for how in [Doctored::LaterModule, Doctored::StrangeModule, Doctored::LaterDaemon, Doctored::StrangeDaemon] {
            doctor.set(how);
            let login = terminal.login(&script("USER-A", "passwd1"))?;
            let refused = refused_at(terminal, login, "different versions").with_context(|| format!("{how:?}"))?;
            ensure!((refused.step.as_str(), refused.code) == ("authenticate", UNAVAILABLE), "{how:?}: {refused:?}");
            for (user, password) in [("root", ROOT_PASSWORD), LOCAL_USER] {
                let mut login = terminal.login(&script(user, password))?;
                login.open().with_context(|| format!("{user}, {how:?}"))?;
                ensure!(login.said().is_empty(), "{user}, {how:?}: {:?}", login.said());
                login.close()?;
            }
            // Nothing of a login that was not understood is left, but for offers that nobody could read: for their five minutes.
            let offers = terminal.cugctl("status")?["sessions"].as_array().map_or(0, Vec::len);
            ensure!(offers <= usize::from(how == Doctored::StrangeDaemon) * 2, "{how:?}: {offers} offers are left");
        }

        // Who was in before the half upgrade stays in, and leaves in order.
        let mut login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
        login.open()?;
        doctor.set(Doctored::LaterModule);
        terminal.login(&script("USER-A", "passwd1"))?.refused()?;
        ensure!(terminal.tunnels().len() == 1, "a login that failed ended the session");
        login.close()?;
        terminal.wait_clean(SOON)?;
        drop(in_reader);
        Ok(())
    });
}
