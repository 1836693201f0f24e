//! Frames: a length (u32, big endian) and as many bytes, on TLS towards the server and on the UNIX socket of `cugd`.

use crate::ProtocolError;
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

/// Largest message body that anybody may send who has not proved anything: to the server before and during a login, and to `cugd`'s socket by
/// others than root; in bytes.
pub const MAX_LOGIN: usize = 16 * 1024;

/// Largest message body otherwise, in bytes: on the session channel, from a server that the terminal has authenticated, and to `cugd` by root. A
/// snapshot of a large group comes in several messages; a grant of [`crate::message::MAX_GROUPS`] groups with
/// [`crate::policy::MAX_ALLOW`] exceptions each, some 35 KiB, comes in one.
pub const MAX_SESSION: usize = 64 * 1024;

/// Largest message body that `cugctl` takes from `cugd`, in bytes: the members of a whole /16, with what was measured of each.
pub const MAX_MEMBERS: usize = 32 * 1024 * 1024;

/// Bytes of the length in front of a body.
pub const HEADER_LEN: usize = 4;

/// Length of the body that `header` announces.
///
/// # Errors
/// [`ProtocolError::TooLarge`] over `max`, [`ProtocolError::Malformed`] for an empty body. Nothing is allocated before this check.
pub fn body_len(header: [u8; HEADER_LEN], max: usize) -> Result<usize, ProtocolError> {
    let len = usize::try_from(u32::from_be_bytes(header)).map_err(|_| ProtocolError::TooLarge)?;
    match len {
        0 => Err(ProtocolError::Malformed),
        len if len > max => Err(ProtocolError::TooLarge),
        len => Ok(len),
    }
}

/// A message as a whole frame, header included, in a buffer that is wiped on drop.
///
/// # Errors
/// [`ProtocolError::TooLarge`] when the body takes more than `max` bytes.
pub fn encode<T: Encode<()>>(message: &T, max: usize) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
    let body = crate::secret::encode_wiped(message, max)?;
    let len = u32::try_from(body.len()).map_err(|_| ProtocolError::TooLarge)?;
    let mut frame = Zeroizing::new(Vec::with_capacity(HEADER_LEN + body.len()));
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The message in `body`; bytes after it are an error.
///
/// # Errors
/// [`ProtocolError::Malformed`]
pub fn decode<'b, T: Decode<'b, ()>>(body: &'b [u8]) -> Result<T, ProtocolError> {
    let mut decoder = minicbor::Decoder::new(body);
    let message = decoder.decode().map_err(|_| ProtocolError::Malformed)?;
    if decoder.position() == body.len() { Ok(message) } else { Err(ProtocolError::Malformed) }
}
