//! Rows as types. What does not parse was altered from outside, and is an error of the database.

use super::{GroupKey, PolicyKind, Result, StoreError};
use crate::store::addresses;
use cug_proto::{
    message::{EndReason, Lapse, Peer},
    policy::{Allow, Policy},
};
use rusqlite::{Row, types::Type};
use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// A text column that holds one of our names, addresses or networks.
pub(super) fn parse<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|_| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, "malformed".into()))
}

/// The same, where the column may be NULL.
pub(super) fn parse_optional<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => parse(row, column).map(Some),
    }
}

/// Columns 0-8: id, name, epoch, wrapped key, prefix4, prefix6, host, policy, exceptions.
pub(super) fn group_key(row: &Row<'_>) -> rusqlite::Result<GroupKey> {
    Ok(GroupKey {
        id: row.get(0)?,
        name: parse(row, 1)?,
        epoch: row.get(2)?,
        wrapped: row.get(3)?,
        prefix4: parse(row, 4)?,
        prefix6: parse(row, 5)?,
        host: row.get(6)?,
        policy: match parse(row, 7)? {
            PolicyKind::Open => Policy::Open,
            PolicyKind::Closed => Policy::Closed(exceptions(row, 8)?),
        },
    })
}

/// Networks with blanks in between, as [`super::policy::EXCEPTIONS`] selects them.
pub(super) fn exceptions(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<Allow>> {
    let text: Option<String> = row.get(column)?;
    let bad = |_| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, "malformed".into());
    let mut all: Vec<Allow> = text
        .unwrap_or_default()
        .split_whitespace()
        .map(|t| t.parse().map_err(bad))
        .collect::<std::result::Result<_, _>>()?;
    all.sort_unstable();
    Ok(all)
}

/// Columns 0-8: user, host name, WireGuard key, source, addresses, port, host, prefix4, prefix6.
pub(super) fn peer(row: &Row<'_>) -> Result<Peer> {
    let (address4, address6) = addresses(parse(row, 7)?, parse(row, 8)?, row.get(6)?)?;
    let port: u16 = row.get(5)?;
    let source: IpAddr = parse(row, 3)?;
    let others = row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?;
    let others = addresses_from_text(others)?.into_iter().filter(|a| *a != source);
    Ok(Peer {
        user: parse(row, 0)?,
        host_name: parse(row, 1)?,
        wg_public_key: row.get(2)?,
        endpoints: std::iter::once(source).chain(others).map(|a| SocketAddr::new(a, port)).collect(),
        address4,
        address6,
    })
}

pub(super) fn addresses_to_text(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
}

fn addresses_from_text(text: &str) -> Result<Vec<IpAddr>> {
    text.split_whitespace()
        .map(|a| a.parse().map_err(|_| StoreError::Fault(format!("{a:?} is not an address").into())))
        .collect()
}

/// As stored; [`reason_from_text`] reads it.
pub(super) fn reason_to_text(reason: &EndReason) -> String {
    match reason {
        EndReason::Unknown => "unknown".into(),
        EndReason::Displaced(host) => format!("displaced {host}"),
        EndReason::Administrator => "administrator".into(),
        EndReason::Disabled(None) => "disabled".into(),
        EndReason::Disabled(Some(Lapse::Expired)) => "expired".into(),
        EndReason::Disabled(Some(Lapse::OutsideHours)) => "outside-hours".into(),
        EndReason::CardRevoked => "card-revoked".into(),
        EndReason::LeaseExpired => "lease-expired".into(),
        EndReason::NoGroup => "no-group".into(),
        EndReason::Protocol => "protocol".into(),
    }
}

/// What [`reason_to_text`] wrote; anything else is `Unknown`, which a terminal treats as an end like any other.
pub(super) fn reason_from_text(text: &str) -> EndReason {
    match text.split_once(' ') {
        Some(("displaced", host)) => host.parse().map_or(EndReason::Unknown, EndReason::Displaced),
        _ => match text {
            "administrator" => EndReason::Administrator,
            "disabled" => EndReason::Disabled(None),
            "expired" => EndReason::Disabled(Some(Lapse::Expired)),
            "outside-hours" => EndReason::Disabled(Some(Lapse::OutsideHours)),
            "card-revoked" => EndReason::CardRevoked,
            "lease-expired" => EndReason::LeaseExpired,
            "no-group" => EndReason::NoGroup,
            "protocol" => EndReason::Protocol,
            _ => EndReason::Unknown,
        },
    }
}
