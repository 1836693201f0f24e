//! Text that is safe to show on an administrator's terminal, and as wide as it looks.

use std::{borrow::Cow, fmt::Write};
use unicode_width::UnicodeWidthChar;

/// The text with everything made visible that would not show as itself: control characters (escape sequences begin with one), and
/// characters that change the direction of what follows or have no width. Names come from terminals and other people.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(hides) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if hides(c) => {
                let _always_fits = write!(shown, "{}", c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// The same for text of several lines.
pub(super) fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

fn hides(c: char) -> bool {
    // Combining marks have no width of their own and are part of many scripts: they stay.
    let format = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    c.is_control() || format
}

/// Columns that the text takes on a terminal.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let visible = |row: [String; N]| row.map(|cell| printable(&cell).into_owned());
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).map(visible).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = width(cell).max(*widest);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, to)| format!("{cell}{}", " ".repeat(to - width(cell))));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Names and values, one to a line.
pub(super) fn list(entries: &[(&str, String)]) -> String {
    let widest = entries.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    let line =
        |(name, value): &(&str, String)| format!("{name}:{}  {}\n", " ".repeat(widest - width(name)), printable(value));
    entries.iter().map(line).collect()
}

/// `2026-01-31 23:59` of an RFC 3339 time, for people; the column says that it is UTC.
pub(super) fn minute(time: &str) -> String {
    time.get(..16).unwrap_or(time).replace('T', " ")
}

/// `01-31 23:59` of an RFC 3339 time, for what is not old; the column says that it is UTC.
pub(super) fn recent(time: &str) -> String {
    time.get(5..16).unwrap_or(time).replace('T', " ")
}

/// `2026-01-31` of an RFC 3339 time.
pub(super) fn day(time: &str) -> String {
    time.get(..10).unwrap_or(time).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let rows = [["USER-A", "1"], ["B", "22"], ["Zoë", "3"], ["病院", "4"], ["e\u{301}", "5"]];
        assert_eq!(
            table(["USER", "N"], rows.into_iter().map(|row| row.map(str::to_owned))),
            "USER    N\nUSER-A  1\nB       22\nZoë     3\n病院    4\ne\u{301}       5\n"
        );
    }

    #[test]
    fn nothing_hides_and_nothing_acts() {
        assert_eq!(printable("\u{1b}[31mred\u{7}\0"), "\\u{1b}[31mred\\u{7}\\u{0}");
        assert_eq!(printable("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
        assert_eq!(printable_lines("a\nb\r\nc"), "a\nb\\u{d}\nc");
        assert!(matches!(printable("Krankenhaus Süd 病院"), Cow::Borrowed(_)));
        let hostile = table(["A\u{1b}"], [["x\ny".to_owned()]].into_iter());
        assert_eq!(hostile, "A\\u{1b}\nx\\u{a}y\n");
    }

    #[test]
    fn times_are_short_for_people() {
        assert_eq!(
            (minute("2026-01-31T23:59:58Z"), day("2026-01-31T23:59:58Z")),
            ("2026-01-31 23:59".into(), "2026-01-31".into())
        );
        assert_eq!(minute("-"), "-");
    }
}
