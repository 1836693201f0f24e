//! Permitted hours: on which days and at what times a user may log in. Values only: what time it is comes in from outside.
//!
//! ```text
//! rule  = hours [" in " zone]                         Mon-Fri 07:00-19:00; Sat 08:00-12:00 in Europe/Berlin
//! hours = span *7(";" span)
//! span  = [days] from "-" to                          22:00-06:00, from 00:00 to 23:59, to 00:01 to 24:00
//! days  = day ["-" day] *("," day ["-" day])          Mon-Wed,Fri
//! ```
//!
//! A span that ends before it begins passes midnight and belongs to the day on which it begins; without days it is for every day. The end is no
//! longer part of it. What counts is what a clock on the wall shows: a time that a change of the clock skips does not come, and one that comes twice counts twice.

mod text;

pub use text::HoursError;

use crate::id::ZoneName;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use std::fmt;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A day of the week.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Weekday(u8);

impl Weekday {
    const NAMES: [&'static str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

    /// All of them, from Monday on.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        (0..7).map(Self)
    }

    /// By the number of days since Monday.
    pub fn from_monday(days: u8) -> Option<Self> {
        (days < 7).then_some(Self(days))
    }

    /// `Monday`, ...
    pub fn name(self) -> &'static str {
        Self::NAMES.get(usize::from(self.0)).copied().unwrap_or_default()
    }

    /// `Mon`, ...
    pub fn short(self) -> &'static str {
        self.name().get(..3).unwrap_or_default()
    }

    fn next(self) -> Self {
        Self((self.0 + 1) % 7)
    }

    fn previous(self) -> Self {
        Self((self.0 + 6) % 7)
    }
}

/// What calendar and clock on the wall show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The day.
    pub weekday: Weekday,
    /// Minutes since midnight, less than 1440.
    pub minute: u16,
}

/// Days of the week; never none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Days(u8);

impl Days {
    const ALL: Self = Self(0x7f);

    fn has(self, day: Weekday) -> bool {
        self.0 & 1 << day.0 != 0
    }

    /// First and last of each run of days, in the order of the week.
    fn runs(self) -> Vec<(Weekday, Weekday)> {
        let mut runs: Vec<(Weekday, Weekday)> = Vec::new();
        for day in Weekday::all().filter(|day| self.has(*day)) {
            match runs.last_mut() {
                Some((_, last)) if last.0 + 1 == day.0 => *last = day,
                _ => runs.push((day, day)),
            }
        }
        runs
    }
}

/// A time on some days.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    days: Days,
    /// Less than [`DAY`].
    from: u16,
    /// From 1 to [`DAY`], and not `from`; before it, it is on the next day.
    to: u16,
}

impl Span {
    fn permits(&self, at: Moment) -> bool {
        let begun = self.days.has(at.weekday) && at.minute >= self.from;
        if self.from < self.to {
            begun && at.minute < self.to
        } else {
            begun || (self.days.has(at.weekday.previous()) && at.minute < self.to)
        }
    }
}

/// When a user may log in: one to [`Hours::MOST`] spans, in the order in which they were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hours {
    /// Filled from the front.
    spans: [Option<Span>; Self::MOST],
}

impl Hours {
    /// Most spans.
    pub const MOST: usize = 8;

    /// Whether somebody may log in when the wall shows this.
    pub fn permits(&self, at: Moment) -> bool {
        self.spans().any(|span| span.permits(at))
    }

    /// The minutes of a day at which the answer may change, 1440 for the next midnight.
    pub fn edges(&self) -> impl Iterator<Item = u16> + '_ {
        self.spans().flat_map(|span| [span.from, span.to])
    }

    fn spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter().flatten()
    }

    /// `Monday to Friday 07:00-19:00 and Saturday 08:00-12:00`.
    fn words(&self) -> String {
        joined(self.spans().map(|span| {
            let days = match span.days {
                Days::ALL => "every day".to_owned(),
                days => joined(days.runs().into_iter().flat_map(|(first, last)| match last.0 - first.0 {
                    0 => vec![first.name().to_owned()],
                    1 => vec![first.name().to_owned(), last.name().to_owned()],
                    _ => vec![format!("{} to {}", first.name(), last.name())],
                })),
            };
            format!("{days} {}-{}", Clock(span.from), Clock(span.to))
        }))
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<_> = parts.collect();
    match parts.pop() {
        Some(last) if parts.is_empty() => last,
        Some(last) => format!("{} and {last}", parts.join(", ")),
        None => String::new(),
    }
}

/// Minutes since midnight as `07:00`.
struct Clock(u16);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// Hours with the time zone whose clocks count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// When.
    pub hours: Hours,
    /// Where; what is stored always says it.
    pub zone: Option<ZoneName>,
}

/// The next time at which somebody may log in, as the wall shows it.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct Opening {
    /// 0 for today, 1 for tomorrow, ...
    #[n(0)]
    pub days: u8,
    /// The day.
    #[n(1)]
    pub weekday: Weekday,
    /// Minutes since midnight.
    #[n(2)]
    pub minute: u16,
}

/// What the person is told who comes outside the hours. Shown (`Display`) as a sentence.
#[derive(Encode, Decode, Clone, Copy, PartialEq, Eq, Debug)]
#[cbor(map)]
pub struct Closed {
    /// When the user may log in.
    #[n(0)]
    pub hours: Hours,
    /// The next time of these.
    #[n(1)]
    pub next: Option<Opening>,
    /// Minutes from UTC to the clocks that count, where they show another time than the server's.
    #[n(2)]
    pub offset: Option<i16>,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "This account may log in {}", self.hours.words())?;
        if let Some(offset) = self.offset {
            let sign = if offset < 0 { '-' } else { '+' };
            write!(f, " (UTC{sign}{})", Clock(offset.unsigned_abs()))?;
        }
        if let Some(Opening { days, weekday, minute }) = self.next {
            let day = match days {
                0 => "today".to_owned(),
                1 => "tomorrow".to_owned(),
                2..=6 => format!("on {}", weekday.name()),
                _ => format!("on {} in {days} days", weekday.name()),
            };
            write!(f, "; the next time is {day} at {}", Clock(minute))?;
        }
        f.write_str(".")
    }
}

impl<C> Encode<C> for Weekday {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.u8(self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Weekday {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Self::from_monday(d.u8()?).ok_or_else(|| decode::Error::message("not a day of the week"))
    }
}

impl<C> Encode<C> for Hours {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.str(&self.to_string())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Hours {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.str()?.parse().map_err(|_| decode::Error::message("not hours"))
    }
}

#[cfg(test)]
mod tests;
