//! A login program: what `login` or gdm do with PAM, driven by standard input and reporting on standard output.
//!
//! Standard input, JSON, one object per line. First: `{"service", "user", "tty", "rhost", "answers": [[PROMPT, ANSWER], ..], "last"}`, where PROMPT is a
//! part of a prompt (any case; the first that fits is taken) and `last` is the step after which to stop and wait (default `open_session`). A prompt that
//! none fits is reported and answered by the next line, `{"answer": TEXT}`, or refused by `{"refuse": true}`. At the end `{"close": true}` closes
//! the session; the end of standard input ends the program at once, as a crash would.
//!
//! Standard output: `{"ms", "event": "message" | "prompt" | "result" | "end", ..}`.
//!
//! It keeps no copy of what it hands to PAM: its memory is searched for secrets.

mod stack;
mod talk;

use stack::{Stack, Step};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(talk) = talk::Talk::begin() else {
        eprintln!("pam-host: the first line of input is not a script");
        return ExitCode::from(2);
    };
    if talk.passwd && !become_passwd(talk.user.as_deref()) {
        eprintln!("pam-host: there is no such user here");
        return ExitCode::from(2);
    }
    match Stack::start(talk) {
        Ok(stack) => ExitCode::from(u8::from(!run(stack))),
        Err(code) => {
            eprintln!("pam-host: pam_start: {code}");
            ExitCode::from(1)
        }
    }
}

/// As passwd(1), which is set-user-ID root: started by the user, with root's rights.
fn become_passwd(user: Option<&str>) -> bool {
    let user = user.and_then(|name| nix::unistd::User::from_name(name).ok().flatten());
    user.is_some_and(|user| nix::unistd::setresuid(user.uid, 0.into(), 0.into()).is_ok())
}

/// Whether every step succeeded.
fn run(mut stack: Stack) -> bool {
    if stack.talk().passwd {
        let changed = stack.step(Step::ChangePassword);
        stack.end();
        return changed;
    }
    let last = stack.talk().last().to_owned();
    let mut all_well = true;
    for step in Step::LOGIN {
        all_well = stack.step(step);
        if !all_well || step.name() == last {
            break;
        }
    }
    stack.talk().forget_answers();
    if all_well && !stack.talk().wait_close() {
        // Nobody holds our input any more: end without a word to PAM.
        std::process::exit(3);
    }
    if all_well && last == Step::OpenSession.name() {
        for step in Step::LOGOUT {
            all_well &= stack.step(step);
        }
    }
    stack.end();
    all_well
}
