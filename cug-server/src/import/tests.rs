use super::*;
use crate::store::DirectoryUser;
use proptest::prelude::*;

fn problems(format: Format, content: &[u8]) -> Vec<(u64, String)> {
    parse(format, content).unwrap_err().into_iter().map(|p| (p.line, p.problem)).collect()
}

#[test]
fn both_forms_say_the_same() {
    let csv = "\u{feff}user,groups,disabled,expires,hours\r\nUSER-A,VPN1;VPN2,,,\r\n\r\n\"USER-B\",VPN1,yes,2031-12-31,Mon-Fri 07:00-19:00; Sat 08:00-12:00 in Europe/Berlin\nUSER-C,,no,never,always\n";
    let json = r#"{"users": [{"user": "USER-A", "groups": ["VPN1", "VPN2"]},
        {"user": "USER-B", "groups": ["VPN1"], "disabled": true, "cards": ["00"], "expires": "2032-01-01T00:00:00Z", "hours": "Mon-Fri 07:00-19:00; Sat 08:00-12:00 in Europe/Berlin"},
        {"user": "USER-C"}]}"#;
    let (csv, json) = (parse(Format::Csv, csv.as_bytes()).unwrap(), parse(Format::Json, json.as_bytes()).unwrap());
    let flat = |d: &Directory| d.users.iter().map(|u| DirectoryUser { line: 0, ..u.clone() }).collect::<Vec<_>>();
    assert_eq!(flat(&csv), flat(&json));
    let [a, b, c] = csv.users.as_slice() else { panic!("{csv:?}") };
    assert_eq!((&a.settings, &c.settings), (&UserSettings::default(), &UserSettings::default()));
    assert_eq!(b.settings.expires, Some(clock::day("2032-01-01")));
    let hours = b.settings.hours.clone().flatten().expect("hours");
    assert_eq!(hours.to_string(), "Mon-Fri 07:00-19:00; Sat 08:00-12:00 in Europe/Berlin");
    assert_eq!(csv.users.iter().map(|u| u.line).collect::<Vec<_>>(), [2, 4, 5]);
    assert_eq!(json.users.iter().map(|u| u.line).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn every_bad_line_is_named() {
    let csv = "user,groups\na b,VPN1\nok,VPN1\nok,VPN1\n-x,bad.name\nlong,VPN1,more\nu,VPN1;VPN1\n\"open,";
    let found = problems(Format::Csv, csv.as_bytes());
    let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [2, 4, 5, 5, 6, 7, 8], "{found:?}");
    assert!(found[1].1.contains("line 3"), "{found:?}");
    let csv =
        "user,expires,hours\nA,2031-02-30,\nB,,Mon 7\nC,tomorrow,Someday 07:00-08:00\nD,2031-02-28,Mon 07:00-08:00\n";
    let found = problems(Format::Csv, csv.as_bytes());
    assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 4], "{found:?}");
    let json = "{\"users\": [\n{\"user\": \"a b\"},\n{\"user\": 7},\n{\"user\": \"x\", \"grups\": []},\n{\"user\": \"ok\"}\n],\n\"groups\": [\n{\"group\": \"a.b\"}]}";
    let found = problems(Format::Json, json.as_bytes());
    assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 8], "{found:?}");
}

#[test]
fn what_is_no_directory_gets_a_sentence() {
    for (format, content) in [
        (Format::Csv, "".as_bytes()),
        (Format::Csv, b"name\nx\n"),
        (Format::Csv, b"user,user\nx,y\n"),
        (Format::Csv, b"user\n"),
        (Format::Csv, b"user\nx\xff\n"),
        (Format::Csv, b"user\nx\x1b[2J\n"),
        (Format::Json, b""),
        (Format::Json, b"[]"),
        (Format::Json, b"{}"),
        (Format::Json, b"{\"users\": [{\"user\": \"x\"}"),
        (Format::Json, b"{\"passwords\": []}"),
    ] {
        let found = problems(format, content);
        assert!(!found.is_empty(), "{content:?}");
        assert!(found.iter().all(|(_, s)| !s.contains('\u{1b}')), "{found:?}");
    }
}

proptest! {
    #[test]
    fn no_content_makes_it_stumble(content in proptest::collection::vec(any::<u8>(), 0..200), json in any::<bool>()) {
        let format = if json { Format::Json } else { Format::Csv };
        let _any = parse(format, &content);
        let _any = parse(format, &[b"user,groups\n".as_slice(), &content].concat());
    }
}
