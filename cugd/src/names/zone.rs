//! What the members of a group are called: from user IDs and group names to domain names. No I/O.
//!
//! A member's name is `USER.GROUP.SUFFIX` in lower case. What of user IDs and group names fits into a domain name:
//!
//! | in the ID | in the name |
//! |---|---|
//! | `A`-`Z` | `a`-`z`: DNS knows no case |
//! | `a`-`z`, `0`-`9`, `-`, `_` | the same. `_` is no letter of host names (RFC 1123), but DNS and the C library take it |
//! | `.` | `.`: `first.last` is `first.last.vpn1.cug` |
//!
//! No other character occurs in an ID. A label that is empty, begins or ends with `-`, or has `--` in third place (RFC 5891, 4.2.3.1) has no
//! name. So two IDs have the same name only when they differ in case alone; then neither has it, as long as both are logged in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use cug_proto::id::{GroupName, UserId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::tunnel::InterfaceName;

/// Most bytes of a suffix, so that with user ID and group name every name is shorter than the 253 bytes of a domain name.
const MAX_SUFFIX: usize = 100;

/// Most bytes of a label (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// What all names end with: one or more labels, lower case, no dot at the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suffix(String);

impl Suffix {
    /// The suffix.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Suffix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let suffix = text.to_ascii_lowercase();
        if suffix.len() > MAX_SUFFIX || !suffix.split('.').all(is_label) {
            return Err(format!("\"{text}\" is not a domain name of at most {MAX_SUFFIX} letters, such as \"cug\""));
        }
        match suffix.rsplit('.').next() {
            // Names below these have a meaning of their own (RFC 6761, RFC 6762, RFC 3172).
            Some(top @ ("local" | "localhost" | "arpa" | "invalid")) => {
                Err(format!("names below \"{top}\" are not free"))
            }
            _ => Ok(Self(suffix)),
        }
    }
}

/// A letter, digit or `_` at both ends, those and `-` between, and nothing that means something to internationalised names.
fn is_label(label: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let edge = |b: Option<u8>| b.is_some_and(|b| b != b'-');
    label.len() <= MAX_LABEL
        && label.bytes().all(allowed)
        && edge(label.bytes().next())
        && edge(label.bytes().last())
        && label.get(2..4) != Some("--")
}

/// The labels of a user ID.
fn user_part(user: &UserId) -> Option<String> {
    let name = user.as_str().to_ascii_lowercase();
    name.split('.').all(is_label).then_some(name)
}

/// Where a group's members are named: `vpn1.cug`; `None` when the group's name cannot be a label.
pub fn domain(group: &GroupName, suffix: &Suffix) -> Option<String> {
    let name = group.as_str().to_ascii_lowercase();
    is_label(&name).then(|| format!("{name}.{}", suffix.as_str()))
}

/// A member who is logged in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member<'a> {
    /// Who.
    pub user: &'a UserId,
    /// Overlay address.
    pub address4: Ipv4Addr,
    /// Overlay address.
    pub address6: Ipv6Addr,
}

/// The names of a group's members, as seen from one session. Changes with each who joins or leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zone {
    /// The group's interface.
    pub interface: InterfaceName,
    /// Whose session.
    pub user: UserId,
    /// What all names of the zone end with, without a dot at the end.
    pub domain: String,
    /// The group's network: reverse names in it are the zone's too.
    pub prefix4: Ipv4Net,
    /// The group's network: reverse names in it are the zone's too.
    pub prefix6: Ipv6Net,
    /// Name, without a dot at the end, and addresses.
    pub hosts: BTreeMap<String, (Ipv4Addr, Ipv6Addr)>,
    /// IDs that have no name, for the log: not a label, or not the only one.
    pub nameless: BTreeSet<UserId>,
}

