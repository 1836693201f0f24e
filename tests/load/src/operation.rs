//! The card's part of a login and nothing else, through the PC/SC service of the host that this runs on.

use anyhow::{Context as _, ensure};
use pcsc::{Context, Disposition, MAX_BUFFER_SIZE, Protocols, Scope, ShareMode};
use std::time::{Duration, Instant};

/// SELECT of the PIV application.
const SELECT: [u8; 15] = [0x00, 0xA4, 0x04, 0x00, 9, 0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00, 0x00];

/// Bytes in the modulus of the card's key.
const MODULUS: usize = 256;

/// How long each of `times` operations takes: connect, SELECT, PIN, private key, and a reset that closes what the PIN opened.
///
/// # Errors
/// With what the service or the card says.
pub fn time(times: usize, pin: &str) -> anyhow::Result<Vec<Duration>> {
    let context = Context::establish(Scope::System)?;
    let readers = context.list_readers_owned()?;
    let reader = readers.first().context("no reader")?;
    let mut all = Vec::with_capacity(times);
    // The first one finds nothing in memory.
    for number in 0..=times {
        let begin = Instant::now();
        let mut card = context.connect(reader, ShareMode::Shared, Protocols::T0 | Protocols::T1)?;
        let transaction = card.transaction()?;
        operation(&transaction, pin)?;
        transaction.end(Disposition::ResetCard).map_err(|(_, error)| error)?;
        card.disconnect(Disposition::LeaveCard).map_err(|(_, error)| error)?;
        if number > 0 {
            all.push(begin.elapsed());
        }
    }
    Ok(all)
}

fn operation(card: &pcsc::Card, pin: &str) -> anyhow::Result<()> {
    send(card, &SELECT, 0x90)?;
    let mut padded = pin.as_bytes().to_vec();
    padded.resize(8, 0xFF);
    send(card, &[&[0x00, 0x20, 0x00, 0x80, 8][..], &padded].concat(), 0x90)?;
    // GENERAL AUTHENTICATE with the key in 9D, in two parts, and what is left of the answer.
    let mut template = vec![0x7C, 0x82, 0x01, 0x06, 0x82, 0x00, 0x81, 0x82, 0x01, 0x00, 0x00];
    template.resize(template.len() + MODULUS - 1, 0x5A);
    let (first, rest) = template.split_at(255);
    send(card, &[&[0x10, 0x87, 0x07, 0x9D, 255][..], first].concat(), 0x90)?;
    let length = u8::try_from(rest.len())?;
    send(card, &[&[0x00, 0x87, 0x07, 0x9D, length][..], rest, &[0x00]].concat(), 0x61)?;
    send(card, &[0x00, 0xC0, 0x00, 0x00, 0x00], 0x90)
}

fn send(card: &pcsc::Card, apdu: &[u8], wanted: u8) -> anyhow::Result<()> {
    let mut buffer = [0; MAX_BUFFER_SIZE];
    let answer = card.transmit(apdu, &mut buffer)?;
    let status = answer.last_chunk::<2>().context("no status word")?;
    ensure!(status[0] == wanted, "the card answers {status:02X?} to {:02X?}", &apdu[..4]);
    Ok(())
}
