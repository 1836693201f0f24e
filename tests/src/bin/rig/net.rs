//! TCP echo and its client, and a packet capture.

use anyhow::{Context, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::io::{BufWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

/// The port at which root's server answers for all members of the terminal, who each have one of their own: a tunnel delivers to the
/// programs of its owner only.
const EVERYBODY: u16 = 7;

/// The members' user IDs, as `accounts` of the harness makes them.
fn members() -> Vec<u32> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = passwd.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok());
    ids.filter(|id| (3001..3100).contains(id)).collect()
}

/// Where a member's own server is.
fn port_of(member: u32) -> u16 {
    u16::try_from(member + 4000).unwrap_or_default()
}

/// Answers every connection with `echo:` and what was sent. Prints `ready` when it listens.
pub fn echo(port: &str) -> anyhow::Result<u8> {
    let port: u16 = port.parse()?;
    let listener = TcpListener::bind(format!("[::]:{port}"))?;
    if port == EVERYBODY {
        let servers: Vec<_> =
            members().into_iter().map(|member| std::thread::spawn(move || own_server(member))).collect();
        for server in servers {
            let listener = server.join().map_err(|_| anyhow::anyhow!("a member's server"))?;
            listener?;
        }
    }
    println!("ready");
    std::io::stdout().flush()?;
    answer(&listener)
}

/// Starts a member's server, in a thread that has become the member.
fn own_server(member: u32) -> anyhow::Result<()> {
    let (told, tell) = nix::unistd::pipe()?;
    std::thread::spawn(move || -> anyhow::Result<u8> {
        // SAFETY: plain numbers. The bare call changes this thread only, where the library's would change the process.
        let become_member = unsafe { libc::syscall(libc::SYS_setresuid, member, member, member) };
        nix::errno::Errno::result(become_member)?;
        let listener = TcpListener::bind(("::", port_of(member)))?;
        nix::unistd::write(&tell, b"l")?;
        answer(&listener)
    });
    let mut word = [0];
    match nix::unistd::read(&told, &mut word)? {
        1 => Ok(()),
        _ => bail!("the server of member {member} does not listen"),
    }
}

fn answer(listener: &TcpListener) -> anyhow::Result<u8> {
    loop {
        let (mut stream, _) = listener.accept()?;
        std::thread::spawn(move || -> std::io::Result<()> {
            stream.set_read_timeout(Some(crate::trickle::STILL))?;
            let mut said = Vec::new();
            stream.read_to_end(&mut said)?;
            stream.write_all(b"echo:")?;
            stream.write_all(&said)
        });
    }
}

/// Says `payload` to the echo server at `address` and checks the answer. At the port for everybody, one answer of all is enough.
pub fn exchange(address: &str, limit_ms: &str, payload: &str) -> anyhow::Result<u8> {
    let limit = Duration::from_millis(limit_ms.parse()?);
    let address: SocketAddr = address.parse()?;
    if address.port() != EVERYBODY {
        return exchange_with(address, limit, payload);
    }
    let (tell, told) = std::sync::mpsc::channel();
    for port in std::iter::once(EVERYBODY).chain(members().into_iter().map(port_of)) {
        let (tell, payload) = (tell.clone(), payload.to_owned());
        std::thread::spawn(move || tell.send(exchange_with(SocketAddr::new(address.ip(), port), limit, &payload)));
    }
    drop(tell);
    let mut last = Err(anyhow::anyhow!("nobody was asked"));
    for result in told {
        if result.is_ok() {
            return result;
        }
        last = result;
    }
    last
}

fn exchange_with(address: SocketAddr, limit: Duration, payload: &str) -> anyhow::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(|| address.to_string())?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(payload.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.strip_prefix("echo:") != Some(payload) {
        bail!("{address} answered something else");
    }
    Ok(0)
}

/// Sends the bytes that standard input spells in hexadecimal to a UNIX socket, and spells the one framed answer.
pub fn local(path: &str) -> anyhow::Result<u8> {
    let text = std::io::read_to_string(std::io::stdin())?;
    let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2).unwrap_or_default(), 16);
    let bytes: Vec<u8> = (0..text.trim().len()).step_by(2).map(pair).collect::<Result<_, _>>()?;
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(8)))?;
    stream.write_all(&bytes)?;
    let mut answer = vec![0; 4];
    stream.read_exact(&mut answer)?;
    let length = answer.iter().fold(0_usize, |sum, &byte| sum << 8 | usize::from(byte));
    answer.resize(4 + length.min(1 << 20), 0);
    stream.read_exact(&mut answer[4..])?;
    println!("{}", answer.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Ok(0)
}

/// Linux cooked capture would hide the Ethernet header; this is LINKTYPE_ETHERNET.
const PCAP_HEADER: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1];

/// Writes every frame at `interface` to standard output as a pcap file, until it is killed. The header comes when it listens.
pub fn capture(interface: &str) -> anyhow::Result<u8> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, nix::sys::socket::SockProtocol::EthAll)?;
    let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20));
    promiscuous(&socket, nix::net::if_::if_nametoindex(interface)?)?;
    for word in PCAP_HEADER {
        out.write_all(&word.to_le_bytes())?;
    }
    out.flush()?;
    let mut frame = vec![0; 65_536];
    loop {
        let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::empty())?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let length_word = u32::try_from(length)?;
        for word in [u32::try_from(now.as_secs() & 0xffff_ffff)?, now.subsec_micros(), length_word, length_word] {
            out.write_all(&word.to_le_bytes())?;
        }
        out.write_all(&frame[..length])?;
        out.flush()?;
    }
}

/// A bridge shows forwarded frames only to promiscuous listeners.
pub fn promiscuous(socket: &impl AsRawFd, index: u32) -> anyhow::Result<()> {
    let index = i32::try_from(index)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: a valid sockaddr_ll and its size.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    nix::errno::Errno::result(bound)?;
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: a valid packet_mreq and its size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(set)?;
    Ok(())
}
