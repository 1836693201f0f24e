//! BER-TLV as far as PIV uses it (SP 800-73-4 part 1, ISO 7816-4 section 5.2.2): tags of one or two bytes, definite lengths up to 65,535.

/// Bytes that are no BER-TLV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTlv;

/// Takes the first element off `input`: its tag, its value, what follows.
///
/// # Errors
/// [`NotTlv`] when the bytes end early, or for longer tags, longer or indefinite lengths.
pub fn split(input: &[u8]) -> Result<(u16, &[u8], &[u8]), NotTlv> {
    let (&first, rest) = input.split_first().ok_or(NotTlv)?;
    let (tag, rest) = if first & 0x1F == 0x1F {
        let (&second, rest) = rest.split_first().ok_or(NotTlv)?;
        if second & 0x80 != 0 {
            return Err(NotTlv);
        }
        (u16::from_be_bytes([first, second]), rest)
    } else {
        (u16::from(first), rest)
    };
    let (length, rest) = split_length(rest)?;
    let (value, rest) = rest.split_at_checked(length).ok_or(NotTlv)?;
    Ok((tag, value, rest))
}

fn split_length(input: &[u8]) -> Result<(usize, &[u8]), NotTlv> {
    match *input {
        [short @ 0..=0x7F, ref rest @ ..] => Ok((usize::from(short), rest)),
        [0x81, length, ref rest @ ..] => Ok((usize::from(length), rest)),
        [0x82, high, low, ref rest @ ..] => Ok((usize::from(u16::from_be_bytes([high, low])), rest)),
        _ => Err(NotTlv),
    }
}

/// The value of the first element with this tag, at this level.
///
/// # Errors
/// [`NotTlv`] when there is none, or the bytes before it are no TLV.
pub fn find(mut input: &[u8], wanted: u16) -> Result<&[u8], NotTlv> {
    loop {
        let (tag, value, rest) = split(input)?;
        if tag == wanted {
            return Ok(value);
        }
        input = rest;
    }
}

/// How many bytes [`push`] adds for a value of this length.
pub fn encoded_len(tag: u16, value: usize) -> usize {
    let tag = if tag > 0xFF { 2 } else { 1 };
    let length = match value {
        0..=0x7F => 1,
        0x80..=0xFF => 2,
        _ => 3,
    };
    tag + length + value
}

/// Appends tag and length; the value (at most 65,535 bytes) is for the caller to append.
pub fn push_header(out: &mut Vec<u8>, tag: u16, length: usize) {
    let [high, low] = tag.to_be_bytes();
    if high != 0 {
        out.push(high);
    }
    out.push(low);
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    match length {
        0..=0x7F => out.push(low),
        0x80..=0xFF => out.extend_from_slice(&[0x81, low]),
        _ => out.extend_from_slice(&[0x82, high, low]),
    }
}

/// Appends an element. With capacity reserved (see [`encoded_len`]) nothing is reallocated, so secrets leave no copies.
pub fn push(out: &mut Vec<u8>, tag: u16, value: &[u8]) {
    push_header(out, tag, value.len());
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_tlv_is_refused() {
        for bad in [
            &[][..],
            &[0x53],
            &[0x53, 2, 1],
            &[0x53, 0x80],
            &[0x53, 0x83, 0, 0, 1, 9],
            &[0x7F],
            &[0x7F, 0x80, 0],
            &[0x53, 0x82, 1],
        ] {
            assert_eq!(split(bad), Err(NotTlv), "{bad:02X?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(tag in prop_oneof![Just(0x53u16), Just(0x7F49), Just(0x81)], value in proptest::collection::vec(any::<u8>(), 0..700), tail in proptest::collection::vec(any::<u8>(), 0..5)) {
            let mut bytes = Vec::new();
            push(&mut bytes, tag, &value);
            prop_assert_eq!(bytes.len(), encoded_len(tag, value.len()));
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(split(&bytes), Ok((tag, value.as_slice(), tail.as_slice())));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), tag in any::<u16>()) {
            if let Ok((_, value, rest)) = split(&bytes) {
                prop_assert!(value.len() + rest.len() < bytes.len());
            }
            let _ = find(&bytes, tag);
        }
    }
}
