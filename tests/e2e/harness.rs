//! The harness does what the other tests rely on.

use cug_tests::capture::Capture;
use cug_tests::lan::{Lan, address4, address6};
use cug_tests::login::Script;
use cug_tests::memory::{self, Pattern};
use cug_tests::probe::{self, Echo, NetState};
use cug_tests::space::{Space, scenario};
use cug_tests::{accounts, paths, wait};
use std::fs;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn hosts_on_two_lans_have_the_same_addresses_and_do_not_meet() {
    scenario("harness-lans", |logs| {
        let (one, other) = (Lan::new(logs)?, Lan::new(logs)?);
        let (a, b, c) = (Space::new("a", logs)?, Space::new("b", logs)?, Space::new("c", logs)?);
        one.connect(&a, 1)?;
        let cable = one.connect(&b, 2)?;
        other.connect(&c, 1)?;
        let capture = Capture::start(&one, logs.join("lan.pcap"))?;
        let _echo = Echo::start(&b)?;

        probe::wait_ping(&a, "root", address4(2).into(), SOON)?;
        assert!(probe::ping(&a, "root", address6(2).into(), SOON)?);
        assert!(probe::exchange(&a, "root", address4(2).into(), probe::ECHO_PORT, "plain-words-7531", SOON)?);
        wait::for_true("the words in the capture", SOON, || capture.saw(b"plain-words-7531"))?;
        assert!(!capture.saw(b"other-words-7531"));
        assert!(
            !probe::ping(&c, "root", address4(2).into(), Duration::from_millis(300))?,
            "the other LAN is not this one"
        );
        one.set_cable(&cable, false)?;
        assert!(!probe::ping(&a, "root", address4(2).into(), Duration::from_millis(300))?, "the cable is cut");
        Ok(())
    });
}

#[test]
fn a_host_changes_nothing_of_this_machine() {
    scenario("harness-files", |logs| {
        let before = fs::read("/etc/passwd")?;
        let host = Space::new("files", logs)?;
        accounts::make(&host)?;
        host.write("/usr/lib/cug-was-here", "x", 0o644)?;
        host.run("sh", &["-c", "rm -rf /etc/pam.d && logger -t proof words-for-the-log; hostname changed"])?.ok()?;
        assert!(fs::read_to_string(host.path("/etc/passwd"))?.contains("USER-A"));
        wait::for_true("syslog", SOON, || host.syslog().contains("words-for-the-log"))?;
        let before_state = NetState::of(&host)?;
        host.ip(&[
            "link add cug0 type veth peer name other".into(),
            "link set cug0 up".into(),
            "addr add 100.96.0.1/20 dev cug0".into(),
        ])?;
        assert!(NetState::of(&host)?.beyond(&before_state).iter().any(|line| line.contains("cug0")));

        assert_eq!(fs::read("/etc/passwd")?, before);
        assert!(!std::path::Path::new("/usr/lib/cug-was-here").exists());
        assert!(std::path::Path::new("/etc/pam.d").exists());
        assert_ne!(nix::unistd::gethostname()?.to_string_lossy(), "changed");
        Ok(())
    });
}

#[test]
fn a_host_ends_with_whoever_made_it() {
    scenario("harness-end", |logs| {
        // A process between us and the host, which dies without a chance to clean up.
        let log = logs.join("syslog");
        let rig = paths::built("rig")?;
        let mut maker = std::process::Command::new("sh")
            .args(["-c", "tail -f /dev/null | \"$0\" init doomed \"$1\""])
            .arg(rig)
            .arg(log)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let mut out = std::io::BufReader::new(maker.stdout.take().expect("piped"));
        std::io::BufRead::read_line(&mut out, &mut line)?;
        let pid = line.trim().to_owned();
        let alive = || std::path::Path::new(&format!("/proc/{pid}")).exists();
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line)?;
        assert_eq!(line, "ready\n");
        assert!(alive());
        let tail = wait::until("tail", SOON, || {
            children(maker.id().cast_signed()).into_iter().find(|(_, name)| name == "tail")
        })?
        .0;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(tail), nix::sys::signal::Signal::SIGKILL)?;
        wait::for_true("the end of the host", SOON, || !alive())?;
        let _ = maker.wait();
        Ok(())
    });
}

fn children(parent: i32) -> Vec<(i32, String)> {
    let entry = |entry: fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let of: i32 = tail.split_whitespace().nth(1)?.parse().ok()?;
        (of == parent).then(|| (pid, head.split_once('(').map(|(_, name)| name.to_owned()).unwrap_or_default()))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(entry).collect()
}

#[test]
fn the_login_program_logs_in_through_pam() {
    scenario("harness-pam", |logs| {
        let host = Space::new("pam", logs)?;
        accounts::make(&host)?;
        host.write(
            "/etc/pam.d/plain",
            "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_unix.so\n",
            0o644,
        )?;
        let (user, password) = accounts::LOCAL_USER;
        let script = Script::new(user).service("plain");
        let mut login = cug_tests::login::Login::start(&host, &script.clone().password(password))?;
        login.open()?;
        login.close()?;
        let mut login = cug_tests::login::Login::start(&host, &script.clone().password("wrong"))?;
        assert_eq!(login.refused()?.step, "authenticate");
        let mut login = cug_tests::login::Login::start(&host, &script)?;
        login.wait_prompt("password")?;
        login.type_answer(password)?;
        login.open()?;
        login.close()
    });
}

#[test]
fn a_look_into_memory_finds_what_is_there_and_only_that() {
    let secret: Vec<u8> = (0..32_u8).map(|n| n.wrapping_mul(37) ^ 0x5a).collect();
    assert_eq!(memory::positions(b"aab aaab", b"aab").collect::<Vec<_>>(), [0, 5]);
    let here = std::hint::black_box(secret.clone());
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(!memory::find(own, &[Pattern::new("secret", &here)]).unwrap().is_empty());
}
