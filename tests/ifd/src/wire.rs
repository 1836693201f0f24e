//! Frames between the driver and a card.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest frame: an extended APDU and its header, with room to spare.
const MAX_FRAME: usize = 66_000;

/// Card to driver, once: body is the answer to reset (2 to 33 bytes).
pub const HELLO: u8 = 1;
/// Driver to card: power up (cold reset); the card answers with the same kind and its answer to reset.
pub const POWER_UP: u8 = 2;
/// Driver to card: power down; no answer.
pub const POWER_DOWN: u8 = 3;
/// Driver to card: warm reset; answered like [`POWER_UP`].
pub const RESET: u8 = 4;
/// Both ways: an APDU and its response.
pub const APDU: u8 = 5;
/// Driver to card: the hello was taken, the card is in the reader. No body.
pub const INSERTED: u8 = 6;

/// Writes one frame. The stream is non-blocking; `deadline` bounds the wait for room.
pub fn send(mut stream: &UnixStream, kind: u8, body: &[u8], deadline: Instant) -> io::Result<()> {
    let length = u32::try_from(body.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut frame = Vec::with_capacity(body.len() + 5);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.push(kind);
    frame.extend_from_slice(body);
    let mut rest = frame.as_slice();
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(stream, PollFlags::POLLOUT, deadline)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads one frame: its kind and body. `deadline` bounds the wait.
pub fn receive(stream: &UnixStream, deadline: Instant) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0_u8; 5];
    fill(stream, &mut header, deadline)?;
    let [a, b, c, d, kind] = header;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(1..=MAX_FRAME).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0_u8; length - 1];
    fill(stream, &mut body, deadline)?;
    Ok((kind, body))
}

fn fill(mut stream: &UnixStream, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut rest = buffer;
    while !rest.is_empty() {
        match stream.read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => rest = rest.get_mut(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(stream, PollFlags::POLLIN, deadline)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait(stream: &UnixStream, flags: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match poll(&mut [PollFd::new(stream.as_fd(), flags)], timeout(left)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A poll timeout of `left`, rounded up to whole milliseconds.
pub fn timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
}
