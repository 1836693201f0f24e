//! Byte strings that wipe themselves and cannot be printed.
//!
//! The bytes live on the heap and never move: moving a [`Secret`] moves a pointer, so no copy stays behind on a stack
//! that nobody wipes. There is no `Debug`, no `Display` and no `Clone`; a copy is made by [`Secret::duplicate`], in sight.

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// `N` secret bytes, wiped on drop.
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// All zero, to be filled in place by `fill`; what `fill` returns is passed on.
    ///
    /// # Errors
    /// The error of `fill`; the bytes are wiped then.
    pub fn try_fill<E>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Self(Box::new([0; N]));
        fill(&mut secret.0)?;
        Ok(secret)
    }

    /// Filled in place by `fill`.
    pub fn fill(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut secret = Self(Box::new([0; N]));
        fill(&mut secret.0);
        secret
    }

    /// Drawn from `rng`.
    pub fn random(rng: &mut (impl rand_core::CryptoRng + ?Sized)) -> Self {
        Self::fill(|bytes| rng.fill_bytes(bytes))
    }

    /// A copy of `bytes`; `None` when the length is not `N`.
    pub fn copy_from(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == N).then(|| Self::fill(|own| own.copy_from_slice(bytes)))
    }

    /// The bytes, for the one call that needs them. Do not copy them to the stack.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// A second copy, as secret as the first.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self::fill(|own| own.copy_from_slice(&*self.0))
    }

    /// Equality in constant time.
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.as_slice().ct_eq(other).into()
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<C, const N: usize> Encode<C> for Secret<N> {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(self.0.as_slice())?.ok()
    }
}

impl<'b, C, const N: usize> Decode<'b, C> for Secret<N> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Self::copy_from(d.bytes()?).ok_or_else(|| decode::Error::message("secret of another length"))
    }
}

/// A secret of any length up to [`SecretBytes::MAX`]: a password, a PIN, a passphrase. Wiped on drop.
pub struct SecretBytes(Box<[u8]>);

impl SecretBytes {
    /// Longest secret accepted, in bytes.
    pub const MAX: usize = 1024;

    /// A copy of `bytes`; `None` when it is longer than [`SecretBytes::MAX`].
    pub fn copy_from(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= Self::MAX).then(|| Self(Box::from(bytes)))
    }

    /// The bytes, for the one call that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// A second copy, as secret as the first.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<C> Encode<C> for SecretBytes {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for SecretBytes {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Self::copy_from(d.bytes()?).ok_or_else(|| decode::Error::message("secret too long"))
    }
}

/// Encodes `value` into a buffer that is wiped on drop and was never reallocated.
///
/// # Errors
/// [`crate::ProtocolError::TooLarge`] when `value` takes more than `max` bytes.
pub fn encode_wiped<T: Encode<()>>(value: &T, max: usize) -> Result<Zeroizing<Vec<u8>>, crate::ProtocolError> {
    let mut buffer = Zeroizing::new(vec![0; max]);
    let mut encoder = Encoder::new(encode::write::Cursor::new(buffer.as_mut_slice()));
    encoder.encode(value).map_err(|_| crate::ProtocolError::TooLarge)?;
    let used = encoder.into_writer().position();
    buffer.truncate(used);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_of_another_length_is_refused() {
        assert!(Secret::<4>::copy_from(&[1, 2, 3]).is_none());
        assert!(Secret::<4>::copy_from(&[1, 2, 3, 4]).is_some_and(|s| s.matches(&[1, 2, 3, 4])));
        assert!(SecretBytes::copy_from(&[0; SecretBytes::MAX + 1]).is_none());
    }

    #[test]
    fn encoding_is_bounded_and_round_trips() {
        let secret = Secret::<32>::fill(|b| b.fill(7));
        assert!(encode_wiped(&secret, 33).is_err());
        let bytes = encode_wiped(&secret, 64).unwrap();
        assert_eq!(bytes.len(), 34);
        let back: Secret<32> = crate::frame::decode(&bytes).unwrap();
        assert!(back.matches(secret.expose()));
    }
}
