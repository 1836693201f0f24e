//! The one-time code: 100 random bits that a person can copy from paper.
//!
//! Five groups of five characters: four of data and one to check them. The 32 characters are digits and capitals without I, L, O and U (Crockford's
//! base 32). The check character is a sum over GF(32) with another factor for each place and another constant for each group: one wrong character, two
//! exchanged neighbours in a group, and two exchanged groups are always found, and the group is named.

use crate::secret::Secret;
use zeroize::Zeroizing;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUPS: usize = 5;
const DATA: usize = 4;

/// A code, as 20 numbers below 32. Wiped on drop.
pub struct EnrolCode(Secret<20>);

/// What was typed is no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// Too few or too many characters.
    #[error("the code has 25 letters and digits; please type it again")]
    Length,
    /// A character that no code has.
    #[error("the code has only letters and digits; please type it again")]
    Character,
    /// The group with this number, from 1, is mistyped.
    #[error("part {0} of the code is not right; please look at it and type the code again")]
    Group(usize),
}

impl EnrolCode {
    /// A new code.
    pub fn random(rng: &mut impl rand_core::CryptoRng) -> Self {
        Self(Secret::fill(|values| {
            rng.fill_bytes(values);
            values.iter_mut().for_each(|value| *value &= 31);
        }))
    }

    /// Reads what a person typed: small letters, blanks and hyphens anywhere; O for 0, I and L for 1.
    ///
    /// # Errors
    /// [`CodeError`]
    pub fn parse(text: &[u8]) -> Result<Self, CodeError> {
        let mut typed = Zeroizing::new(Vec::with_capacity(GROUPS * (DATA + 1)));
        for character in text.iter().filter(|c| !c.is_ascii_whitespace() && **c != b'-') {
            if typed.len() == GROUPS * (DATA + 1) {
                return Err(CodeError::Length);
            }
            typed.push(value(*character).ok_or(CodeError::Character)?);
        }
        let (groups, []) = typed.as_chunks::<{ DATA + 1 }>() else { return Err(CodeError::Length) };
        if groups.len() != GROUPS {
            return Err(CodeError::Length);
        }
        let wrong = (1..).zip(groups).find(|(number, [data @ .., check])| checksum(*number, data) != *check);
        if let Some((number, _)) = wrong {
            return Err(CodeError::Group(usize::from(number)));
        }
        let data = groups.iter().flat_map(|[data @ .., _]| data);
        Ok(Self(Secret::fill(|values| values.iter_mut().zip(data).for_each(|(to, from)| *to = *from))))
    }

    /// For people: `XXXXX-XXXXX-XXXXX-XXXXX-XXXXX`.
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(GROUPS * (DATA + 2)));
        let (groups, _) = self.0.expose().as_chunks::<DATA>();
        for (number, data) in (1..).zip(groups) {
            if number > 1 {
                text.push('-');
            }
            for value in data.iter().chain([&checksum(number, data)]) {
                text.push(char::from(*ALPHABET.get(usize::from(*value)).unwrap_or(&b'0')));
            }
        }
        text
    }

    /// The secret, for the key schedule.
    pub(super) fn secret(&self) -> &Secret<20> {
        &self.0
    }
}

fn value(character: u8) -> Option<u8> {
    let character = match character.to_ascii_uppercase() {
        b'O' => b'0',
        b'I' | b'L' => b'1',
        other => other,
    };
    ALPHABET.iter().position(|known| *known == character).and_then(|at| u8::try_from(at).ok())
}

/// group + sum of x^(place + 1) * value over GF(32) = GF(2)[x] / (x^5 + x^2 + 1).
fn checksum(group: u8, data: &[u8]) -> u8 {
    // Horner's rule, the last place first.
    data.iter().rev().fold(0, |sum, value| times_x(sum ^ value)) ^ group
}

fn times_x(value: u8) -> u8 {
    let doubled = value << 1;
    if doubled & 32 == 0 { doubled } else { doubled ^ 0b10_0101 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(data: [u8; 20]) -> EnrolCode {
        EnrolCode(Secret::fill(|values| values.copy_from_slice(&data)))
    }

    fn data() -> impl Strategy<Value = [u8; 20]> {
        proptest::array::uniform20(0u8..32)
    }

    /// Places of the 25 characters in the text with its hyphens.
    fn place(n: usize) -> usize {
        n + n / 5
    }

    #[test]
    fn a_known_code() {
        let text = code(std::array::from_fn(|i| u8::try_from(i).unwrap())).text();
        assert_eq!(&*text, "01230-4567M-89AB9-CDEFS-GHJKJ");
    }

    proptest! {
        #[test]
        fn codes_go_there_and_back(data in data()) {
            let text = code(data).text();
            prop_assert_eq!(text.len(), 29);
            prop_assert!(EnrolCode::parse(text.as_bytes()).unwrap().0.matches(&data));
            let typed = text.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
            prop_assert!(EnrolCode::parse(typed.as_bytes()).unwrap().0.matches(&data));
        }

        #[test]
        fn one_wrong_character_is_found_and_its_group_named(data in data(), at in 0usize..25, other in 0usize..32) {
            let mut typed = code(data).text().as_bytes().to_vec();
            let other = ALPHABET[other];
            prop_assume!(typed[place(at)] != other);
            typed[place(at)] = other;
            prop_assert_eq!(EnrolCode::parse(&typed).err(), Some(CodeError::Group(at / 5 + 1)));
        }

        #[test]
        fn exchanged_neighbours_are_found(data in data(), group in 0usize..5, at in 0usize..4) {
            let mut typed = code(data).text().as_bytes().to_vec();
            let (one, other) = (place(group * 5 + at), place(group * 5 + at + 1));
            prop_assume!(typed[one] != typed[other]);
            typed.swap(one, other);
            prop_assert_eq!(EnrolCode::parse(&typed).err(), Some(CodeError::Group(group + 1)));
        }

        #[test]
        fn exchanged_groups_are_found(data in data(), one in 0usize..5, other in 0usize..5) {
            prop_assume!(one != other);
            let text = code(data).text();
            let mut groups: Vec<&str> = text.split('-').collect();
            groups.swap(one, other);
            prop_assert!(EnrolCode::parse(groups.concat().as_bytes()).is_err());
        }

        #[test]
        fn anything_else_is_refused_without_a_panic(typed in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = EnrolCode::parse(&typed);
        }
    }

    #[test]
    fn lengths_and_characters_are_checked() {
        for (typed, error) in [
            ("", CodeError::Length),
            ("01230-4567M-89AB9-CDEFS", CodeError::Length),
            ("01230-4567M-89AB9-CDEFS-GHJKJ-0", CodeError::Length),
            ("01230-4567M-89AB9-CDEFS-GHJK", CodeError::Length),
            ("01230-4567M-89AB9-CDEFS-GHJKU", CodeError::Character),
            ("01230-4567M-89AB9-CDEFS-GHJK\u{e4}", CodeError::Character),
        ] {
            assert_eq!(EnrolCode::parse(typed.as_bytes()).err(), Some(error), "{typed}");
        }
    }
}
