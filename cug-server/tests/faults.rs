//! Disks that are full, read-only or damaged; the audit in the journal; backup, restore and import with the program itself.
#![allow(
    missing_docs,
    clippy::too_many_lines,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod common;

use common::*;
use cug_server::admin::{Reply, Request};
use std::{
    io::{BufRead, BufReader},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// Runs the program to its end.
fn run(config: &Path, arguments: &[&str]) -> Output {
    command(config, arguments).output().unwrap()
}

fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cug-server"));
    command.arg("--yes").arg("--config").arg(config).args(arguments);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What the program said when it refused: one sentence, exit status 1.
fn refusal(output: &Output) -> String {
    let error = text(&output.stderr).to_owned();
    assert_eq!(output.status.code(), Some(1), "{}{error}", text(&output.stdout));
    assert!(error.starts_with("cug-server: ") && !error.contains("panicked"), "{error}");
    error
}

fn success(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

/// Runs a test of this file again, alone, in a mount namespace of its own: what it mounts is gone with it.
fn in_own_mounts(test: &str) {
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("1 passed"), "{}", text(&output.stdout));
}

fn mount(arguments: &[&str], on: &Path) {
    assert!(Command::new("mount").args(arguments).arg(on).status().unwrap().success());
}

/// Fills a file system to the last byte.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    let mut size = 65_536;
    while size > 0 {
        match file.write(&vec![0; size]) {
            Ok(1..) => {}
            Ok(0) | Err(_) => size /= 2,
        }
    }
}

