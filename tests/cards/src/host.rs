//! The host's side, for making cards ready in tests without a reader: it talks to a [`Card`] directly.

use anyhow::{Context as _, bail};
use rsa::{BoxedUint, RsaPublicKey};

use crate::own::{PinPolicy, bits};
use crate::{Card, Management, sw, tlv};

/// Sends a command, in a chain if it is long, and collects the whole response. Fails on a status other than 9000.
pub fn command(card: &mut dyn Card, header: [u8; 4], data: &[u8]) -> crate::Result<Vec<u8>> {
    let (response, status) = exchange(card, header, data)?;
    if status != sw::OK {
        bail!("the card answered {status:04X} to {:02X}", header[1]);
    }
    Ok(response)
}

/// Sends a command like [`command`], and returns its status word too.
pub fn exchange(card: &mut dyn Card, header: [u8; 4], data: &[u8]) -> crate::Result<(Vec<u8>, u16)> {
    let [cla, ins, p1, p2] = header;
    let mut parts = data.chunks(255).peekable();
    let mut answer = if parts.peek().is_none() { card.transmit(&[cla, ins, p1, p2]) } else { Vec::new() };
    while let Some(part) = parts.next() {
        let chained = if parts.peek().is_some() { cla | 0x10 } else { cla };
        let mut apdu = vec![chained, ins, p1, p2, part.len() as u8];
        apdu.extend_from_slice(part);
        answer = card.transmit(&apdu);
    }
    let mut response = Vec::new();
    loop {
        let (body, status) = answer.split_last_chunk::<2>().context("the response has no status word")?;
        response.extend_from_slice(body);
        match u16::from_be_bytes(*status) {
            more @ 0x6100..=0x61FF => answer = card.transmit(&[0, 0xC0, 0, 0, more as u8]),
            status => return Ok((response, status)),
        }
    }
}

/// Selects the PIV application.
pub fn select(card: &mut dyn Card) -> crate::Result<()> {
    command(card, [0, 0xA4, 4, 0], &[0xA0, 0, 0, 3, 8, 0, 0, 0x10, 0]).map(drop)
}

fn padded(pin: &str) -> Vec<u8> {
    let mut pin = pin.as_bytes().to_vec();
    pin.resize(8, 0xFF);
    pin
}

/// Verifies the PIN.
pub fn verify(card: &mut dyn Card, pin: &str) -> crate::Result<()> {
    command(card, [0, 0x20, 0, 0x80], &padded(pin)).map(drop)
}

/// Changes the PIN.
pub fn change_pin(card: &mut dyn Card, old: &str, new: &str) -> crate::Result<()> {
    command(card, [0, 0x24, 0, 0x80], &[padded(old), padded(new)].concat()).map(drop)
}

/// Authenticates with the management key, both ways.
pub fn authenticate(card: &mut dyn Card, management: &Management) -> crate::Result<()> {
    let header = [0, 0x87, management.algorithm.id(), 0x9B];
    let answer = command(card, header, &tlv::make(0x7C, &tlv::make(0x80, &[])))?;
    let hidden = tlv::find(&answer, 0x7C).and_then(|t| tlv::find(t, 0x80)).context("no witness")?;
    let mut challenge = vec![0; management.algorithm.block_length()];
    getrandom::fill(&mut challenge)?;
    let mut template = tlv::make(0x80, &management.decrypt(hidden)?);
    tlv::push(&mut template, 0x81, &challenge);
    let answer = command(card, header, &tlv::make(0x7C, &template))?;
    let response = tlv::find(&answer, 0x7C).and_then(|t| tlv::find(t, 0x82)).context("no response")?;
    anyhow::ensure!(management.encrypt(&challenge)? == response, "the card does not know the management key");
    Ok(())
}

/// Makes an RSA key of `size` bits in `slot`. Needs [`authenticate`].
pub fn generate(card: &mut dyn Card, slot: u8, size: usize, policy: Option<PinPolicy>) -> crate::Result<RsaPublicKey> {
    let algorithm =
        [0x06, 0x07, 0x05, 0x16].into_iter().find(|id| bits(*id) == Some(size)).context("no such key size")?;
    let mut control = tlv::make(0x80, &[algorithm]);
    if let Some(policy) = policy {
        tlv::push(&mut control, 0xAA, &[policy.id()]);
    }
    let answer = command(card, [0, 0x47, 0, slot], &tlv::make(0xAC, &control))?;
    let parts = tlv::find(&answer, 0x7F49).context("no public key")?;
    let number =
        |tag| Ok::<_, anyhow::Error>(BoxedUint::from_be_slice_vartime(tlv::find(parts, tag).context("no number")?));
    Ok(RsaPublicKey::new(number(0x81)?, number(0x82)?)?)
}

/// Writes a data object; `value` is what goes into its tag 53. Needs [`authenticate`].
pub fn put_object(card: &mut dyn Card, tag: u32, value: &[u8]) -> crate::Result<()> {
    let mut data = tlv::make(0x5C, &object_name(tag));
    tlv::push(&mut data, 0x53, value);
    command(card, [0, 0xDB, 0x3F, 0xFF], &data).map(drop)
}

/// Reads a data object: what is in its tag 53. None if the card does not have it.
pub fn get_object(card: &mut dyn Card, tag: u32) -> crate::Result<Option<Vec<u8>>> {
    let (answer, status) = exchange(card, [0, 0xCB, 0x3F, 0xFF], &tlv::make(0x5C, &object_name(tag)))?;
    match status {
        sw::OK => Ok(Some(tlv::find(&answer, 0x53).context("no tag 53")?.to_vec())),
        sw::NOT_FOUND => Ok(None),
        _ => bail!("the card answered {status:04X}"),
    }
}

/// Raw RSA with the key of `size` bits in `slot`.
pub fn raw_decrypt(card: &mut dyn Card, slot: u8, size: usize, input: &[u8]) -> crate::Result<Vec<u8>> {
    let algorithm =
        [0x06, 0x07, 0x05, 0x16].into_iter().find(|id| bits(*id) == Some(size)).context("no such key size")?;
    let mut template = tlv::make(0x82, &[]);
    tlv::push(&mut template, 0x81, input);
    let answer = command(card, [0, 0x87, algorithm, slot], &tlv::make(0x7C, &template))?;
    Ok(tlv::find(&answer, 0x7C).and_then(|t| tlv::find(t, 0x82)).context("no response")?.to_vec())
}

fn object_name(tag: u32) -> Vec<u8> {
    let bytes = tag.to_be_bytes();
    bytes[bytes.iter().position(|&byte| byte != 0).unwrap_or(3)..].to_vec()
}
