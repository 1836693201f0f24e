//! A login through real libpam, step by step.

use crate::process;
use crate::space::Space;
use crate::{card, paths, wait};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest wait for one step of a login: more than every limit of the product.
pub const STEP_LIMIT: Duration = Duration::from_secs(30);

/// `PAM_SUCCESS`.
pub const SUCCESS: i32 = 0;

/// What the person at the keyboard would type.
#[derive(Serialize, Clone)]
pub struct Script {
    service: String,
    user: Option<String>,
    tty: String,
    rhost: Option<String>,
    answers: Vec<(String, String)>,
    last: String,
    passwd: bool,
}

impl Script {
    /// `user` logs in at the console; without any answer.
    pub fn new(user: &str) -> Self {
        Self {
            service: crate::accounts::SERVICE.into(),
            user: Some(user.into()),
            tty: "tty1".into(),
            rhost: None,
            answers: vec![("passphrase".into(), card::PASSPHRASE.into()), ("pin".into(), card::PIN.into())],
            last: "open_session".into(),
            passwd: false,
        }
    }

    /// The same, and types this password. The PIN or the passphrase of the tests is typed where it is asked for.
    #[must_use]
    pub fn password(self, password: &str) -> Self {
        self.answer("password", password)
    }

    /// Answers a prompt that contains `part` in any case. Earlier answers go first.
    #[must_use]
    pub fn answer(mut self, part: &str, answer: &str) -> Self {
        self.answers.push((part.into(), answer.into()));
        self
    }

    /// Leaves this prompt to the test: see [`Login::wait_prompt`].
    #[must_use]
    pub fn ask(mut self, part: &str) -> Self {
        self.answers.retain(|(prompt, _)| prompt != part);
        self
    }

    /// Through another PAM service.
    #[must_use]
    pub fn service(mut self, service: &str) -> Self {
        self.service = service.into();
        self
    }

    /// From another machine.
    #[must_use]
    pub fn from_host(mut self, host: &str) -> Self {
        self.rhost = Some(host.into());
        self
    }

    /// The user name is asked for too.
    #[must_use]
    pub fn type_user(mut self) -> Self {
        let user = self.user.take().unwrap_or_default();
        self.answer("user", &user).answer_also("login")
    }

    fn answer_also(mut self, part: &str) -> Self {
        if let Some((_, answer)) = self.answers.last().cloned() {
            self.answers.push((part.into(), answer));
        }
        self
    }

    /// Changes the password instead of logging in, as passwd(1) does.
    #[must_use]
    pub fn passwd(self, old: &str, new: &str) -> Self {
        Self { passwd: true, ..self.answer("new password", new).password(old) }
    }

    /// Stops after this step (`authenticate`, `acct_mgmt`, `setcred`).
    #[must_use]
    pub fn last(mut self, step: &str) -> Self {
        self.last = step.into();
        self
    }
}

/// What the login program reported.
#[derive(Deserialize, Clone, Debug)]
pub struct Event {
    /// Milliseconds since it started.
    pub ms: f64,
    /// `message`, `prompt`, `result` or `end`.
    pub event: String,
    /// `info` or `error`; `hidden` or `shown` of a prompt.
    pub style: Option<String>,
    /// What was said, asked, or the meaning of a result.
    pub text: Option<String>,
    /// The prompt was answered from the script.
    pub scripted: Option<bool>,
    /// The step that ended.
    pub step: Option<String>,
    /// Its PAM result.
    pub code: Option<i32>,
}

