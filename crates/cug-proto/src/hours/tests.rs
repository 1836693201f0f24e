use super::*;
use proptest::prelude::*;

fn hours(text: &str) -> Hours {
    text.parse().unwrap()
}

/// `Mon 07:00`.
fn at(text: &str) -> Moment {
    let (day, time) = text.split_once(' ').unwrap();
    let (hour, minute) = time.split_once(':').unwrap();
    let weekday = Weekday::all().find(|d| d.short() == day).unwrap();
    Moment { weekday, minute: hour.parse::<u16>().unwrap() * 60 + minute.parse::<u16>().unwrap() }
}

#[test]
fn a_span_is_from_its_first_minute_to_before_its_end_on_its_days() {
    let hours = hours("Mon-Fri 07:00-19:00; Sat 08:00-12:00");
    for inside in ["Mon 07:00", "Fri 18:59", "Sat 08:00", "Sat 11:59"] {
        assert!(hours.permits(at(inside)), "{inside}");
    }
    for outside in ["Mon 06:59", "Fri 19:00", "Sat 07:59", "Sat 12:00", "Sun 09:00"] {
        assert!(!hours.permits(at(outside)), "{outside}");
    }
}

#[test]
fn a_night_belongs_to_the_day_on_which_it_begins() {
    let nights = hours("Fri,Sun 22:00-06:00");
    for inside in ["Fri 22:00", "Fri 23:59", "Sat 00:00", "Sat 05:59", "Sun 22:00", "Mon 05:59"] {
        assert!(nights.permits(at(inside)), "{inside}");
    }
    for outside in ["Fri 05:00", "Fri 21:59", "Sat 06:00", "Sat 22:00", "Sun 05:00", "Mon 06:00", "Mon 22:00"] {
        assert!(!nights.permits(at(outside)), "{outside}");
    }
    assert_eq!(hours("22:00-06:00"), hours("Mon-Sun 22:00-06:00"), "without days it is for every day");
}

#[test]
fn there_is_one_way_to_write_what_was_read() {
    for (text, canonical) in [
        ("Mon-Fri 07:00-19:00;Sat 08:00-12:00", "Mon-Fri 07:00-19:00; Sat 08:00-12:00"),
        ("mon,TUE,wed 00:00-24:00", "Mon-Wed 00:00-24:00"),
        ("Sat-Mon  08:00-12:00", "Mon,Sat-Sun 08:00-12:00"),
        ("22:00-00:00", "Mon-Sun 22:00-24:00"),
        (" Fri 08:00-12:00 ; Fri 13:00-17:00 ", "Fri 08:00-12:00; Fri 13:00-17:00"),
    ] {
        assert_eq!(hours(text).to_string(), canonical);
    }
    let rule: Rule = "Mon 07:00-19:00 in Europe/Berlin".parse().unwrap();
    assert_eq!(
        (rule.zone.as_ref().unwrap().as_str(), rule.to_string().as_str()),
        ("Europe/Berlin", "Mon 07:00-19:00 in Europe/Berlin")
    );
}

