//! Real packets between two terminals, each a process of its own in its own network namespace.
//!
//! Needs root, `ip`, `ping`, `nsenter`, `unshare`, `setpriv` and /dev/net/tun. `CUG_TEST_BACKEND=kernel` runs the same tests
//! on the kernel's WireGuard where there is one.

#![allow(clippy::disallowed_methods, reason = "deadlines and measurements of a test")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code outside of #[test] functions"
)]

mod node;
mod rig;

use std::time::Duration;

use rig::{Pair, Terminal, holds, public_key, until};

/// Wiped on free, as in the daemon: the memory test below is about the daemon's memory.
#[global_allocator]
static ALLOCATOR: cugd::tunnel::memory::WipingAllocator = cugd::tunnel::memory::WipingAllocator;

const SOON: Duration = Duration::from_secs(10);
/// More than the grain of handshake ages.
const TICK: Duration = Duration::from_millis(600);

/// Not a test of its own: the process that the others start in their namespaces.
#[test]
fn node() {
    if std::env::var_os(node::MARK).is_some() {
        node::run();
    }
}

#[test]
fn packets_pass_both_ways_and_down_leaves_nothing() {
    let mut pair = Pair::connected(7);
    for (from, to) in [("a", "100.96.0.2"), ("a", "fd00:c6::2"), ("b", "100.96.0.1"), ("b", "fd00:c6::1")] {
        let terminal = if from == "a" { &mut pair.a } else { &mut pair.b };
        assert!(terminal.ping(to, 3), "{from} -> {to}");
    }
    let link = pair.a.ip("link show cug0a0a0a0a0a");
    assert!(link.contains("mtu 1420") && link.contains("UP"), "{link}");
    assert!(pair.a.ip("route show dev cug0a0a0a0a0a").contains("100.96.0.0/20"));
    assert!(pair.a.ip("route show dev cug0a0a0a0a0a").contains("192.168.77.0/24"));
    let v6 = pair.a.ip("-6 address show dev cug0a0a0a0a0a");
    assert!(v6.contains("fd00:c6::1/64") && v6.contains("nodad") && !v6.contains("tentative"), "{v6}");
    assert!(!v6.contains("fe80"), "no link-local address, no router solicitations: {v6}");

    let secrets = [node::bytes_of(10), node::bytes_of(7)];
    assert!(secrets.iter().all(|secret| holds(pair.a.pid(), secret)), "the search must be able to find them");
    let took = pair.a.ask("down");
    eprintln!("up {} us, down {took} us", pair.a.up_micros);
    assert!(!pair.a.has_link("cug0a0a0a0a0a"));
    assert!(pair.a.ip("route show table all").lines().all(|line| !line.contains("100.96.")));
    for (number, secret) in secrets.iter().enumerate() {
        assert!(!holds(pair.a.pid(), secret), "secret {number} is still in memory");
    }
    pair.a.ask("down");
}

#[test]
fn a_wrong_preshared_key_means_no_handshake() {
    let mut pair = Pair::up();
    pair.a.add_peer(&pair.b_facts(), 7);
    pair.b.add_peer(&pair.a_facts(), 8);
    assert!(!pair.a.ping("100.96.0.2", 1));
    assert_eq!(pair.a.handshake_age(&public_key(20)), None);
    assert_eq!(pair.b.handshake_age(&public_key(10)), None);
    // The same two terminals with the right key: it was the key and nothing else.
    pair.b.ask(&format!("psk {} 7", public_key(10)));
    pair.b.ask(&format!("rekey {}", public_key(10)));
    until(SOON, || pair.a.ping("100.96.0.2", 1));
}

#[test]
fn rotating_the_keys_loses_no_packet() {
    let mut pair = Pair::connected(7);
    assert!(pair.a.ping("100.96.0.2", 1));
    let ping = pair.a.ping_on("100.96.0.2");
    let (a, b) = (public_key(10), public_key(20));
    for key in 30..36 {
        pair.a.ask(&format!("psk {b} {key}"));
        // Packets go on while only one side has the new key.
        let sent = pair.b.received(&a);
        until(SOON, || pair.b.received(&a) > sent + 2000);
        pair.b.ask(&format!("psk {a} {key}"));
        // Ages are known to a quarter of a second.
        until(SOON, || {
            pair.a.handshake_age(&b).is_some_and(|age| age > TICK) && pair.b.handshake_age(&a).unwrap() > TICK
        });
        pair.a.ask(&format!("rekey {b}"));
        until(SOON, || pair.a.handshake_age(&b).unwrap() < TICK && pair.b.handshake_age(&a).unwrap() < TICK);
    }
    let (sent, received) = ping.finish();
    eprintln!("six rotations: {sent} pings, {} lost", sent - received);
    assert!(sent > 50, "{sent}");
    assert_eq!(sent, received);
    // The last key is in use on both sides: a handshake with any other fails.
    pair.b.ask(&format!("psk {a} 99"));
    until(SOON, || pair.a.handshake_age(&b).unwrap() > TICK);
    pair.a.ask(&format!("rekey {b}"));
    assert!(pair.a.handshake_age(&b).unwrap() > TICK, "a handshake went through with different keys");
}

