//! The only place that reads a clock or draws randomness; everything else is given both.

use getrandom::{SysRng, rand_core::UnwrapErr};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01 UTC.
pub type UnixTime = i64;

/// Now, by the wall clock: for what is stored and for certificates.
#[allow(clippy::disallowed_methods)] // this is the clock module
pub fn unix_now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Now, by the monotonic clock: for leases and deadlines.
pub fn monotonic() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// The operating system's random source. A system that cannot give randomness cannot run this program: drawing unwinds then.
pub fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// `N` random bytes that are no secret.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::rand_core::Rng::fill_bytes(&mut rng(), &mut bytes);
    bytes
}

/// RFC 3339, UTC, whole seconds. Dates by the proleptic Gregorian calendar.
pub fn rfc3339(time: UnixTime) -> String {
    let (days, seconds) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The beginning of a day (UTC) that is written as 2031-12-31; `None` for anything else, and for days that no calendar has.
pub fn day(text: &str) -> Option<UnixTime> {
    if text.len() == "2031-12-31".len() { parse_rfc3339(text) } else { None }
}

/// The end of a day (UTC) that is written as 2031-12-31: the first second after it.
pub fn end_of_day(text: &str) -> Option<UnixTime> {
    day(text).map(|begin| begin + 86_400)
}

/// What [`rfc3339`] writes, or a date alone (its beginning): `2026-11-22T10:00:00Z`, `2026-11-22`. `None` for anything else.
pub fn parse_rfc3339(text: &str) -> Option<UnixTime> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time.strip_suffix('Z')?, ':')?;
    let days = days(year, month, day);
    let exists = civil(days) == (year, month, day) && hour < 24 && minute < 60 && second < 60;
    exists.then(|| days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Three numbers of at most four digits.
fn numbers(text: &str, between: char) -> Option<[i64; 3]> {
    let number = |part: &str| {
        let digits = (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        if digits { part.parse().ok() } else { None }
    };
    let numbers: Vec<i64> = text.split(between).map(number).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// The other way round than [`civil`]; a date that does not exist comes out as another one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Days since 1970-01-01 as year, month, day: 400-year eras that begin on 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_right() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(super::rfc3339(time), text);
            assert_eq!(super::parse_rfc3339(text), Some(time));
            assert_eq!(text.split_once('T').and_then(|(day, _)| super::day(day)), Some(time - time % 86_400));
        }
        assert_eq!(super::parse_rfc3339("2000-02-29"), Some(951_782_400));
        for bad in [
            "",
            "2001-02-29",
            "2000-13-01",
            "2000-00-01",
            "2000-1",
            "2000-01-01T24:00:00Z",
            "2000-01-01T00:00:00",
            "+200-01-01",
        ] {
            assert_eq!(super::parse_rfc3339(bad), None, "{bad}");
        }
        // Every day of four centuries, there and back.
        for days in -10_000..146_097 {
            let time = days * 86_400;
            assert_eq!(super::day(&super::rfc3339(time)[..10]), Some(time));
        }
    }
}
