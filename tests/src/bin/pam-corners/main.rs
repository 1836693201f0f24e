//! A host of PAM that does what hosts may do and rarely do: several tries on one handle, two handles, threads, fork between the calls, odd flags, conversations that fail.
//!
//! `pam-corners SCENARIO SERVICE PIN PASSWORD`. Each scenario is run twice in this process; standard output is one JSON object with what the second
//! run saw: `steps` (name and PAM code), `messages` (how many were shown), `env`, and the open files and threads before and after it.

use cug_tests::libpam::{Answer, Call, Handle, Person, Style};
use cug_tests::wait;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs;
use std::process::ExitCode;
use zeroize::Zeroizing;

/// PAM_SILENT, PAM_DISALLOW_NULL_AUTHTOK.
const SILENT: i32 = 0x8000;
const NO_EMPTY_PASSWORD: i32 = 0x1;
/// PAM_ESTABLISH_CRED, PAM_REINITIALIZE_CRED, PAM_REFRESH_CRED, PAM_DELETE_CRED.
const CREDENTIALS: [(&str, i32); 4] = [("establish", 2), ("reinitialize", 8), ("refresh", 16), ("delete", 4)];

const MEMBER: &str = "USER-A";

/// For something that happens within milliseconds.
const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// The person: answers one secret after the other.
#[derive(Default)]
struct Talk {
    answers: VecDeque<Answer>,
    /// Lines that were shown.
    messages: usize,
}

impl Person for Talk {
    fn ask(&mut self, style: Style, _text: &str) -> Answer {
        if style != Style::Hidden {
            self.messages += 1;
            return Answer::NoText;
        }
        self.answers.pop_front().unwrap_or(Answer::Error)
    }

    fn hear(&mut self, _style: Style, _text: &str) {
        self.messages += 1;
    }
}

fn typed(text: &str) -> Answer {
    Answer::Text(Zeroizing::new(text.as_bytes().to_vec()))
}

/// For this user.
///
/// # Panics
/// When libpam does not start.
fn start(service: &str, user: &str, talk: Talk) -> Handle<Talk> {
    Handle::start(service, Some(user), talk).unwrap_or_else(|code| panic!("pam_start: {code}"))
}

/// What `work` returns in a child process, which then ends.
fn in_child(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child has this thread only, and the process has no other one when this is called; it runs `work` and ends without destructors.
    match unsafe { libc::fork() } {
        0 => {
            let code = work();
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for that child; `status` is room for an int.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            libc::WEXITSTATUS(status)
        }
    }
}

struct Scene {
    service: String,
    pin: String,
    password: String,
    steps: Vec<(String, i32)>,
    messages: usize,
    env: Vec<(String, String)>,
}

impl Scene {
    fn step(&mut self, name: &str, code: i32) -> i32 {
        self.steps.push((name.to_owned(), code));
        code
    }

    fn typing(&self, password: &str) -> Vec<Answer> {
        vec![typed(&self.pin), typed(password)]
    }

    fn right(&self) -> Vec<Answer> {
        self.typing(&self.password)
    }

    /// A handle of the member's; `answers` are given one after the other.
    fn begin(&self, answers: Vec<Answer>) -> Handle<Talk> {
        start(&self.service, MEMBER, Talk { answers: answers.into(), messages: 0 })
    }

    /// Nobody needs it any more.
    fn end(&mut self, handle: Handle<Talk>) {
        self.messages = handle.end().messages;
    }

    fn run(&mut self, scenario: &str) -> bool {
        match scenario {
            "retry" => self.retry(),
            "lives-on" => self.lives_on(),
            "two-handles" => self.two_handles(),
            "threads" => self.threads(),
            "open-in-child" => self.open_in_child(),
            "authenticate-in-child" => self.authenticate_in_child(),
            "flags" => self.flags(),
            "silent" => self.silent(),
            "unlock" => self.unlock(),
            "error" => self.odd_answers(|| Answer::Error),
            "null" => self.odd_answers(|| Answer::NoResponses),
            "nothing" => self.odd_answers(|| Answer::NoText),
            "empty" => self.odd_answers(|| typed("")),
            "long" => self.odd_answers(|| typed(&"x".repeat(5000))),
            _ => return false,
        }
        true
    }

    /// As login(1) does it: one handle, three tries, and the third is right.
    fn retry(&mut self) {
        let answers = [self.typing("wrong"), self.typing("wrong again"), self.right()].into_iter().flatten().collect();
        let mut handle = self.begin(answers);
        for _ in 0..3 {
            let code = handle.call(Call::Authenticate, 0);
            self.step("authenticate", code);
        }
        self.session(&mut handle);
        self.end(handle);
    }

