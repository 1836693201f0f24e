//! The card or medium: opened, given a key, written, and made to answer. Each step is a type that offers only what may come next.

use std::path::{Path, PathBuf};

use cug_card::{
    CardError,
    personalise::{
        self, KeySource, ManagementKey, PivCard, PreparedMedium, PreparedPiv, RsaKey, answer_of_medium, clear_medium,
        medium_has_key,
    },
};
use cug_proto::{
    enrol::CardKind,
    message::Fingerprint,
    secret::{Secret, SecretBytes},
};

use super::{Arguments, EnrolError, TRIES, ask::Ask, complain, say};

/// What PIV cards are delivered with; it must not stay.
const FACTORY_PIN: &[u8] = b"123456";

/// Where the key will be, with what opens it.
pub(super) enum Place {
    Piv { card: Box<PivCard>, how: How, pin: Pin },
    Medium { directory: PathBuf, passphrase: SecretBytes, bits: usize },
}

/// Where a card's key comes from.
pub(super) enum How {
    Generate(usize),
    Import(usize),
    Keep,
}

/// A card's PIN, and the one that takes its place.
pub(super) struct Pin {
    present: SecretBytes,
    new: Option<SecretBytes>,
}

impl Place {
    /// Finds the card, asks whether it may be written to, and asks for its PIN. Nothing is changed yet.
    pub(super) fn open(arguments: &Arguments, readers: &[String], ask: &mut Ask) -> Result<Self, EnrolError> {
        let bits = arguments.bits.parse().map_err(|_| CardError::KeyKind)?;
        if let Some(directory) = &arguments.medium {
            return Self::open_medium(directory, bits, arguments.yes, ask);
        }
        let key = match &arguments.management_key_file {
            Some(path) => ManagementKey::from_file(path)?,
            None => ManagementKey::factory()?,
        };
        let readers = arguments.reader.as_ref().map_or(readers, std::slice::from_ref);
        let mut card = insert(readers, &key, ask)?;
        let how = match (arguments.keep_key, arguments.import) {
            (true, _) => How::Keep,
            (false, true) => How::Import(bits),
            (false, false) => How::Generate(bits),
        };
        let overwrites = !matches!(how, How::Keep) && card.was_issued()?;
        const QUESTION: &str =
            "This card was issued before. Its key will be replaced; what it opened it will open no more. Go on?";
        if overwrites && !arguments.yes && !ask.yes(QUESTION)? {
            return Err(EnrolError::Declined);
        }
        let present = present_pin(&mut card, ask)?;
        let new = if present.expose() == FACTORY_PIN { Some(new_pin(ask)?) } else { None };
        Ok(Self::Piv { card: Box::new(card), how, pin: Pin { present, new } })
    }

    fn open_medium(directory: &Path, bits: usize, yes: bool, ask: &mut Ask) -> Result<Self, EnrolError> {
        if !directory.is_dir() {
            return Err(CardError::Medium(std::io::ErrorKind::NotADirectory.into()).into());
        }
        const QUESTION: &str =
            "This directory holds a key already. It will be replaced; what it opened it will open no more. Go on?";
        if medium_has_key(directory) && !yes && !ask.yes(QUESTION)? {
            return Err(EnrolError::Declined);
        }
        for _ in 0..TRIES {
            let passphrase = ask.hidden("New passphrase for the key: ")?;
            if passphrase.expose().is_empty() {
                complain("an empty passphrase protects nothing; please try again");
            } else if passphrase.expose() == ask.hidden("Once more: ")?.expose() {
                return Ok(Self::Medium { directory: directory.to_owned(), passphrase, bits });
            } else {
                complain("the two are not the same; please try again");
            }
        }
        Err(EnrolError::Different)
    }

    /// Changes a factory PIN and makes the key: it, and where it came from.
    pub(super) fn make_key(self) -> Result<(WithKey, Vec<u8>, CardKind), EnrolError> {
        match self {
            Self::Medium { directory, passphrase, bits } => {
                say("Making the key.");
                let key = personalise::medium(bits)?;
                let public_key = key.public_key().der().to_vec();
                Ok((WithKey::Medium { key, directory, passphrase }, public_key, CardKind::Medium))
            }
            Self::Piv { mut card, how, pin } => {
                let pin = change_pin(&mut card, pin)?;
                let source = match how {
                    How::Keep => {
                        let key = card.present_key()?;
                        let (fingerprint, public_key) = (key.fingerprint(), key.der().to_vec());
                        return Ok((WithKey::Kept { card, fingerprint, pin }, public_key, CardKind::Registered));
                    }
                    How::Generate(bits) => {
                        say("The card makes its key; this may take a minute or more.");
                        KeySource::Generate(bits)
                    }
                    How::Import(bits) => KeySource::Import(RsaKey::generate(bits)?),
                };
                let key = card.prepare(&source, None)?;
                let public_key = key.public_key().der().to_vec();
                Ok((WithKey::Piv { key: Box::new(key), pin }, public_key, CardKind::Piv))
            }
        }
    }
}

