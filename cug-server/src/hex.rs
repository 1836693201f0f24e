//! Hexadecimal digits, as fingerprints, session numbers and key names are written for people.

/// Two lower-case digits for each byte.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly `N` bytes, from digits of either case; `None` for anything else.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |d: &u8| char::from(*d).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Vec<u8> =
        pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_go_there_and_back() {
        assert_eq!(decode::<2>("00fF"), Some([0, 255]));
        assert_eq!(decode::<2>(&encode(&[18, 171])), Some([18, 171]));
        for bad in ["", "0", "00f", "00fg", "00ff00"] {
            assert_eq!(decode::<2>(bad), None, "{bad}");
        }
    }
}
