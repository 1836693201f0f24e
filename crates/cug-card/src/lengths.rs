//! Whether a card and its reader take extended lengths: pure functions of what they say about themselves.

/// PC/SC part 10: asks a reader for its features.
pub const FEATURE_REQUEST: u32 = 3400;
/// PC/SC part 10, table 2: the feature that tells a reader's properties (FEATURE_GET_TLV_PROPERTIES).
const FEATURE_PROPERTIES: u8 = 0x12;
/// PC/SC part 10, section 2.6.14: the property "longest APDU data" (dwMaxAPDUDataSize).
const PROPERTY_APDU_DATA: u8 = 0x0A;

/// The card capabilities in an answer to reset have "extended Lc and Le fields" (ISO 7816-4, third software function table). Without them, or
/// for bytes that are no answer to reset: no.
pub fn card_takes_extended(atr: &[u8]) -> bool {
    historical(atr).and_then(capabilities).is_some_and(|table| table & 0x40 != 0)
}

/// The historical bytes (ISO 7816-3 section 8.2): after TS, T0 and the interface bytes that T0 and each TD announce.
fn historical(atr: &[u8]) -> Option<&[u8]> {
    let (format, mut rest) = atr.get(1..)?.split_first()?;
    let count = usize::from(format & 0x0F);
    let mut announced = format >> 4;
    while announced != 0 {
        // TA, TB, TC, and TD, which announces the next ones.
        let (present, continues) = (announced.count_ones(), announced & 0x08 != 0);
        let (bytes, after) = rest.split_at_checked(usize::try_from(present).ok()?)?;
        announced = if continues { bytes.last()? >> 4 } else { 0 };
        rest = after;
    }
    rest.get(..count)
}

/// The third table of the card capabilities: compact TLV with tag 7, in historical bytes of category 00 or 80 (ISO 7816-4, 12.1.1). Category 00
/// ends with three bytes of status.
fn capabilities(historical: &[u8]) -> Option<u8> {
    let mut rest = match historical {
        [0x80, rest @ ..] => rest,
        [0x00, rest @ .., _, _, _] => rest,
        _ => return None,
    };
    while let [header, after @ ..] = rest {
        let (value, next) = after.split_at_checked(usize::from(header & 0x0F))?;
        if header >> 4 == 7 {
            return value.get(2).copied();
        }
        rest = next;
    }
    None
}

/// The control code of the feature that tells the reader's properties, from its list of features.
pub fn properties_code(features: &[u8]) -> Option<u32> {
    find(features, FEATURE_PROPERTIES).map(u32::from_be_bytes)
}

/// The reader carries commands and answers of any length, by its properties. A reader that says nothing does not.
pub fn reader_takes_extended(properties: &[u8]) -> bool {
    // Numbers of properties have their least significant byte first, unlike those of features.
    find(properties, PROPERTY_APDU_DATA).map(u32::from_le_bytes).is_some_and(|longest| longest >= u16::MAX.into())
}

/// The four bytes after a tag, in a list of tag, length and value.
fn find(list: &[u8], wanted: u8) -> Option<[u8; 4]> {
    let mut rest = list;
    while let [tag, length, after @ ..] = rest {
        let (value, next) = after.split_at_checked(usize::from(*length))?;
        if *tag == wanted {
            return value.try_into().ok();
        }
        rest = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of a card with these interface bytes (the first is T0's high half) and historical bytes.
    fn atr(interface: &[u8], historical: &[u8]) -> Vec<u8> {
        let (first, rest) = interface.split_first().unwrap();
        [&[0x3B, first << 4 | u8::try_from(historical.len()).unwrap()], rest, historical, &[0x55]].concat()
    }

    #[test]
    fn cards_say_what_they_take() {
        // The answer to reset of a widespread token: T=1, category 80, capabilities C0 21 C0, then the maker's name.
        let token = [
            0x3B, 0xFD, 0x13, 0x00, 0x00, 0x81, 0x31, 0xFE, 0x15, 0x80, 0x73, 0xC0, 0x21, 0xC0, 0x57, 0x59, 0x75, 0x62,
            0x69, 0x4B, 0x65, 0x79, 0x40,
        ];
        assert!(card_takes_extended(&token));
        let with = |table: u8| atr(&[8, 0x01], &[0x80, 0x31, 0x80, 0x73, 0xC0, 0x21, table, 0x41, 9]);
        assert!(card_takes_extended(&with(0x40)) && card_takes_extended(&with(0xC0)));
        assert!(!card_takes_extended(&with(0x80)) && !card_takes_extended(&with(0x3F)));
        // Status bytes at the end of category 00 are none of the list.
        assert!(card_takes_extended(&atr(&[0], &[0x00, 0x73, 0, 0, 0x40, 5, 0x90, 0x00])));
        assert!(!card_takes_extended(&atr(&[0], &[0x00, 0x73, 0, 0, 0x90, 0x40, 0x00])));
        // Other categories, capabilities without a third table, and cards that say nothing.
        assert!(!card_takes_extended(&atr(&[0], &[0x10, 0x73, 0, 0, 0x40])));
        assert!(!card_takes_extended(&atr(&[0], &[0x80, 0x72, 0x40, 0x40])));
        assert!(!card_takes_extended(&atr(&[0], b"CUG NK PIV")));
        assert!(!card_takes_extended(&[0x3B]) && !card_takes_extended(&[]));
    }

    #[test]
    fn readers_say_what_they_carry() {
        assert_eq!(properties_code(&[0x06, 4, 0, 0, 0, 1, 0x12, 4, 0x42, 0x33, 0, 0x12]), Some(0x4233_0012));
        assert_eq!(properties_code(&[0x06, 4, 0x12, 4, 1, 2]), None);
        let carries = |bytes: [u8; 4]| reader_takes_extended(&[&[0x09, 1, 0, 0x0A, 4][..], &bytes].concat());
        assert!(carries([0, 0, 1, 0]) && carries([0xFF, 0xFF, 0, 0]));
        // Short APDUs only (0), and 256 bytes, which would be 65,536 if read the wrong way round.
        assert!(!carries([0, 0, 0, 0]) && !carries([0, 1, 0, 0]));
        assert!(!reader_takes_extended(&[0x0A, 2, 0xFF, 0xFF]) && !reader_takes_extended(&[0x0A, 4, 0]));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (card_takes_extended(&bytes), properties_code(&bytes), reader_takes_extended(&bytes));
        }
    }
}
