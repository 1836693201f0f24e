//! Two network namespaces joined by a veth pair, and the processes in them. Everything dies with the test's thread
//! (`PR_SET_PDEATHSIG`), and the namespaces with their last process: there is nothing to clean up and no name left behind.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::FileExt,
    process::{Child, ChildStderr, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::node::{self, ANSWER, bytes_of, hex};

/// The public key of the private key numbered `seed`, in hex.
pub fn public_key(seed: u8) -> String {
    hex(PublicKey::from(&StaticSecret::from(bytes_of(seed))).as_bytes())
}

/// Asks `condition` until it holds.
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come true in {limit:?}");
        std::thread::yield_now();
    }
}

/// Whether either half of `secret` is anywhere in the writable memory of process `pid`.
pub fn holds(pid: u32, secret: &[u8; 32]) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))).any(|line| {
        let (first, last) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (first, last) = (u64::from_str_radix(first, 16).unwrap(), u64::from_str_radix(last, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(last - first).unwrap()];
        if memory.read_exact_at(&mut bytes, first).is_err() {
            return false;
        }
        bytes.windows(16).any(|window| window == &secret[..16] || window == &secret[16..])
    })
}

/// What one terminal must know of another.
pub struct Facts {
    key: String,
    endpoint: String,
    addresses: &'static str,
}

/// A network namespace with a node in it.
pub struct Terminal {
    holder: Child,
    node: Node,
    /// Port of the tunnel, once up.
    pub port: u16,
    /// How long it took to bring it up.
    pub up_micros: u64,
}

struct Node {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStderr>,
}

impl Node {
    fn start(namespace: u32) -> Self {
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter", "--net", "--target", &namespace.to_string()])
            .arg(std::env::current_exe().unwrap())
            .args(["node", "--exact", "--nocapture"])
            .env(node::MARK, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stderr.take().unwrap());
        Self { process, input, output }
    }

