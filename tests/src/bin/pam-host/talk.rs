//! Standard input and output: scripted answers in, events out.

use cug_tests::libpam::{Answer, Person, Style};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::time::Instant;
use zeroize::{Zeroize, Zeroizing};

/// Longest line of input.
const LINE: usize = 8192;

#[derive(Deserialize)]
struct Script<'a> {
    service: &'a str,
    user: Option<&'a str>,
    tty: Option<&'a str>,
    rhost: Option<&'a str>,
    #[serde(borrow, default)]
    answers: Vec<(&'a str, &'a str)>,
    last: Option<&'a str>,
    #[serde(default)]
    passwd: bool,
}

#[derive(Deserialize)]
struct Word<'a> {
    answer: Option<&'a str>,
    #[serde(default)]
    refuse: bool,
    #[serde(default)]
    close: bool,
    #[serde(default)]
    hold: bool,
}

#[derive(Serialize)]
struct Event<'a> {
    ms: f64,
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    style: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scripted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
}

const NOTHING: Event<'static> =
    Event { ms: 0.0, event: "", style: None, text: None, scripted: None, step: None, code: None };

/// The conversation with whoever started this program.
pub struct Talk {
    started: Instant,
    /// Read and not yet used; wiped where it was used.
    input: Zeroizing<Vec<u8>>,
    answers: Vec<(String, Zeroizing<Vec<u8>>)>,
    last: String,
    /// PAM items.
    pub service: String,
    pub user: Option<String>,
    pub tty: Option<String>,
    pub rhost: Option<String>,
    /// Change the password, and nothing else.
    pub passwd: bool,
}

impl Talk {
    /// Reads the script.
    pub fn begin() -> Option<Self> {
        let mut talk = Self {
            started: Instant::now(),
            input: Zeroizing::new(Vec::with_capacity(LINE)),
            answers: Vec::new(),
            last: String::new(),
            service: String::new(),
            user: None,
            tty: None,
            rhost: None,
            passwd: false,
        };
        let line = talk.line()?;
        // Strings are borrowed from the line, so that nothing secret lies about in buffers of the parser.
        let script: Script<'_> = serde_json::from_slice(&line).ok()?;
        let owned = |text: &str| text.to_owned();
        talk.last = script.last.map_or_else(|| owned("open_session"), owned);
        talk.service = owned(script.service);
        talk.passwd = script.passwd;
        (talk.user, talk.tty, talk.rhost) = (script.user.map(owned), script.tty.map(owned), script.rhost.map(owned));
        talk.answers = script
            .answers
            .iter()
            .map(|(prompt, answer)| (prompt.to_lowercase(), Zeroizing::new(answer.as_bytes().to_vec())))
            .collect();
        Some(talk)
    }

    /// The step after which to stop.
    pub fn last(&self) -> &str {
        &self.last
    }

    /// The answers are used up.
    pub fn forget_answers(&mut self) {
        self.answers.clear();
    }

    /// The answer to a prompt, or `None` to refuse.
    fn prompt(&mut self, style: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
        let asked = text.to_lowercase();
        let scripted =
            self.answers.iter().find(|(part, _)| asked.contains(part.as_str())).map(|(_, answer)| answer.clone());
        self.tell(Event {
            event: "prompt",
            style: Some(style),
            text: Some(text),
            scripted: Some(scripted.is_some()),
            ..NOTHING
        });
        if scripted.is_some() {
            return scripted;
        }
        let line = self.line()?;
        let word: Word<'_> = serde_json::from_slice(&line).ok()?;
        if word.refuse { None } else { word.answer.map(|text| Zeroizing::new(text.as_bytes().to_vec())) }
    }

    /// A step is done.
    pub fn result(&self, step: &str, code: i32, text: &str) {
        self.tell(Event { event: "result", step: Some(step), code: Some(code), text: Some(text), ..NOTHING });
    }

    /// PAM is done.
    pub fn end(&self) {
        self.tell(Event { event: "end", ..NOTHING });
    }

    /// Waits for `close`; false when the input ends before. After `{"hold": true}` only a signal ends the wait.
    pub fn wait_close(&mut self) -> bool {
        while let Some(line) = self.line() {
            match serde_json::from_slice::<Word<'_>>(&line) {
                Ok(Word { close: true, .. }) => return true,
                Ok(Word { hold: true, .. }) => loop {
                    nix::unistd::pause();
                },
                _ => {}
            }
        }
        false
    }

    fn tell(&self, mut event: Event<'_>) {
        event.ms = self.started.elapsed().as_secs_f64() * 1000.0;
        let mut line = serde_json::to_string(&event).unwrap_or_default();
        line.push('\n');
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(line.as_bytes());
        let _ = out.flush();
    }

    /// The next line. The buffer is never larger than it was made, so nothing is left behind by growing.
    fn line(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        loop {
            if let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
                let line = Zeroizing::new(self.input[..end].to_vec());
                let rest = self.input.len() - end - 1;
                self.input.copy_within(end + 1.., 0);
                self.input[rest..].zeroize();
                self.input.truncate(rest);
                return Some(line);
            }
            let used = self.input.len();
            self.input.resize(LINE, 0);
            let read = nix::unistd::read(std::io::stdin(), &mut self.input[used..]).unwrap_or(0);
            self.input.truncate(used + read);
            if read == 0 {
                return None;
            }
        }
    }
}

impl Person for Talk {
    fn ask(&mut self, style: Style, text: &str) -> Answer {
        let style = if style == Style::Hidden { "hidden" } else { "shown" };
        self.prompt(style, text).map_or(Answer::Error, Answer::Text)
    }

    fn hear(&mut self, style: Style, text: &str) {
        let style = if style == Style::Error { "error" } else { "info" };
        self.tell(Event { event: "message", style: Some(style), text: Some(text), ..NOTHING });
    }
}
