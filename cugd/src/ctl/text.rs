//! Figures and words for people.

/// A span of time.
pub(super) fn age(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

/// Text that came from elsewhere, for one line of a terminal or of a notification.
pub(super) fn plain(text: &str) -> String {
    const MAX: usize = 200;
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX).collect()
}

/// `19:03:59Z`, from seconds since 1970.
pub(super) fn time_of_day(seconds: u64) -> String {
    let day = seconds % 86_400;
    format!("{:02}:{:02}:{:02}Z", day / 3600, day / 60 % 60, day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_fit_into_a_line() {
        assert_eq!(
            (age(999), age(119_999), age(120_000), age(7_200_000)),
            ("999 ms".into(), "119 s".into(), "2 min".into(), "2 h".into())
        );
        assert_eq!(plain("a\x1b[2J\nb"), "a [2J b");
        assert_eq!(plain(&"x".repeat(900)).len(), 200);
        assert_eq!(time_of_day(86_399 + 86_400 * 20_000), "23:59:59Z");
    }
}