impl Zone {
    /// The zone of `members` at `domain` (see [`domain`]).
    pub fn new<'a>(
        interface: InterfaceName,
        user: UserId,
        domain: String,
        (prefix4, prefix6): (Ipv4Net, Ipv6Net),
        members: impl Iterator<Item = Member<'a>>,
    ) -> Self {
        let mut by_name: BTreeMap<String, Vec<Member>> = BTreeMap::new();
        let mut nameless = BTreeSet::new();
        for member in members {
            match user_part(member.user) {
                Some(name) => by_name.entry(name).or_default().push(member),
                None => drop(nameless.insert(member.user.clone())),
            }
        }
        let mut hosts = BTreeMap::new();
        for (name, members) in by_name {
            match members.as_slice() {
                [one] => drop(hosts.insert(format!("{name}.{domain}"), (one.address4, one.address6))),
                several => nameless.extend(several.iter().map(|member| member.user.clone())),
            }
        }
        Self { interface, user, domain, prefix4, prefix6, hosts, nameless }
    }

    /// The name at an address.
    pub fn name_of(&self, address: IpAddr) -> Option<&str> {
        self.hosts.iter().find(|(_, (four, six))| *four == address || *six == address).map(|(name, _)| name.as_str())
    }

    /// Whether an address lies in the group's networks.
    pub fn covers(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.prefix4.contains(&address),
            IpAddr::V6(address) => self.prefix6.contains(&address),
        }
    }

    /// The reverse domains that lie in the group's networks, without a dot at the end. A network that does not end between two labels has several.
    pub fn reverse_domains(&self) -> Vec<String> {
        let four = aligned(IpNet::V4(self.prefix4), 8);
        let six = aligned(IpNet::V6(self.prefix6), 4);
        four.into_iter().chain(six).map(reverse_domain).collect()
    }
}

/// The networks whose length is a multiple of `step` and that make up `net`: fewer than 2 to the power of `step`.
fn aligned(net: IpNet, step: u8) -> Vec<IpNet> {
    let length = net.prefix_len().next_multiple_of(step).clamp(step, net.max_prefix_len());
    net.subnets(length).map(Iterator::collect).unwrap_or_default()
}

/// The domain of a network whose length is a whole number of labels.
pub fn reverse_domain(net: IpNet) -> String {
    match net {
        IpNet::V4(net) => {
            let octets = net.network().octets();
            let labels = octets.iter().take(usize::from(net.prefix_len() / 8)).rev().map(u8::to_string);
            labels.chain(["in-addr".to_owned(), "arpa".to_owned()]).collect::<Vec<_>>().join(".")
        }
        IpNet::V6(net) => {
            let nibbles = net.network().octets().into_iter().flat_map(|octet| [octet >> 4, octet & 15]);
            let taken: Vec<u8> = nibbles.take(usize::from(net.prefix_len() / 4)).collect();
            let labels = taken.into_iter().rev().map(|nibble| format!("{nibble:x}"));
            labels.chain(["ip6".to_owned(), "arpa".to_owned()]).collect::<Vec<_>>().join(".")
        }
    }
}

