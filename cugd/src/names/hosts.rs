//! Our lines in /etc/hosts. Pure: from the file's bytes to the file's bytes; [`super::replace`] reads and writes.
//!
//! ```text
//! # Members of closed user groups, kept by cugd while they are logged in
//! 100.96.16.2<TAB>user-b.vpn1.cug<TAB># cugd cug0123456789
//! # End of cugd's lines
//! ```
//! Each line of ours is known by itself, so nothing of anybody else's is lost, wherever an editor has put it. All other bytes stay as they are: also
//! a last line without an end, which the first line of ours then remembers.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr};

use super::zone::Table;
use crate::tunnel::InterfaceName;

const BEGIN: &str = "# Members of closed user groups, kept by cugd while they are logged in";
/// The same after a line that had no end.
const BEGIN_UNENDED: &str =
    "# Members of closed user groups, kept by cugd while they are logged in (the line above had no end)";
const END: &str = "# End of cugd's lines";
/// What the end of each line with a name begins with; the interface follows.
const MARK: &str = "\t# cugd ";

/// `content` with our lines as `table` wants them, at the end; with none of ours when it is empty.
pub fn with(content: &[u8], table: &Table) -> Vec<u8> {
    let mut text = without(content);
    if table.is_empty() {
        return text;
    }
    let unended = text.last().is_some_and(|last| *last != b'\n');
    let mut ours = String::new();
    if unended {
        ours.push('\n');
    }
    let _infallible = writeln!(ours, "{}", if unended { BEGIN_UNENDED } else { BEGIN });
    for (name, (four, six, interface)) in table {
        for address in [IpAddr::V4(*four), IpAddr::V6(*six)] {
            let _infallible = writeln!(ours, "{address}\t{name}{MARK}{}", interface.as_str());
        }
    }
    let _infallible = writeln!(ours, "{END}");
    text.extend_from_slice(ours.as_bytes());
    text
}

/// `content` with no line of ours.
fn without(content: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        if bare == BEGIN_UNENDED.as_bytes() {
            if text.last() == Some(&b'\n') {
                text.pop();
            }
        } else if bare != BEGIN.as_bytes() && bare != END.as_bytes() && interface_of(bare).is_none() {
            if text.last().is_some_and(|last| *last != b'\n') {
                // Somebody wrote below our lines: the line that had no end needs one now.
                text.push(b'\n');
            }
            text.extend_from_slice(line);
        }
    }
    text
}

/// The interfaces that our lines name.
pub fn interfaces(content: &[u8]) -> BTreeSet<InterfaceName> {
    content.split(|byte| *byte == b'\n').filter_map(interface_of).collect()
}

fn interface_of(line: &[u8]) -> Option<InterfaceName> {
    let line = std::str::from_utf8(line).ok()?;
    line.rsplit_once(MARK)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn table<'a>(names: &'a [&'a str], interface: &'a InterfaceName) -> Table<'a> {
        names
            .iter()
            .map(|name| (*name, (Ipv4Addr::new(100, 96, 0, 2), "fd00::2".parse().unwrap(), interface)))
            .collect()
    }

    #[test]
    fn lines_come_change_and_go() {
        let interface: InterfaceName = "cug0123456789".parse().unwrap();
        let before = b"127.0.0.1 localhost\n\n# mine\n";
        let one = with(before, &table(&["user-b.vpn1.cug"], &interface));
        assert!(String::from_utf8_lossy(&one).contains("\nfd00::2\tuser-b.vpn1.cug\t# cugd cug0123456789\n"));
        assert_eq!(interfaces(&one), [interface.clone()].into());
        let other = with(&one, &table(&["user-c.vpn1.cug"], &interface));
        assert!(!String::from_utf8_lossy(&other).contains("user-b"));
        assert_eq!(with(&other, &Table::new()), before);
        // What somebody writes between our lines stays.
        let edited = String::from_utf8(one).unwrap().replace(BEGIN, &format!("{BEGIN}\n10.0.0.1 printer"));
        assert_eq!(with(edited.as_bytes(), &Table::new()), [before.as_slice(), b"10.0.0.1 printer\n"].concat());
        // And so does what only looks like ours.
        let alike = b"10.0.0.1 x\t# cugd notours\n # End of cugd's lines\n";
        assert_eq!(with(alike, &Table::new()), alike);
    }

    #[test]
    fn somebody_writes_below_an_unended_file() {
        let interface: InterfaceName = "cug0123456789".parse().unwrap();
        let mut text = with(b"10.0.0.1 a", &table(&["b"], &interface));
        text.extend_from_slice(b"10.0.0.2 c\n");
        assert_eq!(with(&text, &Table::new()), b"10.0.0.1 a\n10.0.0.2 c\n");
    }

    proptest! {
        /// Whatever the file held: it is there with our lines, and unchanged without them.
        #[test]
        fn the_rest_stays_byte_for_byte(lines in proptest::collection::vec("[ -~\r\t]{0,20}", 0..6), end in "\n?", first in 0usize..3, second in 0usize..3) {
            let interface: InterfaceName = "cug0123456789".parse().unwrap();
            let before = (lines.join("\n") + &end).into_bytes();
            let names = ["a.vpn1.cug", "b.vpn1.cug", "c.vpn1.cug"];
            let once = with(&before, &table(&names[..first], &interface));
            prop_assert!(once.starts_with(&before));
            let twice = with(&once, &table(&names[..second], &interface));
            prop_assert!(twice.starts_with(&before));
            prop_assert_eq!(with(&twice, &Table::new()), before);
        }
    }
}
