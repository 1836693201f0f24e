//! The processes that the tests start in their namespaces: the guard itself, and people's programs.

use std::{
    io::{self, BufRead, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cugd::{
    guard::{
        Guard, GuardChoice, Lifetime,
        plan::{Exception, Fence},
        sweep,
    },
    tunnel::InterfaceName,
};
use nix::sys::{
    socket::{
        AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send, setsockopt, socket,
        sockopt,
    },
    time::{TimeVal, TimeValLike},
};

/// Set in the environment of an actor, with its part.
pub const PART: &str = "CUG_TEST_PART";
/// What an answer begins with; the test framework writes to the same output.
pub const ANSWER: char = '@';
/// How long to wait for an answer that may not come.
const PATIENCE_MS: i64 = 500;

type Outcome = Result<String, Box<dyn std::error::Error>>;

fn answer(outcome: Outcome) {
    let line = match outcome {
        Ok(text) => format!("ok {text}"),
        Err(error) => format!("error {error}"),
    };
    // The test framework may have left its line open.
    writeln!(io::stderr().lock(), "\n{ANSWER}{line}").unwrap();
}

pub fn run(part: &str) {
    let words: Vec<&str> = part.split(' ').collect();
    match words[..] {
        ["guard"] => guard(),
        ["serve", port] => serve(port.parse().unwrap()),
        ["exchange", protocol, address, device] => answer(exchange(protocol, address, device).map(|()| String::new())),
        ["hold", address] => hold(address),
        _ => panic!("{part}"),
    }
}

fn guard() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut guard = None;
    answer(Ok(String::new()));
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        answer(runtime.block_on(command(&mut guard, &words)));
    }
}

async fn command(guard: &mut Option<Guard>, words: &[&str]) -> Outcome {
    let shown = |error: cugd::guard::GuardError| cugd::guard::causes(&error);
    match (words, guard.as_ref()) {
        (["select", choice, lifetime], _) => {
            let choice = match *choice {
                "auto" => GuardChoice::Auto,
                "bpf" => GuardChoice::Bpf,
                _ => GuardChoice::Nft,
            };
            let lifetime = if *lifetime == "pinned" { Lifetime::Pinned } else { Lifetime::Process };
            let made = Guard::select(choice, lifetime).map_err(shown)?;
            let name = made.layers().name().to_owned();
            *guard = Some(made);
            Ok(name)
        }
        (["raise", seed, uid, addresses, closed], Some(guard)) => {
            let fence = Fence {
                name: name(seed),
                uid: uid.parse()?,
                addresses: addresses.split(',').map(str::parse).collect::<Result<_, _>>()?,
                closed: exceptions(closed)?,
            };
            guard.raise([fence]).await.map_err(shown)?;
            Ok(String::new())
        }
        (["confine", seed, closed], Some(guard)) => {
            guard.confine(&name(seed), exceptions(closed)?).await.map_err(shown)?;
            Ok(String::new())
        }
        (["expect"], Some(guard)) => {
            guard.expect().await;
            Ok(children()?)
        }
        (["relax"], Some(guard)) => {
            guard.relax().await;
            // The one that was killed is reaped on the side.
            while !children()?.is_empty() {
                tokio::task::yield_now().await;
            }
            Ok(String::new())
        }
        (["children"], _) => Ok(children()?),
        (["lower", seed], Some(guard)) => {
            let programs = guard.program_ids().await.map_err(shown)?;
            guard.lower(&[name(seed)]).await.map_err(shown)?;
            Ok(format!("{:?}", guard.still_attached(&programs).await.map_err(shown)?))
        }
        (["leftovers"], Some(guard)) => {
            let left = guard.leftovers().await.map_err(shown)?;
            Ok(left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        (["sweep"], _) => Ok(sweep().await.map_err(shown)?.join(", ")),
        _ => Err(format!("what is {words:?}?").into()),
    }
}

/// Process IDs of the programs that this process runs.
fn children() -> io::Result<String> {
    let threads = std::fs::read_dir("/proc/self/task")?;
    let all: Vec<_> = threads
        .flatten()
        .flat_map(|thread| std::fs::read_to_string(thread.path().join("children")))
        .map(|children| children.trim().to_owned())
        .filter(|children| !children.is_empty())
        .collect();
    Ok(all.join(" "))
}

pub fn name(seed: &str) -> InterfaceName {
    InterfaceName::from_hash(&[seed.parse().unwrap(); 32])
}

/// `open`, or the exceptions of a closed group, separated by commas; `-` for none.
fn exceptions(text: &str) -> Result<Option<Vec<Exception>>, Box<dyn std::error::Error>> {
    match text {
        "open" => Ok(None),
        "-" => Ok(Some(vec![])),
        list => {
            let allowed = list.split(',').map(str::parse).collect::<Result<Vec<cug_proto::policy::Allow>, _>>()?;
            Ok(Some(allowed.iter().map(|a| Exception { net: a.net().unwrap(), port: a.port() }).collect()))
        }
    }
}

/// Sends back what comes, by TCP and UDP and both families; says how many datagrams came for each line of standard input.
fn serve(port: u16) {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let (tcp, udp) = (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
    answer(Ok(String::new()));
    let came = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&came);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            // Before the answer, which may never arrive.
            count.fetch_add(1, Ordering::SeqCst);
            let _unreachable = udp.send_to(&buffer[..length], from);
        }
    });
    std::thread::spawn(move || {
        for _ in io::stdin().lock().lines() {
            answer(Ok(came.load(Ordering::SeqCst).to_string()));
        }
    });
    while let Ok((stream, _)) = tcp.accept() {
        std::thread::spawn(move || echo(stream));
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// A connected socket; `device` is `-` for none.
fn connected(protocol: &str, address: SocketAddr, device: &str) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = match protocol {
        "udp" => socket(family, SockType::Datagram, SockFlag::empty(), None)?,
        "mptcp" => multipath(family)?,
        _ => socket(family, SockType::Stream, SockFlag::empty(), SockProtocol::Tcp)?,
    };
    let patience = TimeVal::milliseconds(PATIENCE_MS);
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
    if device != "-" {
        setsockopt(&fd, sockopt::BindToDevice, &device.into())?;
    }
    connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

/// The kernel gives such a connection sockets that belong to no file.
fn multipath(family: AddressFamily) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: plain arguments; the result is checked and owned by nobody else.
    unsafe {
        match libc::socket(family as i32, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn exchange(protocol: &str, address: &str, device: &str) -> Result<(), Box<dyn std::error::Error>> {
    let fd = connected(protocol, address.parse()?, device)?;
    echoed(&fd)
}

fn echoed(fd: &OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
    let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
    send(fd.as_raw_fd(), b"hello", flags)?;
    let mut buffer = [0; 64];
    match recv(fd.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty())? {
        5 => Ok(()),
        other => Err(format!("{other} bytes").into()),
    }
}

/// Connects once, and exchanges a word for each line of standard input.
fn hold(address: &str) {
    let connected = connected("tcp", address.parse().unwrap(), "-");
    let fd = match connected {
        Ok(fd) => fd,
        Err(error) => return answer(Err(error)),
    };
    answer(Ok(String::new()));
    for _ in io::stdin().lock().lines() {
        answer(echoed(&fd).map(|()| String::new()));
    }
}

/// Longest wait of a test for one of these.
pub const LIMIT: Duration = Duration::from_secs(20);