/// Names with addresses and the interface through which they are reached.
pub type Table<'a> = BTreeMap<&'a str, (Ipv4Addr, Ipv6Addr, &'a InterfaceName)>;

/// One table for all users of the machine: the names that several zones give to different addresses are left out, and returned.
pub fn merged<'a>(zones: impl Iterator<Item = &'a Zone>) -> (Table<'a>, BTreeSet<&'a str>) {
    let mut table = Table::new();
    let mut ambiguous = BTreeSet::new();
    for zone in zones {
        for (name, &(four, six)) in &zone.hosts {
            let there = table.entry(name).or_insert((four, six, &zone.interface));
            if (there.0, there.1) != (four, six) {
                ambiguous.insert(name.as_str());
            }
        }
    }
    table.retain(|name, _| !ambiguous.contains(name));
    (table, ambiguous)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user(name: &str) -> UserId {
        name.parse().unwrap()
    }

    /// A zone of `vpn1.cug` with these users, at 100.96.16.1 and so on.
    pub fn zone(users: &[&str]) -> Zone {
        let ids: Vec<UserId> = users.iter().map(|name| user(name)).collect();
        let members = ids.iter().zip(1u8..).map(|(user, n)| Member {
            user,
            address4: Ipv4Addr::new(100, 96, 16, n),
            address6: format!("fd00::{n:x}").parse().unwrap(),
        });
        Zone::new(
            "cug0123456789".parse().unwrap(),
            user("USER-A"),
            domain(&"VPN1".parse().unwrap(), &"cug".parse().unwrap()).unwrap(),
            ("100.96.16.0/20".parse().unwrap(), "fd00::/64".parse().unwrap()),
            members,
        )
    }

    #[test]
    fn the_table_of_the_mapping() {
        let zone = zone(&["USER-B", "first.last", "x_1", "_", "a..b", "dot.", "dash-", "a.-b", "xn--abc", "0day"]);
        let names: Vec<&str> = zone.hosts.keys().map(String::as_str).collect();
        assert_eq!(names, ["0day.vpn1.cug", "_.vpn1.cug", "first.last.vpn1.cug", "user-b.vpn1.cug", "x_1.vpn1.cug"]);
        let nameless: Vec<&str> = zone.nameless.iter().map(UserId::as_str).collect();
        assert_eq!(nameless, ["a.-b", "a..b", "dash-", "dot.", "xn--abc"]);
        assert_eq!(zone.name_of("fd00::1".parse().unwrap()), Some("user-b.vpn1.cug"));
        assert!(domain(&"vpn-".parse().unwrap(), &"cug".parse().unwrap()).is_none());
    }

    #[test]
    fn of_two_who_differ_in_case_neither_has_the_name() {
        let zone = zone(&["USER-B", "user-b", "USER-C"]);
        assert_eq!(zone.hosts.keys().collect::<Vec<_>>(), ["user-c.vpn1.cug"]);
        assert_eq!(zone.nameless.len(), 2);
        assert_eq!(zone.name_of("100.96.16.1".parse().unwrap()), None);
    }

    #[test]
    fn reverse_domains_are_whole_labels() {
        let mut zone = zone(&[]);
        let domains = zone.reverse_domains();
        assert_eq!(domains.len(), 17);
        assert_eq!(domains[0], "16.96.100.in-addr.arpa");
        assert_eq!(domains[15], "31.96.100.in-addr.arpa");
        assert_eq!(domains[16], "0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa");
        zone.prefix4 = "10.0.0.0/8".parse().unwrap();
        zone.prefix6 = "fd00::/63".parse().unwrap();
        assert_eq!(zone.reverse_domains()[0], "10.in-addr.arpa");
        assert_eq!(zone.reverse_domains().len(), 3);
    }

    #[test]
    fn a_suffix_is_a_domain_name() {
        for good in ["cug", "Cug.Example.org", "internal"] {
            assert!(good.parse::<Suffix>().is_ok(), "{good}");
        }
        for bad in ["", ".", "cug.", ".cug", "a b", "-a", "local", "x.arpa", "ä", &"a".repeat(64), &"a.".repeat(60)] {
            assert!(bad.parse::<Suffix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn zones_that_disagree_about_a_name_both_lose_it() {
        let (one, mut other) = (zone(&["USER-B", "USER-C"]), zone(&["USER-B"]));
        assert_eq!(merged([&one, &other].into_iter()).0.len(), 2, "the same twice is no clash");
        other.hosts.insert("user-b.vpn1.cug".into(), ("10.0.0.1".parse().unwrap(), "fd00::9".parse().unwrap()));
        let (table, ambiguous) = merged([&one, &other].into_iter());
        assert_eq!(table.keys().collect::<Vec<_>>(), [&"user-c.vpn1.cug"]);
        assert!(ambiguous.contains("user-b.vpn1.cug"));
    }

    proptest! {
        /// However the IDs look: a name leads to the one member who has it, and every name is one that DNS can carry.
        #[test]
        fn no_user_answers_for_another(ids in proptest::collection::btree_set("[A-Za-c0-1_][A-Ba-b._-]{0,5}", 1..12)) {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let zone = zone(&ids);
            prop_assert_eq!(zone.hosts.len() + zone.nameless.len(), ids.len());
            for (name, (address, _)) in &zone.hosts {
                let owner = ids[usize::from(address.octets()[3]) - 1];
                let same = ids.iter().filter(|id| id.eq_ignore_ascii_case(owner)).count();
                prop_assert_eq!(same, 1);
                prop_assert_eq!(name, &format!("{}.vpn1.cug", owner.to_ascii_lowercase()));
                prop_assert!(name.split('.').all(is_label) && name.len() <= 253);
            }
        }
    }
}
