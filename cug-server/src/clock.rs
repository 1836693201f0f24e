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
    let (year, month, day) = match text.as_bytes() {
        [year @ .., b'-', m1, m2, b'-', d1, d2] if year.len() == 4 => {
            (number(year)?, number(&[*m1, *m2])?, number(&[*d1, *d2])?)
        }
        _ => return None,
    };
    // The inverse of `civil`: years begin on 1 March, so that the leap day is the last one.
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    ((1..=12).contains(&month) && civil(days) == (year, month, day)).then_some(days * 86_400)
}

fn number(digits: &[u8]) -> Option<i64> {
    let digit = |d: &u8| char::from(*d).to_digit(10).map(i64::from);
    digits.iter().try_fold(0, |number, d| Some(number * 10 + digit(d)?))
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
            assert_eq!(text.split_once('T').and_then(|(day, _)| super::day(day)), Some(time - time % 86_400));
        }
        // Every day of four centuries, there and back.
        for days in -10_000..146_097 {
            let time = days * 86_400;
            assert_eq!(super::day(&super::rfc3339(time)[..10]), Some(time));
        }
    }
}
