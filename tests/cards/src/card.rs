//! What a card is to a reader.

/// A smart card: it has power, or not, and answers APDUs.
pub trait Card: Send {
    /// The answer to reset.
    fn atr(&self) -> Vec<u8>;

    /// Power was applied, or the reader reset the card: security states are forgotten.
    fn reset(&mut self);

    /// Answers one APDU: response data and two status bytes. Key generation may take seconds.
    fn transmit(&mut self, apdu: &[u8]) -> Vec<u8>;
}

impl<C: Card + ?Sized> Card for Box<C> {
    fn atr(&self) -> Vec<u8> {
        (**self).atr()
    }
    fn reset(&mut self) {
        (**self).reset();
    }
    fn transmit(&mut self, apdu: &[u8]) -> Vec<u8> {
        (**self).transmit(apdu)
    }
}

/// Historical bytes of a card that takes chained commands and extended lengths, and its maker's name of seven bytes (ISO 7816-4, 12.1.1).
pub(crate) fn extended(name: &[u8; 7]) -> Vec<u8> {
    [&[0x80, 0x73, 0xC0, 0x21, 0xC0, 0x57], &name[..]].concat()
}

/// An answer to reset for T=1 with these (at most 15) historical bytes.
pub(crate) fn atr(historical: &[u8]) -> Vec<u8> {
    let count = u8::try_from(historical.len().min(15)).unwrap_or(15);
    let mut atr = vec![0x3B, 0x80 | count, 0x01];
    atr.extend_from_slice(&historical[..usize::from(count)]);
    // Check byte (TCK): all bytes after the first one XOR to zero.
    let check = atr[1..].iter().fold(0, |sum, byte| sum ^ byte);
    atr.push(check);
    atr
}
