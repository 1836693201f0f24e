//! Links, addresses and routes, by netlink in the network namespace of this process.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{join_all, join3},
};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkWireguard, MulticastGroup, RouteMessageBuilder,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags},
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage},
        route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
    },
};
use tokio::time::timeout;

use super::{InterfaceName, Routing, TunnelError, error::errno, rules::PROTOCOL};

/// Limit of one exchange with the kernel.
const EXCHANGE: Duration = Duration::from_secs(5);

/// A netlink connection. It ends with its last handle.
pub(super) struct Links(Handle);

impl Links {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, TunnelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(TunnelError::io("a netlink socket"))?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Sets MTU and addresses of a link that is still down; the addresses that it has then.
    ///
    /// IPv6 addresses come without duplicate address detection, which would hold them back for a second on a link without
    /// neighbours. No link-local address is made: it would send router solicitations into the tunnel.
    /// With [`Routing::User`] they come without the route that the kernel would make for everybody.
    pub(super) async fn prepare(
        &self,
        index: u32,
        mtu: u16,
        addresses: &[IpNet],
        routing: Routing,
    ) -> Result<Vec<IpNet>, TunnelError> {
        let link = LinkUnspec::new_with_index(index).mtu(mtu.into()).build();
        let generation = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])];
        let quiet = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(generation))
            .build();
        // Asked one after the other without waiting for the answers: the kernel keeps the order.
        let (sized, quieted, added) = join3(
            bounded(self.0.link().change(link).execute()),
            bounded(self.0.link().change(quiet).execute()),
            join_all(addresses.iter().map(|address| self.add_address(index, *address, routing))),
        )
        .await;
        sized?.map_err(TunnelError::netlink("to set the MTU"))?;
        if let Err(error) = quieted? {
            tracing::debug!(%error, "link-local addresses cannot be switched off");
        }
        let mut set = Vec::with_capacity(addresses.len());
        for (address, added) in addresses.iter().zip(added) {
            if added? {
                set.push(*address);
            }
        }
        if set.is_empty() {
            return Err(TunnelError::Config("it has IPv6 addresses only and this machine has IPv6 switched off"));
        }
        Ok(set)
    }

    /// `false` when the machine has IPv6 switched off: a group is reached over IPv4 then.
    async fn add_address(&self, index: u32, address: IpNet, routing: Routing) -> Result<bool, TunnelError> {
        let mut request = self.0.address().add(index, address.addr(), address.prefix_len());
        let ipv6 = address.addr().is_ipv6();
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, ipv6);
        flags.set(AddressFlags::Noprefixroute, routing != Routing::Everybody);
        request.message_mut().attributes.push(AddressAttribute::Flags(flags));
        match bounded(request.execute()).await? {
            Ok(()) => Ok(true),
            Err(error)
                if ipv6 && matches!(errno(&error), Some(libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) =>
            {
                tracing::warn!(%address, %error, "IPv6 is switched off on this machine, leaving the address out");
                Ok(false)
            }
            Err(error) => Err(TunnelError::Netlink { doing: "to add an address", source: error }),
        }
    }

    /// Sets the link up.
    pub(super) async fn activate(&self, index: u32) -> Result<(), TunnelError> {
        self.try_activate(index).await?.map_err(TunnelError::netlink("to set an interface up"))
    }

    /// Sets the link up; the inner result is the kernel's answer.
    pub(super) async fn try_activate(&self, index: u32) -> Result<Result<(), rtnetlink::Error>, TunnelError> {
        bounded(self.0.link().change(LinkUnspec::new_with_index(index).up().build()).execute()).await
    }

    /// Adds a route to `network` through the link, in the main table or in `table`, with `source` as the address to send from.
    pub(super) async fn add_route(
        &self,
        index: u32,
        network: IpNet,
        table: Option<u32>,
        source: Option<IpAddr>,
    ) -> Result<(), TunnelError> {
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(network.network(), network.prefix_len())
            .map_err(|_| TunnelError::Config("a route has no valid prefix"))?
            .output_interface(index);
        if network.addr().is_ipv4() {
            route = route.scope(RouteScope::Link);
        }
        if let Some(table) = table {
            route = route.table_id(table).protocol(RouteProtocol::Other(PROTOCOL));
        }
        if let Some(source) = source {
            route = route.pref_source(source).map_err(|_| TunnelError::Config("a route has an impossible source"))?;
        }
        bounded(self.0.route().add(route.build()).execute()).await?.map_err(TunnelError::netlink("to add a route"))
    }

    /// The routes of `table`, for people.
    pub(super) async fn routes(&self, table: u32) -> Result<Vec<String>, TunnelError> {
        let mut found = Vec::new();
        for mut message in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            message.attributes.push(RouteAttribute::Table(table));
            let all: Result<Vec<_>, _> = bounded(self.0.route().get(message).execute().try_collect()).await?;
            let all = all.map_err(TunnelError::netlink("to list the routes"))?;
            let ours = |route: &RouteMessage| route.attributes.contains(&RouteAttribute::Table(table));
            found.extend(all.iter().filter(|route| ours(route)).map(|_| format!("a route of table {table}")));
        }
        Ok(found)
    }

    /// Makes a WireGuard link with the index of its name. The inner result is the kernel's answer.
    pub(super) async fn add_wireguard(
        &self,
        name: &InterfaceName,
    ) -> Result<Result<(), rtnetlink::Error>, TunnelError> {
        let link = LinkMessageBuilder::<LinkWireguard>::new(name.as_str()).index(name.index()).build();
        bounded(self.0.link().add(link).execute()).await
    }

    /// The connection, for what is not about links.
    pub(super) fn handle(&self) -> &Handle {
        &self.0
    }

    /// Removes a link; one that is gone already is no error. The kernel answers when it is removed.
    async fn remove(&self, index: u32) -> Result<(), TunnelError> {
        match bounded(self.0.link().del(index).execute()).await? {
            Err(error) if errno(&error) != Some(libc::ENODEV) => {
                Err(TunnelError::Netlink { doing: "to remove an interface", source: error })
            }
            _ => Ok(()),
        }
    }

    /// All links that bear a name of ours.
    async fn ours(&self) -> Result<Vec<(u32, InterfaceName)>, TunnelError> {
        let all: Result<Vec<LinkMessage>, _> = bounded(self.0.link().get().execute().try_collect()).await?;
        let all = all.map_err(TunnelError::netlink("to list the interfaces"))?;
        Ok(all.into_iter().filter_map(|link| Some((link.header.index, own_name(&link)?))).collect())
    }
}