#[test]
fn a_removed_member_is_silent_at_once() {
    let mut pair = Pair::connected(7);
    assert!(pair.a.ping("100.96.0.2", 1) && pair.b.ping("100.96.0.1", 1));
    pair.a.ask(&format!("remove {}", public_key(20)));
    let before = pair.a.rx_packets("cug0a0a0a0a0a");
    assert!(!pair.b.ping("100.96.0.1", 1) && !pair.a.ping("100.96.0.2", 1));
    assert_eq!(pair.a.rx_packets("cug0a0a0a0a0a"), before, "no packet of the removed member came through");
    pair.a.add_peer(&pair.b_facts(), 7);
    until(SOON, || pair.a.ping("100.96.0.2", 1));
}

#[test]
fn a_member_cannot_speak_for_another_address() {
    let mut pair = Pair::connected(7);
    pair.b.ip("address add 100.96.0.77/20 dev cug1414141414");
    assert!(pair.b.ping("100.96.0.1", 1));
    let before = pair.a.rx_packets("cug0a0a0a0a0a");
    assert!(!pair.b.ping_from("100.96.0.77", "100.96.0.1"));
    assert_eq!(
        pair.a.rx_packets("cug0a0a0a0a0a"),
        before,
        "a packet from an address that is not the member's came through"
    );
    let refused = pair.a.try_ask(&format!("peer {} 7 - 100.96.0.2/32", public_key(44)));
    assert!(refused.unwrap_err().contains("belongs to two members"));
}

#[test]
fn a_moved_endpoint_keeps_connection_and_session() {
    let mut pair = Pair::connected(7);
    pair.b.ask("serve 100.96.0.2:7000");
    pair.a.ask("connect 100.96.0.2:7000");
    pair.a.ask("exchange");
    let before = pair.b.handshake_age(&public_key(10)).unwrap();
    // B's old address vanishes, and B stays silent: only the update can tell A.
    pair.b.ip("address delete 10.9.0.2/24 dev wire");
    pair.b.ip("address add 10.9.0.3/24 dev wire");
    pair.a.ask(&format!("endpoint {} 10.9.0.3:{}", public_key(20), pair.b.port));
    pair.a.ask("exchange");
    let stats = pair.a.ask("stats");
    assert!(stats.contains("10.9.0.3"), "{stats}");
    assert!(pair.b.handshake_age(&public_key(10)).unwrap() >= before, "the session went on");
}

const MANY: usize = 24 << 20;

/// Sends a lot from A to B and back, and says how long packets were on the average: handed over by the kernel, and given to it.
fn lengths_of_bulk(pair: &mut Pair, at: &str) -> (u64, u64) {
    pair.b.ask(&format!("serve {at}"));
    pair.a.ask(&format!("connect {at}"));
    let now = |pair: &Pair| ["TX:", "RX:"].map(|direction| pair.a.passed("cug0a0a0a0a0a", direction));
    let before = now(pair);
    pair.a.ask(&format!("bulk {MANY}"));
    let after = now(pair);
    let [tx, rx] = [0, 1].map(|way| (after[way].0 - before[way].0) / (after[way].1 - before[way].1));
    (tx, rx)
}

#[test]
fn a_stream_passes_in_large_packets_unchanged() {
    let mut pair = Pair::connected(7);
    for at in ["100.96.0.2:7000", "[fd00:c6::2]:7000"] {
        let (tx, rx) = lengths_of_bulk(&mut pair, at);
        eprintln!("{at}: {tx} bytes a packet from the kernel, {rx} to it");
        if std::env::var_os("CUG_TEST_BACKEND").is_none() {
            assert!(tx > 2 * 1420 && rx > 1420, "{at}: {tx}, {rx}");
        }
    }
}

#[test]
fn a_stream_passes_where_the_kernel_hands_over_no_large_packets() {
    let mut pair = Pair::connected(7);
    pair.a.ip("link set cug0a0a0a0a0a gso_max_segs 1");
    pair.b.ip("link set cug1414141414 gso_max_segs 1");
    for at in ["100.96.0.2:7000", "[fd00:c6::2]:7000"] {
        let (tx, _) = lengths_of_bulk(&mut pair, at);
        assert!(tx <= 1420, "{at}: {tx}");
    }
}

