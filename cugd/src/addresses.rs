//! Where this workstation can be reached, and word of every change, from the kernel (rtnetlink).
//!
//! One task listens for changes of links, addresses and routes. They come in bursts (DHCP removes an address, adds another, then routes), so
//! it waits for a pause, looks once, and tells the loop only when what it sees is different. Without netlink it looks again from time to time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout, timeout_at},
};

use crate::{clock, core::Event, tunnel::InterfaceName};

/// A burst of changes is over when nothing has changed for so long,
const PAUSE: Duration = Duration::from_millis(30);
/// and is looked at after so long in any case.
const BURST: Duration = Duration::from_millis(200);
/// Between two looks: a cable with a loose contact must not keep the daemon busy.
const REST: Duration = Duration::from_millis(150);
/// Limit of one look.
const LOOK: Duration = Duration::from_secs(5);
/// How often to look when the kernel does not tell of changes, or could not be asked.
const POLL: Duration = Duration::from_secs(5);
/// Most addresses and routes that are considered; a router's full table is not of interest here.
const MOST: usize = 64;

const CHANGES: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// What can be seen from here: equal sights need no action.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Sight {
    addresses: Vec<IpNet>,
    /// Gateways by destination: with another one the same addresses lead elsewhere.
    gateways: BTreeSet<(Option<IpAddr>, u8, IpAddr)>,
}

/// Tells `events` where this workstation can be reached, now and after each change, until nobody listens.
pub async fn monitor(events: mpsc::Sender<Event>) {
    let mut told = None;
    loop {
        if let Err(error) = listen(&events, &mut told).await {
            tracing::warn!(%error, "changes of the network cannot be followed now, looking again in a while");
        }
        if events.is_closed() {
            return;
        }
        sleep(POLL).await;
    }
}

/// Follows the changes until the kernel's word ends.
async fn listen(events: &mpsc::Sender<Event>, told: &mut Option<Sight>) -> Result<(), LookError> {
    let (connection, handle, mut news) = rtnetlink::new_multicast_connection(&CHANGES)?;
    // Ends with the handle and the news.
    tokio::spawn(connection);
    loop {
        let sight = timeout(LOOK, look(&handle)).await.map_err(|_| LookError::Silent)??;
        if told.as_ref() != Some(&sight) {
            tracing::debug!(addresses = ?sight.addresses, gateways = ?sight.gateways, "the network changed");
            if events.send(Event::Addresses(sight.addresses.clone())).await.is_err() {
                return Ok(());
            }
            *told = Some(sight);
            sleep(REST).await;
        }
        tokio::select! {
            message = news.next() => message.ok_or(LookError::Silent)?,
            () = events.closed() => return Ok(()),
        };
        let by = clock::timer() + BURST;
        while let Ok(Ok(message)) = timeout_at(by, timeout(PAUSE, news.next())).await {
            message.ok_or(LookError::Silent)?;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("no netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("{0}")]
    Netlink(#[from] rtnetlink::Error),
    #[error("the kernel does not answer")]
    Silent,
}

async fn look(handle: &Handle) -> Result<Sight, LookError> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let links: BTreeMap<u32, bool> = links.iter().map(|link| (link.header.index, usable_link(link))).collect();
    let usable = |index: u32| links.get(&index).copied().unwrap_or(false);

    let all: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let mut addresses: Vec<IpNet> = Vec::new();
    for message in all.iter().filter(|message| usable(message.header.index)) {
        if let Some(address) = usable_address(message)
            && addresses.len() < MOST
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    let mut gateways = BTreeSet::new();
    let four = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let six = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for family in [four, six] {
        let mut routes = handle.route().get(family).execute();
        while let Some(route) = routes.try_next().await? {
            if gateways.len() < MOST {
                gateways.extend(gateway(&route, &usable));
            }
        }
    }
    Ok(Sight { addresses, gateways })
}

/// With a carrier, neither loopback nor one of ours.
fn usable_link(link: &LinkMessage) -> bool {
    let ours = link
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if name.parse::<InterfaceName>().is_ok()));
    let flags = link.header.flags;
    flags.contains(LinkFlags::Up | LinkFlags::Running) && !flags.contains(LinkFlags::Loopback) && !ours
}

/// The address, unless nobody else could use it, or it is not confirmed yet (RFC 4862: tentative).
fn usable_address(message: &AddressMessage) -> Option<IpNet> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    // On a point-to-point link `Address` is the other end, and `Local` this one.
    let local = find(|attribute| if let AddressAttribute::Local(local) = attribute { Some(*local) } else { None });
    let address = local
        .or_else(|| find(|attribute| if let AddressAttribute::Address(a) = attribute { Some(*a) } else { None }))?;
    let not_yet = AddressFlags::Tentative | AddressFlags::Dadfailed;
    let flagged = message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.intersects(not_yet)));
    let net = IpNet::new(address, message.header.prefix_len).ok()?;
    (reachable(address) && !flagged).then_some(net)
}

/// Destination, prefix length and gateway of a route through a usable link.
fn gateway(route: &RouteMessage, usable: &impl Fn(u32) -> bool) -> Option<(Option<IpAddr>, u8, IpAddr)> {
    let (mut gateway, mut destination, mut through) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Oif(index) => through = Some(*index),
            _ => {}
        }
    }
    let usable = through.is_none_or(usable);
    gateway.filter(|_| usable).map(|gateway| (destination, route.header.destination_prefix_length, gateway))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_unspecified()),
        IpAddr::V6(a) => !(a.is_loopback() || a.is_unicast_link_local() || a.is_multicast() || a.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(address: &str, flags: AddressFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.prefix_len = 24;
        message.attributes = vec![AddressAttribute::Address(address.parse().unwrap()), AddressAttribute::Flags(flags)];
        message
    }

    #[test]
    fn only_reachable_addresses_are_announced() {
        for (address, expected) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
            ("::1", false),
            ("10.0.0.1", true),
            ("fd00::1", true),
        ] {
            let found = usable_address(&message(address, AddressFlags::Permanent));
            assert_eq!(found.is_some(), expected, "{address}");
        }
        assert_eq!(usable_address(&message("fd00::1", AddressFlags::Tentative)), None);
    }

    #[test]
    fn the_local_end_of_a_point_to_point_link_is_ours() {
        let mut message = message("10.0.0.2", AddressFlags::Permanent);
        message.attributes.push(AddressAttribute::Local("10.0.0.1".parse().unwrap()));
        assert_eq!(usable_address(&message).unwrap().addr(), "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[tokio::test]
    async fn what_is_there_is_told_at_once() {
        let (events, mut told) = mpsc::channel(1);
        let task = tokio::spawn(monitor(events));
        let event = timeout(Duration::from_secs(10), told.recv()).await.unwrap();
        assert!(matches!(event, Some(Event::Addresses(_))));
        drop(told);
        timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }
}