/// Waits for a card: a moment by itself, then for the person.
fn insert(readers: &[String], key: &ManagementKey, ask: &mut Ask) -> Result<PivCard, EnrolError> {
    for _ in 0..TRIES {
        match open_first(readers, key) {
            Err(CardError::NoCard) => drop(ask.shown("Please insert the card and press Enter: ")?),
            other => return Ok(other?),
        }
    }
    Err(CardError::NoCard.into())
}

/// In the readers of the configuration an earlier one is preferred; without any, any reader will do.
fn open_first(readers: &[String], key: &ManagementKey) -> Result<PivCard, CardError> {
    let mut failure = CardError::NoReader;
    for reader in readers {
        match PivCard::open(reader, key) {
            Err(error @ (CardError::NoReader | CardError::NoCard)) => {
                // That a reader is empty says more than that another one is not there.
                if !matches!(failure, CardError::NoCard) {
                    failure = error;
                }
            }
            other => return other,
        }
    }
    if readers.is_empty() { PivCard::open("", key) } else { Err(failure) }
}

fn present_pin(card: &mut PivCard, ask: &mut Ask) -> Result<SecretBytes, EnrolError> {
    for _ in 0..TRIES {
        let pin = ask.hidden("PIN of the card (a new card has 123456): ")?;
        match card.verify_pin(&pin) {
            Ok(()) => return Ok(pin),
            // Each sentence says how many tries are left: the card ends this, not the loop.
            Err(error @ (CardError::WrongPin { .. } | CardError::PinFormat)) => complain(&error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(CardError::WrongPin { tries_left: None }.into())
}

fn new_pin(ask: &mut Ask) -> Result<SecretBytes, EnrolError> {
    say("The card still has the PIN that everybody knows; please choose your own.");
    for _ in 0..TRIES {
        let pin = ask.hidden("New PIN, 6 to 8 digits: ")?;
        let digits = pin.expose().iter().all(u8::is_ascii_digit) && (6..=8).contains(&pin.expose().len());
        if !digits || pin.expose() == FACTORY_PIN {
            complain(&EnrolError::NewPin.to_string());
        } else if pin.expose() == ask.hidden("Once more: ")?.expose() {
            return Ok(pin);
        } else {
            complain("the two are not the same; please try again");
        }
    }
    Err(EnrolError::NewPin)
}

fn change_pin(card: &mut PivCard, pin: Pin) -> Result<SecretBytes, EnrolError> {
    let Some(new) = pin.new else { return Ok(pin.present) };
    card.change_pin(&pin.present, &new)?;
    say("The card's PIN is changed.");
    Ok(new)
}

/// With a key, without certificates.
pub(super) enum WithKey {
    Piv { key: Box<PreparedPiv>, pin: SecretBytes },
    Kept { card: Box<PivCard>, fingerprint: Fingerprint, pin: SecretBytes },
    Medium { key: PreparedMedium, directory: PathBuf, passphrase: SecretBytes },
}

impl WithKey {
    /// Writes the certificate, and the server object last. A card from a third party keeps its own certificate.
    pub(super) fn write(self, certificate: &[u8], server_object: &[u8]) -> Result<Written, EnrolError> {
        Ok(match self {
            Self::Piv { key, pin } => Written::Piv { card: Box::new(key.finish(certificate, server_object)?), pin },
            Self::Kept { mut card, fingerprint, pin } => {
                card.write_server_object(server_object, &fingerprint)?;
                Written::Piv { card, pin }
            }
            Self::Medium { key, directory, passphrase } => {
                clear_medium(&directory)?;
                key.finish(&directory, &passphrase, certificate, server_object)?;
                Written::Medium { directory, passphrase }
            }
        })
    }
}

/// All is written.
pub(super) enum Written {
    Piv { card: Box<PivCard>, pin: SecretBytes },
    Medium { directory: PathBuf, passphrase: SecretBytes },
}

impl Written {
    /// Reads it back, and opens the server's challenge with it.
    pub(super) fn answer(&mut self, server_object: &[u8], ciphertext: &[u8]) -> Result<Secret<32>, CardError> {
        match self {
            Self::Piv { card, pin } => card.answer(server_object, pin, ciphertext),
            Self::Medium { directory, passphrase } => {
                answer_of_medium(directory, server_object, passphrase, ciphertext)
            }
        }
    }

    /// It was not registered. A card's key is simply made anew the next time; files would be in the way.
    pub(super) fn undo(self) {
        if let Self::Medium { directory, .. } = self
            && let Err(error) = clear_medium(&directory)
        {
            complain(&format!("the files on the medium could not be removed: {error}"));
        }
    }
}
