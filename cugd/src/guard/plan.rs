//! What is to hold: whose each interface is, and what confined users may reach. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use cug_proto::{ProtocolError, policy::Policy};
use ipnet::IpNet;

use crate::tunnel::InterfaceName;

/// An interface and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The interface; its index follows from its name ([`InterfaceName::index`]).
    pub name: InterfaceName,
    /// The owner's user ID in the operating system, never 0.
    pub uid: u32,
    /// The owner's overlay addresses, each with the prefix of the group.
    pub addresses: Vec<IpNet>,
    /// Of a closed group: what its members may reach besides; `None` for an open group.
    pub closed: Option<Vec<Exception>>,
}

/// Something a confined user may reach: a network, one port of TCP and UDP there or everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// The network, without host bits.
    pub net: IpNet,
    /// The port; `None` for all ports and protocols.
    pub port: Option<NonZeroU16>,
}

/// All that is to hold at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The interfaces.
    pub fences: BTreeMap<InterfaceName, Fence>,
    /// The management servers, which confined users reach as well: a screen locker asks for the card in the user's name.
    pub servers: Vec<SocketAddr>,
}

/// A group's policy as it is enforced.
///
/// # Errors
/// [`ProtocolError::Malformed`] when an exception is no network.
pub fn closed(policy: &Policy) -> Result<Option<Vec<Exception>>, ProtocolError> {
    match policy {
        Policy::Open => Ok(None),
        Policy::Closed(allowed) => {
            let exceptions = allowed.iter().map(|a| Ok(Exception { net: a.net()?, port: a.port() }));
            exceptions.collect::<Result<_, _>>().map(Some)
        }
    }
}

impl Plan {
    /// A plan in which everything occurs that one can have, to find out whether a kernel takes its programs. It is not to be enforced.
    pub fn specimen() -> Self {
        let nets = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0_u16; 8])].map(IpNet::from);
        let closed = nets.iter().map(|net| Exception { net: *net, port: NonZeroU16::new(1) }).collect();
        let name = InterfaceName::from_hash(&[0; 32]);
        let fence = Fence { name: name.clone(), uid: 1, addresses: nets.to_vec(), closed: Some(closed) };
        Self { fences: BTreeMap::from([(name, fence)]), servers: Vec::new() }
    }

    /// Nothing is to hold.
    pub fn is_empty(&self) -> bool {
        self.fences.is_empty()
    }

    /// The confined users, with what each may reach besides loopback and the user's own interfaces.
    ///
    /// A user of several closed groups may reach what *all* of them list: the strictest holds. The groups themselves stay within reach,
    /// because the server made the user a member of each.
    pub fn confined(&self) -> BTreeMap<u32, Vec<Exception>> {
        let mut users: BTreeMap<u32, Vec<Exception>> = BTreeMap::new();
        for fence in self.fences.values() {
            let Some(allowed) = &fence.closed else { continue };
            users.entry(fence.uid).and_modify(|have| *have = common(have, allowed)).or_insert_with(|| tidy(allowed));
        }
        let servers: Vec<_> = self.servers.iter().filter_map(|server| exception_for(*server)).collect();
        for allowed in users.values_mut() {
            allowed.extend(&servers);
            allowed.sort();
            allowed.dedup();
        }
        users
    }

    /// Overlay addresses that two owners have at this terminal, in groups with the same network.
    pub fn shared(&self) -> Vec<IpAddr> {
        let mut owners: BTreeMap<IpAddr, u32> = BTreeMap::new();
        let mut shared = Vec::new();
        for fence in self.fences.values() {
            for address in fence.addresses.iter().map(IpNet::addr) {
                if owners.insert(address, fence.uid).is_some_and(|other| other != fence.uid) {
                    shared.push(address);
                }
            }
        }
        shared.sort();
        shared.dedup();
        shared
    }
}

fn exception_for(server: SocketAddr) -> Option<Exception> {
    Some(Exception { net: IpNet::from(server.ip()), port: Some(NonZeroU16::new(server.port())?) })
}

fn tidy(list: &[Exception]) -> Vec<Exception> {
    let mut list = list.to_vec();
    list.sort();
    list.dedup();
    list
}

/// What both lists allow.
fn common(one: &[Exception], other: &[Exception]) -> Vec<Exception> {
    let both: Vec<_> = one.iter().flat_map(|a| other.iter().filter_map(|b| narrower(*a, *b))).collect();
    tidy(&both)
}

fn narrower(a: Exception, b: Exception) -> Option<Exception> {
    let net = if a.net.contains(&b.net) {
        b.net
    } else if b.net.contains(&a.net) {
        a.net
    } else {
        return None;
    };
    match (a.port, b.port) {
        (Some(one), Some(other)) => (one == other).then_some(Exception { net, port: Some(one) }),
        (one, other) => Some(Exception { net, port: one.or(other) }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn exception(net: &str, port: u16) -> Exception {
        Exception { net: net.parse().unwrap(), port: NonZeroU16::new(port) }
    }

    pub fn fence(seed: u8, uid: u32, addresses: &[&str], closed: Option<Vec<Exception>>) -> Fence {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Fence { name: InterfaceName::from_hash(&[seed; 32]), uid, addresses, closed }
    }

    pub fn plan(fences: Vec<Fence>, servers: &[&str]) -> Plan {
        Plan {
            fences: fences.into_iter().map(|fence| (fence.name.clone(), fence)).collect(),
            servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn the_strictest_policy_holds() {
        let wide = vec![exception("10.0.0.0/8", 0), exception("fd00::/16", 443)];
        let narrow = vec![exception("10.1.0.0/16", 53), exception("192.0.2.0/24", 0), exception("fd00::1/128", 80)];
        let plan = plan(
            vec![
                fence(1, 7, &[], Some(wide.clone())),
                fence(2, 7, &[], None),
                fence(3, 7, &[], Some(narrow)),
                fence(4, 8, &[], Some(vec![])),
                fence(5, 9, &[], None),
            ],
            &["10.0.0.9:7531"],
        );
        let server = exception("10.0.0.9/32", 7531);
        let confined = plan.confined();
        assert_eq!(confined.keys().copied().collect::<Vec<_>>(), [7, 8], "a user of open groups is not confined");
        assert_eq!(confined[&7], tidy(&[exception("10.1.0.0/16", 53), server]));
        assert_eq!(confined[&8], [server], "an empty list lets nothing through but the server");
    }

    #[test]
    fn an_address_of_two_owners_is_seen() {
        let plan = plan(
            vec![
                fence(1, 7, &["100.96.0.1/24", "fd00::1/64"], None),
                fence(2, 8, &["100.96.0.1/24", "fd00::2/64"], None),
                fence(3, 8, &["fd00::2/64"], None),
            ],
            &[],
        );
        assert_eq!(plan.shared(), ["100.96.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused() {
        // Only the wire can carry an IPv4 network with a prefix of 64 bits. 24 is the one 0x18 0x18 of the encoding.
        let mut bytes = minicbor::to_vec(Policy::Closed(vec!["192.0.2.0/24".parse().unwrap()])).unwrap();
        let length = bytes.windows(2).rposition(|pair| pair == [0x18, 0x18]).unwrap() + 1;
        bytes[length] = 64;
        assert!(closed(&minicbor::decode(&bytes).unwrap()).is_err());
        assert_eq!(closed(&Policy::Open), Ok(None));
        assert_eq!(closed(&Policy::Closed(vec![])), Ok(Some(vec![])));
    }
}
