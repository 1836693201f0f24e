//! Import files: text in, a [`Directory`] or every line's problem out. Pure; what the store knows is checked there.
//!
//! CSV (RFC 4180) has a header line with `user`, and optionally `groups` (names with spaces or semicolons between), `disabled` (`yes` or `no`), `expires` (the
//! last day, or the moment as an export writes it) and `hours`. JSON has `{"groups": [{"group", "prefix4", "prefix6"}], "users": [{"user", "groups",
//! "disabled", "expires", "hours"}]}`, as `export` writes it. Passwords are in neither: an imported user has none until it is set.

mod json;
mod table;

use crate::{
    clock::{self, UnixTime},
    store::{Directory, LineProblem, UserSettings},
};
use cug_proto::{
    hours::Rule,
    id::{GroupName, UserId},
};
use std::collections::HashMap;

/// Largest import file, in bytes.
pub const MAX_FILE: u64 = 32 * 1024 * 1024;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values.
    Csv,
    /// JSON.
    Json,
}

/// Reads a file's content.
///
/// # Errors
/// All that is wrong, by line.
pub fn parse(format: Format, content: &[u8]) -> Result<Directory, Vec<LineProblem>> {
    let text = std::str::from_utf8(content).map_err(|error| {
        let before = content.get(..error.valid_up_to()).unwrap_or_default();
        vec![problem(line_at(before), "is not UTF-8")]
    })?;
    // Spreadsheets write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut problems = Vec::new();
    let directory = match format {
        Format::Csv => table::parse(text, &mut problems),
        Format::Json => json::parse(text, &mut problems),
    };
    find_doubles(&directory, &mut problems);
    if problems.is_empty() && directory.users.is_empty() && directory.groups.is_empty() {
        problems.push(problem(1, "the file names no user and no group"));
    }
    problems.sort();
    if problems.is_empty() { Ok(directory) } else { Err(problems) }
}

/// The number of the line that comes after `before`, from 1.
fn line_at(before: &[u8]) -> u64 {
    let ends = before.iter().filter(|b| **b == b'\n').count();
    u64::try_from(ends).unwrap_or(u64::MAX).saturating_add(1)
}

/// Line numbers of places in a text. Going forward costs no more than the way from the last place.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1 }
    }

    fn at(&mut self, offset: usize) -> u64 {
        if offset < self.at {
            (self.at, self.line) = (0, 1);
        }
        let between = self.text.as_bytes().get(self.at..offset).unwrap_or_default();
        self.line += line_at(between) - 1;
        self.at = offset;
        self.line
    }
}

fn problem(line: u64, sentence: impl Into<String>) -> LineProblem {
    LineProblem { line, problem: sentence.into() }
}

fn user(name: &str) -> Result<UserId, String> {
    name.parse().map_err(|_| {
        format!("{} is not a user ID: 1 to 32 of A-Z a-z 0-9 . _ -, not beginning with . or -", quoted(name))
    })
}

fn group(name: &str) -> Result<GroupName, String> {
    name.parse().map_err(|_| {
        format!("{} is not a group's name: 1 to 32 of A-Z a-z 0-9 _ -, not beginning with -", quoted(name))
    })
}

/// Until when and at which hours a user may log in, with what is wrong about it added to `wrong`.
fn settings(until: &str, when: &str, wrong: &mut Vec<String>) -> UserSettings {
    let mut noted = |sentence| wrong.push(sentence);
    UserSettings {
        must_change: None,
        expires: expires(until).map_err(&mut noted).unwrap_or_default().map(Some),
        hours: hours(when).map_err(noted).unwrap_or_default().map(Some),
    }
}

/// When an account ends: after a last day, or at a moment; `None` for never.
fn expires(text: &str) -> Result<Option<UnixTime>, String> {
    if matches!(text, "" | "never") {
        return Ok(None);
    }
    let end = clock::end_of_day(text).or_else(|| clock::parse_rfc3339(text));
    end.map(Some).ok_or_else(|| format!("expires is {}; a date is written as 2031-12-31", quoted(text)))
}

/// When a user may log in; `None` for always.
fn hours(text: &str) -> Result<Option<Rule>, String> {
    if matches!(text, "" | "always") {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| format!("hours are {}: {error}", quoted(text)))
}

/// For a terminal: nothing that moves a cursor, and not too long.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    let more = if short.len() < text.len() { "..." } else { "" };
    format!("{short:?}{more}")
}

fn find_doubles(directory: &Directory, problems: &mut Vec<LineProblem>) {
    let mut users = HashMap::with_capacity(directory.users.len());
    for user in &directory.users {
        if let Some(first) = users.insert(&user.user, user.line) {
            problems.push(problem(user.line, format!("user {} is on line {first} already", user.user)));
        }
        let mut groups = user.groups.clone();
        groups.sort();
        groups.dedup();
        if groups.len() < user.groups.len() {
            problems.push(problem(user.line, format!("user {} has a group twice", user.user)));
        }
    }
    let mut groups = HashMap::new();
    for group in &directory.groups {
        if let Some(first) = groups.insert(&group.group, group.line) {
            problems.push(problem(group.line, format!("group {} is on line {first} already", group.group)));
        }
    }
}

#[cfg(test)]
mod tests;
