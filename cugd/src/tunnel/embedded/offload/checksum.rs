//! The Internet checksum (RFC 1071).

/// A sum that is not folded yet; the bytes are taken as words in network order. Parts of even length may be summed in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum(u64);

impl Sum {
    /// With `bytes` added; an odd one at the end stands for a word that ends with zero.
    pub(super) fn add(self, bytes: &[u8]) -> Self {
        // Words of four bytes into 64 bits cannot overflow for anything that is a packet, and compile to vector instructions.
        let (words, rest) = bytes.as_chunks::<4>();
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let mut last = [0; 4];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Self(self.0 + sum + u64::from(u32::from_ne_bytes(last)))
    }

    /// With a number added that stands in the packet as two bytes.
    pub(super) fn add_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Folded to 16 bits, as it would stand in a packet that is still to be summed up.
    pub(super) fn fold(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or_default().to_ne_bytes()
    }

    /// The checksum.
    pub(super) fn finish(self) -> [u8; 2] {
        self.fold().map(|byte| !byte)
    }

    /// Whether what was summed up contains its checksum, and it is right.
    pub(super) fn is_right(self) -> bool {
        self.finish() == [0, 0]
    }
}

/// The sum of the pseudo-header of TCP (RFC 9293, RFC 8200): both addresses together, and the length of header and payload.
pub(super) fn pseudo_header(addresses: &[u8], length: usize) -> Sum {
    // Both forms hold the length and the number of the protocol as words, wherever they stand.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    Sum::default().add(addresses).add(&length.to_be_bytes()).add_word(6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as the definition has it.
    fn by_definition(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0_u32;
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&bytes).fold(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn it_is_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..2000), even in 0_usize..1000) {
            prop_assert_eq!(Sum::default().add(&bytes).finish(), by_definition(&bytes));
            let (first, second) = bytes.split_at((2 * even).min(bytes.len()));
            prop_assert_eq!(Sum::default().add(second).add(first).finish(), by_definition(&bytes));
        }
    }
}