/// A running login program. Dropping it kills it, as a crash would.
pub struct Login {
    child: Child,
    stdin: Option<ChildStdin>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Login {
    /// Starts the login program on `host`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(host: &Space, script: &Script) -> anyhow::Result<Self> {
        let mut command = host.command(paths::built("pam-host")?)?;
        let log = host.logs().join(format!("{}.pam-host.log", host.name()));
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.try_clone()?).spawn()?;
        let stdout = child.stdout.take().context("stdout")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        std::thread::spawn(move || {
            let mut log = log;
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = writeln!(log, "{line}");
                if let Ok(event) = serde_json::from_str(&line) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            }
        });
        let mut login = Self { stdin: child.stdin.take(), child, events };
        login.say(&serde_json::to_string(script)?)?;
        Ok(login)
    }

    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("the login program's input is closed")?;
        writeln!(stdin, "{line}").context("the login program is gone")
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything reported so far.
    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// Everything reported so far, for people.
    pub fn story(&self) -> String {
        let line = |event: &Event| {
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            let code = event.code.map(|code| format!("{code} ")).unwrap_or_default();
            format!(
                "{:8.1} ms {} {}{} {code}{}",
                event.ms,
                event.event,
                part(&event.style),
                part(&event.step),
                part(&event.text)
            )
        };
        self.lock().iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// When it does not come within [`STEP_LIMIT`], or the program ends before.
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> anyhow::Result<Event> {
        wait::until(what, STEP_LIMIT, || {
            // Looked at first, so that what was said last is not missed.
            let ended = self.child.try_wait().ok().flatten();
            if let Some(found) = self.lock().iter().find(|event| wanted(event)) {
                return Some(Ok(found.clone()));
            }
            let drained = self
                .lock()
                .last()
                .is_some_and(|event| event.event == "end" || event.code.is_some_and(|code| code != SUCCESS));
            let over = ended.filter(|_| drained)?;
            Some(Err(anyhow::anyhow!("the login program ended ({over}) without: {what}")))
        })
        .and_then(|found| found)
        .with_context(|| self.story())
    }

    /// Waits for the result of a step.
    ///
    /// # Errors
    /// As [`Login::wait`].
    pub fn result(&mut self, step: &str) -> anyhow::Result<i32> {
        let event = self.wait(&format!("the result of {step}"), |event| event.step.as_deref() == Some(step))?;
        event.code.context("a result without a code")
    }

    /// Waits until the session is open.
    ///
    /// # Errors
    /// When a step fails.
    pub fn open(&mut self) -> anyhow::Result<&mut Self> {
        let code = self.result("open_session")?;
        ensure!(code == SUCCESS, "open_session: {code}:\n{}", self.story());
        Ok(self)
    }

    /// Waits until the password is changed.
    ///
    /// # Errors
    /// When it is not.
    pub fn changed(&mut self) -> anyhow::Result<()> {
        let code = self.result("chauthtok")?;
        ensure!(code == SUCCESS, "chauthtok: {code}:\n{}", self.story());
        Ok(())
    }

    /// Waits until a step fails: its name and code.
    ///
    /// # Errors
    /// When everything succeeds.
    pub fn refused(&mut self) -> anyhow::Result<Refused> {
        let event = self.wait("a refusal or an open session", |event| {
            event.code.is_some_and(|code| code != SUCCESS) || event.step.as_deref() == Some("open_session")
        })?;
        match (event.step, event.code) {
            (Some(step), Some(code)) if code != SUCCESS => Ok(Refused { step, code, said: self.said() }),
            _ => bail!("the login succeeded:\n{}", self.story()),
        }
    }

    /// Waits for a prompt that contains `part` in any case and was left to the test.
    ///
    /// # Errors
    /// As [`Login::wait`].
    pub fn wait_prompt(&mut self, part: &str) -> anyhow::Result<Event> {
        let part = part.to_lowercase();
        self.wait(&format!("a prompt for {part}"), |event| {
            event.scripted == Some(false) && event.text.as_deref().unwrap_or_default().to_lowercase().contains(&part)
        })
    }

    /// Waits for a message that contains `part` in any case.
    ///
    /// # Errors
    /// As [`Login::wait`].
    pub fn wait_message(&mut self, part: &str) -> anyhow::Result<Event> {
        let part = part.to_lowercase();
        self.wait(&format!("a message with {part}"), |event| {
            event.event == "message" && event.text.as_deref().unwrap_or_default().to_lowercase().contains(&part)
        })
    }

    /// Types the answer to a prompt that was left to the test.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn type_answer(&mut self, answer: &str) -> anyhow::Result<()> {
        self.say(&serde_json::json!({ "answer": answer }).to_string())
    }

    /// What the person was told: errors and information.
    pub fn said(&self) -> Vec<String> {
        self.lock().iter().filter(|event| event.event == "message").filter_map(|event| event.text.clone()).collect()
    }

    /// What the person was asked.
    pub fn asked(&self) -> Vec<String> {
        self.lock().iter().filter(|event| event.event == "prompt").filter_map(|event| event.text.clone()).collect()
    }

    /// Logs out: closes the PAM session and waits for the program's end.
    ///
    /// # Errors
    /// When a step fails.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.say(r#"{"close":true}"#)?;
        let code = self.result("close_session")?;
        self.wait("the end", |event| event.event == "end")?;
        ensure!(code == SUCCESS, "close_session: {code}");
        Ok(())
    }

    /// PID of the login program on this machine.
    ///
    /// # Errors
    /// When it is gone.
    pub fn pid(&self) -> anyhow::Result<i32> {
        let own = i32::try_from(self.child.id())?;
        wait::until("the login program", STEP_LIMIT, || process::child_of(own))
    }

    /// Kills the login program, as a crash or a power cut of the display would.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(self) -> anyhow::Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()?), nix::sys::signal::Signal::SIGKILL)?;
        Ok(())
    }

    /// Lets it run on after this process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn leave(mut self) -> anyhow::Result<()> {
        self.say(r#"{"hold":true}"#)?;
        // The pipe ends with this process; by then the word above has long been read, or is read before the end is seen.
        std::mem::forget(self.stdin.take());
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A login that failed.
#[derive(Debug)]
pub struct Refused {
    /// The step that failed.
    pub step: String,
    /// Its PAM code.
    pub code: i32,
    /// What the person was told.
    pub said: Vec<String>,
}
