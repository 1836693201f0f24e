//! The command line as administrators meet it: what it prints and how it exits, as data in `tests/cli/`; and what no text file can hold.
//!
//! Each file begins with the patent's example: USER-A and USER-B in VPN1, USER-C and USER-D in VPN2, and USER-A logged in at terminal-1.
//! `TRYCMD=overwrite cargo test -p cug-server --test cli` writes what is printed now into the files; look at the difference.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use std::{
    ffi::{OsStr, OsString},
    io::Write,
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The program with this server's configuration, without a terminal to ask on; on standard input a password.
fn wrapper(server: &TestServer) -> PathBuf {
    let path = server.dir.join("cug-server");
    let (program, config) = (env!("CARGO_BIN_EXE_cug-server"), server.dir.join("server.toml"));
    let script =
        format!("#!/bin/sh\necho passwd9 | setsid --wait '{program}' --config '{}' \"$@\"\n", config.display());
    // Another process writes it: a descriptor of this one's may be in a child that another test is just starting, and then the kernel refuses to run
    // the script ("text file busy").
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(&path).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    path
}

async fn example() -> (TestServer, Terminal) {
    let server = TestServer::start("lease-seconds = 3600").await;
    let [a, ..] = server.patent().await;
    let terminal = a.sit_down(&server, "terminal-1").await;
    (server, terminal)
}

