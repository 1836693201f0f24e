//! `KEEP=1`: leaves the stage standing, and says how to look at it and how to end it.

use crate::report::directory;
use crate::screen::Screen;
use crate::stage::Stage;

/// Whether the stage is to be left standing.
pub fn wanted() -> bool {
    std::env::var_os("KEEP").is_some_and(|keep| !keep.is_empty() && keep != "0")
}

/// Lets everything run on after this process.
pub fn leave(stage: Stage, screen: &Screen) -> anyhow::Result<()> {
    let Stage { logins, mut cards, echoes, capture, terminals, server, lan, .. } = stage;
    drop(capture);
    for (_, (_, login)) in logins {
        login.leave()?;
    }
    for card in cards.values_mut() {
        card.leave()?;
    }
    echoes.into_iter().for_each(cug_tests::probe::Echo::leave);
    let mut hosts = Vec::new();
    let (space, daemon) = server.into_parts();
    daemon.into_iter().for_each(cug_tests::process::Daemon::leave);
    hosts.push((space.name().to_owned(), space.keep()?));
    for terminal in terminals {
        let (space, daemons) = terminal.into_parts();
        daemons.into_iter().for_each(cug_tests::process::Daemon::leave);
        hosts.push((space.name().to_owned(), space.keep()?));
    }
    let space = lan.into_space();
    hosts.push((space.name().to_owned(), space.keep()?));

    let pids: Vec<String> = hosts.iter().map(|(_, pid)| pid.to_string()).collect();
    let file = directory().join("pids");
    std::fs::write(&file, pids.join(" ") + "\n")?;
    screen.line("  Left standing. To look inside (root):");
    for (name, pid) in &hosts {
        screen.line(&format!("    {name:<10} nsenter -t {pid} -m -n -u -i -p"));
    }
    let programs = cug_tests::paths::programs();
    screen.line(&format!(
        "  There, for example: {0}/cugctl status, {0}/cugctl peers, {0}/cug-server session list, ip addr",
        programs.display()
    ));
    screen.line("  To end it all:");
    screen.line(&format!("    kill -9 $(cat {})", file.display()));
    Ok(())
}
