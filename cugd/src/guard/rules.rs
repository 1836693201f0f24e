//! The packet filter's rules as nft takes them: one table, replaced as a whole in one transaction. Pure.
//!
//! Nothing but names of our own form, numbers and addresses goes into the text. Our table only drops and rejects: an `accept` here ends
//! the look at this table, not that of the administrator's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::plan::{Exception, Fence, Plan};

/// The name of our table, family `inet`.
pub const TABLE: &str = "cug";

/// What else looks at the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// The programs of [`super::program`]: these rules need not know whose a listening socket is, and cannot.
    Programs,
    /// Nothing: listeners are told apart by the cgroup that systemd gives each user, and a packet without a socket passes only as an
    /// answer.
    Nothing,
}

/// The transaction that makes the rules those of `plan`, whatever there was; an empty plan has no table.
pub fn transaction(plan: &Plan, beside: Beside) -> String {
    // Deleting a table that is not there is an error, so it is made first.
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n{}", table(plan, beside))
}

/// The same where there is no table of ours; refused where there is one. What deletes nothing need not wait until no packet looks at it any more,
/// which takes the kernel longer than all the rest.
pub fn first_transaction(plan: &Plan, beside: Beside) -> String {
    format!("create table inet {TABLE}\n{}", table(plan, beside))
}

fn table(plan: &Plan, beside: Beside) -> String {
    let mut text = String::new();
    if !plan.is_empty() {
        text += &format!("table inet {TABLE} {{\n");
        let owners: BTreeSet<u32> = plan.fences.values().map(|fence| fence.uid).collect();
        owners.into_iter().for_each(|uid| text += &sockets_of(uid));
        plan.fences.values().for_each(|fence| text += &own_chains(fence, plan, beside));
        for (uid, allowed) in plan.confined() {
            text += &confinement(uid, &allowed);
        }
        text += &input(plan);
        text += &inside(plan, beside);
        text += &output(plan);
        text += &forward(plan);
        text += "}\n";
    }
    text
}

/// A user ID as nft takes it. nft asks the name service for a user of that *name* first, and there are places where people are called by numbers; no name
/// begins with a plus, and a number may.
fn number(uid: u32) -> String {
    format!("\"+{uid}\"")
}

/// Lets the packets of the user's sockets pass, drops those of others, and returns with those of no socket. Once for each user: each number that nft
/// reads is a question to the name service.
fn sockets_of(uid: u32) -> String {
    let number = number(uid);
    format!("chain sockets_of_{uid} {{\nmeta skuid {number} accept\nmeta skuid != {number} drop\n}}\n")
}

/// The user's slice, as systemd names it, below the root of the cgroup tree.
pub fn slice(uid: u32) -> String {
    format!("user.slice/user-{uid}.slice")
}

/// What goes into an interface and what comes out of it.
fn own_chains(fence: &Fence, plan: &Plan, beside: Beside) -> String {
    let (name, uid) = (&fence.name, fence.uid);
    let mut text = format!("chain out_{name} {{\njump sockets_of_{uid}\n");
    // From here on packets of sockets without a file: the kernel's own answers.
    for address in plan.shared() {
        text += &format!("{} saddr {address} drop\n", family(address));
    }
    text += match beside {
        Beside::Programs => "accept\n}\n",
        Beside::Nothing => "ct state established,related accept\ndrop\n}\n",
    };
    text += &format!("chain in_{name} {{\n");
    for (family, own) in [("ip", addresses(fence, IpAddr::is_ipv4)), ("ip6", addresses(fence, IpAddr::is_ipv6))] {
        // A machine takes packets for all its addresses at any interface; a member is to reach this one only.
        // One is compared; a set takes nft and the kernel longer to make than everything else in the chain.
        text += &match own.as_slice() {
            [] => format!("meta nfproto {} drop\n", if family == "ip" { "ipv4" } else { "ipv6" }),
            [one] => format!("{family} daddr != {one} drop\n"),
            several => format!("{family} daddr != {{ {} }} drop\n", several.join(", ")),
        };
    }
    text += &match beside {
        Beside::Programs => "accept\n}\n".to_owned(),
        Beside::Nothing => format!(
            "socket cgroupv2 level 2 \"{}\" accept\n\
             socket wildcard 0 drop\nsocket wildcard 1 drop\n\
             ct state established,related accept\n\
             icmp type echo-request accept\nicmpv6 type echo-request accept\nmeta l4proto tcp accept\ndrop\n}}\n",
            slice(uid)
        ),
    };
    text
}

/// What a confined user's sockets may send besides.
fn confinement(uid: u32, allowed: &[Exception]) -> String {
    let mut text = format!("chain closed_{uid} {{\noifname \"lo\" accept\n");
    for exception in allowed {
        let to = format!("{} daddr {}", family(exception.net.addr()), exception.net);
        text += &match exception.port {
            Some(port) => format!("{to} meta l4proto {{ tcp, udp }} th dport {port} accept\n"),
            None => format!("{to} accept\n"),
        };
    }
    text + "meta l4proto tcp reject with tcp reset\nreject with icmpx admin-prohibited\n}\n"
}

