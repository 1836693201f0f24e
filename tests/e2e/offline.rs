//! The server is away when somebody logs in.

use crate::support::{SOON, wait_seats};
use anyhow::{Context, ensure};
use cug_tests::card::{InReader, PIN, PivCard};
use cug_tests::lan::{address4, address6};
use cug_tests::login::{Login, Script};
use cug_tests::memory::{self, Pattern};
use cug_tests::paths;
use cug_tests::process::{Daemon, beside, own_number, waiting_login};
use cug_tests::script::stream::in_network;
use cug_tests::server::PORT;
use cug_tests::space::scenario;
use cug_tests::terminal::Terminal;
use cug_tests::wait;
use cug_tests::world::World;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

/// `PAM_AUTHINFO_UNAVAIL`.
const UNAVAILABLE: i32 = 9;

/// The default `server-timeout-seconds`, and what a busy machine needs for the rest.
const TOLD_WITHIN: f64 = 5_000.0 + 2_000.0;

/// Not words that a program contains by itself.
const PASSWORD: &str = "Zq7!correct-Horse-9-battery";

/// The service of these logins: the card, and then the local password, which was typed already.
const SERVICE: &str = "offline-login";

/// The first pauses of a waiting login, doubled each time with jitter, and a busy machine.
const BY_ITSELF: Duration = Duration::from_secs(40);

/// DNS servers that swallow every question. The other ways of being away are in `server_faults`.
#[test]
fn silent_dns_costs_no_more_than_a_silent_server() {
    scenario("offline-dns", |logs| {
        let mut world = World::new(logs, 1)?;
        let _mute = in_network(world.server.space(), || Ok(UdpSocket::bind(("::", 53))?))?;
        let terminal = world.terminal_mut(1);
        let servers = format!("nameserver {}\nnameserver {}\n", address4(254), address6(254));
        terminal.space().write("/etc/resolv.conf", servers, 0o644)?;
        let nss = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";
        terminal.space().write("/etc/nsswitch.conf", nss, 0o644)?;
        terminal.configure(&format!("servers = [\"vpn.ward.example:{PORT}\"]"))?;
        terminal.stop_cugd()?;
        terminal.start_cugd()?;
        let card = world.card("USER-A")?;
        let terminal = world.terminal(1);
        let _card = terminal.insert(card)?;
        let mut login = terminal.login(&Script::new("USER-A").password("passwd1"))?;
        let refused = login.refused()?;
        ensure!((refused.step.as_str(), refused.code) == ("authenticate", UNAVAILABLE), "{refused:?}");
        crate::support::one_sentence(&login, "management server")?;
        let typed = login.wait("the prompt", |event| event.text.as_deref() == Some("Password: "))?;
        let told = login.wait("the sentence", |event| event.style.as_deref() == Some("error"))?;
        println!("offline: silent DNS: told {:.0} ms after the password", told.ms - typed.ms);
        ensure!(told.ms - typed.ms > 1_000.0, "the DNS was not silent, so this shows nothing");
        ensure!(told.ms - typed.ms < TOLD_WITHIN, "{}", login.story());
        Ok(())
    });
}

/// A world whose terminal leaves logins without a server to the local password. USER-A has the password [`PASSWORD`] at the server.
fn stage(logs: &Path) -> anyhow::Result<World> {
    let mut world = World::new(logs, 1)?;
    world.server.run_with(&["user", "set-password", "USER-A", "--password-stdin"], &format!("{PASSWORD}\n"))?.ok()?;
    let terminal = world.terminal_mut(1);
    terminal.configure("offline = \"local\"\noffline-wait-minutes = 5")?;
    terminal.stop_cugd()?;
    terminal.start_cugd()?;
    let stack = "auth     [success=done ignore=ignore default=die] pam_cug.so\n\
         auth     required pam_unix.so try_first_pass\n\
         account  [success=ok new_authtok_reqd=ok ignore=ignore default=bad] pam_cug.so\n\
         account  required pam_unix.so\n\
         session  required pam_unix.so\n\
         session  optional pam_cug.so\n";
    terminal.space().write(&format!("/etc/pam.d/{SERVICE}"), stack, 0o644)?;
    Ok(world)
}

