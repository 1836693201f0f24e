use super::*;
use proptest::prelude::*;

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

/// Seconds since 1970 of `2026-03-29T01:59:00Z`, or with an offset.
fn unix(text: &str) -> UnixTime {
    text.parse::<Timestamp>().unwrap().as_second()
}

fn standing(hours: &str, zone_name: &str, at: &str) -> Standing {
    let zone = zone(zone_name);
    Standing::at(&hours.parse().unwrap(), &zone, Some(&zone), unix(at))
}

fn sentence(standing: Standing) -> String {
    match standing {
        Standing::Closed(closed) => closed.to_string(),
        other => panic!("{other:?}"),
    }
}

const OFFICE: &str = "Mon-Fri 07:00-19:00; Sat 08:00-12:00";

#[test]
fn the_clock_of_the_zone_counts() {
    // A Monday, in summer: 07:00 in Berlin is 05:00 UTC, in Tokyo 22:00 UTC of Sunday.
    assert_eq!(
        standing(OFFICE, "Europe/Berlin", "2026-07-06T05:00:00Z"),
        Standing::Open(Some(unix("2026-07-06T17:00:00Z")))
    );
    assert!(matches!(standing(OFFICE, "Europe/Berlin", "2026-07-06T04:59:59Z"), Standing::Closed(_)));
    assert!(matches!(standing(OFFICE, "Asia/Tokyo", "2026-07-05T22:00:00Z"), Standing::Open(Some(_))));
    assert!(matches!(standing(OFFICE, "UTC", "2026-07-06T05:00:00Z"), Standing::Closed(_)));
    // In winter it is an hour later.
    assert!(matches!(standing(OFFICE, "Europe/Berlin", "2026-01-05T05:30:00Z"), Standing::Closed(_)));
    assert!(matches!(standing(OFFICE, "Europe/Berlin", "2026-01-05T06:00:00Z"), Standing::Open(_)));
}

#[test]
fn the_next_time_is_told_as_people_say_it() {
    for (at, end) in [
        ("2026-07-06T06:00:00+02:00", "the next time is today at 07:00."),
        ("2026-07-06T19:00:00+02:00", "the next time is tomorrow at 07:00."),
        ("2026-07-04T12:00:00+02:00", "the next time is on Monday at 07:00."),
        ("2026-07-03T19:00:00+02:00", "the next time is tomorrow at 08:00."),
    ] {
        let told = sentence(standing(OFFICE, "Europe/Berlin", at));
        assert!(
            told.starts_with("This account may log in Monday to Friday 07:00-19:00 and Saturday 08:00-12:00;"),
            "{told}"
        );
        assert!(told.ends_with(end), "{at}: {told}");
    }
    // Clocks that do not show the server's time are told apart.
    let closed = |own: Option<&str>| {
        let own = own.map(zone);
        sentence(Standing::at(
            &OFFICE.parse().unwrap(),
            &zone("Europe/Berlin"),
            own.as_ref(),
            unix("2026-07-06T19:00:00Z"),
        ))
    };
    assert!(closed(Some("America/New_York")).contains("(UTC+02:00)"));
    assert!(closed(None).contains("(UTC+02:00)"));
    assert!(!closed(Some("Europe/Paris")).contains("UTC"));
}

/// In Berlin, 29 March 2026 has no 02:00 to 03:00.
#[test]
fn an_hour_that_is_skipped_does_not_come() {
    let night = "Sun 02:00-03:00";
    assert!(matches!(standing(night, "Europe/Berlin", "2026-03-29T00:59:59Z"), Standing::Closed(_)));
    assert!(matches!(standing(night, "Europe/Berlin", "2026-03-29T01:00:00Z"), Standing::Closed(_)), "it is 03:00");
    let told = sentence(standing(night, "Europe/Berlin", "2026-03-28T12:00:00+01:00"));
    assert!(told.ends_with("on Sunday in 8 days at 02:00."), "{told}");
    // A span over it is an hour shorter; one that begins within it begins where it ends.
    assert_eq!(
        standing("Sat 22:00-06:00", "Europe/Berlin", "2026-03-28T21:00:00Z"),
        Standing::Open(Some(unix("2026-03-29T04:00:00Z")))
    );
    let told = sentence(standing("Sun 02:30-05:00", "Europe/Berlin", "2026-03-29T00:30:00Z"));
    assert!(told.ends_with("today at 03:00."), "{told}");
    assert_eq!(
        standing("Sun 01:00-02:30", "Europe/Berlin", "2026-03-29T00:30:00Z"),
        Standing::Open(Some(unix("2026-03-29T01:00:00Z")))
    );
}