async fn data(running: bool) {
    let mut files: Vec<_> = std::fs::read_dir("tests/cli").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5);
    for file in files {
        let (mut server, _terminal) = example().await;
        if !running {
            server.stop().await;
        }
        let program = wrapper(&server);
        let cases = move || trycmd::TestCases::new().register_bin("cug-server", program).case(file).run();
        tokio::task::spawn_blocking(cases).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn through_the_running_server() {
    data(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directly_on_the_state() {
    data(false).await;
}

fn run(program: &Path, args: &[OsString]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap()
}

fn args<S: AsRef<OsStr>>(args: &[S]) -> Vec<OsString> {
    args.iter().map(|a| a.as_ref().to_owned()).collect()
}

/// Everything that an administrator could have changed.
fn state(server: &TestServer) -> Vec<String> {
    let database = rusqlite::Connection::open(server.config.state_dir.join("cug.db")).unwrap();
    let mut rows = vec![];
    for table in ["user", "closed_group", "membership", "card", "session", "policy_exception", "group_key", "audit"] {
        let mut query = database.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = query.column_count();
        let found = query.query_map([], |row| {
            Ok((0..columns).map(|i| format!("{:?}", row.get_ref(i).unwrap())).collect::<Vec<_>>().join("|"))
        });
        rows.extend(found.unwrap().map(|row| format!("{table} {}", row.unwrap())));
    }
    rows
}

/// A name for each way in which one can be wrong. An argument cannot hold a NUL: the socket's test has it.
fn hostile() -> Vec<OsString> {
    let texts = [
        "",
        " ",
        "a b",
        "../../etc/passwd",
        "/etc/passwd",
        ".hidden",
        "a/b",
        "a\nb",
        "a\tb",
        "\u{7}",
        "\u{1b}[31mred",
        "\u{1b}]0;title\u{7}",
        "\u{9b}31m",
        "\u{202e}A-RESU",
        "\u{2066}a",
        "a\u{200b}b",
        "ü",
        "病院",
        "a'b",
        "a\"b",
        "a;b",
        "$(id)",
        "%s%n",
        "'; DROP TABLE user; --",
    ];
    let mut names = args(&texts);
    names.push("x".repeat(33).into());
    names.push("x".repeat(100_000).into());
    names.push(OsString::from_vec(vec![b'a', 0xff, 0xfe]));
    names.push(OsString::from_vec(b"a\xc3".to_vec()));
    names
}

/// Every command that takes a name, with every name that is none: a sentence, and nothing has changed.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_get_a_sentence_and_change_nothing() {
    let (server, _terminal) = example().await;
    let program = wrapper(&server);
    let before = state(&server);
    let commands: &[&[&str]] = &[
        &["user", "add", "--password-stdin", "NAME"],
        &["user", "show", "NAME"],
        &["user", "disable", "--yes", "NAME"],
        &["user", "enable", "NAME"],
        &["user", "set-password", "--password-stdin", "NAME"],
        &["user", "delete", "--yes", "NAME"],
        &["group", "add", "NAME"],
        &["group", "show", "NAME"],
        &["group", "join", "NAME", "USER-C"],
        &["group", "join", "VPN1", "NAME"],
        &["group", "leave", "--yes", "NAME", "USER-A"],
        &["group", "leave", "--yes", "VPN1", "NAME"],
        &["group", "rotate", "NAME"],
        &["group", "set", "NAME", "--policy", "closed"],
        &["group", "set", "VPN1", "--policy", "NAME"],
        &["group", "set", "VPN1", "--allow", "NAME"],
        &["group", "set", "VPN1", "--remove-allow", "NAME"],
        &["group", "add", "VPN9", "--prefix4", "NAME"],
        &["group", "delete", "--yes", "NAME"],
        &["card", "list", "NAME"],
        &["card", "revoke", "--yes", "NAME"],
        &["card", "register", "NAME", "--key", "/dev/null"],
        &["card", "register", "USER-A", "--key", "NAME"],
        &["session", "end", "--yes", "NAME"],
        &["session", "end", "--yes", "--id", "NAME"],
        &["session", "list", "--group", "NAME"],
        &["session", "list", "--user", "NAME"],
        &["NAME"],
    ];
    for command in commands {
        for name in hostile() {
            let given: Vec<_> =
                command.iter().map(|part| if *part == "NAME" { name.clone() } else { OsString::from(part) }).collect();
            let output = run(&program, &given);
            let what = || format!("{given:?}: {output:?}");
            // A name of 100,000 bytes is also longer than a path may be, and an empty command is a request for help.
            assert!(matches!(output.status.code(), Some(1 | 2)), "{}", what());
            assert!(output.stdout.is_empty(), "{}", what());
            let said = String::from_utf8(output.stderr.clone()).unwrap();
            assert!(said.contains("cug-server:") || said.contains("error:") || said.contains("Usage:"), "{}", what());
            let acts = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{200b}' | '\u{202e}' | '\u{2066}');
            assert!(!said.chars().any(acts), "{}", what());
        }
    }
    assert_eq!(state(&server), before);
}

/// A name that begins with a dash is an option, before and after `--`.
#[tokio::test(flavor = "multi_thread")]
async fn a_leading_dash_is_no_name() {
    let (server, _terminal) = example().await;
    let program = wrapper(&server);
    let before = state(&server);
    for name in ["-x", "--policy=closed", "-", "--", "-rf"] {
        for command in
            [&["user", "delete", "--yes"][..], &["user", "delete", "--yes", "--"], &["group", "delete", "-y", "--"]]
        {
            let given = args(&[command, &[name]].concat());
            let output = run(&program, &given);
            assert_eq!(output.status.code(), Some(2), "{given:?}: {output:?}");
        }
    }
    assert_eq!(state(&server), before);
}

/// Asked on a terminal: only a yes is one.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_counts() {
    let (server, mut terminal) = example().await;
    for (answer, ends) in [("n\n", false), ("\n", false), ("yess\n", false), ("y\n", true)] {
        let command = format!(
            "'{}' --config '{}' session end USER-A",
            env!("CARGO_BIN_EXE_cug-server"),
            server.dir.join("server.toml").display()
        );
        // `script` (util-linux) gives it a terminal.
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("USER-A at terminal-1 (127.0.0.1), group VPN1"), "{shown}");
        assert_eq!((output.status.success(), server.sessions().await.is_empty()), (ends, ends), "{answer:?}: {shown}");
    }
    terminal.until(|m| matches!(m, cug_proto::message::ServerMessage::End(_))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_what_is_wrong() {
    let (mut server, _terminal) = example().await;
    let program = wrapper(&server);
    let check = || {
        let output = run(&program, &args(&["--json", "check"]));
        let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let bad: Vec<_> = findings
            .as_array()
            .unwrap()
            .iter()
            .filter(|f| f["verdict"] != "ok")
            .map(|f| format!("{} {} {}", f["item"], f["verdict"], f["text"]))
            .collect();
        assert_eq!(output.status.code(), Some(if bad.is_empty() { 0 } else { 1 }), "{findings}");
        bad
    };
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let one = |bad: Vec<String>, what: &str| {
        let [only] = &bad[..] else { panic!("{bad:?}") };
        assert!(only.contains(what), "{only}");
    };
    let dir = server.config.state_dir.clone();
    mode(&dir, 0o700);
    mode(&dir.join("keys"), 0o700);
    assert!(check().is_empty(), "with a server: {:?}", check());
    server.stop().await;
    assert!(check().is_empty(), "without a server: {:?}", check());

    mode(&dir, 0o755);
    one(check(), "open to other users");
    mode(&dir, 0o700);
    let key = dir.join("keys/storage.key");
    mode(&key, 0o644);
    let open = check();
    assert!(open.iter().any(|bad| bad.contains("storage.key is open to other users")), "{open:?}");
    mode(&key, 0o600);
    let kept = std::fs::read(&key).unwrap();
    std::fs::write(&key, "short").unwrap();
    one(check(), "storage.key is damaged");
    std::fs::write(&key, kept).unwrap();

    let database = cug_server::admin::database(&dir);
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection.pragma_update(None, "foreign_keys", false).unwrap();
    connection
        .execute("UPDATE membership SET user = 77 WHERE rowid IS NOT NULL OR 1", [])
        .unwrap_or_else(|_| connection.execute("UPDATE card SET user = 77", []).unwrap());
    drop(connection);
    one(check(), "refers to another one that is not there");
    std::fs::write(&database, vec![7; 40_000]).unwrap();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", database.display()));
    }
    one(check(), "database");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = std::fs::read_to_string(server.dir.join("server.toml")).unwrap();
    let text = text.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    std::fs::write(server.dir.join("server.toml"), text).unwrap();
    assert!(check().iter().any(|f| f.contains("cannot be listened on")));
}

#[test]
fn manual_pages_and_completions() {
    let dir = std::env::temp_dir().join(format!("cug-man-{}", std::process::id()));
    let program = Path::new(env!("CARGO_BIN_EXE_cug-server"));
    assert!(run(program, &args(&[OsStr::new("man"), dir.as_os_str()])).status.success());
    let mut pages: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    pages.sort();
    let names: Vec<_> = pages.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    for page in ["cug-server.8", "cug-server-group-set.8", "cug-server-user-delete.8", "server.toml.5"] {
        assert!(names.contains(&page), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("-man") || name.contains("help")), "{names:?}");
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        assert!(text.contains(".TH") && text.contains(".SH"), "{}", page.display());
    }
    std::fs::remove_dir_all(&dir).unwrap();
    for (shell, sign) in [("bash", "complete -F"), ("zsh", "#compdef cug-server"), ("fish", "complete -c cug-server")] {
        let output = run(program, &args(&["completions", shell]));
        assert!(String::from_utf8(output.stdout).unwrap().contains(sign), "{shell}");
    }
}