#[test]
fn a_full_disk() {
    in_own_mounts("on_a_full_disk");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_full_disk, where it may mount"]
async fn on_a_full_disk() {
    let mut server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    server.stop().await;
    let state = server.config.state_dir.clone();
    let elsewhere = server.dir.join("moved");
    std::fs::rename(&state, &elsewhere).unwrap();
    std::fs::create_dir(&state).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=2m,mode=700", "none"], &state);
    assert!(
        Command::new("cp")
            .args(["-r", "--preserve=mode"])
            .arg(elsewhere.join("."))
            .arg(&state)
            .status()
            .unwrap()
            .success()
    );
    server.resume().await;
    let mut ta = a.sit_down(&server, "terminal-1").await;
    let mut tb = b.sit_down(&server, "terminal-2").await;
    ta.peers().await;

    let ballast = state.join("ballast");
    fill(&ballast);
    let mut refused = 0;
    let mut added = vec![];
    for i in 0..2000 {
        let user: cug_proto::id::UserId = format!("u{i}").parse().unwrap();
        let password = cug_server::admin::Password::new(b"korrekt-7531").unwrap();
        match server
            .ask(Request::UserAdd {
                user: user.clone(),
                password,
                settings: cug_server::store::UserSettings::default(),
            })
            .await
        {
            Reply::Refused(sentence) => {
                assert!(sentence.contains("full"), "{sentence}");
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
            _ => added.push(user),
        }
    }
    assert_eq!(refused, 3, "the disk was not full");
    // The tunnels stay: both sessions are served.
    ta.heartbeat().await;
    tb.heartbeat().await;
    assert_eq!(server.sessions().await.len(), 2);
    // A login is refused for now, and the server does not stumble.
    assert!(!matches!(b.attempt().run(&server).await, LoginResult::Outcome(cug_proto::message::Outcome::Grant(_), _)));
    // A second server, and the direct way, on the full disk.
    let config = server.write_config();
    assert!(refusal(&run(&config, &["serve"])).contains("another cug-server works on"));

    std::fs::remove_file(&ballast).unwrap();
    let password = cug_server::admin::Password::new(b"korrekt-7531").unwrap();
    server
        .done(Request::UserAdd {
            user: "later".parse().unwrap(),
            password,
            settings: cug_server::store::UserSettings::default(),
        })
        .await;
    tb.clear().await;
    let told = ta.until(|m| matches!(m, cug_proto::message::ServerMessage::Peers(_))).await;
    assert!(matches!(told, cug_proto::message::ServerMessage::Peers(p) if p.gone[0].as_str() == "USER-B"));
    for user in &added {
        assert!(matches!(server.ask(Request::UserShow(user.clone())).await, Reply::User(_)), "{user} is lost");
    }
    server.stop().await;
    // Opening on a full disk: a sentence, and nothing is lost.
    fill(&ballast);
    let listed = run(&config, &["user", "list"]);
    if !listed.status.success() {
        assert!(refusal(&listed).contains("full"));
    }
    std::fs::remove_file(&ballast).unwrap();
    assert!(success(&run(&config, &["user", "list"])).contains("later"));
    assert!(success(&run(&config, &["audit", "verify"])).contains("as they were written"));
}

#[test]
fn a_disk_that_is_read_only_or_somebody_elses_or_damaged() {
    in_own_mounts("on_bad_disks");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_disk_that_is_read_only_or_somebody_elses_or_damaged, where it may mount"]
async fn on_bad_disks() {
    let mut server = TestServer::start("").await;
    server.patent().await;
    server.stop().await;
    let (config, state) = (server.write_config(), server.config.state_dir.clone());
    let database = state.join("cug.db");
    let sound = std::fs::read(&database).unwrap();

    mount(&["--bind", state.to_str().unwrap()], &state);
    mount(&["-o", "remount,bind,ro"], &state);
    for arguments in [["serve"].as_slice(), &["user", "list"]] {
        assert!(refusal(&run(&config, arguments)).to_lowercase().contains("read-only"));
    }
    assert!(Command::new("umount").arg(&state).status().unwrap().success());

    // The server's user, and a database that root left.
    let copy = server.dir.join("theirs");
    assert!(Command::new("cp").arg("-r").arg(&state).arg(&copy).status().unwrap().success());
    assert!(Command::new("chown").args(["-R", "65534:65534"]).arg(&copy).status().unwrap().success());
    assert!(Command::new("chown").args(["0:0"]).arg(copy.join("cug.db")).status().unwrap().success());
    assert!(Command::new("chmod").args(["755"]).arg(&server.dir).status().unwrap().success());
    let theirs = server.dir.join("theirs.toml");
    std::fs::write(
        &theirs,
        format!("state-dir = '{0}'\nadmin-socket = '{0}/admin.sock'\nlisten = ['127.0.0.1:0']", copy.display()),
    )
    .unwrap();
    let program = server.dir.join("cug-server");
    std::fs::copy(env!("CARGO_BIN_EXE_cug-server"), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .arg("--config")
        .arg(&theirs)
        .arg("serve")
        .output()
        .unwrap();
    let sentence = refusal(&output);
    assert!(sentence.contains("belongs to user number 0") && sentence.contains("chown"), "{sentence}");

    for (damaged, expected) in [
        (vec![7; 5000], "not a database"),
        (sound[..sound.len() / 2].to_vec(), "damaged"),
        ([&sound[..8192], &vec![0xAA; 8192], &sound[16384..]].concat(), "damaged"),
    ] {
        std::fs::write(&database, &damaged).unwrap();
        for arguments in [["serve"].as_slice(), &["user", "list"]] {
            let sentence = refusal(&run(&config, arguments));
            assert!(sentence.contains(expected) && sentence.contains("cug-server restore"), "{sentence}");
        }
        assert_eq!(std::fs::read(&database).unwrap(), damaged, "kept as it is");
    }
    std::fs::write(&database, &sound).unwrap();
    assert!(success(&run(&config, &["user", "list"])).contains("USER-A"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_server_is_restored_with_new_keys_and_nobody_logged_in() {
    let mut server = TestServer::start("").await;
    let [a, b, ..] = server.patent().await;
    let config = server.write_config();
    let file = server.dir.join("backup.db");
    let file = file.to_str().unwrap();
    let ta = a.sit_down(&server, "terminal-1").await;
    let said = tokio::task::block_in_place(|| success(&run(&config, &["backup", file])));
    assert!(said.contains("4 users") && said.contains("keys are not in it"), "{said}");
    assert!(tokio::task::block_in_place(|| refusal(&run(&config, &["backup", file]))).contains("--force"));
    assert!(tokio::task::block_in_place(|| refusal(&run(&config, &["restore", file]))).contains("stop the server"));
    let old_epoch = ta.grant.groups[0].epoch;
    server.done(Request::UserDisable("USER-B".parse().unwrap())).await;
    server.stop().await;

    // Another organisation's keys do not open it.
    let other = TestServer::start("").await;
    let theirs = other.write_config();
    assert!(tokio::task::block_in_place(|| refusal(&run(&theirs, &["restore", file]))).contains("stop the server"));
    drop(other);
    let keys = server.config.state_dir.join("keys/storage.key");
    let storage = std::fs::read(&keys).unwrap();
    std::fs::write(&keys, [1; 32]).unwrap();
    assert!(tokio::task::block_in_place(|| refusal(&run(&config, &["restore", file]))).contains("other keys"));
    std::fs::write(&keys, storage).unwrap();

    // A backup that was altered, cut or is none.
    let sound = std::fs::read(file).unwrap();
    let before = std::fs::read(server.config.state_dir.join("cug.db")).unwrap();
    for damaged in [sound[..sound.len() / 2].to_vec(), vec![9; 9000], vec![]] {
        std::fs::write(file, damaged).unwrap();
        let sentence = tokio::task::block_in_place(|| refusal(&run(&config, &["restore", file])));
        assert!(sentence.contains("backup.db"), "{sentence}");
    }
    std::fs::write(file, &sound).unwrap();
    let altered = rusqlite::Connection::open(file).unwrap();
    altered.execute_batch("UPDATE audit SET actor = 'nobody' WHERE id = 3").unwrap();
    drop(altered);
    assert!(tokio::task::block_in_place(|| refusal(&run(&config, &["restore", file]))).contains("row 3"));
    std::fs::write(file, &sound).unwrap();
    assert_eq!(std::fs::read(server.config.state_dir.join("cug.db")).unwrap(), before, "nothing was changed");

    let said = tokio::task::block_in_place(|| success(&run(&config, &["restore", file])));
    let kept = said.trim().rsplit_once("the old database is ").unwrap().1.to_owned();
    let old = rusqlite::Connection::open(kept).unwrap();
    let disabled: bool = old.query_row("SELECT disabled FROM user WHERE name = 'USER-B'", [], |r| r.get(0)).unwrap();
    assert!(disabled, "the old one has what came after the backup");
    let left: Vec<_> = std::fs::read_dir(&server.config.state_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_str().unwrap().contains("restored")), "{left:?}");

    server.resume().await;
    assert!(server.sessions().await.is_empty());
    let grant = b.log_in(&server).await;
    assert!(grant.groups[0].epoch > old_epoch, "a new key");
    assert!(Terminal::attach(&a, &server, ta.grant.duplicate(), &[]).await.is_err(), "the old session is over");
    let said = tokio::task::block_in_place(|| success(&run(&config, &["audit", "verify"])));
    assert!(said.contains("as they were written"), "{said}");
    let audit = tokio::task::block_in_place(|| success(&run(&config, &["--json", "audit"])));
    assert!(audit.lines().any(|l| l.contains("\"event\":\"restore\"")), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_through_the_server_names_every_bad_line_and_an_imported_user_cannot_log_in_yet() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let config = server.write_config();
    let file = |name: &str, content: &str| -> PathBuf {
        let path = server.dir.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let import = |arguments: &[&str]| {
        let arguments = [&["import"], arguments].concat();
        tokio::task::block_in_place(|| run(&config, &arguments))
    };
    let bad = file("bad.csv", "user,groups\nn1,VPN1\nn 2,VPN1\nUSER-A,\nn3,VPN8\n");
    let sentence = refusal(&import(&[bad.to_str().unwrap()]));
    assert!(sentence.contains("line 3:"), "{sentence}");
    let bad = file("bad2.csv", "user,groups\nn1,VPN1\nUSER-A,\nn3,VPN8\n");
    let sentence = refusal(&import(&[bad.to_str().unwrap()]));
    assert!(
        sentence.contains("line 3: there is a user USER-A already")
            && sentence.contains("line 4: there is no group VPN8"),
        "{sentence}"
    );
    assert!(refusal(&import(&[file("x.txt", "").to_str().unwrap()])).contains(".csv or .json"));
    assert!(matches!(server.ask(Request::UserShow("n1".parse().unwrap())).await, Reply::Refused(_)));

    let good = file("good.csv", "user,groups\nnew,VPN1;VPN8\n");
    let said = success(&import(&["--make-groups", good.to_str().unwrap()]));
    assert!(said.contains("1 users, 1 groups and 2 memberships"), "{said}");
    // A card for the new user: without a password it does not help, whatever is typed.
    let (card, fingerprint) = strangers_key(4);
    let public_key = {
        use rsa::pkcs8::EncodePublicKey;
        card.to_public_key().to_public_key_der().unwrap().into_vec()
    };
    server.done(Request::CardRegister { user: "new".parse().unwrap(), public_key, kind: "registered".into() }).await;
    let person =
        Person { user: "new".parse().unwrap(), password: String::new(), fingerprint, card, object: a.object.clone() };
    for password in ["", "korrekt-7531", "\0"] {
        let attempt = Attempt { password: password.into(), ..person.attempt() };
        let result = attempt.run(&server).await;
        assert!(
            matches!(
                result,
                LoginResult::Outcome(
                    cug_proto::message::Outcome::Denied(cug_proto::message::DenyReason::WrongPassword),
                    _
                )
            ),
            "{password:?}"
        );
    }
    let password = cug_server::admin::Password::new(b"korrekt-7531").unwrap();
    server.done(Request::UserSetPassword { user: person.user.clone(), password, must_change: false }).await;
    Attempt { password: "korrekt-7531".into(), ..person.attempt() }.log_in(&server).await;

    // What is exported can be imported, and has no secrets unless asked for.
    let export = tokio::task::block_in_place(|| success(&run(&config, &["export"])));
    assert!(export.contains("\"new\"") && !export.contains("argon2id"), "{export}");
    let secrets = tokio::task::block_in_place(|| success(&run(&config, &["export", "--secrets"])));
    assert_eq!(secrets.matches("$argon2id$v=19$").count(), 5, "{secrets}");
    let again = file("again.json", &secrets);
    assert!(success(&import(&["--merge", again.to_str().unwrap()])).contains("0 users, 0 groups and 0 memberships"));
}

/// Whether and how a process is killed at a random moment of its first tenth of a second.
fn kill_at_some_moment(mut child: Child) {
    let [a, b] = cug_server::clock::random::<2>().map(u64::from);
    let moment = cug_server::clock::monotonic() + std::time::Duration::from_micros((a * 256 + b) * 3 / 2);
    while cug_server::clock::monotonic() < moment && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let _ended_already = child.kill();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_or_an_import_that_is_killed_has_happened_or_has_not() {
    let mut server = TestServer::start("").await;
    server.patent().await;
    server.stop().await;
    let config = server.write_config();
    let file = server.dir.join("backup.db");
    let import = server.dir.join("users.csv");
    let lines: String = (0..500).map(|i| format!("n{i},VPN1\n")).collect();
    std::fs::write(&import, format!("user,groups\n{lines}")).unwrap();
    let (file, import) = (file.to_str().unwrap(), import.to_str().unwrap());
    let spawn =
        |arguments: &[&str]| command(&config, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let users = || {
        let listed = success(&run(&config, &["--json", "user", "list"]));
        listed.matches("\"user\":").count()
    };
    tokio::task::block_in_place(|| {
        success(&run(&config, &["backup", file]));
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..20 {
            kill_at_some_moment(spawn(&["import", import]));
            let after = users();
            assert!(after == 4 || after == 504, "round {round}: {after} users");
            kill_at_some_moment(spawn(&["restore", file]));
            let restored = users();
            assert!(restored == 4 || restored == after, "round {round}: {restored} users");
            assert!(success(&run(&config, &["audit", "verify"])).contains("as they were written"), "round {round}");
            seen.extend([after, restored]);
            success(&run(&config, &["restore", file]));
            // The old database, aside: one for each second.
            for entry in std::fs::read_dir(&server.config.state_dir).unwrap().map(Result::unwrap) {
                if entry.file_name().to_str().unwrap().contains("before-") {
                    std::fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        assert_eq!(seen.len(), 2, "killed always too early or always too late: {seen:?}");
        // In the place of a damaged database, with a log that was left beside it.
        let database = server.config.state_dir.join("cug.db");
        std::fs::write(&database, vec![7; 9000]).unwrap();
        std::fs::write(server.config.state_dir.join("cug.db-wal"), vec![7; 9000]).unwrap();
        refusal(&run(&config, &["user", "list"]));
        success(&run(&config, &["restore", file]));
        assert_eq!(users(), 4);
    });
}

/// The real program with a journal of its own: rows come with their fields, after the commit.
struct Journal {
    socket: UnixDatagram,
    child: Child,
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_audit_is_in_the_journal_with_fields() {
    in_own_mounts("with_a_journal");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the_audit_is_in_the_journal_with_fields, where it may mount"]
async fn with_a_journal() {
    let mut server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    server.stop().await;
    let config = server.write_config();
    mount(&["-t", "tmpfs", "none"], Path::new("/run"));
    std::fs::create_dir_all("/run/systemd/journal").unwrap();
    let socket = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let child = command(&config, &["serve"])
        .env("JOURNAL_STREAM", "1:1")
        .env("RUST_LOG", "warn,cug_server::server=info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut journal = Journal { socket, child };
    let listening = journal.until(|m| m.contains("listening on "));
    let address = listening.rsplit_once("listening on ").unwrap().1.lines().next().unwrap();
    server.elsewhere = Some(address.parse().unwrap());
    let terminal = a.sit_down(&server, "terminal-1").await;
    let login = journal.until(|m| m.contains("CUG_EVENT=login\n"));
    let card: String = a.fingerprint.iter().map(|b| format!("{b:02x}")).collect();
    for field in [
        "CUG_USER=USER-A\n",
        "CUG_ACTOR=USER-A\n",
        "CUG_SOURCE=127.0.0.1\n",
        "CUG_OUTCOME=granted\n",
        "CUG_REASON=terminal-1\n",
        &format!("CUG_CARD={card}\n"),
        "CUG_ROW=",
    ] {
        assert!(login.contains(field), "{field}: {login}");
    }
    journal.until(|m| m.contains("CUG_EVENT=session-up\n"));
    terminal.clear().await;
    assert!(journal.until(|m| m.contains("CUG_EVENT=session-clear\n")).contains("CUG_REASON="));
    // What is refused changes nothing, and is not there.
    let refused = tokio::task::block_in_place(|| run(&config, &["user", "enable", "USER-A"]));
    refusal(&refused);
    tokio::task::block_in_place(|| success(&run(&config, &["user", "disable", "USER-A"])));
    let seen = journal.all_until(|m| m.contains("CUG_EVENT=user-disable\n"));
    assert!(!seen.iter().any(|m| m.contains("CUG_EVENT=user-enable")), "{seen:?}");

    // Followed from another process, row by row.
    let mut follow =
        command(&config, &["--json", "audit", "--follow", "--user", "USER-B"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("\"event\":\"user-add\""), "{first}");
    tokio::task::block_in_place(|| success(&run(&config, &["user", "disable", "USER-B"])));
    assert!(lines.map_while(Result::ok).any(|l| l.contains("\"event\":\"user-disable\"")));
    let deadline = cug_server::clock::monotonic() + PATIENCE;
    while follow.try_wait().unwrap().is_none() {
        assert!(cug_server::clock::monotonic() < deadline, "it does not end when nobody reads");
        std::thread::yield_now();
    }

    // What a command does without a server is there too.
    journal.child.kill().unwrap();
    journal.child.wait().unwrap();
    tokio::task::block_in_place(|| success(&run(&config, &["user", "enable", "USER-B"])));
    assert!(journal.until(|m| m.contains("CUG_EVENT=user-enable\n")).contains("CUG_USER=USER-B\n"));
}

impl Journal {
    fn until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        self.all_until(wanted).pop().unwrap()
    }

    /// Messages as they come, up to the one that is wanted.
    fn all_until(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut seen = vec![];
        loop {
            let mut buffer = [0; 65_536];
            let length = self.socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{e}: {seen:?}"));
            seen.push(fields(&buffer[..length]));
            if wanted(seen.last().unwrap()) {
                return seen;
            }
        }
    }
}

/// A message of the journal's protocol, a line for each field: `NAME=value`, or the name, a length of 8 bytes and the value.
fn fields(mut message: &[u8]) -> String {
    let mut lines = String::new();
    while let Some(end) = message.iter().position(|b| *b == b'\n') {
        let (name, rest) = (text(&message[..end]), &message[end + 1..]);
        if name.contains('=') {
            lines += &format!("{name}\n");
            message = rest;
        } else {
            let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
            lines += &format!("{name}={}\n", text(&rest[8..8 + length]));
            message = &rest[8 + length + 1..];
        }
    }
    lines
}

/// Makes one kind of change fail in the running server's database, as a full disk would, until it is dropped.
struct Fault<'a>(&'a Path);

impl<'a> Fault<'a> {
    fn on(database: &'a Path, event: &str) -> Self {
        let sql = format!("CREATE TRIGGER fault BEFORE {event} BEGIN SELECT RAISE(ABORT, 'not now'); END");
        Self::execute(database, &sql);
        Self(database)
    }

    fn execute(database: &Path, sql: &str) {
        let connection = rusqlite::Connection::open(database).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection.execute_batch(sql).unwrap();
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        Self::execute(self.0, "DROP TRIGGER fault");
    }
}

/// Asks until the answer is yes.
async fn until(what: &str, mut yes: impl AsyncFnMut() -> bool) {
    let deadline = cug_server::clock::monotonic() + PATIENCE;
    while !yes().await {
        assert!(cug_server::clock::monotonic() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_whose_end_cannot_be_written_at_the_moment_end_a_moment_later() {
    let server = TestServer::start("lease-seconds = 2\nheartbeat-seconds = 1").await;
    let people = server.patent().await;
    let mut terminals = vec![];
    for person in &people {
        terminals.push(person.sit_down(&server, "terminal").await);
    }
    for terminal in &mut terminals {
        terminal.heartbeat().await;
    }
    let database = server.config.state_dir.join("cug.db");
    let fault = Fault::on(&database, "DELETE ON session");
    // Nobody says anything any more. Two leases later all of them are over, and none could be ended.
    let over = cug_server::clock::monotonic() + 2 * server.config.lease;
    until("two leases pass", async || {
        assert_eq!(server.sessions().await.len(), people.len());
        cug_server::clock::monotonic() > over
    })
    .await;
    drop(fault);
    until("all sessions end", async || server.sessions().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_be_put_to_use_at_the_moment_is_a_moment_later() {
    let server = TestServer::start("").await;
    let [a, ..] = server.patent().await;
    let mut terminal = a.sit_down(&server, "terminal").await;
    let before = server.epoch("VPN1").await;
    let database = server.config.state_dir.join("cug.db");
    let fault = Fault::on(&database, "UPDATE OF epoch ON closed_group");
    server.done(Request::GroupRotate("VPN1".parse().unwrap())).await;
    let key = terminal.take_key().await;
    assert_eq!(key.epoch, before + 1);
    // All have it, and the server cannot say so.
    let Reply::Group(group, _) = server.ask(Request::GroupShow("VPN1".parse().unwrap())).await else { panic!() };
    assert_eq!((group.epoch, group.next_epoch), (before, Some(before + 1)));
    drop(fault);
    let told = terminal.until(|message| matches!(message, cug_proto::message::ServerMessage::Activate(_))).await;
    assert!(matches!(told, cug_proto::message::ServerMessage::Activate(ack) if ack.epoch == before + 1));
}