/// The password of USER-A's account at this workstation.
fn local_password(terminal: &Terminal, password: &str) -> anyhow::Result<()> {
    let hash = terminal.space().run("openssl", &["passwd", "-6", password])?.ok()?;
    let path = terminal.space().path("/etc/shadow");
    let line = |line: &str| match line.starts_with("USER-A:") {
        true => format!("USER-A:{}:19000:0:99999:7:::\n", hash.trim()),
        false => format!("{line}\n"),
    };
    let shadow: String = fs::read_to_string(&path)?.lines().map(line).collect();
    Ok(fs::write(path, shadow)?)
}

/// Logs USER-A in while the server is down.
fn log_in(terminal: &Terminal, password: &str) -> anyhow::Result<Login> {
    let mut login = terminal.login(&Script::new("USER-A").service(SERVICE).password(password))?;
    login.open()?;
    login.wait_message("this workstation alone decides")?;
    login.wait_message("opens by itself")?;
    let asked = login.asked().iter().filter(|prompt| prompt.contains("assword")).count();
    ensure!(asked == 1, "the local password was asked for again: {:?}", login.asked());
    ensure!(terminal.tunnels().is_empty(), "a tunnel without a server");
    Ok(login)
}

/// The process that waits, as this machine numbers it; `None` when there is none.
fn process(terminal: &Terminal) -> Option<i32> {
    waiting_login(&processes(terminal))
}

/// All processes of the terminal.
fn processes(terminal: &Terminal) -> Vec<i32> {
    beside(terminal.space().pid())
}

/// Password and PIN, as the card gets it.
fn typed() -> [Pattern; 2] {
    let mut pin = PIN.as_bytes().to_vec();
    pin.resize(8, 0xff);
    [Pattern::new("password", PASSWORD.as_bytes()), Pattern::new("PIN", &pin)]
}

/// No process of the terminal but `but` has password or PIN in its memory.
fn nobody_has_what_was_typed(terminal: &Terminal, but: Option<i32>) -> anyhow::Result<()> {
    let mut looked = 0;
    for pid in processes(terminal).into_iter().filter(|pid| Some(*pid) != but) {
        // One that has just ended holds nothing.
        let Ok(found) = memory::find(pid, &typed()) else { continue };
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        ensure!(found.is_empty(), "{} holds {found:#?}", name.trim());
        looked += 1;
    }
    ensure!(looked >= 3, "only {looked} processes were looked at");
    Ok(())
}

/// What was typed is in locked memory, and nowhere else that others could look: not in arguments or the environment, in no file; nobody but root may look
/// into the process, and its end writes no core. That it cannot be dumped is seen under the shipped unit (`machine/away.rs`).
fn kept_close(terminal: &Terminal, keeper: i32, found: &[String]) -> anyhow::Result<()> {
    let loose = memory::not_locked(keeper, found)?;
    ensure!(loose.is_empty(), "it may be swapped: {loose:?}");
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{keeper}/{file}"))?;
        ensure!(!memory::contains(&bytes, PASSWORD.as_bytes()), "the password is in {file}");
    }
    let limits = fs::read_to_string(format!("/proc/{keeper}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("limits")?;
    ensure!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "a crash would write a core: {core}");
    let number = own_number(keeper)?;
    for file in ["mem", "environ", "maps", "fd/0"] {
        let mut look = terminal.space().command_as("USER-A", "head")?;
        look.args(["-c", "1", &format!("/proc/{number}/{file}")]);
        let seen = cug_tests::process::run(look, b"", SOON)?;
        ensure!(seen.err.contains("Permission denied"), "the person looks into {file}: {}{}", seen.out, seen.err);
    }
    let files = terminal.space().run("grep", &["-rlsF", PASSWORD, "/run", "/etc", "/tmp", "/var/tmp", "/var/lib"])?;
    ensure!(files.out.is_empty(), "the password is in {}", files.out);
    Ok(())
}

/// What `cugctl watch` tells USER-A.
fn watch(terminal: &Terminal) -> anyhow::Result<Daemon> {
    let mut command = terminal.space().command_as("USER-A", paths::built("cugctl")?)?;
    command.args(["watch", "--json"]);
    let mut watch = terminal.space().daemon("watch", command)?;
    watch.wait_log("watch-started", SOON)?;
    Ok(watch)
}

