//! The rules for a new password, after NIST SP 800-63B: length, a list of common ones, not the user ID; nothing about kinds of characters.

use cug_proto::{
    id::UserId,
    password::{MAX_PASSWORD, PasswordProblem},
};

/// What a new password must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordRules {
    /// Fewest characters (Unicode scalar values).
    pub min_length: u32,
    /// Refuse common passwords and easy patterns.
    pub blocklist: bool,
}

/// Lower case, one a line, sorted. Most are what is left of a password when digits and punctuation around it are taken off.
const COMMON: &str = include_str!("common-passwords.txt");

/// More characters than these around a common word may be what makes a password a good one.
const DECORATION: usize = 6;

/// Shortest user ID that must not be part of a password: a shorter one is in too many words.
const USER_ID: usize = 3;

/// Rows along which people type. Either direction counts.
const ROWS: [&str; 6] =
    ["abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm"];

impl PasswordRules {
    /// May this be the user's password?
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, user: &UserId, password: &[u8]) -> Result<(), PasswordProblem> {
        if password.len() > MAX_PASSWORD {
            return Err(PasswordProblem::TooLong(u32::try_from(MAX_PASSWORD).unwrap_or(u32::MAX)));
        }
        let text = std::str::from_utf8(password).map_err(|_| PasswordProblem::NotText)?;
        if text.chars().any(char::is_control) {
            return Err(PasswordProblem::NotText);
        }
        if text.chars().count() < usize::try_from(self.min_length).unwrap_or(usize::MAX) {
            return Err(PasswordProblem::TooShort(self.min_length));
        }
        let lower = Lower::of(text);
        let id = Lower::of(user.as_str());
        if lower.0 == id.0 || (id.0.len() >= USER_ID && lower.text().contains(&*id.text())) {
            return Err(PasswordProblem::UserId);
        }
        if self.blocklist && is_common(&lower) {
            return Err(PasswordProblem::Common);
        }
        Ok(())
    }
}

/// A password in lower case, wiped on drop.
struct Lower(zeroize::Zeroizing<Vec<char>>);

impl Lower {
    fn of(text: &str) -> Self {
        // Room for the worst case, so that nothing is left behind by growing: one character may become three.
        let mut chars = zeroize::Zeroizing::new(Vec::with_capacity(text.len() * 3));
        chars.extend(text.chars().flat_map(char::to_lowercase));
        Self(chars)
    }

    fn text(&self) -> zeroize::Zeroizing<String> {
        text_of(&self.0)
    }
}

fn text_of(chars: &[char]) -> zeroize::Zeroizing<String> {
    let mut text = zeroize::Zeroizing::new(String::with_capacity(chars.len() * 4));
    text.extend(chars);
    text
}

fn is_common(password: &Lower) -> bool {
    is_listed(&password.0) || is_decorated(&password.0) || is_pattern(&password.0)
}

fn is_listed(chars: &[char]) -> bool {
    let text = text_of(chars);
    COMMON.lines().any(|common| common == text.as_str())
}

/// A common word, perhaps with letters written as signs, with a few digits or signs around it.
fn is_decorated(chars: &[char]) -> bool {
    let plain = zeroize::Zeroizing::new(chars.iter().map(|c| letter_for(*c)).collect::<Vec<_>>());
    [chars, &plain].into_iter().any(|chars| {
        let begin = chars.iter().position(|c| c.is_alphabetic()).unwrap_or(chars.len());
        let end = chars.iter().rposition(|c| c.is_alphabetic()).map_or(begin, |last| last + 1);
        let core = chars.get(begin..end).unwrap_or_default();
        !core.is_empty() && chars.len() - core.len() <= DECORATION && (is_listed(core) || ends_decorated(chars))
    })
}

/// The same where the digits at the end would be read as letters (`p@ssw0rd01`): only what comes before them counts.
fn ends_decorated(chars: &[char]) -> bool {
    let end = chars.iter().rposition(|c| c.is_alphabetic()).map_or(0, |last| last + 1);
    let core = chars.get(..end).unwrap_or_default();
    let plain = zeroize::Zeroizing::new(core.iter().map(|c| letter_for(*c)).collect::<Vec<_>>());
    is_listed(&plain)
}

