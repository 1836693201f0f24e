//! A login that asks nothing and does nothing: what libpam and its steps take.

use anyhow::Context;
use cug_load::figures::Sample;
use cug_load::pace::Pace;
use cug_tests::login::Script;
use cug_tests::terminal::Terminal;

/// The PAM service.
const SERVICE: &str = "permit-login";

const STACK: &str = "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n";

/// From the first call to the session being open, in milliseconds.
///
/// # Errors
/// When one fails.
pub(super) fn logins(terminal: &Terminal, times: usize, cold: bool) -> anyhow::Result<Sample> {
    terminal.space().write(&format!("/etc/pam.d/{SERVICE}"), STACK, 0o644)?;
    let mut pace = Pace::new(cold);
    let mut all = Vec::with_capacity(times);
    for _ in 0..times {
        pace.next();
        let mut login = terminal.login(&Script::new("USER-A").service(SERVICE))?;
        login.open()?;
        let opened = login.events().into_iter().find(|event| event.step.as_deref() == Some("open_session"));
        all.push(opened.context("no session")?.ms);
        login.close()?;
    }
    Ok(all.into_iter().collect())
}
