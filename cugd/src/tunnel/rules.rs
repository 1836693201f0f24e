//! Routing rules: whose packets look into the routing table of an interface.
//!
//! Two rules an address: the sockets of the owner look there, by user ID; and what is sent from the address looks there, for the kernel's
//! own answers, which belong to nobody. All bear our protocol number and are found by it.

use futures_util::{TryStreamExt, future::join_all};
use ipnet::IpNet;
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily,
        route::RouteProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage, RuleUidRange},
    },
};

use super::{
    TunnelError,
    error::errno,
    link::{Links, bounded},
};

/// Who made a rule or route; `ip rule` shows it as `proto 198`. Not in use by anybody in iproute2's list.
pub(super) const PROTOCOL: u8 = 198;
/// Before those of other VPNs (5,210 and above, and 32,764 and above). By user first: an address may be that of two users.
const BY_USER: u32 = 4198;
const BY_ADDRESS: u32 = 4199;

/// Leads the packets of `uid`, and those from `addresses`, into `table`.
pub(super) async fn add(links: &Links, table: u32, uid: u32, addresses: &[IpNet]) -> Result<(), TunnelError> {
    let rules = addresses.iter().flat_map(|address| {
        let by_user = RuleAttribute::UidRange(RuleUidRange { start: uid, end: uid });
        let by_address = RuleAttribute::Source(address.addr());
        [
            add_rule(links, table, address, BY_USER, by_user, 0),
            add_rule(links, table, address, BY_ADDRESS, by_address, address.max_prefix_len()),
        ]
    });
    // All are answered before an error is: what is still on its way would come after the tidying up.
    join_all(rules).await.into_iter().collect()
}

async fn add_rule(
    links: &Links,
    table: u32,
    address: &IpNet,
    priority: u32,
    condition: RuleAttribute,
    source_length: u8,
) -> Result<(), TunnelError> {
    let mut request = links.handle().rule().add().table_id(table).priority(priority).action(RuleAction::ToTable);
    let message = request.message_mut();
    message.header.family = if address.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.src_len = source_length;
    message.header.table = 0;
    message.attributes.push(condition);
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    bounded(request.execute()).await?.map_err(TunnelError::netlink("to add a routing rule"))
}

/// Our rules: those of a table, or all.
pub(super) async fn list(links: &Links, table: Option<u32>) -> Result<Vec<RuleMessage>, TunnelError> {
    let mut found = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules: Result<Vec<RuleMessage>, _> =
            bounded(links.handle().rule().get(version).execute().try_collect()).await?;
        match rules {
            Ok(rules) => found.extend(rules.into_iter().filter(|rule| ours(rule, table))),
            // A machine without IPv6 has no rules for it.
            Err(error) if matches!(errno(&error), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(TunnelError::Netlink { doing: "to list the routing rules", source: error }),
        }
    }
    Ok(found)
}

/// Removes our rules: those of a table, or all.
pub(super) async fn remove(table: Option<u32>) -> Result<(), TunnelError> {
    let links = Links::open()?;
    let ours = list(&links, table).await?;
    let removals = ours.into_iter().map(|rule| bounded(links.handle().rule().del(rule).execute()));
    for removed in join_all(removals).await {
        match removed? {
            Err(error) if errno(&error) != Some(libc::ENOENT) => {
                return Err(TunnelError::Netlink { doing: "to remove a routing rule", source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A rule, for people.
pub(super) fn describe(rule: &RuleMessage) -> String {
    let table = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    format!("a routing rule to table {}", table.unwrap_or_default())
}

fn ours(rule: &RuleMessage, table: Option<u32>) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)))
        && table.is_none_or(|table| rule.attributes.contains(&RuleAttribute::Table(table)))
}