#[test]
fn what_is_no_rule_is_told_in_a_sentence() {
    for (text, part) in [
        ("", "is not a span"),
        ("always", "is not a span"),
        ("Mon", "is not a span"),
        ("Mon-Fri 07:00-19:00;", "is not a span"),
        ("Mon 07:00", "is not a span"),
        ("Mo 07:00-19:00", "is not a day"),
        ("Mon- 07:00-19:00", "is not a day"),
        ("Mon, Tue 07:00-19:00", "is not a day"),
        ("Mon 7:00-19:00", "is not a time"),
        ("Mon 07:60-19:00", "is not a time"),
        ("Mon 07:00-24:01", "is not a time"),
        ("Mon 24:00-06:00", "is not a time"),
        ("Mon 07:00 -19:00", "is not a time"),
        ("Mon 07:00-\u{661}9:00", "is not a time"),
        ("Mon 07:00-07:00", "at the same time"),
        ("Mon 07:00-19:00 in ../../etc/passwd", "is not the name of a time zone"),
        ("Mon 07:00-19:00 in ", "is not the name of a time zone"),
    ] {
        let error = text.parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
    assert_eq!("01:00-02:00;".repeat(8).parse::<Hours>(), Err(HoursError::TooMany));
    assert_eq!(" ".repeat(513).parse::<Hours>(), Err(HoursError::TooLong));
}

#[test]
fn the_person_is_told_in_one_sentence() {
    let weekday = at("Mon 00:00").weekday;
    let closed = |text, days, offset| {
        let next = Some(Opening { days, weekday, minute: 420 });
        Closed { hours: hours(text), next, offset }.to_string()
    };
    assert_eq!(
        closed("Mon-Fri 07:00-19:00", 1, None),
        "This account may log in Monday to Friday 07:00-19:00; the next time is tomorrow at 07:00."
    );
    assert_eq!(
        closed("Mon,Tue,Thu 07:00-19:00; 22:00-06:00; Sat 08:00-12:00", 0, Some(330)),
        "This account may log in Monday, Tuesday and Thursday 07:00-19:00, every day 22:00-06:00 and Saturday 08:00-12:00 (UTC+05:30); \
         the next time is today at 07:00."
    );
    assert!(closed("Mon 07:00-19:00", 5, Some(-150)).ends_with("(UTC-02:30); the next time is on Monday at 07:00."));
    assert!(closed("Mon 07:00-19:00", 7, None).ends_with("the next time is on Monday in 7 days at 07:00."));
    let never = Closed { hours: hours("Mon 07:00-19:00"), next: None, offset: None };
    assert_eq!(never.to_string(), "This account may log in Monday 07:00-19:00.");
}

fn any_hours() -> impl Strategy<Value = Hours> {
    let span = (1u8..128, 0..DAY, 1..=DAY).prop_filter("has a length", |(_, from, to)| from != to);
    proptest::collection::vec(span, 1..=Hours::MOST).prop_map(|all| {
        let mut spans = [None; Hours::MOST];
        for (place, (days, from, to)) in spans.iter_mut().zip(all) {
            *place = Some(Span { days: Days(days), from, to });
        }
        Hours { spans }
    })
}

/// Each minute of a week, from its beginning.
fn week() -> impl Iterator<Item = Moment> {
    Weekday::all().flat_map(|weekday| (0..DAY).map(move |minute| Moment { weekday, minute }))
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(hours in any_hours(), zone in proptest::option::of("[A-Z][a-z]{1,9}/[A-Z][a-z_]{1,9}")) {
        prop_assert_eq!(hours.to_string().parse(), Ok(hours));
        let rule = Rule { hours, zone: zone.map(|z| z.parse().unwrap()) };
        prop_assert_eq!(rule.to_string().parse(), Ok(rule.clone()));
        prop_assert_eq!(&serde_json::from_str::<Rule>(&serde_json::to_string(&rule).unwrap()).unwrap(), &rule);
        let bytes = minicbor::to_vec(hours).unwrap();
        prop_assert_eq!(decode::<Hours>(&bytes).unwrap(), hours);
    }

    #[test]
    fn no_text_is_too_strange(text in "\\PC{0,40}", near in "[MonTueWdSat,; 0-9:in/-]{0,30}") {
        for text in [text, near] {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }
    }

    /// Against another way to say it: each span is laid out on a round week of minutes.
    #[test]
    fn a_week_is_permitted_as_its_spans_are_laid_out(hours in any_hours()) {
        let mut open = vec![false; 7 * usize::from(DAY)];
        for span in hours.spans() {
            for day in Weekday::all().filter(|d| span.days.has(*d)) {
                let begin = usize::from(day.0) * usize::from(DAY) + usize::from(span.from);
                let length = (usize::from(span.to) + usize::from(DAY) - usize::from(span.from) - 1) % usize::from(DAY) + 1;
                for minute in begin..begin + length {
                    let place = minute % open.len();
                    open[place] = true;
                }
            }
        }
        for (moment, open) in week().zip(&open) {
            prop_assert_eq!(hours.permits(moment), *open, "{:?}", moment);
        }
        // And it changes at the edges only.
        for (index, moment) in week().enumerate().skip(1).filter(|(index, _)| open[*index] != open[index - 1]) {
            prop_assert!(hours.edges().any(|edge| edge % DAY == moment.minute), "{}", index);
        }
    }
}