    fn session(&mut self, handle: &mut Handle<Talk>) {
        let code = handle.call(Call::OpenSession, 0);
        self.step("open", code);
        self.env = ["CUG_GROUPS", "CUG_ADDRESS"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), handle.env(name)?)))
            .collect();
        let code = handle.call(Call::CloseSession, 0);
        self.step("close", code);
    }

    /// As a greeter that sees one person after the other: the session ends with its closing, and not with the program.
    fn lives_on(&mut self) {
        let mut handle = self.begin(self.right());
        let code = handle.call(Call::Authenticate, 0);
        self.step("authenticate", code);
        self.session(&mut handle);
        let gone = wait::for_true("the end of the tunnel", SOON, || !has_tunnel()).is_ok();
        self.step("tunnel", i32::from(!gone));
        self.end(handle);
    }

    /// Two handles at once, each in a thread of its own: a member's, and root's, whose conversation answers nothing.
    fn two_handles(&mut self) {
        let (service, right) = (self.service.clone(), self.right());
        let other = std::thread::spawn(move || {
            let mut handle = start(&service, "root", Talk::default());
            handle.call(Call::Authenticate, 0)
        });
        let mut handle = self.begin(right);
        let code = handle.call(Call::Authenticate, 0);
        self.step("authenticate", code);
        let code = other.join().unwrap_or(-1);
        self.step("root", code);
        self.session(&mut handle);
        self.end(handle);
    }

    /// A login in a thread that is not the first, among others.
    fn threads(&mut self) {
        let (hold, held) = (std::sync::Mutex::new(()), std::sync::Barrier::new(5));
        std::thread::scope(|scope| {
            let closed = hold.lock();
            for _ in 0..4 {
                scope.spawn(|| {
                    held.wait();
                    drop(hold.lock());
                });
            }
            held.wait();
            let login = scope.spawn(|| {
                let mut handle = self.begin(self.right());
                let code = handle.call(Call::Authenticate, 0);
                self.step("authenticate", code);
                self.session(&mut handle);
                self.end(handle);
            });
            let _done = login.join();
            drop(closed);
        });
    }

    /// The parent authenticates, a child opens and closes the session.
    fn open_in_child(&mut self) {
        let mut handle = self.begin(self.right());
        let code = handle.call(Call::Authenticate, 0);
        self.step("authenticate", code);
        let code = in_child(|| match handle.call(Call::OpenSession, 0) {
            0 => handle.call(Call::CloseSession, 0),
            code => code,
        });
        self.step("child", code);
        self.end(handle);
    }

    /// A child authenticates, the parent opens the session: its handle knows of no login.
    fn authenticate_in_child(&mut self) {
        let mut handle = self.begin(self.right());
        let code = in_child(|| handle.call(Call::Authenticate, 0));
        self.step("child", code);
        self.session(&mut handle);
        self.end(handle);
    }

    fn flags(&mut self) {
        let mut handle = self.begin(self.right());
        let code = handle.call(Call::Authenticate, NO_EMPTY_PASSWORD);
        self.step("authenticate", code);
        for (name, flag) in CREDENTIALS {
            let code = handle.call(Call::Credentials, flag | SILENT);
            self.step(name, code);
        }
        self.session(&mut handle);
        self.end(handle);
    }

    /// As a screen locker does it: no session is opened.
    fn unlock(&mut self) {
        let mut handle = self.begin(self.right());
        let code = handle.call(Call::Authenticate, 0);
        self.step("authenticate", code);
        let code = handle.call(Call::Credentials, 16);
        self.step("refresh", code);
        self.end(handle);
    }

    /// A wrong password, and nobody is told.
    fn silent(&mut self) {
        let mut handle = self.begin(self.typing("wrong"));
        let code = handle.call(Call::Authenticate, SILENT);
        self.step("authenticate", code);
        self.end(handle);
    }

    /// The conversation fails when it is asked for the PIN, and when it is asked for the password.
    fn odd_answers(&mut self, odd: impl Fn() -> Answer) {
        for answers in [vec![odd()], vec![typed(&self.pin), odd()]] {
            let mut handle = self.begin(answers);
            let code = handle.call(Call::Authenticate, 0);
            self.step("authenticate", code);
            self.end(handle);
        }
    }
}

/// Whether this network namespace has an interface of a closed group.
fn has_tunnel() -> bool {
    fs::read_to_string("/proc/self/net/dev").is_ok_and(|links| links.contains("cug"))
}

fn count(what: &str) -> usize {
    fs::read_dir(format!("/proc/self/{what}")).map_or(0, Iterator::count)
}

/// Threads of this process, the main one included, once those that have ended are gone: they stay in the list for a moment after they were joined.
fn threads() -> usize {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while count("task") > 1 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    count("task")
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().unwrap_or_default();
    let (scenario, service, pin, password) = (next(), next(), next(), next());
    let mut seen = Value::Null;
    for _ in 0..2 {
        let (fds, before) = (count("fd"), threads());
        let mut scene = Scene {
            service: service.clone(),
            pin: pin.clone(),
            password: password.clone(),
            steps: Vec::new(),
            messages: 0,
            env: Vec::new(),
        };
        if !scene.run(&scenario) {
            eprintln!("pam-corners: no such scenario: {scenario}");
            return ExitCode::from(2);
        }
        seen = json!({
            "steps": scene.steps, "messages": scene.messages, "env": scene.env,
            "fds": [fds, count("fd")], "threads": [before, threads()],
        });
    }
    println!("{seen}");
    ExitCode::SUCCESS
}
