//! The grammar, read and written.

use super::{Clock, DAY, Days, Hours, Rule, Span, Weekday};
use std::{fmt, str::FromStr};

/// Longest text that is looked at, in bytes.
const LONGEST: usize = 512;

/// Why a text is no rule: a sentence for the administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// Longer than any rule.
    #[error("hours have at most {LONGEST} characters")]
    TooLong,
    /// Too many spans.
    #[error("hours have at most {} spans", Hours::MOST)]
    TooMany,
    /// Not a span.
    #[error("{0:?} is not a span of hours such as \"Mon-Fri 07:00-19:00\"")]
    Span(String),
    /// Not a day.
    #[error("{0:?} is not a day: Mon, Tue, Wed, Thu, Fri, Sat or Sun")]
    Day(String),
    /// Not a time.
    #[error("{0:?} is not a time from 00:00 to 24:00")]
    Time(String),
    /// A span without a length.
    #[error("{0:?} begins and ends at the same time; a whole day is 00:00-24:00")]
    Empty(String),
    /// Not the name of a time zone.
    #[error("{0:?} is not the name of a time zone such as Europe/Berlin")]
    Zone(String),
}

impl FromStr for Hours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        if text.len() > LONGEST {
            return Err(HoursError::TooLong);
        }
        let mut spans = [None; Self::MOST];
        let mut places = spans.iter_mut();
        for part in text.split(';') {
            let place = places.next().ok_or(HoursError::TooMany)?;
            *place = Some(span(part.trim())?);
        }
        Ok(Self { spans })
    }
}

fn span(text: &str) -> Result<Span, HoursError> {
    let wrong = || HoursError::Span(text.into());
    let (days, times) = match text.split_once(' ') {
        Some((days, times)) => (self::days(days)?, times.trim_start()),
        None => (Days::ALL, text),
    };
    let (from, to) = times.split_once('-').ok_or_else(wrong)?;
    let (from, mut to) = (time(from)?, time(to)?);
    if from == DAY {
        return Err(HoursError::Time("24:00".into()));
    }
    if from == to || (from == 0 && to == 0) {
        return Err(HoursError::Empty(text.into()));
    }
    if to == 0 {
        to = DAY;
    }
    Ok(Span { days, from, to })
}

fn days(text: &str) -> Result<Days, HoursError> {
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (weekday(first)?, weekday(last)?);
        // Round the end of the week, if need be: Sat-Mon.
        while day != last {
            days |= 1 << day.0;
            day = day.next();
        }
        days |= 1 << last.0;
    }
    Ok(Days(days))
}

fn weekday(text: &str) -> Result<Weekday, HoursError> {
    Weekday::all().find(|day| day.short().eq_ignore_ascii_case(text)).ok_or_else(|| HoursError::Day(text.into()))
}

/// Two digits, a colon, two digits.
fn time(text: &str) -> Result<u16, HoursError> {
    let digits = |part: &str| match part.as_bytes() {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some(u16::from(tens - b'0') * 10 + u16::from(ones - b'0')),
        _ => None,
    };
    let (hour, minute) = text.split_once(':').and_then(|(h, m)| digits(h).zip(digits(m))).unwrap_or((99, 99));
    let minutes = hour * 60 + minute;
    if minute < 60 && minutes <= DAY { Ok(minutes) } else { Err(HoursError::Time(text.into())) }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Span { days, from, to }) in self.spans().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            for (index, (first, last)) in days.runs().into_iter().enumerate() {
                if index > 0 {
                    f.write_str(",")?;
                }
                f.write_str(first.short())?;
                if first != last {
                    write!(f, "-{}", last.short())?;
                }
            }
            write!(f, " {}-{}", Clock(*from), Clock(*to))?;
        }
        Ok(())
    }
}

impl FromStr for Rule {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let (hours, zone) = match text.split_once(" in ") {
            Some((hours, zone)) => (hours, Some(zone.trim())),
            None => (text, None),
        };
        let zone = zone.map(|zone| zone.parse().map_err(|_| HoursError::Zone(zone.into()))).transpose()?;
        Ok(Self { hours: hours.parse()?, zone })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.hours, f)?;
        self.zone.as_ref().map_or(Ok(()), |zone| write!(f, " in {zone}"))
    }
}

impl serde::Serialize for Rule {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Rule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
