//! Frames between a card and the driver; the other end is `tests/ifd`, where they are described.

use std::io::{self, Read, Write};

pub const HELLO: u8 = 1;
pub const POWER_UP: u8 = 2;
pub const POWER_DOWN: u8 = 3;
pub const RESET: u8 = 4;
pub const APDU: u8 = 5;
pub const INSERTED: u8 = 6;

/// Writes one frame.
pub fn send(mut stream: impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(body);
    stream.write_all(&frame)
}

/// Reads one frame: its kind and body.
pub fn receive(mut stream: impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [a, b, c, d, kind] = header;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(1..=66_000).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length - 1];
    stream.read_exact(&mut body)?;
    Ok((kind, body))
}
