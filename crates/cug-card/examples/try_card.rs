//! Tries this crate against a card in a reader, by hand:
//!
//! ```text
//! try_card issue READER PIN (2048|3072|4096) (generate|import) [NEW-MANAGEMENT-KEY-HEX]
//! try_card login [PIN]         finds a card, opens a challenge made for the certificate in it, watches the card until it goes
//! try_card wait SECONDS [MEDIUM...]   waits for a card
//! try_card medium DIRECTORY     issues a medium there (passphrase "test") and watches it until it goes
//! try_card cancel TIMES        begins and cancels watches
//! ```
//! The organisation is made up anew by each `issue`; nothing is kept of it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panicking")]

#[path = "../tests/common/mod.rs"]
mod common;

use cug_card::{Card, CardError, PinRequest, Selection, find, personalise, watch};
use cug_proto::{login, secret::Secret, secret::SecretBytes};
use personalise::{KeySource, ManagementKey, PivCard, RsaKey};
use rand_core::UnwrapErr;
use rsa::{RsaPublicKey, pkcs8::DecodePublicKey};
use std::{
    error::Error,
    fs,
    io::Write,
    time::{Duration, Instant},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Where `issue` leaves the public key for `login`.
const PUBLIC: &str = "try_card.pub";

#[allow(clippy::disallowed_methods, reason = "the edge of the program")]
fn now() -> Instant {
    Instant::now()
}

fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn secret(text: &str) -> Result<SecretBytes> {
    SecretBytes::copy_from(text.as_bytes()).ok_or_else(|| "too long".into())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["issue", reader, pin, bits, how, rest @ ..] => issue(reader, pin, bits.parse()?, how, rest.first().copied()),
        ["login", rest @ ..] => login(rest.first().copied()),
        ["wait", seconds, media @ ..] => {
            let selection = Selection {
                readers: Vec::new(),
                media: media.iter().map(|pattern| (*pattern).to_owned()).collect(),
                ..Selection::default()
            };
            let card =
                find(&selection, now() + Duration::from_secs(seconds.parse()?), now, &mut || say("insert your card"))?;
            say(format!("found {:?}", card.binding()));
            Ok(())
        }
        ["medium", directory] => medium(directory),
        ["cancel", times] => cancel(times.parse()?),
        _ => Err("see the first lines of this program".into()),
    }
}

fn wait(limit: Duration) -> std::result::Result<Box<dyn Card>, CardError> {
    find(&Selection::default(), now() + limit, now, &mut || say("insert your card"))
}

fn issue(reader: &str, pin: &str, bits: usize, how: &str, new_key: Option<&str>) -> Result<()> {
    let organisation = common::Organisation::new();
    let source = if how == "import" { KeySource::Import(RsaKey::generate(bits)?) } else { KeySource::Generate(bits) };
    let begin = now();
    let card = PivCard::open(reader, &ManagementKey::factory()?)?;
    let prepared = card.prepare(&source, Some(&secret(pin)?))?;
    let public = prepared.public_key().der().to_vec();
    fs::write(std::env::temp_dir().join(PUBLIC), &public)?;
    let mut card = prepared.finish(&organisation.certify(&public), &organisation.server_object)?;
    if let Some(hex) = new_key {
        let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).filter_map(|d| u8::try_from(d).ok()).collect();
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |n, d| n * 16 + d)).collect();
        card.change_management_key(&ManagementKey::new(SecretBytes::copy_from(&bytes).ok_or("too long")?)?)?;
    }
    say(format!("issued in {:?}; server object {} bytes", begin.elapsed(), organisation.server_object.len()));
    Ok(())
}

fn login(pin: Option<&str>) -> Result<()> {
    let begin = now();
    let mut card = wait(Duration::from_secs(10))?;
    say(format!("found after {:?}: {:?}", begin.elapsed(), card.binding()));
    let public = RsaPublicKey::from_public_key_der(&fs::read(std::env::temp_dir().join(PUBLIC))?)?;
    let mut rng = UnwrapErr(getrandom::SysRng);
    let challenge = Secret::random(&mut rng);
    let sealed = login::encrypt_challenge(&public, &challenge, &mut rng)?;
    let asked = card.pin()?;
    say(format!("PIN: {asked:?}"));
    let begin = now();
    if let (PinRequest::Pin { .. }, Some(pin)) = (asked, pin) {
        card.unlock(&secret(pin)?)?;
    }
    let opened = card.open_challenge(&sealed)?;
    say(format!("opened: {} after {:?}", opened.matches(challenge.expose()), begin.elapsed()));
    let binding = card.binding();
    drop(card);
    let mut watch = watch(&binding)?;
    say("watching");
    say(watch.wait());
    Ok(())
}

fn medium(directory: &str) -> Result<()> {
    let organisation = common::Organisation::new();
    let prepared = personalise::medium(2048)?;
    let certificate = organisation.certify(prepared.public_key().der());
    prepared.finish(directory.as_ref(), &secret("test")?, &certificate, &organisation.server_object)?;
    let selection =
        Selection { readers: vec!["none".into()], media: vec![directory.to_owned()], ..Selection::default() };
    let binding = find(&selection, now(), now, &mut || ())?.binding();
    let mut watch = watch(&binding)?;
    say(format!("watching {binding:?}"));
    say(watch.wait());
    Ok(())
}

fn cancel(times: u32) -> Result<()> {
    let binding = wait(Duration::from_secs(10))?.binding();
    let mut longest = Duration::ZERO;
    for _ in 0..times {
        let mut watch = watch(&binding)?;
        let canceller = watch.canceller();
        let waiter = std::thread::spawn(move || watch.wait());
        let begin = now();
        canceller.cancel();
        let cause = waiter.join().map_err(|_| "panicked")?;
        longest = longest.max(begin.elapsed());
        if !matches!(cause, cug_card::RemovalCause::Cancelled) {
            return Err(cause.to_string().into());
        }
    }
    say(format!("cancelled {times} watches; the longest took {longest:?}"));
    Ok(())
}