#[test]
fn a_taken_port_is_skipped() {
    let mut pair = Pair::new();
    pair.a.ask("occupy 51820 51821");
    pair.a.up(10, "51820-51829", "100.96.0.1/20");
    assert_eq!(pair.a.port, 51822);
    let refused = pair.a.try_ask("up 11 51820-51822 100.96.16.1/20").unwrap_err();
    assert!(refused.contains("51820 to 51822 are in use"), "{refused}");
    assert!(!pair.a.has_link("cug0b0b0b0b0b"), "a failed attempt leaves nothing");
    assert!(pair.a.has_link("cug0a0a0a0a0a"));
}

#[test]
fn bring_up_is_all_or_nothing() {
    let mut terminal = Terminal::new();
    // The same address twice: the kernel refuses the second, after link, MTU and the first address were made.
    assert!(terminal.try_ask("up 10 51820-51829 100.96.0.1/20,100.96.0.1/20").unwrap_err().contains("add an address"));
    assert!(!terminal.has_link("cug0a0a0a0a0a"));
    terminal.ask("cancelled-up 10 51820-51829 100.96.0.1/20");
    until(SOON, || !terminal.has_link("cug0a0a0a0a0a"));
    terminal.ip("tuntap add dev cug0a0a0a0a0a mode tun");
    assert!(terminal.try_ask("up 10 51820-51829 100.96.0.1/20").unwrap_err().contains("exists already"));
    assert!(terminal.has_link("cug0a0a0a0a0a"), "somebody else's interface stays");
}

#[test]
fn a_restart_after_kill_removes_what_is_ours_and_nothing_else() {
    let mut terminal = Terminal::new();
    terminal.up(10, "51820-51829", "100.96.0.1/20");
    // What a killed daemon leaves with the kernel's WireGuard: a link that no process holds.
    terminal.ip("tuntap add dev cug0123456789 mode tun");
    terminal.ip("tuntap add dev cuggy mode tun");
    terminal.restart_after_kill();
    let swept = terminal.ask("sweep");
    assert!(swept.contains("cug0123456789") && !swept.contains("cuggy"), "{swept}");
    assert!(!terminal.has_link("cug0a0a0a0a0a") && !terminal.has_link("cug0123456789"));
    assert!(terminal.has_link("cuggy"), "an interface of somebody else stays");
    terminal.up(10, "51820-51829", "100.96.0.1/20");
    assert_eq!(terminal.port, 51820, "the killed one's port is free again");
}

#[test]
fn a_tunnel_that_somebody_removed_is_reported() {
    let mut terminal = Terminal::new();
    terminal.up(10, "51820-51829", "100.96.0.1/20");
    terminal.ip("link delete cug0a0a0a0a0a");
    terminal.ask("lost");
    terminal.ask("down");
}

#[test]
fn the_kernel_is_probed_by_its_own_answer() {
    let mut terminal = Terminal::new();
    let has_wireguard = terminal.try_ip("link add plain type wireguard");
    let selected = terminal.ask("select auto");
    assert_eq!(selected, if has_wireguard { "Kernel" } else { "Embedded" });
    let kernel = terminal.try_ask("select kernel");
    assert_eq!(kernel.is_ok(), has_wireguard);
    assert!(has_wireguard || kernel.unwrap_err().contains("the kernel has no WireGuard"));
    assert!(!terminal.ip("link show").contains("cug"), "the probe leaves nothing");
}

/// Who is not asked when a key changes lives on the old one for two minutes.
#[test]
fn everybody_in_a_large_group_is_asked_for_a_new_session() {
    const MEMBERS: usize = 2000;
    let mut terminal = Terminal::new();
    terminal.up(10, "51820-51829", "100.96.0.1/20");
    terminal.ask(&format!("crowd {MEMBERS}"));
    terminal.ask(&format!("crowd-rekey {MEMBERS}"));
    let stats = terminal.ask("stats");
    let asked = stats.split(';').filter(|peer| peer.rsplit(' ').next() != Some("0")).count();
    assert_eq!(asked, MEMBERS);
    terminal.ask("down");
}

#[test]
fn many_members_come_and_go_quickly() {
    let mut pair = Pair::connected(7);
    let ping = pair.a.ping_on("100.96.0.2");
    let micros: u64 = pair.a.ask("crowd 1000").parse().unwrap();
    let rekeyed: u64 = pair.a.ask("crowd-rekey 1000").parse().unwrap();
    let removed: u64 = pair.a.ask("crowd-remove 1000").parse().unwrap();
    let (sent, received) = ping.finish();
    eprintln!(
        "1000 peers: added in {micros} us, rekeyed in {rekeyed} us, removed in {removed} us; {} pings lost",
        sent - received
    );
    assert_eq!(sent, received);
    pair.a.ask("crowd 200");
    pair.a.ask("stats");
    pair.a.ask("down");
    assert!(!holds(pair.a.pid(), &node::bytes_of(3)), "a preshared key is still in memory");
}
