//! The socket of an interface, which sends several packets to one member with one system call.
//!
//! gotatun gives what has gathered; equal packets in a row become one message that the kernel, or the network card, splits into datagrams
//! (`UDP_SEGMENT`). Where that is refused they go one by one as before.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use gotatun::{
    packet::Packet,
    udp::{
        UdpSend, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{UdpSocket, UdpSocketFactory},
    },
};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt::RcvBufForce};
use tokio::io::Interest;

/// Most datagrams of one message; some kernels take more.
const MOST: usize = 64;
/// Largest message; the headers of IP and UDP come in addition.
const LARGEST: usize = 65_000;

/// Bytes of datagrams that may wait in the kernel: bursts of some large packets.
const ROOM: usize = 4 << 20;

/// Opens sockets.
#[derive(Default)]
pub(super) struct Sockets(UdpSocketFactory);

impl UdpTransportFactory for Sockets {
    type Send = Sender;
    type Recv = UdpSocket;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Self::Send, Self::Recv)> {
        let (socket, receiver) = self.0.bind(params).await?;
        // Needs a privilege that the daemon has; with less room, more is lost when streams arrive at once, and nothing else.
        if let Err(error) = setsockopt(&receiver, RcvBufForce, &ROOM) {
            tracing::debug!(%error, "the socket keeps the usual room for datagrams");
        }
        Ok((Sender { socket, refused: Arc::default() }, receiver))
    }
}

/// The sending side of a socket.
#[derive(Clone)]
pub(super) struct Sender {
    socket: UdpSocket,
    /// The kernel does not split on this way out of the machine.
    refused: Arc<AtomicBool>,
}

impl UdpSend for Sender {
    type SendManyBuf = <UdpSocket as UdpSend>::SendManyBuf;

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.socket.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.socket.max_number_of_packets_to_send()
    }

    async fn send_many_to(
        &self,
        buffer: &mut Self::SendManyBuf,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        while !packets.is_empty() && !self.refused.load(Ordering::Relaxed) {
            let count = together(packets.iter().map(|(packet, to)| (packet.len(), *to)));
            let Some((message, (_, to))) = packets.get(..count).zip(packets.first()) else { break };
            match self.send_message(message, *to).await {
                Ok(()) => drop(packets.drain(..count)),
                // A packet longer than what the way takes in one piece must be fragmented, which only single ones are.
                Err(error) if count > 1 && too_long(&error) => break,
                Err(error) if count > 1 && error.raw_os_error() == Some(libc::EIO) => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        if packets.is_empty() { Ok(()) } else { self.socket.send_many_to(buffer, packets).await }
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        UdpSend::local_addr(&self.socket)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_fwmark(mark)
    }
}

impl Sender {
    async fn send_message(&self, message: &[(Packet, SocketAddr)], to: SocketAddr) -> io::Result<()> {
        let slices: Vec<_> = message.iter().map(|(packet, _)| IoSlice::new(packet)).collect();
        let size = message.first().and_then(|(packet, _)| u16::try_from(packet.len()).ok()).unwrap_or_default();
        let control = [ControlMessage::UdpGsoSegments(&size)];
        let control = if message.len() > 1 { control.as_slice() } else { &[] };
        let (socket, to) = (self.socket.socket(), SockaddrStorage::from(to));
        let send = || {
            let sent = sendmsg(socket.as_raw_fd(), &slices, control, MsgFlags::MSG_DONTWAIT, Some(&to));
            sent.map(drop).map_err(io::Error::from)
        };
        socket.async_io(Interest::WRITABLE, send).await
    }
}

fn too_long(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE))
}

/// How many of the first packets, given by length and destination, can be one message: all of one length, but for a shorter last one.
fn together(packets: impl IntoIterator<Item = (usize, SocketAddr)>) -> usize {
    let mut packets = packets.into_iter();
    let Some((size, to)) = packets.next() else { return 0 };
    let (mut count, mut total) = (1, size);
    for (length, destination) in packets {
        total += length;
        if destination != to || length == 0 || length > size || count == MOST || total > LARGEST {
            break;
        }
        count += 1;
        if length < size {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_packets_to_one_member_go_together() {
        let [a, b]: [SocketAddr; 2] = ["192.0.2.1:1", "192.0.2.2:1"].map(|address| address.parse().unwrap());
        let count = |packets: &[(usize, SocketAddr)]| together(packets.iter().copied());
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[(100, a)]), 1);
        assert_eq!(count(&[(100, a), (100, a), (60, a), (60, a)]), 3, "a shorter one is the last");
        assert_eq!(count(&[(100, a), (101, a)]), 1, "a longer one never");
        assert_eq!(count(&[(100, a), (100, b), (100, a)]), 1, "the order stays");
        assert_eq!(count(&[(100, a), (0, a)]), 1, "nothing would be sent for it");
        assert_eq!(count(&[(32, a); 100]), MOST);
        assert_eq!(count(&[(1452, a); 100]), 44);
        assert_eq!(count(&[(60_000, a), (60_000, a)]), 1);
    }
}
