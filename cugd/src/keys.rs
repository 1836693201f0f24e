//! Key pairs for logins, drawn so that no copy of a private key stays behind.

use std::{io, sync::Arc, thread};

use cug_login::contain::scrub_stack;
use cug_proto::{local::OfferId, secret::Secret};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::core::FreshKeys;

/// Stack that is wiped afterwards, many times what the drawing needs: somebody waits for it.
const SCRUBBED: usize = 64 * 1024;

/// Draws a key pair and a name for the offer. Takes well under a millisecond.
///
/// The curve's arithmetic takes the private key by value: it runs in a thread of its own, whose stack is wiped at its end.
///
/// # Errors
/// When the system gives no thread or no random numbers.
pub fn fresh() -> io::Result<FreshKeys> {
    let worker = thread::Builder::new().name("keys".to_owned()).stack_size(4 * SCRUBBED).spawn(|| {
        let keys = draw();
        scrub_stack::<SCRUBBED>();
        keys
    })?;
    worker.join().map_err(|_| io::Error::other("the thread that draws keys has panicked"))?
}

#[inline(never)]
fn draw() -> io::Result<FreshKeys> {
    let random = |error: getrandom::Error| io::Error::other(error.to_string());
    let mut offer = OfferId::default();
    getrandom::fill(&mut offer).map_err(random)?;
    let private = Secret::try_fill(|bytes: &mut [u8; 32]| {
        getrandom::fill(bytes)?;
        clamp(bytes);
        Ok(())
    })
    .map_err(random)?;
    let public = PublicKey::from(&StaticSecret::from(*private.expose())).to_bytes();
    Ok(FreshKeys { offer, private: Arc::new(private), public })
}

/// RFC 7748 section 5. The curve's arithmetic does it too, but WireGuard shows keys in this form.
fn clamp(key: &mut [u8; 32]) {
    if let Some(first) = key.first_mut() {
        *first &= 248;
    }
    if let Some(last) = key.last_mut() {
        *last = (*last & 127) | 64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fit_together_and_differ() {
        let (one, other) = (fresh().unwrap(), fresh().unwrap());
        assert!(one.offer != other.offer && one.public != other.public);
        assert_eq!(x25519_dalek::x25519(*one.private.expose(), x25519_dalek::X25519_BASEPOINT_BYTES), one.public);
        assert_eq!(one.private.expose()[0] & 7, 0);
    }
}
