//! An Ethernet cable in user space, with faults: this kernel has no netem.

use super::net::promiscuous;
use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// `struct virtio_net_hdr` goes before each frame, so that checksums and segments that the sender left to its card stay right.
const HEADER: usize = 10;
/// Largest frame, segments included.
const LARGEST: usize = HEADER + 14 + 65_536;
/// Most frames on their way. What comes beyond is lost, as in any queue.
const MOST: usize = 2_000;

/// In one direction: per mille that are lost and that arrive twice, and the shortest and longest delay in milliseconds.
struct Faults {
    lost: u64,
    twice: u64,
    delay: (u64, u64),
}

/// xorshift64: any spread of numbers does, and a seed gives the same faults for the same frames.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit.max(1)
    }
}

/// When, its number (frames of one moment keep their order), to which end, the frame.
type OnTheWay = Reverse<(Instant, u64, usize, Vec<u8>)>;

#[derive(Default)]
struct Counts {
    frames: u64,
    lost: u64,
    twice: u64,
    overtaken: u64,
}

/// Connects two interfaces until standard input ends; then says what it did. `faults` are those of the one direction and those of the other.
pub fn run(interfaces: [&str; 2], seed: &str, faults: &[&str]) -> anyhow::Result<u8> {
    let numbers: Vec<u64> = faults.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    ensure!(numbers.len() == 8, "LOST TWICE SHORTEST LONGEST, for each direction");
    let side = |n: &[u64]| Faults { lost: n[0], twice: n[1], delay: (n[2], n[3].max(n[2])) };
    let faults = [side(&numbers[..4]), side(&numbers[4..])];
    let ends = [end(interfaces[0])?, end(interfaces[1])?];
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Release);
    });
    println!("ready");
    std::io::stdout().flush()?;

    let mut dice = Dice(seed.parse::<u64>()? | 1);
    let (mut way, mut counts, mut newest) = (BinaryHeap::<OnTheWay>::new(), Counts::default(), [0_u64; 2]);
    let mut buffer = vec![0; LARGEST];
    while !over.load(Ordering::Acquire) {
        wait(&ends, way.peek().map(|Reverse((due, ..))| *due))?;
        for (from, end) in ends.iter().enumerate() {
            while let Some(length) = take(end, &mut buffer)? {
                let fault = &faults[from];
                counts.frames += 1;
                if dice.below(1000) < fault.lost || way.len() >= MOST {
                    counts.lost += 1;
                    continue;
                }
                let copies = 1 + u64::from(dice.below(1000) < fault.twice);
                counts.twice += copies - 1;
                for _ in 0..copies {
                    let delay = fault.delay.0 + dice.below(fault.delay.1 - fault.delay.0 + 1);
                    let due = Instant::now() + Duration::from_millis(delay);
                    way.push(Reverse((due, counts.frames, 1 - from, buffer[..length].to_vec())));
                }
            }
        }
        while way.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
            let Some(Reverse((_, number, to, frame))) = way.pop() else { break };
            counts.overtaken += u64::from(number < newest[to]);
            newest[to] = newest[to].max(number);
            // A card that is down, or full, loses frames.
            let _ = send(ends[to].as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT);
        }
    }
    println!("{} frames {} lost {} twice {} overtaken", counts.frames, counts.lost, counts.twice, counts.overtaken);
    Ok(0)
}

fn end(interface: &str) -> anyhow::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    // From linux/if_packet.h; the other one would show what is sent here.
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        let on: libc::c_int = 1;
        // SAFETY: a valid int and its size.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        Errno::result(set)?;
    }
    promiscuous(&socket, nix::net::if_::if_nametoindex(interface).with_context(|| interface.to_owned())?)?;
    Ok(socket)
}

fn wait(ends: &[OwnedFd; 2], due: Option<Instant>) -> anyhow::Result<()> {
    let mut waiting = [0, 1].map(|n| PollFd::new(ends[n].as_fd(), PollFlags::POLLIN));
    let left = due.map_or(50, |due| due.saturating_duration_since(Instant::now()).as_millis().min(50));
    match poll(&mut waiting, PollTimeout::from(u16::try_from(left)?)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn take(end: &OwnedFd, buffer: &mut [u8]) -> anyhow::Result<Option<usize>> {
    match recv(end.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
