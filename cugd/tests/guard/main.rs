//! Real packets at a guarded interface, two users and root on one terminal. What must not pass passes without the guard first.
//!
//! Needs root, `ip`, `nft`, `ping`, `nsenter`, `unshare`, `setpriv`, `sysctl`, a kernel with cgroup-skb programs and Multipath TCP.

#![allow(clippy::disallowed_methods, reason = "deadlines of a test")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code outside of #[test] functions"
)]

mod actor;
mod host;

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr};

use host::{Actor, Host, Person, Place, SEED};

/// Not a test of its own: the process that the others start in their namespaces.
#[test]
fn actor() {
    if let Ok(part) = std::env::var(actor::PART) {
        actor::run(&part);
    }
}

const OWN: &str = "100.96.0.1/24,fd00:96::1/64";

/// Everybody's programs at their places.
struct Scene {
    /// By port. First, so that they have ended when the people's cgroups go.
    servers: RefCell<BTreeMap<u16, Actor>>,
    place: Place,
    owner: Person,
    other: Person,
    root: Person,
}

/// What became of exchanges with a server: who got an answer, and whose first packet arrived there, answered or not.
#[derive(Default)]
struct Seen {
    answered: Vec<bool>,
    arrived: Vec<bool>,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let (owner, other, root) = (Person::new(), Person::new(), Person::root());
        let servers = BTreeMap::from([
            (7001, place.terminal.serve(&owner, 7001)),
            (7002, place.terminal.serve(&other, 7002)),
            (7003, place.terminal.serve(&root, 7003)),
            (7004, place.member.serve(&root, 7004)),
            (7005, place.office.serve(&root, 7005)),
            (7006, place.office.serve(&root, 7006)),
        ]);
        Self { place, owner, other, root, servers: RefCell::new(servers) }
    }

    fn guard(&self, choice: &str) -> Actor {
        let mut guard = self.place.terminal.guard();
        let layers = guard.ask(&format!("select {choice} process")).unwrap();
        assert_eq!(layers, if choice == "nft" { "nft" } else { "bpf+nft" });
        guard
    }

    fn raise(&self, guard: &mut Actor, closed: &str) {
        guard.ask(&format!("raise {SEED} {} {OWN} {closed}", self.owner.uid)).unwrap();
    }

    /// Datagrams that the server at `port` has received.
    fn datagrams(&self, port: u16) -> u64 {
        self.servers.borrow_mut().get_mut(&port).unwrap().ask("count").unwrap().parse().unwrap()
    }

    /// `who` at `from` exchanges a word with the server at `port` of `to`, by these protocols and both families.
    fn exchanges(&self, from: (&Host, &Person, &str), hows: &[&str], to: (&Host, [&str; 2], u16)) -> Seen {
        let ((host, who, device), (there, addresses, port)) = (from, to);
        let mut seen = Seen::default();
        for how in hows {
            for address in addresses {
                let before = (self.datagrams(port), there.half_open(port));
                let to = SocketAddr::new(address.parse().unwrap(), port).to_string();
                let answered = host.reaches(who, how, &to, device).is_ok();
                let datagram = self.datagrams(port) > before.0;
                let connection = !there.half_open(port).is_subset(&before.1);
                seen.answered.push(answered);
                seen.arrived.push(answered || datagram || connection);
            }
        }
        seen
    }

    /// What gets through, by what it is called. What "hears" in its name counts packets that arrive, whether they are answered or not: a
    /// layer that stops the answers alone would hide that another one lets the question in.
    fn packets(&self) -> BTreeMap<&'static str, Vec<bool>> {
        let Place { terminal, member, office } = &self.place;
        let device = actor::name(SEED);
        let (owner, other, root) = (&self.owner, &self.other, &self.root);
        let both = |host: &Host, who: &Person, how: &str, four: &str, six: &str, port: u16, device: &str| {
            let ports = [format!("{four}:{port}"), format!("[{six}]:{port}")];
            ports.map(|to| host.reaches(who, how, &to, device).is_ok()).to_vec()
        };
        let at_member = (member, ["100.96.0.2", "fd00:96::2"], 7004);
        let out = |who: &Person, device: &str| self.exchanges((terminal, who, device), &["tcp", "udp"], at_member);
        let inward = |port: u16| {
            let here = (terminal, ["100.96.0.1", "fd00:96::1"], port);
            self.exchanges((member, root, "-"), &["tcp", "udp"], here)
        };
        let at_office = (office, ["10.9.0.2", "fd00:9::2"], 7005);
        let ping = |host: &Host, who: &Person, to: [&str; 2]| to.map(|to| host.pings(who, to)).to_vec();
        let closed_port = |host: &Host| {
            let refused = ["100.96.0.1:7999", "[fd00:96::1]:7999"].map(|to| host.reaches(root, "tcp", to, "-"));
            refused.map(|answer| answer.unwrap_err().contains("ECONNREFUSED")).to_vec()
        };
        let (other_out, other_by_device, root_out) = (out(other, "-"), out(other, device.as_str()), out(root, "-"));
        let (owner_in, other_in, root_in) = (inward(7001), inward(7002), inward(7003));
        let through_here = self.exchanges((member, root, "-"), &["tcp", "udp"], at_office);
        let into_tunnel = self.exchanges((office, root, "-"), &["tcp", "udp"], at_member);
        BTreeMap::from([
            ("owner out", out(owner, "-").answered),
            ("owner out, device", out(owner, device.as_str()).answered),
            ("owner out, multipath", both(terminal, owner, "mptcp", "100.96.0.2", "fd00:96::2", 7004, "-")),
            ("owner in", owner_in.answered),
            ("owner hears", owner_in.arrived),
            ("owner, own address", both(terminal, owner, "tcp", "100.96.0.1", "fd00:96::1", 7001, "-")),
            ("owner pings", ping(terminal, owner, ["100.96.0.2", "fd00:96::2"])),
            ("terminal is pinged", ping(member, root, ["100.96.0.1", "fd00:96::1"])),
            ("closed port answers", closed_port(member)),
            ("other out", other_out.answered),
            ("member hears other", other_out.arrived),
            ("other out, device", other_by_device.answered),
            ("member hears other, device", other_by_device.arrived),
            ("other out, multipath", both(terminal, other, "mptcp", "100.96.0.2", "fd00:96::2", 7004, device.as_str())),
            ("other in", other_in.answered),
            ("other hears", other_in.arrived),
            ("other, own address", both(terminal, other, "tcp", "100.96.0.1", "fd00:96::1", 7001, "-")),
            ("other, own address, multipath", both(terminal, other, "mptcp", "100.96.0.1", "fd00:96::1", 7001, "-")),
            ("other pings", ping(terminal, other, ["100.96.0.2", "fd00:96::2"])),
            ("root out", root_out.answered),
            ("member hears root", root_out.arrived),
            ("root in", root_in.answered),
            ("root hears", root_in.arrived),
            ("office to own address", both(office, root, "tcp", "100.96.0.1", "fd00:96::1", 7001, "-")),
            ("member to office address", both(member, root, "tcp", "10.9.0.1", "fd00:9::1", 7001, "-")),
            ("member through terminal", through_here.answered),
            ("office hears member", through_here.arrived),
            ("office through terminal", into_tunnel.answered),
            ("member hears office", into_tunnel.arrived),
            ("owner to office", both(terminal, owner, "tcp", "10.9.0.2", "fd00:9::2", 7005, "-")),
            ("other to office", both(terminal, other, "udp", "10.9.0.2", "fd00:9::2", 7005, "-")),
            ("office to other", both(office, root, "tcp", "10.9.0.1", "fd00:9::1", 7002, "-")),
        ])
    }

    /// Exactly what `stops` names is stopped, completely; everything else passes, completely.
    fn expect(&self, when: &str, stops: &[&str]) {
        let wrong: Vec<_> = self
            .packets()
            .into_iter()
            .filter(|(what, passed)| passed.iter().any(|passed| *passed == stops.contains(what)))
            .collect();
        assert!(wrong.is_empty(), "{when}: {wrong:?}");
    }
}

