//! A program with a person in front of it.

use super::assert_used_up;
use crate::host::{Host, Kept, Later, Marker};
use cug_proto::secret::SecretBytes;
use pam::{constants::PamResultCode, module::PamResult};
use std::collections::VecDeque;

/// What the person sees, and answers.
pub enum Line {
    Info(&'static str),
    Error(&'static str),
    Prompt(&'static str, PamResult<&'static str>),
    /// A prompt during which something else happens.
    Slow(&'static str, &'static str, Box<dyn FnOnce()>),
}

pub struct ScriptHost {
    lines: VecDeque<Line>,
    pub user: PamResult<String>,
    pub remote: Option<String>,
    pub service: &'static str,
    pub tty: &'static str,
    pub lingers: bool,
    pub earlier: Option<&'static str>,
    pub started_by_root: bool,
    pub old: Option<&'static str>,
    pub kept: Option<Kept>,
    pub later: Option<Later>,
    pub marker: Option<Marker>,
    pub env: Vec<(String, String)>,
    pub handed_on: Option<Vec<u8>>,
    pub log: Vec<(i32, String)>,
}

impl ScriptHost {
    pub fn new(user: &str, lines: Vec<Line>) -> Self {
        Self {
            lines: lines.into(),
            user: Ok(user.into()),
            remote: None,
            service: "login",
            tty: "tty1",
            lingers: false,
            earlier: None,
            started_by_root: false,
            old: None,
            kept: None,
            later: None,
            marker: None,
            env: vec![],
            handed_on: None,
            log: vec![],
        }
    }

    fn next(&mut self, what: &str) -> Line {
        self.lines.pop_front().unwrap_or_else(|| panic!("unexpected: {what}"))
    }
}

impl Drop for ScriptHost {
    fn drop(&mut self) {
        assert_used_up("conversation", self.lines.len());
    }
}

impl Host for ScriptHost {
    fn user(&mut self) -> PamResult<String> {
        match &self.user {
            Ok(user) => Ok(user.clone()),
            Err(_) => Err(PamResultCode::PAM_CONV_AGAIN),
        }
    }
    fn remote_host(&self) -> Option<String> {
        self.remote.clone()
    }
    fn service(&self) -> String {
        self.service.into()
    }
    fn tty(&self) -> String {
        self.tty.into()
    }
    fn started_by_root(&self) -> bool {
        self.started_by_root
    }
    fn linger(&mut self) {
        self.lingers = true;
    }
    fn info(&mut self, line: &str) {
        let Line::Info(expected) = self.next(line) else { panic!("unexpected info: {line}") };
        assert_eq!(line, expected);
    }
    fn error(&mut self, line: &str) {
        let Line::Error(expected) = self.next(line) else { panic!("unexpected error: {line}") };
        assert_eq!(line, expected);
    }
    fn prompt(&mut self, prompt: &str) -> PamResult<SecretBytes> {
        let answer = match self.next(prompt) {
            Line::Prompt(expected, answer) => {
                assert_eq!(prompt, expected);
                answer?
            }
            Line::Slow(expected, answer, meanwhile) => {
                assert_eq!(prompt, expected);
                meanwhile();
                answer
            }
            Line::Info(_) | Line::Error(_) => panic!("unexpected prompt: {prompt}"),
        };
        Ok(SecretBytes::copy_from(answer.as_bytes()).unwrap())
    }
    fn earlier_password(&self) -> Option<SecretBytes> {
        SecretBytes::copy_from(self.earlier?.as_bytes())
    }
    fn hand_password_on(&mut self, password: &SecretBytes) -> PamResult<()> {
        self.handed_on = Some(password.expose().to_vec());
        Ok(())
    }
    fn old_password(&self) -> Option<SecretBytes> {
        SecretBytes::copy_from(self.old?.as_bytes())
    }
    fn keep(&mut self, kept: Kept) -> PamResult<()> {
        self.kept = Some(kept);
        Ok(())
    }
    fn take_kept(&mut self) -> Option<Kept> {
        self.kept.take()
    }
    fn keep_for_later(&mut self, later: Later) -> PamResult<()> {
        self.later = Some(later);
        Ok(())
    }
    fn take_for_later(&mut self) -> Option<Later> {
        self.later.take()
    }
    fn put_env(&mut self, name: &str, value: &str) -> PamResult<()> {
        self.env.push((name.into(), value.into()));
        Ok(())
    }
    fn mark(&mut self, marker: Marker) -> PamResult<()> {
        self.marker = Some(marker);
        Ok(())
    }
    fn marker(&self) -> Option<Marker> {
        self.marker.clone()
    }
    fn log(&mut self, priority: i32, line: &str) {
        self.log.push((priority, line.into()));
    }
    fn log_debug_lines(&mut self) {}
}