fn no_process(terminal: &Terminal, why: &str) -> anyhow::Result<()> {
    wait::for_true(&format!("the end of the waiting login: {why}"), SOON, || process(terminal).is_none())
}

#[test]
fn the_group_opens_by_itself_when_the_server_is_back() {
    scenario("offline-opens", |logs| {
        let mut world = stage(logs)?;
        let card = world.card("USER-A")?;
        let in_reader = world.terminal(1).insert(card)?;
        world.server.kill()?;
        let terminal = world.terminal(1);
        local_password(terminal, PASSWORD)?;
        let mut watch = watch(terminal)?;
        let login = log_in(terminal, PASSWORD)?;
        terminal.wait_state("USER-A", "waiting", SOON)?;
        watch.wait_log("wait-began", SOON)?;
        let status = terminal.cugctl("status")?;
        let waiting = &status["sessions"][0];
        ensure!(waiting["problems"][0].as_str().unwrap_or_default().contains("waits"), "{status}");
        ensure!(waiting["waiting"]["left_ms"].as_u64().is_some_and(|ms| ms <= 300_000), "{status}");

        // One process has what was typed, no other, and nobody else may look into it.
        let keeper = process(terminal).context("no process waits")?;
        wait::for_true("a first try", SOON, || {
            terminal.cugctl("status").is_ok_and(|status| status["sessions"][0]["waiting"]["tries"].as_u64() > Some(0))
        })?;
        let found = memory::find(keeper, &typed()[..1])?;
        ensure!(!found.is_empty(), "the password was not found where it is kept: the search is blind");
        nobody_has_what_was_typed(terminal, Some(keeper))?;
        kept_close(terminal, keeper, &found)?;

        world.server.serve()?;
        let started = Instant::now();
        let terminal = world.terminal(1);
        terminal.wait_state("USER-A", "up", BY_ITSELF)?;
        watch.wait_log("session-up", SOON)?;
        println!("offline: the tunnel stands {} ms after the server", started.elapsed().as_millis());
        ensure!(terminal.tunnels().len() == 1, "{:?}", terminal.tunnels());
        wait_seats(&world, &[("USER-A", 1)])?;
        no_process(terminal, "it is logged in")?;
        nobody_has_what_was_typed(terminal, None)?;
        drop(in_reader);
        terminal.wait_clean(SOON)?;
        login.close()?;
        wait_seats(&world, &[])
    });
}

/// A login that waits for a server.
fn waiting(terminal: &Terminal) -> anyhow::Result<Login> {
    let login = log_in(terminal, PASSWORD)?;
    terminal.wait_state("USER-A", "waiting", SOON)?;
    Ok(login)
}

/// While a login waits its card is exchanged for another one in an instant; then it is back in the reader.
fn exchanged(terminal: &Terminal, in_reader: InReader, other: PivCard) -> anyhow::Result<InReader> {
    let login = waiting(terminal)?;
    let card = in_reader.pull();
    let other = terminal.insert(other)?;
    no_process(terminal, "the card was exchanged")?;
    nobody_has_what_was_typed(terminal, None)?;
    drop(other.pull());
    let in_reader = terminal.insert(card)?;
    login.close()?;
    Ok(in_reader)
}

