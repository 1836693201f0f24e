//! Secrets from the administrator: never from the command line.

use crate::admin::Password;
use anyhow::{Context, Result, anyhow, bail};
use cug_proto::{id::UserId, secret::SecretBytes};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
};
use zeroize::Zeroizing;

/// Longest line that is read, in bytes.
const LONGEST: usize = SecretBytes::MAX;

/// A new password: asked for twice, or the first line of standard input.
pub(super) fn new_password(from_stdin: bool, user: &UserId) -> Result<Password> {
    let typed =
        if from_stdin { line(&mut std::io::stdin().lock())? } else { twice(&format!("New password of {user}: "))? };
    Password::new(&typed).map_err(|sentence| anyhow!(sentence))
}

/// The PIN of a card: the first line of standard input.
pub(super) fn pin_from_stdin() -> Result<SecretBytes> {
    SecretBytes::copy_from(&line(&mut std::io::stdin().lock())?).context("the PIN is too long")
}

/// A passphrase for a key on a medium: asked for twice, or the first line of standard input.
pub(super) fn new_passphrase(from_stdin: bool) -> Result<SecretBytes> {
    let typed = if from_stdin { line(&mut std::io::stdin().lock())? } else { twice("Passphrase for the key: ")? };
    if typed.is_empty() {
        bail!("an empty passphrase protects nothing");
    }
    SecretBytes::copy_from(&typed).context("the passphrase is too long")
}

fn twice(question: &str) -> Result<Zeroizing<Vec<u8>>> {
    let first = ask(question)?;
    if *first != *ask("Once more: ")? {
        bail!("the two are not the same");
    }
    Ok(first)
}

/// Asks on the terminal, without echo.
fn ask(question: &str) -> Result<Zeroizing<Vec<u8>>> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let tty = opened.context("there is no terminal to ask on; use the -stdin option")?;
    (&tty).write_all(question.as_bytes())?;
    let quiet = Quiet::new(&tty)?;
    let typed = line(&mut &tty);
    drop(quiet);
    (&tty).write_all(b"\n")?;
    typed
}

/// A terminal without echo, until it is dropped.
struct Quiet<'a> {
    tty: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(tty: &'a File) -> Result<Self> {
        let before = tcgetattr(tty)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(tty, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self { tty, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _gone = tcsetattr(self.tty, SetArg::TCSAFLUSH, &self.before);
    }
}

/// One line without its end, read byte by byte so that no buffer keeps a copy.
fn line(from: &mut impl Read) -> Result<Zeroizing<Vec<u8>>> {
    let mut typed = Zeroizing::new(Vec::with_capacity(LONGEST));
    let mut byte = Zeroizing::new([0_u8; 1]);
    while from.read(byte.as_mut_slice())? == 1 && *byte != [b'\n'] {
        if typed.len() == LONGEST {
            bail!("the line is too long");
        }
        typed.extend_from_slice(byte.as_slice());
    }
    if typed.last() == Some(&b'\r') {
        typed.pop();
    }
    Ok(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_it_ends() {
        for (input, expected) in [("a b\nc", "a b"), ("a\r\n", "a"), ("a", "a"), ("", ""), (" a ", " a ")] {
            assert_eq!(*line(&mut input.as_bytes()).unwrap(), expected.as_bytes());
        }
        assert!(line(&mut vec![b'x'; LONGEST + 1].as_slice()).is_err());
    }
}