/// In Berlin, 25 October 2026 has 02:00 to 03:00 twice.
#[test]
fn an_hour_that_comes_twice_counts_twice() {
    let whole = "Sun 02:00-03:00";
    assert_eq!(
        standing(whole, "Europe/Berlin", "2026-10-25T00:00:00Z"),
        Standing::Open(Some(unix("2026-10-25T02:00:00Z")))
    );
    let half = "Sun 02:00-02:30";
    assert_eq!(
        standing(half, "Europe/Berlin", "2026-10-25T00:10:00Z"),
        Standing::Open(Some(unix("2026-10-25T00:30:00Z")))
    );
    let told = sentence(standing(half, "Europe/Berlin", "2026-10-25T00:40:00Z"));
    assert!(told.ends_with("today at 02:00."), "the second 02:00: {told}");
    assert_eq!(
        standing(half, "Europe/Berlin", "2026-10-25T01:10:00Z"),
        Standing::Open(Some(unix("2026-10-25T01:30:00Z")))
    );
    assert_eq!(
        standing("Sat 22:00-06:00", "Europe/Berlin", "2026-10-24T20:00:00Z"),
        Standing::Open(Some(unix("2026-10-25T05:00:00Z")))
    );
}

#[test]
fn whole_weeks_have_no_end_and_the_calendars_end_is_refused() {
    assert_eq!(standing("00:00-24:00", "Europe/Berlin", "2026-10-24T20:00:00Z"), Standing::Open(None));
    assert_eq!(standing("00:00-12:00; 12:00-24:00", "Europe/Berlin", "2026-03-28T20:00:00Z"), Standing::Open(None));
    let zone = TimeZone::UTC;
    for now in [UnixTime::MAX, UnixTime::MIN, 253_402_200_000] {
        assert_eq!(Standing::at(&"07:00-19:00".parse().unwrap(), &zone, None, now), Standing::Unknown, "{now}");
    }
}

const ZONES: [&str; 8] = [
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",
    "Australia/Lord_Howe", // half an hour of summer time
    "Pacific/Apia",        // has skipped a whole day
    "America/St_Johns",    // has changed its clocks at 00:01
    "Africa/Casablanca",
    "UTC",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Against a walk through the minutes: the standing turns exactly where it is said to.
    #[test]
    fn it_turns_when_it_is_said_to(
        place in proptest::sample::select(&ZONES[..]),
        when in 1_104_537_600i64..2_208_988_800,
        // Mostly about the hours in which clocks are changed, and shortly before they are.
        before in proptest::option::weighted(0.9, prop_oneof![-7_200i64..7_200, -7_200i64..172_800]),
        days in 1u8..128, from in prop_oneof![0u32..1440, 0u32..240], length in prop_oneof![1u32..1440, 1u32..120],
    ) {
        let change = TimeZone::get(place).unwrap().following(Timestamp::from_second(when).unwrap()).next().map(|c| c.timestamp().as_second());
        let now = change.zip(before).map_or(when, |(change, before)| change - before);
        let names: Vec<_> = Weekday::all().enumerate().filter(|(i, _)| days & 1 << i != 0).map(|(_, d)| d.short()).collect();
        let (zone, to) = (zone(place), (from + length) % 1440);
        let text = format!("{} {:02}:{:02}-{:02}:{:02}", names.join(","), from / 60, from % 60, to / 60, to % 60);
        let hours: Hours = text.parse().unwrap();
        let permits = |at: UnixTime| hours.permits(moment(&zone, Timestamp::from_second(at).unwrap()).unwrap());
        let open = permits(now);
        let turn = (1..=15 * 1440).map(|m| now - now.rem_euclid(60) + m * 60).find(|at| permits(*at) != open);
        match Standing::at(&hours, &zone, None, now) {
            Standing::Open(until) => {
                prop_assert!(open);
                // The walk goes a little beyond what is looked at ahead.
                prop_assert!(until == turn || (until.is_none() && turn > Some(now + 14 * 86_400)), "{} {:?} {:?}", text, until, turn);
            }
            Standing::Closed(closed) => {
                prop_assert!(!open);
                let Some(turn) = turn.filter(|turn| *turn < now + 14 * 86_400) else { return Ok(()) };
                let then = moment(&zone, Timestamp::from_second(turn).unwrap()).unwrap();
                let next = closed.next.unwrap();
                prop_assert_eq!((next.weekday, next.minute), (then.weekday, then.minute), "{}", text);
            }
            Standing::Unknown => prop_assert!(false, "unknown"),
        }
    }
}
