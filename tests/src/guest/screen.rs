//! The keyboard and the screen of a virtual machine, through QEMU's monitor.

use crate::wait;
use anyhow::{Context, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the monitor may take to answer.
const LIMIT: Duration = Duration::from_secs(20);

/// What the monitor says when it waits for a command.
const READY: &[u8] = b"(qemu) ";

/// Milliseconds for which a key is held.
const HELD: u32 = 15;

/// The monitor of a virtual machine.
pub struct Monitor(UnixStream);

impl Monitor {
    /// Connects to the monitor at `socket`.
    ///
    /// # Errors
    /// When QEMU does not listen there.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = wait::until("QEMU's monitor", LIMIT, || UnixStream::connect(socket).ok())?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut monitor = Self(stream);
        monitor.answer()?;
        Ok(monitor)
    }

    /// Runs one command: what the monitor answered.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn command(&mut self, command: &str) -> anyhow::Result<String> {
        self.0.write_all(format!("{command}\n").as_bytes()).context("the machine is gone")?;
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        while !said.ends_with(READY) {
            let length = self.0.read(&mut buffer).context("QEMU's monitor does not answer")?;
            ensure!(length > 0, "the machine is gone");
            said.extend_from_slice(&buffer[..length]);
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Presses the keys of `text` one after the other, as on a keyboard with the American layout.
    ///
    /// # Errors
    /// When a character is on none of the keys that are known here.
    pub fn type_text(&mut self, text: &str) -> anyhow::Result<()> {
        for character in text.chars() {
            let key = key(character).with_context(|| format!("no key for {character:?}"))?;
            self.command(&format!("sendkey {key} {HELD}"))?;
        }
        Ok(())
    }

    /// Types a line.
    ///
    /// # Errors
    /// As [`Monitor::type_text`].
    pub fn type_line(&mut self, line: &str) -> anyhow::Result<()> {
        self.type_text(line)?;
        self.command(&format!("sendkey ret {HELD}")).map(drop)
    }

    /// Takes a picture of the screen, as PNG; `file` as the host that runs the machine names it.
    ///
    /// # Errors
    /// When QEMU cannot write it.
    pub fn picture(&mut self, file: &str) -> anyhow::Result<()> {
        let said = self.command(&format!("screendump {file} -f png"))?;
        ensure!(!said.contains("rror"), "no picture: {said}");
        Ok(())
    }
}

/// The key of a character, by QEMU's name.
fn key(character: char) -> Option<String> {
    Some(match character {
        'a'..='z' | '0'..='9' => character.to_string(),
        'A'..='Z' => format!("shift-{}", character.to_ascii_lowercase()),
        '\n' => "ret".to_owned(),
        '\t' => "tab".to_owned(),
        ' ' => "spc".to_owned(),
        '-' => "minus".to_owned(),
        '.' => "dot".to_owned(),
        '/' => "slash".to_owned(),
        ';' => "semicolon".to_owned(),
        _ => return None,
    })
}
