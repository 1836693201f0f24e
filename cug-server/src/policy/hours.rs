//! Permitted hours, applied to a time and a time zone.
//!
//! What counts is what a clock on the wall shows. It changes its mind about somebody only at an edge of a span and where the clock is changed, so these are
//! the only times that are looked at.

use crate::clock::UnixTime;
use cug_proto::{
    hours::{Closed, Hours, Moment, Opening, Weekday},
    message::DenyReason,
};
use jiff::{SignedDuration, Timestamp, ToSpan, civil::Date, tz::TimeZone};

/// Days that are looked ahead: a week, and one more for a span that a change of the clock skips.
const AHEAD: i64 = 15;

/// How it is with somebody who has hours to keep to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// May log in, until then if it ends.
    Open(Option<UnixTime>),
    /// May not.
    Closed(Closed),
    /// It cannot be found out what time it is for this user: may not.
    Unknown,
}

impl Standing {
    /// How it is at `now` by the clocks of `zone`. `own` is the server's zone.
    pub fn at(hours: &Hours, zone: &TimeZone, own: Option<&TimeZone>, now: UnixTime) -> Self {
        let Ok(now) = Timestamp::from_second(now) else { return Self::Unknown };
        let Some(here) = moment(zone, now) else { return Self::Unknown };
        let open = hours.permits(here);
        let Some(times) = times(hours, zone, now) else { return Self::Unknown };
        let turns = |at: &Timestamp| moment(zone, *at).is_some_and(|then| hours.permits(then) != open);
        let next = times.into_iter().find(turns);
        if open {
            return Self::Open(next.map(Timestamp::as_second));
        }
        let offset = zone.to_offset(next.unwrap_or(now)).seconds();
        let same = own.is_some_and(|own| own.to_offset(next.unwrap_or(now)).seconds() == offset);
        let offset = if same { None } else { i16::try_from(offset / 60).ok() };
        Self::Closed(Closed { hours: *hours, next: next.and_then(|next| opening(zone, now, next)), offset })
    }

    /// Why a login is refused, if it is.
    pub fn refusal(&self) -> Option<DenyReason> {
        match self {
            Self::Open(_) => None,
            Self::Closed(closed) => Some(DenyReason::OutsideHours(Some(*closed))),
            Self::Unknown => Some(DenyReason::OutsideHours(None)),
        }
    }
}

/// What the wall shows.
fn moment(zone: &TimeZone, at: Timestamp) -> Option<Moment> {
    let local = zone.to_datetime(at);
    let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).ok()?;
    Some(Moment { weekday: weekday(local.date())?, minute })
}

fn weekday(date: Date) -> Option<Weekday> {
    u8::try_from(date.weekday().to_monday_zero_offset()).ok().and_then(Weekday::from_monday)
}

/// All times after `now`, in order, at which the answer may become another one. `None` at the end of the calendar.
fn times(hours: &Hours, zone: &TimeZone, now: Timestamp) -> Option<Vec<Timestamp>> {
    let end = now.checked_add(SignedDuration::from_hours(24 * AHEAD)).ok()?;
    let mut times: Vec<_> = zone.following(now).map(|change| change.timestamp()).take_while(|at| *at <= end).collect();
    let mut edges: Vec<_> = hours.edges().collect();
    edges.sort_unstable();
    edges.dedup();
    let mut midnight = zone.to_datetime(now).date().to_datetime(jiff::civil::Time::midnight());
    for _ in 0..AHEAD {
        for edge in &edges {
            let wall = zone.to_ambiguous_timestamp(midnight.checked_add(i64::from(*edge).minutes()).ok()?);
            // A time that comes twice is two times; where one is skipped, the change of the clock is among the times already.
            times.extend([wall.earlier().ok()?, wall.later().ok()?]);
        }
        midnight = midnight.checked_add(1.day()).ok()?;
    }
    times.retain(|at| *at > now);
    times.sort_unstable();
    times.dedup();
    Some(times)
}

fn opening(zone: &TimeZone, now: Timestamp, next: Timestamp) -> Option<Opening> {
    let (today, then) = (zone.to_datetime(now).date(), zone.to_datetime(next).date());
    let days = u8::try_from(today.until(then).ok()?.get_days()).ok()?;
    let Moment { weekday, minute } = moment(zone, next)?;
    Some(Opening { days, weekday, minute })
}

#[cfg(test)]
mod tests;