    fn ask(&mut self, command: &str) -> Result<String, String> {
        writeln!(self.input, "{command}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the node ended at {command}");
            if line.starts_with(ANSWER) {
                break;
            }
            eprint!("node: {line}");
        }
        let answer = line.trim_start_matches(ANSWER).trim();
        match answer.split_once(' ').unwrap_or((answer, "")) {
            ("ok", rest) => Ok(rest.to_owned()),
            (_, rest) => Err(rest.to_owned()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Terminal {
    /// A namespace with nothing but a loopback interface.
    pub fn new() -> Self {
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let node = Node::start(holder.id());
        let terminal = Self { holder, node, port: 0, up_micros: 0 };
        terminal.ip("link set lo up");
        terminal
    }

    pub fn pid(&self) -> u32 {
        self.node.process.id()
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub fn try_ask(&mut self, command: &str) -> Result<String, String> {
        self.node.ask(command)
    }

    /// Kills the node as a crash would and starts another in the same namespace.
    pub fn restart_after_kill(&mut self) {
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGKILL).unwrap();
        self.node.process.wait().unwrap();
        self.node = Node::start(self.holder.id());
    }

    pub fn up(&mut self, seed: u8, ports: &str, addresses: &str) {
        let answer = self.ask(&format!("up {seed} {ports} {addresses}"));
        let (port, micros) = answer.split_once(' ').unwrap();
        self.port = port.parse().unwrap();
        self.up_micros = micros.parse().unwrap();
    }

    pub fn add_peer(&mut self, peer: &Facts, preshared: u8) {
        self.ask(&format!("peer {} {preshared} {} {}", peer.key, peer.endpoint, peer.addresses));
    }

    fn figure(&mut self, peer: &str, column: usize) -> i64 {
        let stats = self.ask("stats");
        let line = stats.split(';').find(|line| line.starts_with(peer)).unwrap_or_else(|| panic!("{peer} in {stats}"));
        line.split(' ').nth(column).unwrap().parse().unwrap()
    }

    /// Age of the session with `peer`.
    pub fn handshake_age(&mut self, peer: &str) -> Option<Duration> {
        u64::try_from(self.figure(peer, 2)).ok().map(Duration::from_micros)
    }

    /// Bytes received from `peer`.
    pub fn received(&mut self, peer: &str) -> i64 {
        self.figure(peer, 3)
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", "--net", "--target", &self.holder.id().to_string(), program]);
        command
    }

    /// Runs `ip` in the namespace.
    pub fn ip(&self, arguments: &str) -> String {
        let output = self.inside("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn try_ip(&self, arguments: &str) -> bool {
        self.inside("ip").args(arguments.split(' ')).output().unwrap().status.success()
    }

    pub fn has_link(&self, name: &str) -> bool {
        self.try_ip(&format!("link show {name}"))
    }

    /// Packets that came out of the tunnel `interface`.
    pub fn rx_packets(&self, interface: &str) -> u64 {
        self.passed(interface, "RX:").1
    }

    /// Bytes and packets that passed the tunnel `interface` in this direction, as the kernel counts them.
    pub fn passed(&self, interface: &str, direction: &str) -> (u64, u64) {
        let figures = self.ip(&format!("-s link show {interface}"));
        let mut lines = figures.lines().skip_while(|line| !line.trim_start().starts_with(direction)).skip(1);
        let mut numbers = lines.next().unwrap().split_whitespace().map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    /// `count` echo requests, all answered?
    pub fn ping(&self, to: &str, count: u32) -> bool {
        let output =
            self.inside("ping").args(["-n", "-i", "0.01", "-W", "1", "-c", &count.to_string(), to]).output().unwrap();
        output.status.success()
    }

    pub fn ping_from(&self, from: &str, to: &str) -> bool {
        self.inside("ping").args(["-n", "-W", "1", "-c", "1", "-I", from, to]).output().unwrap().status.success()
    }

    /// Pings every 5 ms until told to finish.
    pub fn ping_on(&self, to: &str) -> Ping {
        let process = self.inside("ping").args(["-n", "-i", "0.005", to]).stdout(Stdio::piped()).spawn().unwrap();
        Ping(process)
    }
}

/// A ping that goes on.
pub struct Ping(Child);

impl Ping {
    /// Requests sent and answered. One that was on its way when ping was told to end does not count.
    pub fn finish(mut self) -> (u64, u64) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT).unwrap();
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.wait().unwrap();
        let line = text.lines().find(|line| line.contains("packets transmitted")).unwrap();
        let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
        let (sent, received): (u64, u64) = (numbers.next().unwrap(), numbers.next().unwrap());
        let answered: BTreeSet<u64> =
            text.lines().filter_map(|line| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()).collect();
        let on_its_way = u64::from(answered.last().is_some_and(|last| last + 1 == sent));
        let missing: Vec<_> = (1..=sent - on_its_way).filter(|number| !answered.contains(number)).collect();
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            eprintln!("of {sent} pings {} were not answered, from {first} to {last}", missing.len());
        }
        (sent - on_its_way, received)
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Terminals A (10.9.0.1, key 10) and B (10.9.0.2, key 20) on one wire.
pub struct Pair {
    pub a: Terminal,
    pub b: Terminal,
}

impl Pair {
    pub fn new() -> Self {
        let (a, b) = (Terminal::new(), Terminal::new());
        a.ip(&format!("link add wire type veth peer name wire netns {}", b.holder.id()));
        for (terminal, address) in [(&a, "10.9.0.1/24"), (&b, "10.9.0.2/24")] {
            terminal.ip(&format!("address add {address} dev wire"));
            terminal.ip("link set wire up");
        }
        // The kernel sends nothing until it has taken notice of the other end.
        for terminal in [&a, &b] {
            until(Duration::from_secs(10), || terminal.ip("link show wire").contains("state UP"));
        }
        Self { a, b }
    }

    /// With tunnels, but without peers.
    pub fn up() -> Self {
        let mut pair = Self::new();
        pair.a.up(10, "51820-51829", "100.96.0.1/20,fd00:c6::1/64");
        pair.b.up(20, "51820-51829", "100.96.0.2/20,fd00:c6::2/64");
        pair
    }

    /// Each the other's peer, with preshared key number `preshared`.
    pub fn connected(preshared: u8) -> Self {
        let mut pair = Self::up();
        let (a, b) = (pair.a_facts(), pair.b_facts());
        pair.a.add_peer(&b, preshared);
        pair.b.add_peer(&a, preshared);
        pair
    }

    pub fn a_facts(&self) -> Facts {
        let endpoint = format!("10.9.0.1:{}", self.a.port);
        Facts { key: public_key(10), endpoint, addresses: "100.96.0.1/32,fd00:c6::1/128" }
    }

    pub fn b_facts(&self) -> Facts {
        let endpoint = format!("10.9.0.2:{}", self.b.port);
        Facts { key: public_key(20), endpoint, addresses: "100.96.0.2/32,fd00:c6::2/128" }
    }
}
