//! `cugctl enrol`: a user with a one-time code sets the password and registers a card, at any terminal of the organisation.
//!
//! * [`ask`]: what the person is asked; [`card`]: the card or medium; [`line`]: the connection; [`talk`]: the protocol as the terminal sees it.
//!
//! It runs as the user who calls it: it needs the daemon's word on which organisation this workstation belongs to, the card reader (pcscd asks polkit
//! where there is one: who sits at the workstation may use it) and the network, and no privilege. Whatever breaks, `cugctl enrol` can be run again:
//! up to the server's last word nothing is registered and the code stays good.

mod ask;
mod card;
mod line;
mod talk;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use cug_card::CardError;
use cug_proto::{
    enrol::{CodeError, EnrolCode, EnrolVerdict},
    id::UserId,
    local::{Reply, Request, Servers},
    message::Unavailable,
    secret::SecretBytes,
};

use crate::ctl;
use ask::{Ask, AskError};
use card::Place;
use line::{Line, LineError};
use talk::Talk;

/// Set your password and enrol your card with the one-time code from the administrator.
#[derive(clap::Args, Clone)]
pub struct Arguments {
    /// User ID [default: it is asked for]
    #[arg(long, value_parser = user_id)]
    user: Option<UserId>,
    /// The reader with the card: its PC/SC name, or the beginning of it [default: those of /etc/cug/cugd.toml]
    #[arg(long, value_name = "NAME", conflicts_with = "medium")]
    reader: Option<String>,
    /// Instead of a card: an empty directory on a removable medium
    #[arg(long, value_name = "DIR")]
    medium: Option<PathBuf>,
    /// Make the key here and import it, for cards that cannot make one themselves
    #[arg(long, conflicts_with_all = ["medium", "keep_key"])]
    import: bool,
    /// Register the key that the card has already (one from a third party)
    #[arg(long, conflicts_with = "medium")]
    keep_key: bool,
    /// Size of the new RSA key in bits
    #[arg(long, default_value = "2048", value_parser = ["2048", "3072", "4096"])]
    bits: String,
    /// File with the card's management key, hexadecimal or raw [default: the factory's]
    #[arg(long, value_name = "FILE", conflicts_with = "medium")]
    management_key_file: Option<PathBuf>,
    /// Set a new password only; the card stays as it is
    #[arg(long, conflicts_with_all = ["reader", "medium", "import", "keep_key", "management_key_file"])]
    password_only: bool,
    /// Replace what the card or the medium holds without asking
    #[arg(long)]
    yes: bool,
    /// Read the answers from standard input, a line each, in the order of the questions
    #[arg(long)]
    stdin: bool,
    /// Print the causes of an error too
    #[arg(long)]
    verbose: bool,
}

fn user_id(text: &str) -> Result<UserId, &'static str> {
    text.parse().map_err(|_| "a user ID has 1 to 32 of A-Z a-z 0-9 . _ - and does not begin with . or -")
}

/// Nothing is registered, or nobody knows whether it is; one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("{0}")]
    Daemon(ctl::CtlError),
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("{0}")]
    Code(#[from] CodeError),
    #[error("that is no user ID; it has 1 to 32 of A-Z a-z 0-9 . _ -")]
    User,
    #[error("{0}")]
    Card(#[from] CardError),
    #[error("{0}")]
    Line(#[from] LineError),
    #[error(
        "the server does not take this user ID with this code; look at both, or ask the administrator for a new code"
    )]
    Rejected,
    #[error(
        "the server does not know your code the way it must: do not go on here, and tell the administrator that somebody may stand between"
    )]
    Impostor,
    #[error("{}", unavailable(*.0))]
    Unavailable(Unavailable),
    #[error("the server does not keep to the protocol; ask the administrator to look at its log")]
    Protocol(#[from] cug_proto::ProtocolError),
    #[error("the two are not the same; run the command again")]
    Different,
    #[error("a new PIN has 6 to 8 digits and is not the factory's")]
    NewPin,
    #[error("nothing was changed")]
    Declined,
    #[error("the password was refused too often; think of another one and run the command again")]
    PasswordRefused,
    #[error("this card is registered already; take another one, or ask the administrator")]
    CardTaken,
    #[error("the code was withdrawn or used meanwhile; ask the administrator for a new one")]
    Withdrawn,
    #[error("the server cannot carry the invitation out; ask the administrator to look at its log")]
    Impossible,
    #[error(
        "the connection broke at the very end: try to log in with the new password, and if that fails run this command again"
    )]
    Unknown(#[source] Box<EnrolError>),
}

fn unavailable(why: Unavailable) -> String {
    match why {
        Unavailable::Busy(seconds) => {
            format!("too many wrong codes were tried, or the server is busy; try again in {seconds} seconds")
        }
        Unavailable::Version(_) => {
            "this workstation and the server are of different versions; ask the administrator".to_owned()
        }
        Unavailable::Fault => "the server has a fault; ask the administrator to look at its log".to_owned(),
    }
}