fn letter_for(sign: char) -> char {
    match sign {
        '@' | '4' => 'a',
        '0' => 'o',
        '1' | '!' => 'i',
        '3' => 'e',
        '$' | '5' => 's',
        '7' => 't',
        other => other,
    }
}

/// One short piece again and again, or nothing but runs along a row of the keyboard or of the alphabet.
fn is_pattern(chars: &[char]) -> bool {
    let repeats = |piece: usize| chars.len() > piece && chars.iter().zip(chars.iter().skip(piece)).all(|(a, b)| a == b);
    (1..=4).any(repeats) || only_runs(chars)
}

fn only_runs(mut chars: &[char]) -> bool {
    while !chars.is_empty() {
        let steps = chars.windows(2).take_while(|pair| matches!(pair, [a, b] if a == b || neighbours(*a, *b))).count();
        if steps < 2 {
            return false;
        }
        chars = chars.get(steps + 1..).unwrap_or_default();
    }
    true
}

fn neighbours(a: char, b: char) -> bool {
    ROWS.iter().any(|row| row.chars().zip(row.chars().skip(1)).any(|(x, y)| (x, y) == (a, b) || (y, x) == (a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: PasswordRules = PasswordRules { min_length: 8, blocklist: true };

    fn check(password: &str) -> Result<(), PasswordProblem> {
        RULES.check(&"USER-A".parse().unwrap(), password.as_bytes())
    }

    #[test]
    fn each_rule_has_its_answer() {
        assert_eq!(check("seven77"), Err(PasswordProblem::TooShort(8)));
        assert_eq!(check("sieben\u{e4}"), Err(PasswordProblem::TooShort(8)), "characters count, not bytes");
        assert_eq!(check(&"x-y ".repeat(300)), Err(PasswordProblem::TooLong(1024)));
        assert_eq!(check("tab\there it is"), Err(PasswordProblem::NotText));
        assert_eq!(
            RULES.check(&"USER-A".parse().unwrap(), b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"),
            Err(PasswordProblem::NotText)
        );
        assert_eq!(check("my-user-a-password-9"), Err(PasswordProblem::UserId));
        let ab = "ab".parse().unwrap();
        assert_eq!(RULES.check(&ab, b"rabbits in the rain"), Ok(()), "a short user ID is part of many words");
        assert_eq!(PasswordRules { min_length: 0, ..RULES }.check(&ab, b"AB"), Err(PasswordProblem::UserId));
    }

    #[test]
    fn common_ones_are_refused_however_they_are_dressed_up() {
        for common in [
            "password",
            "Password",
            "P@ssw0rd",
            "Password123!",
            "p@ssw0rd01",
            "12345678",
            "87654321",
            "aaaaaaaa",
            "abababab",
            "abcabcabc",
            "qwertyuiop",
            "qwertz123",
            "asdfghjkl",
            "abcdefgh",
            "abc12345678",
            "Summer2026",
            "!!welcome!!",
            "iloveyou1",
            "1q2w3e4r",
            "letmein2026",
            "administrator",
            "trustno1234",
        ] {
            assert_eq!(check(common), Err(PasswordProblem::Common), "{common}");
        }
        assert_eq!(PasswordRules { blocklist: false, ..RULES }.check(&"x".parse().unwrap(), b"password"), Ok(()));
    }

    #[test]
    fn good_ones_pass() {
        for good in [
            "correct horse",
            "mirror-canoe",
            "W8#kd02mZq",
            "dragon84719236471",
            "пять зелёных чашек",
            "summer rain in ward 7",
            " leading blank",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn the_list_is_sorted_lower_case_and_unique() {
        let lines: Vec<_> = COMMON.lines().collect();
        assert!(lines.len() > 300 && lines.is_sorted() && lines.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(lines.iter().all(|line| line.to_lowercase() == **line && !line.is_empty()));
    }

    proptest! {
        #[test]
        fn no_input_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let _verdict = RULES.check(&"USER-A".parse().unwrap(), &bytes);
        }

        #[test]
        fn whatever_passes_is_long_enough_text(text in "\\PC{0,40}") {
            if check(&text).is_ok() {
                prop_assert!(text.chars().count() >= 8);
            }
        }
    }
}
