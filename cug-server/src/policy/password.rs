//! What a password must be like.

use cug_proto::{id::UserId, secret::SecretBytes};

/// Fewest characters.
const SHORTEST: usize = 8;
/// Most bytes.
const LONGEST: usize = 512;

/// The rule that a password breaks. One sentence for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// Too few characters.
    #[error("the password needs at least {SHORTEST} characters")]
    TooShort,
    /// Too many bytes.
    #[error("the password is longer than {LONGEST} bytes")]
    TooLong,
    /// Not UTF-8, or a control character.
    #[error("the password has a character in it that cannot be used")]
    Character,
    /// The user ID.
    #[error("the password must not be the user ID")]
    UserId,
}

/// May `user` have this password?
///
/// # Errors
/// The first rule that it breaks.
pub fn check(user: &UserId, password: &SecretBytes) -> Result<(), Rule> {
    let text = std::str::from_utf8(password.expose()).map_err(|_| Rule::Character)?;
    if text.chars().any(char::is_control) {
        Err(Rule::Character)
    } else if text.chars().count() < SHORTEST {
        Err(Rule::TooShort)
    } else if text.len() > LONGEST {
        Err(Rule::TooLong)
    } else if text.eq_ignore_ascii_case(user.as_str()) {
        Err(Rule::UserId)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let user: UserId = "first.last".parse().unwrap();
        let check = |text: &[u8]| check(&user, &SecretBytes::copy_from(text).unwrap());
        assert_eq!(check("passwörter".as_bytes()), Ok(()));
        for (text, rule) in [
            (&b"1234567"[..], Rule::TooShort),
            ("äöüäöüä".as_bytes(), Rule::TooShort),
            (b"12345678\n", Rule::Character),
            (b"12345678\xff", Rule::Character),
            (b"First.Last", Rule::UserId),
            (&[b'x'; 513], Rule::TooLong),
        ] {
            assert_eq!(check(text), Err(rule), "{text:?}");
        }
    }
}
