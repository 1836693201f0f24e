//! What the person is asked: on the terminal that this process belongs to, or as lines of standard input.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
};

use cug_proto::secret::SecretBytes;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// No answer to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("there is no terminal to ask on; use --stdin")]
    NoTerminal(#[source] io::Error),
    #[error("the answer cannot be read; run the command again")]
    Read(#[source] io::Error),
    #[error("there are no more answers; run the command again")]
    End,
    #[error("the answer is too long; run the command again")]
    TooLong,
}

/// Where the answers come from.
pub(super) enum Ask {
    Terminal(File),
    Stdin,
}

impl Ask {
    pub(super) fn new(stdin: bool) -> Result<Self, AskError> {
        if stdin {
            return Ok(Self::Stdin);
        }
        OpenOptions::new().read(true).write(true).open("/dev/tty").map(Self::Terminal).map_err(AskError::NoTerminal)
    }

    /// A question whose answer may be seen.
    pub(super) fn shown(&mut self, question: &str) -> Result<SecretBytes, AskError> {
        match self {
            Self::Terminal(tty) => {
                tty.write_all(question.as_bytes()).map_err(AskError::Read)?;
                line(&mut &*tty)
            }
            Self::Stdin => line(&mut io::stdin().lock()),
        }
    }

    /// A question whose answer must not be seen.
    pub(super) fn hidden(&mut self, question: &str) -> Result<SecretBytes, AskError> {
        match self {
            Self::Terminal(tty) => {
                tty.write_all(question.as_bytes()).map_err(AskError::Read)?;
                let quiet = Quiet::new(tty).map_err(AskError::Read)?;
                let typed = line(&mut &*tty);
                drop(quiet);
                (&*tty).write_all(b"\n").map_err(AskError::Read)?;
                typed
            }
            Self::Stdin => line(&mut io::stdin().lock()),
        }
    }

    /// Yes or no; anything but a clear yes is no.
    pub(super) fn yes(&mut self, question: &str) -> Result<bool, AskError> {
        let typed = self.shown(&format!("{question} [y/N] "))?;
        Ok(matches!(typed.expose(), b"y" | b"Y" | b"yes" | b"Yes" | b"YES"))
    }
}

/// A terminal without echo, until it is dropped.
struct Quiet<'a> {
    tty: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(tty: &'a File) -> io::Result<Self> {
        let before = tcgetattr(tty)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(tty, SetArg::TCSADRAIN, &quiet)?;
        Ok(Self { tty, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _gone = tcsetattr(self.tty, SetArg::TCSADRAIN, &self.before);
    }
}

/// One line without its end, read byte by byte so that no buffer keeps a copy.
fn line(from: &mut impl Read) -> Result<SecretBytes, AskError> {
    let mut typed = Zeroizing::new(Vec::with_capacity(SecretBytes::MAX));
    let mut byte = Zeroizing::new([0_u8; 1]);
    loop {
        match from.read(byte.as_mut_slice()) {
            Ok(0) if typed.is_empty() => return Err(AskError::End),
            Ok(1) if *byte != [b'\n'] => {}
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(AskError::Read(error)),
        }
        if typed.len() == SecretBytes::MAX {
            return Err(AskError::TooLong);
        }
        typed.extend_from_slice(byte.as_slice());
    }
    if typed.last() == Some(&b'\r') {
        typed.pop();
    }
    SecretBytes::copy_from(&typed).ok_or(AskError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_it_ends() {
        for (input, expected) in [("a b\nc", "a b"), ("a\r\n", "a"), ("a", "a"), ("\n", ""), (" a ", " a ")] {
            let typed = line(&mut input.as_bytes());
            assert!(typed.is_ok_and(|typed| typed.expose() == expected.as_bytes()), "{input:?}");
        }
        assert!(matches!(line(&mut [].as_slice()), Err(AskError::End)));
        assert!(matches!(line(&mut vec![b'x'; SecretBytes::MAX + 1].as_slice()), Err(AskError::TooLong)));
    }
}
