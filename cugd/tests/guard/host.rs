//! A terminal (T) between a member of its group (P, behind the interface that is guarded) and a machine of the office's network (L).
//! Everything dies with the test's thread (`PR_SET_PDEATHSIG`), and the namespaces with their last process.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    sync::mpsc,
};

use crate::actor::{ANSWER, LIMIT, PART, name};

/// A process that answers.
pub struct Actor {
    process: Child,
    input: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
}

impl Actor {
    pub fn start(mut command: Command, part: &str) -> Self {
        let mut process = command
            .arg(std::env::current_exe().unwrap())
            .args(["actor", "--exact", "--nocapture"])
            .env(PART, part)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take();
        let output = BufReader::new(process.stderr.take().unwrap());
        let (tell, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok).filter(|line| !line.is_empty()) {
                match line.strip_prefix(ANSWER) {
                    Some(answer) => drop(tell.send(answer.to_owned())),
                    None => eprintln!("actor: {line}"),
                }
            }
        });
        Self { process, input, answers }
    }

    pub fn answer(&self) -> Result<String, String> {
        let answer = self.answers.recv_timeout(LIMIT).expect("an answer");
        match answer.split_once(' ').unwrap_or((&answer, "")) {
            ("ok", rest) => Ok(rest.to_owned()),
            (_, rest) => Err(rest.to_owned()),
        }
    }

    pub fn ask(&mut self, command: &str) -> Result<String, String> {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.answer()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A network namespace with mounts of its own.
pub struct Host {
    holder: Child,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Host {
    fn new() -> Self {
        // nft looks for cgroups at this place and no other.
        let script = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t bpf bpf /sys/fs/bpf && ip link set lo up && echo ready && exec cat";
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let host = Self { holder };
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv6.conf.default.accept_dad=0",
        ] {
            host.run("sysctl", &format!("-qw {setting}"));
        }
        host
    }

    pub fn command(&self, program: &str) -> Command {
        let target = self.holder.id().to_string();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", "--net", "--mount", "--target", &target, program]);
        command
    }

    pub fn run(&self, program: &str, arguments: &str) -> String {
        let output = self.command(program).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn ip(&self, arguments: &str) {
        self.run("ip", arguments);
    }

    /// The guard of this host.
    pub fn guard(&self) -> Actor {
        let mut command = self.command("env");
        command.arg("LC_ALL=C");
        let guard = Actor::start(command, "guard");
        guard.answer().unwrap();
        guard
    }

    /// Somebody's program, in the cgroup that systemd would give it.
    pub fn program(&self, person: &Person, part: &str) -> Actor {
        let mut command = self.command("sh");
        let own = "echo $$ > /sys/fs/cgroup/$1/cgroup.procs && uid=$2 && shift 2 && \
                   exec setpriv --pdeathsig KILL --reuid $uid --regid $uid --clear-groups \"$@\"";
        command.args(["-c", own, "sh", &person.slice, &person.uid.to_string()]);
        Actor::start(command, part)
    }

    pub fn serve(&self, person: &Person, port: u16) -> Actor {
        let server = self.program(person, &format!("serve {port}"));
        server.answer().unwrap();
        server
    }

    /// Whether `person` here gets an answer from the echo server at `address`.
    pub fn reaches(&self, person: &Person, protocol: &str, address: &str, device: &str) -> Result<String, String> {
        self.program(person, &format!("exchange {protocol} {address} {device}")).answer()
    }

    /// TCP connections that somebody began with `port` here and that have not come about: the first packet arrived, the answer got lost.
    pub fn half_open(&self, port: u16) -> BTreeSet<String> {
        let table = self.run("cat", "/proc/net/tcp /proc/net/tcp6");
        let own = format!(":{port:04X}");
        // proc(5): local address, remote address, state; 03 is SYN_RECV.
        let rows = table.lines().map(|line| line.split_whitespace().skip(1).take(3).collect::<Vec<_>>());
        rows.filter(|row| row.len() == 3 && row[0].ends_with(&own) && row[2] == "03").map(|row| row.join(" ")).collect()
    }

    pub fn pings(&self, person: &Person, address: &str) -> bool {
        let uid = person.uid.to_string();
        let mut command = self.command("setpriv");
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "ping", "-nqc1", "-W0.5", address]);
        command.output().unwrap().status.success()
    }
}

/// An account, with the cgroup that systemd would give it.
pub struct Person {
    pub uid: u32,
    slice: String,
}

impl Person {
    /// Nobody else's, on this machine and at this time.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::with_uid(100_000 + std::process::id() % 4_000_000 * 100 + count)
    }

    fn with_uid(uid: u32) -> Self {
        let person = Self { uid, slice: format!("user.slice/user-{uid}.slice") };
        fs::create_dir_all(person.directory()).unwrap();
        person
    }

    pub fn root() -> Self {
        Self { uid: 0, slice: ".".to_owned() }
    }

    fn directory(&self) -> PathBuf {
        cgroups().join(&self.slice)
    }
}

/// Where this machine has its cgroup v2 tree.
fn cgroups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    PathBuf::from(line.expect("a cgroup v2 tree").split(' ').nth(1).unwrap())
}

impl Drop for Person {
    fn drop(&mut self) {
        if self.uid != 0 {
            let _ = fs::remove_dir(self.directory());
            // With the last one; systemd's own is never empty.
            let _ = fs::remove_dir(cgroups().join("user.slice"));
        }
    }
}

/// T, P and L.
pub struct Place {
    pub terminal: Host,
    pub member: Host,
    pub office: Host,
}

/// The seed of the guarded interface's name.
pub const SEED: &str = "17";

impl Place {
    pub fn new() -> Self {
        let (terminal, member, office) = (Host::new(), Host::new(), Host::new());
        let tunnel = name(SEED);
        let index = tunnel.index();
        // A tunnel has no neighbours to discover: these two know each other.
        let (here, there) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        let peer = format!("peer name cug address {there} netns {}", member.holder.id());
        terminal.ip(&format!("link add index {index} name {tunnel} address {here} type veth {peer}"));
        let peer = format!("peer name eth0 address {there} netns {}", office.holder.id());
        terminal.ip(&format!("link add eth0 address {here} type veth {peer}"));
        for (host, device, addresses) in [
            (&terminal, tunnel.as_str(), ["100.96.0.1/24", "fd00:96::1/64"]),
            (&member, "cug", ["100.96.0.2/24", "fd00:96::2/64"]),
            (&terminal, "eth0", ["10.9.0.1/24", "fd00:9::1/64"]),
            (&office, "eth0", ["10.9.0.2/24", "fd00:9::2/64"]),
        ] {
            host.ip(&format!("address add {} dev {device}", addresses[0]));
            host.ip(&format!("address add {} dev {device} nodad", addresses[1]));
            host.ip(&format!("link set {device} up"));
        }
        terminal.ip(&format!("neigh replace fd00:96::2 lladdr {there} dev {tunnel}"));
        terminal.ip(&format!("neigh replace fd00:9::2 lladdr {there} dev eth0"));
        office.ip(&format!("neigh replace fd00:9::1 lladdr {here} dev eth0"));
        member.ip(&format!("neigh replace fd00:96::1 lladdr {here} dev cug"));
        member.ip("route add 10.9.0.0/24 via 100.96.0.1");
        member.ip("route add fd00:9::/64 via fd00:96::1");
        office.ip("route add 100.96.0.0/24 via 10.9.0.1");
        office.ip("route add fd00:96::/64 via fd00:9::1");
        Self { terminal, member, office }
    }
}