/// Runs the command: exit status 0 when password and card are registered, or wait for the administrator.
pub fn run(socket: &Path, arguments: &Arguments) -> ExitCode {
    match enrol(socket, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("cugctl: {error}"));
            let mut cause = std::error::Error::source(&error).filter(|_| arguments.verbose);
            while let Some(error) = cause {
                complain(&format!("  because: {error}"));
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// The enrolment, step by step.
fn enrol(socket: &Path, arguments: &Arguments) -> Result<(), EnrolError> {
    crate::hardening::for_a_command();
    let here = organisation(socket)?;
    let mut ask = Ask::new(arguments.stdin)?;
    let user = match &arguments.user {
        Some(user) => user.clone(),
        None => ask_user(&mut ask)?,
    };
    let code = ask_code(&mut ask)?;
    let place = if arguments.password_only { None } else { Some(Place::open(arguments, &here.readers, &mut ask)?) };
    let password = new_password(&mut ask, &user)?;

    let pins: Vec<[u8; 32]> = here.ca_pins.iter().map(|pin| **pin).collect();
    let line = Line::connect(&here.servers, &pins, Duration::from_millis(here.server_timeout_ms.into()))?;
    let mut talk = Talk::claim(line, &user, &here.host_name, &code)?;
    say("The server accepts the code.");
    match place {
        None => commit(&mut talk, &mut ask, &user, password),
        Some(place) => {
            let (with_key, public_key, kind) = place.make_key()?;
            let challenge = talk.key(public_key, kind)?;
            let mut written = with_key.write(&challenge.certificate, talk.server_object())?;
            let done = written.answer(talk.server_object(), &challenge.ciphertext).map_err(EnrolError::from).and_then(
                |opened| {
                    say("The card holds its key and has shown that it works.");
                    talk.card_answered(&opened);
                    commit(&mut talk, &mut ask, &user, password)
                },
            );
            match &done {
                Ok(()) => say(&format!("The card's fingerprint is {}.", hex(&challenge.fingerprint))),
                // Whether it was registered is not known: what the medium holds may be needed.
                Err(EnrolError::Unknown(_)) => {}
                Err(_) => written.undo(),
            }
            done
        }
    }
}

/// Offers the password until the server takes it.
fn commit(talk: &mut Talk, ask: &mut Ask, user: &UserId, mut password: SecretBytes) -> Result<(), EnrolError> {
    for _ in 0..cug_proto::enrol::MAX_COMMITS {
        match talk.commit(user, &password)? {
            EnrolVerdict::Active => {
                say(&format!("Done: {user} can log in now."));
                return Ok(());
            }
            EnrolVerdict::AwaitsApproval => {
                say("Done. The administrator has to approve it before you can log in; say the fingerprint to them.");
                return Ok(());
            }
            EnrolVerdict::PasswordRefused(why) => {
                say(&printable(&why));
                password = new_password(ask, user)?;
            }
            EnrolVerdict::CardTaken => return Err(EnrolError::CardTaken),
            EnrolVerdict::Withdrawn => return Err(EnrolError::Withdrawn),
            EnrolVerdict::Impossible => return Err(EnrolError::Impossible),
        }
    }
    Err(EnrolError::PasswordRefused)
}

/// Asks the daemon which organisation this workstation belongs to.
fn organisation(socket: &Path) -> Result<Servers, EnrolError> {
    let mut daemon = ctl::Connection::open(socket).map_err(EnrolError::Daemon)?;
    match daemon.ask(&Request::Servers).map_err(EnrolError::Daemon)? {
        Reply::Servers(servers) => Ok(servers),
        _ => Err(EnrolError::Daemon(ctl::CtlError::Strange)),
    }
}

/// How often a person may mistype what can be seen to be mistyped.
const TRIES: usize = 5;

fn ask_user(ask: &mut Ask) -> Result<UserId, EnrolError> {
    for _ in 0..TRIES {
        let typed = ask.shown("User ID: ")?;
        let user = std::str::from_utf8(typed.expose()).ok().and_then(|text| text.trim().parse().ok());
        match user {
            Some(user) => return Ok(user),
            None => complain(&EnrolError::User.to_string()),
        }
    }
    Err(EnrolError::User)
}

/// The code is shown while it is typed: it is used up in the same minute, and nobody types 25 characters blindly.
fn ask_code(ask: &mut Ask) -> Result<EnrolCode, EnrolError> {
    let mut wrong = CodeError::Length;
    for _ in 0..TRIES {
        match EnrolCode::parse(ask.shown("Code: ")?.expose()) {
            Ok(code) => return Ok(code),
            Err(error) => wrong = error,
        }
        complain(&wrong.to_string());
    }
    Err(wrong.into())
}

fn new_password(ask: &mut Ask, user: &UserId) -> Result<SecretBytes, EnrolError> {
    for _ in 0..TRIES {
        let first = ask.hidden(&format!("New password of {user}: "))?;
        if first.expose() == ask.hidden("Once more: ")?.expose() {
            return Ok(first);
        }
        complain("the two are not the same; please try again");
    }
    Err(EnrolError::Different)
}

/// A sentence about what goes on.
fn say(sentence: &str) {
    // A closed standard output is nobody who reads.
    let _nobody_reads = writeln!(io::stdout(), "{sentence}");
}

fn complain(sentence: &str) {
    let _nobody_reads = writeln!(io::stderr(), "{sentence}");
}

/// What a server says must not steer the terminal that shows it.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn a_server_cannot_steer_the_terminal() {
        assert_eq!(printable("too \u{1b}[2Jshort\r\n\u{9b}"), "too [2Jshort");
        assert_eq!(printable(&"x".repeat(5000)).len(), 200);
    }
}
