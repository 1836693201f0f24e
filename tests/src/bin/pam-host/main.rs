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

mod pam;
mod talk;

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(mut talk) = talk::Talk::begin() else {
        eprintln!("pam-host: the first line of input is not a script");
        return ExitCode::from(2);
    };
    if talk.passwd && !become_passwd(talk.user.as_deref()) {
        eprintln!("pam-host: there is no such user here");
        return ExitCode::from(2);
    }
    let stack = match pam::Stack::start(&mut talk) {
        Ok(stack) => stack,
        Err(code) => {
            talk.result("start", code, "");
            return ExitCode::from(1);
        }
    };
    ExitCode::from(u8::from(!run(stack, &mut talk)))
}

/// As passwd(1), which is set-user-ID root: started by the user, with root's rights.
fn become_passwd(user: Option<&str>) -> bool {
    let user = user.and_then(|name| nix::unistd::User::from_name(name).ok().flatten());
    user.is_some_and(|user| nix::unistd::setresuid(user.uid, 0.into(), 0.into()).is_ok())
}

/// Whether every step succeeded.
fn run(mut stack: pam::Stack<'_>, talk: &mut talk::Talk) -> bool {
    if talk.passwd {
        let changed = stack.step(pam::Step::ChangePassword, talk);
        stack.end();
        talk.end();
        return changed;
    }
    let mut all_well = true;
    for step in pam::Step::LOGIN {
        if !stack.step(step, talk) {
            all_well = false;
            break;
        }
        if step.name() == talk.last() {
            break;
        }
    }
    talk.forget_answers();
    let opened = all_well && talk.last() == pam::Step::OpenSession.name();
    if all_well && !talk.wait_close() {
        // Nobody holds our input any more: end without a word to PAM.
        std::process::exit(3);
    }
    if opened {
        for step in pam::Step::LOGOUT {
            all_well &= stack.step(step, talk);
        }
    }
    stack.end();
    talk.end();
    all_well
}