/// Whatever ends a waiting login, nothing of it is left, and the server that comes back afterwards hears nothing.
#[test]
fn what_ends_a_waiting_login() {
    scenario("offline-ends", |logs| {
        let mut world = stage(logs)?;
        let (card, other_card) = (world.card("USER-A")?, world.card("USER-B")?);
        let mut in_reader = world.terminal(1).insert(card)?;
        world.server.kill()?;
        let terminal = world.terminal_mut(1);
        local_password(terminal, PASSWORD)?;

        // The card is pulled, and the same one inserted again.
        let login = waiting(terminal)?;
        let card = in_reader.pull();
        no_process(terminal, "the card was pulled")?;
        in_reader = terminal.insert(card)?;
        terminal.wait_state("USER-A", "suspended", SOON)?;
        nobody_has_what_was_typed(terminal, None)?;
        login.close()?;
        terminal.wait_state("USER-A", "gone", SOON)?;

        in_reader = exchanged(terminal, in_reader, other_card)?;

        // Logged out; the login program killed.
        let login = waiting(terminal)?;
        login.close()?;
        no_process(terminal, "logged out")?;
        let login = waiting(terminal)?;
        login.kill()?;
        no_process(terminal, "the leader was killed")?;

        // The daemon killed: the process that waits goes with it.
        let login = waiting(terminal)?;
        let keeper = process(terminal).context("no process waits")?;
        terminal.kill_cugd()?;
        let gone = format!("/proc/{keeper}/cmdline");
        wait::for_true("the end of it", SOON, || fs::read(&gone).map_or(true, |line| line.is_empty()))?;
        terminal.start_cugd()?;
        drop(login);

        // The local account refuses: nothing waits at all.
        local_password(terminal, "another")?;
        let mut login = terminal.login(&Script::new("USER-A").service(SERVICE).password(PASSWORD))?;
        let refused = login.refused()?;
        ensure!(refused.step == "authenticate" && process(terminal).is_none(), "{refused:?}");
        terminal.wait_state("USER-A", "gone", SOON)?;
        drop(login);

        // A password that this workstation takes and the server does not: the person hears it, and the server is asked once.
        let mut watch = watch(terminal)?;
        let login = log_in(terminal, "another")?;
        world.server.serve()?;
        watch.wait_log("wait-ended", BY_ITSELF)?;
        ensure!(watch.log().contains("The password is not right"), "{}", watch.log());
        let terminal = world.terminal(1);
        no_process(terminal, "the server has refused")?;
        terminal.wait_state("USER-A", "suspended", SOON)?;
        ensure!(terminal.tunnels().is_empty());
        wait_seats(&world, &[])?;
        login.close()?;
        let rows = world.server.run(&["audit", "--json", "--user", "USER-A"])?;
        let logins = rows.lines().filter(|line| line.contains("\"login")).count();
        ensure!(logins == 1, "one refused login, and none before: {rows}");
        drop(in_reader);
        Ok(())
    });
}

/// The card was pulled and is back, and the screen is unlocked while the server is away: the tunnel comes back by itself, too.
#[test]
fn an_unlocked_screen_waits() {
    scenario("offline-unlock", |logs| {
        let mut world = stage(logs)?;
        let card = world.card("USER-A")?;
        let in_reader = world.terminal(1).insert(card)?;
        let login = world.terminal(1).log_in("USER-A", PASSWORD)?;
        let card = in_reader.pull();
        world.terminal(1).wait_state("USER-A", "suspended", SOON)?;
        world.server.kill()?;
        let terminal = world.terminal(1);
        let _in = terminal.insert(card)?;
        local_password(terminal, PASSWORD)?;
        // Twice: the second finds a login that waits, and leaves it alone.
        let said = terminal.space().run(paths::built("pam-corners")?, &["unlock", SERVICE, PIN, PASSWORD])?.ok()?;
        let seen: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(seen["steps"][0][1] == 0 && seen["steps"][1][1] == 0, "{seen}");
        terminal.wait_state("USER-A", "waiting", SOON)?;
        world.server.serve()?;
        world.terminal(1).wait_state("USER-A", "up", BY_ITSELF)?;
        ensure!(world.terminal(1).tunnels().len() == 1);
        no_process(world.terminal(1), "it is logged in")?;
        login.close()?;
        world.terminal(1).wait_clean(SOON)
    });
}

/// Who is in already is not made to wait: sudo and lockers of a session with a tunnel are left to the local password.
#[test]
fn a_check_while_the_session_is_up() {
    scenario("offline-check", |logs| {
        let mut world = stage(logs)?;
        let card = world.card("USER-A")?;
        let _in = world.terminal(1).insert(card)?;
        let login = world.terminal(1).log_in("USER-A", PASSWORD)?;
        world.server.kill()?;
        let terminal = world.terminal(1);
        local_password(terminal, PASSWORD)?;
        let script = Script::new("USER-A").service(SERVICE).password(PASSWORD).last("setcred");
        let mut check = terminal.login(&script)?;
        ensure!(check.result("setcred")? == 0, "{}", check.story());
        ensure!(process(terminal).is_none() && terminal.tunnels().len() == 1, "{}", check.story());
        drop(check);
        nobody_has_what_was_typed(terminal, None)?;
        login.close()
    });
}
