//! BER-TLV with tags of one to three bytes.

/// Appends tag, length and value.
pub fn push(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    let tag = tag.to_be_bytes();
    let start = tag.iter().position(|&byte| byte != 0).unwrap_or(3);
    out.extend_from_slice(&tag[start..]);
    match value.len() {
        n @ 0..=0x7F => out.push(n as u8),
        n @ 0x80..=0xFF => out.extend_from_slice(&[0x81, n as u8]),
        n => out.extend_from_slice(&[0x82, (n >> 8) as u8, n as u8]),
    }
    out.extend_from_slice(value);
}

/// Tag, length and value as a new vector.
pub fn make(tag: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 6);
    push(&mut out, tag, value);
    out
}

/// The first element: its tag, its value and what follows it.
pub fn next(data: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (&first, mut rest) = data.split_first()?;
    let mut tag = u32::from(first);
    if first & 0x1F == 0x1F {
        loop {
            let (&byte, after) = rest.split_first()?;
            rest = after;
            tag = tag.checked_mul(256)? | u32::from(byte);
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7F => (usize::from(length), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7F))?;
            (bytes.iter().fold(0, |n, &byte| n << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    Some((tag, value, rest))
}

/// The value of the first element with this tag.
pub fn find(mut data: &[u8], tag: u32) -> Option<&[u8]> {
    while let Some((found, value, rest)) = next(data) {
        if found == tag {
            return Some(value);
        }
        data = rest;
    }
    None
}

/// The value of a tag whose length is encoded simply, as in Yubico's key import (its tags are not BER classes).
pub fn all(mut data: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    let mut elements = Vec::new();
    while !data.is_empty() {
        let (tag, value, rest) = next(data)?;
        elements.push((tag, value));
        data = rest;
    }
    Some(elements)
}