/// What no layer may let through, and both can see.
const OTHERS: [&str; 8] = [
    "other out",
    "member hears other",
    "other out, device",
    "member hears other, device",
    "other out, multipath",
    "other in",
    "other hears",
    "other pings",
];
/// What root's own programs do.
const ROOT: [&str; 3] = ["root out", "root in", "root hears"];
/// What only the packet filter sees: the programs take root's packets for the kernel's own.
const AROUND: [&str; 9] = [
    "member hears root",
    "other, own address",
    "other, own address, multipath",
    "office to own address",
    "member to office address",
    "member through terminal",
    "office hears member",
    "office through terminal",
    "member hears office",
];

fn stops(lists: &[&[&'static str]]) -> Vec<&'static str> {
    lists.concat()
}

#[test]
fn both_layers() {
    let scene = Scene::new();
    scene.expect("without the guard", &[]);
    let mut guard = scene.guard("auto");
    scene.raise(&mut guard, "open");
    scene.expect("with both layers", &stops(&[&OTHERS, &ROOT, &AROUND]));
    assert_eq!(guard.ask(&format!("lower {SEED}")).unwrap(), "[]", "a program is still attached");
    assert_eq!(guard.ask("leftovers").unwrap(), "");
    assert!(scene.place.terminal.run("nft", "list ruleset").is_empty());
    scene.expect("when the guard is gone", &[]);
}

#[test]
fn the_programs_alone() {
    let scene = Scene::new();
    let mut guard = scene.guard("bpf");
    scene.raise(&mut guard, "open");
    scene.place.terminal.run("nft", "delete table inet cug");
    scene.expect("with programs alone", &stops(&[&OTHERS, &ROOT]));
}

#[test]
fn the_rules_alone() {
    let scene = Scene::new();
    let mut guard = scene.guard("nft");
    scene.raise(&mut guard, "open");
    scene.expect("with rules alone", &stops(&[&OTHERS, &ROOT, &AROUND]));
}

#[test]
fn the_rules_alone_need_the_users_cgroup() {
    let place = Place::new();
    let mut guard = place.terminal.guard();
    guard.ask("select nft process").unwrap();
    let refused = guard.ask(&format!("raise {SEED} 99 {OWN} open")).unwrap_err();
    assert!(refused.contains("user.slice/user-99.slice") && refused.contains("pam_systemd"), "{refused}");
    assert!(place.terminal.run("nft", "list ruleset").is_empty());
}

/// What the owner reaches of the office's network: TCP, UDP and Multipath TCP to the port that is listed and to another one, and ping.
fn office(scene: &Scene, who: &Person) -> Vec<bool> {
    let mut reached = Vec::new();
    for (port, how) in [(7005, "tcp"), (7005, "udp"), (7005, "mptcp"), (7006, "tcp"), (7006, "udp"), (7006, "mptcp")] {
        for to in [format!("10.9.0.2:{port}"), format!("[fd00:9::2]:{port}")] {
            reached.push(scene.place.terminal.reaches(who, how, &to, "-").is_ok());
        }
    }
    reached.extend(["10.9.0.2", "fd00:9::2"].map(|to| scene.place.terminal.pings(who, to)));
    reached
}

fn closed_groups(layer: &str) {
    let scene = Scene::new();
    let (terminal, owner, other) = (&scene.place.terminal, &scene.owner, &scene.other);
    let mut guard = scene.guard(if layer == "rules" { "nft" } else { "auto" });
    let take_rules_away = || {
        if layer == "programs" {
            terminal.run("nft", "delete table inet cug");
        }
    };
    scene.raise(&mut guard, "open");
    assert_eq!(office(&scene, owner), [true; 14], "an open group hinders nobody");
    let mut standing = terminal.program(owner, "hold 10.9.0.2:7006");
    standing.answer().unwrap();
    standing.ask("go").unwrap();
    let mut listed = terminal.program(owner, "hold 10.9.0.2:7005");
    listed.answer().unwrap();

    guard.ask(&format!("confine {SEED} 10.9.0.0/24:7005,[fd00:9::2]:7005")).unwrap();
    take_rules_away();
    standing.ask("go").unwrap_err();
    listed.ask("go").unwrap();
    let expected = [[true; 6].as_slice(), &[false; 8]].concat();
    assert_eq!(office(&scene, owner), expected, "closed, with {layer}");
    assert_eq!(office(&scene, other), [true; 14], "somebody else");
    assert_eq!(office(&scene, &scene.root), [true; 14], "root");
    for (what, to) in [("group", "100.96.0.2:7004"), ("group", "[fd00:96::2]:7004"), ("loopback", "127.0.0.1:7003")] {
        terminal.reaches(owner, "tcp", to, "-").unwrap_or_else(|error| panic!("{what}: {error}"));
    }

    guard.ask(&format!("confine {SEED} -")).unwrap();
    take_rules_away();
    listed.ask("go").unwrap_err();
    assert_eq!(office(&scene, owner)[..4], [false; 4], "nothing is listed, with {layer}");
    guard.ask(&format!("confine {SEED} open")).unwrap();
    assert_eq!(office(&scene, owner), [true; 14], "open again");
}

#[test]
fn a_closed_group_with_both_layers() {
    closed_groups("both layers");
}

#[test]
fn a_closed_group_with_programs_alone() {
    closed_groups("programs");
}

#[test]
fn a_closed_group_with_rules_alone() {
    closed_groups("rules");
}

#[test]
fn what_is_pinned_outlives_a_crash_until_the_next_start() {
    let scene = Scene::new();
    let member_reaches =
        |port: u16| scene.place.member.reaches(&scene.root, "tcp", &format!("100.96.0.1:{port}"), "-").is_ok();
    for lifetime in ["process", "pinned"] {
        let mut guard = scene.place.terminal.guard();
        guard.ask(&format!("select auto {lifetime}")).unwrap();
        scene.raise(&mut guard, "open");
        assert!(member_reaches(7001) && !member_reaches(7002));
        // As SIGKILL does.
        drop(guard);
        assert!(!member_reaches(7002), "the rules stay, but they are the half of it");
        scene.place.terminal.run("nft", "delete table inet cug");
        assert_eq!(member_reaches(7002), lifetime == "process", "{lifetime}");
        scene.place.terminal.run("nft", "add table inet cug");
        let mut next = scene.place.terminal.guard();
        let swept = next.ask("sweep").unwrap();
        assert_eq!(swept.matches("BPF program").count(), if lifetime == "pinned" { 2 } else { 0 }, "{swept}");
        assert!(swept.contains("inet cug"), "{swept}");
        assert!(member_reaches(7002));
        next.ask("select auto process").unwrap();
        assert_eq!(next.ask("leftovers").unwrap(), "");
    }
}

#[test]
fn an_nft_that_was_started_beforehand_sets_the_rules_and_one_that_died_is_no_loss() {
    let place = Place::new();
    let owner = Person::new();
    let mut guard = place.terminal.guard();
    guard.ask("select auto process").unwrap();
    let raise = format!("raise {SEED} {} {OWN} open", owner.uid);
    let rules = || place.terminal.run("nft", "list ruleset");

    let waiting = guard.ask("expect").unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{waiting}/comm")).unwrap(), "nft\n");
    assert_eq!(guard.ask("expect").unwrap(), waiting, "one is enough");
    assert_eq!(rules(), "");
    guard.ask(&raise).unwrap();
    assert!(rules().contains("table inet cug"));
    assert_eq!(guard.ask("children").unwrap(), "", "it was used");

    let killed = guard.ask("expect").unwrap();
    place.terminal.run("kill", &format!("-KILL {killed}"));
    guard.ask(&format!("raise 18 {} {OWN} open", owner.uid)).unwrap();
    let both = rules();
    assert!([SEED, "18"].iter().all(|seed| both.contains(actor::name(seed).as_str())), "{both}");
    for seed in [SEED, "18"] {
        guard.ask(&format!("lower {seed}")).unwrap();
    }

    assert_ne!(guard.ask("expect").unwrap(), "");
    guard.ask("relax").unwrap();
    assert_eq!(guard.ask("children").unwrap(), "", "nobody logs in after all");
    assert_eq!(rules(), "");
}

#[test]
fn a_refusal_of_the_kernel_opens_nothing() {
    let place = Place::new();
    let owner = Person::new();
    // Somebody else owns a table of that name: the kernel lets nobody else touch it.
    let mut holder = place.terminal.command("nft");
    let mut holder =
        holder.arg("-i").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    use std::io::Write;
    writeln!(holder.stdin.as_mut().unwrap(), "add table inet cug {{ flags owner; }}").unwrap();
    let deadline = std::time::Instant::now() + actor::LIMIT;
    while !place.terminal.run("nft", "list tables").contains("cug") {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let mut guard = place.terminal.guard();
    guard.ask("select auto process").unwrap();
    let refused = guard.ask(&format!("raise {SEED} {} {OWN} open", owner.uid)).unwrap_err();
    assert!(refused.contains("packet filter refused") && refused.contains("not permitted"), "{refused}");
    assert_eq!(guard.ask("leftovers").unwrap(), "packet filter table inet cug", "it is named");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    guard.ask(&format!("raise {SEED} {} {OWN} open", owner.uid)).unwrap();

    // A kernel that refuses programs: without the right to load them.
    let mut command = place.terminal.command("setpriv");
    command.args(["--bounding-set=-bpf,-sys_admin", "--inh-caps=-all"]);
    let mut weak = Actor::start(command, "guard");
    weak.answer().unwrap();
    let refused = weak.ask("select bpf process").unwrap_err();
    assert!(refused.contains("kernel refused the program") && refused.contains("not permitted"), "{refused}");
    assert_eq!(weak.ask("select auto process").unwrap(), "nft");

    // Without the right to change the packet filter.
    let mut command = place.terminal.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-all"]);
    let mut weak = Actor::start(command, "guard");
    weak.answer().unwrap();
    weak.ask("select nft process").unwrap();
    let refused = weak.ask(&format!("raise 18 {} {OWN} open", owner.uid)).unwrap_err();
    assert!(refused.contains("packet filter refused"), "{refused}");
}