fn input(plan: &Plan) -> String {
    let mut text = "chain input {\ntype filter hook input priority filter; policy accept;\n".to_owned();
    for name in plan.fences.keys() {
        text += &format!("iifname \"{name}\" jump in_{name}\n");
    }
    for (address, fences) in holders(plan) {
        // Nobody on the network below passes for a member.
        text += &format!("{} daddr {address} iifname != \"lo\"", family(address));
        for fence in fences {
            text += &format!(" iifname != \"{}\"", fence.name);
        }
        text += " drop\n";
    }
    text + "}\n"
}

/// What the kernel itself sends to an overlay address inside this machine: answers, and nothing that begins anything. Told by the packets and not by the
/// kernel's connection tracking, which would be switched on for all traffic of the workstation by one rule that asks it.
const ANSWERS: &str = "chain answers {\n\
    tcp flags & (fin | syn | rst | ack) == syn drop\nmeta l4proto tcp accept\n\
    icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem } accept\n\
    icmpv6 type { echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept\n\
    drop\n}\n";

/// What is sent to an overlay address inside this machine.
fn inside(plan: &Plan, beside: Beside) -> String {
    let mut text = match beside {
        Beside::Programs => ANSWERS.to_owned(),
        Beside::Nothing => String::new(),
    };
    text += "chain inside {\n";
    let shared = plan.shared();
    for (address, fences) in holders(plan) {
        let to = format!("{} daddr {address}", family(address));
        match fences.first() {
            Some(fence) if !shared.contains(&address) => {
                text += &format!("{to} jump sockets_of_{}\n", fence.uid);
                text += &match beside {
                    Beside::Programs => format!("{to} jump answers\n"),
                    Beside::Nothing => format!("{to} ct state established,related accept\n{to} drop\n"),
                };
            }
            // Two owners: nobody could say who listens there.
            _ => text += &format!("{to} drop\n"),
        }
    }
    text + "}\n"
}

/// Few rules come before what most packets are, those of the network below: each of them passes this.
fn output(plan: &Plan) -> String {
    let mut text =
        "chain output {\ntype filter hook output priority filter; policy accept;\noif \"lo\" jump inside\n".to_owned();
    for name in plan.fences.keys() {
        text += &format!("oifname \"{name}\" jump out_{name}\n");
    }
    for uid in plan.confined().keys() {
        text += &format!("meta skuid {} jump closed_{uid}\n", number(*uid));
    }
    text + "}\n"
}

fn forward(plan: &Plan) -> String {
    let mut text = "chain forward {\ntype filter hook forward priority filter; policy accept;\n".to_owned();
    for name in plan.fences.keys() {
        text += &format!("iifname \"{name}\" drop\noifname \"{name}\" drop\n");
    }
    text + "}\n"
}

/// Who has each overlay address.
fn holders(plan: &Plan) -> BTreeMap<IpAddr, Vec<&Fence>> {
    let mut holders: BTreeMap<IpAddr, Vec<&Fence>> = BTreeMap::new();
    for fence in plan.fences.values() {
        for address in fence.addresses.iter().map(IpNet::addr) {
            holders.entry(address).or_default().push(fence);
        }
    }
    holders
}

fn addresses(fence: &Fence, wanted: impl Fn(&IpAddr) -> bool) -> Vec<String> {
    fence.addresses.iter().map(IpNet::addr).filter(|a| wanted(a)).map(|a| a.to_string()).collect()
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::plan::tests::{exception, fence, plan};

    #[test]
    fn an_empty_plan_leaves_no_table() {
        assert_eq!(transaction(&Plan::default(), Beside::Programs), "add table inet cug\ndelete table inet cug\n");
        let plan = plan(vec![fence(0xaa, 7, &["100.96.0.1/24"], None)], &[]);
        let first = first_transaction(&plan, Beside::Programs);
        assert!(first.starts_with("create table inet cug\ntable inet cug {\n") && !first.contains("delete"));
    }

    #[test]
    fn a_user_of_two_addresses_is_named_once() {
        let plan = plan(
            vec![
                fence(0xaa, 7, &["100.96.0.1/24", "fd00::1/64"], Some(vec![exception("192.0.2.0/24", 53)])),
                fence(0xbb, 8, &["100.96.0.1/24"], None),
            ],
            &["[fd01::9]:7531"],
        );
        let text = transaction(&plan, Beside::Programs);
        for line in [
            "ip daddr 100.96.0.1 drop",
            "ip6 daddr fd00::1 jump sockets_of_7",
            "meta skuid != \"+7\" drop",
            "ip daddr 100.96.0.1 iifname != \"lo\" iifname != \"cugaaaaaaaaaa\" iifname != \"cugbbbbbbbbbb\" drop",
            "ip daddr 192.0.2.0/24 meta l4proto { tcp, udp } th dport 53 accept",
            "ip6 daddr fd01::9/128 meta l4proto { tcp, udp } th dport 7531 accept",
            "meta skuid \"+7\" jump closed_7",
            "meta nfproto ipv6 drop",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in\n{text}");
        }
        assert!(text.matches(" \"+7\" ").count() == 3, "each is a question to the name service");
        assert!(!text.contains("closed_8") && !text.contains("cgroupv2"));
        assert!(!text.contains("ct state"), "all traffic of the workstation would be tracked");
        assert!(transaction(&plan, Beside::Nothing).contains("socket cgroupv2 level 2 \"user.slice/user-7.slice\""));
    }
}