/// The index of the link called `name`, if there is one.
pub(super) fn find(name: &InterfaceName) -> Result<Option<u32>, TunnelError> {
    match nix::net::if_::if_nametoindex(name.as_str()) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV | Errno::ENXIO) => Ok(None),
        Err(error) => Err(TunnelError::Io { doing: "to show an interface", source: error.into() }),
    }
}

/// Removes every interface with a name of ours: see [`super::sweep`].
pub(super) async fn sweep() -> Result<Vec<InterfaceName>, TunnelError> {
    let links = Links::open()?;
    let mut swept = Vec::new();
    let mut failed = None;
    for (index, name) in links.ours().await? {
        match links.remove(index).await {
            Ok(()) => swept.push(name),
            Err(error) => {
                tracing::warn!(interface = %name, error = %error.with_causes(), "a leftover interface cannot be removed");
                failed = Some(name);
            }
        }
    }
    match failed {
        Some(name) => Err(TunnelError::StillThere(name)),
        None => Ok(swept),
    }
}

/// Returns when no link is called `name`, removing it if need be.
pub(super) async fn ensure_gone(name: &InterfaceName) -> Result<(), TunnelError> {
    let Some(index) = find(name)? else { return Ok(()) };
    if let Err(error) = Links::open()?.remove(index).await {
        tracing::warn!(interface = %name, error = %error.with_causes(), "an interface cannot be removed");
    }
    match find(name)? {
        None => Ok(()),
        Some(_) => Err(TunnelError::StillThere(name.clone())),
    }
}

/// Returns when the link with `index` is gone, or when that can no longer be watched.
pub(super) async fn until_gone(index: u32) {
    let Ok((connection, handle, mut news)) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link]) else {
        return;
    };
    tokio::spawn(connection);
    // Subscribed first, looked second: a removal in between is in the news.
    if !matches!(handle.link().get().match_index(index).execute().try_next().await, Ok(Some(_))) {
        return;
    }
    while let Some((message, _)) = news.next().await {
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) = message.payload
            && link.header.index == index
        {
            return;
        }
    }
}

fn own_name(link: &LinkMessage) -> Option<InterfaceName> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    })
}

pub(super) async fn bounded<T>(exchange: impl Future<Output = T>) -> Result<T, TunnelError> {
    timeout(EXCHANGE, exchange).await.map_err(|_| TunnelError::Timeout("the kernel's answer"))
}
