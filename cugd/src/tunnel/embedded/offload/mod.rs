//! The TUN device of an interface, through which the kernel hands over and takes in up to 64 KiB of a stream at a time.
//!
//! Without that, each packet costs a system call and a way through the kernel's network stack, on both sides. With it the kernel leaves splitting
//! and checksums to this process ([`split`]), and takes received packets that were put together ([`coalesce`]); in front of each packet stands a
//! [`headers::Note`]. Where the kernel refuses to hand over large packets, they come one by one.

mod checksum;
mod coalesce;
mod headers;
mod split;

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    sync::Arc,
};

use gotatun::{
    packet::{Ip, Packet, PacketBufPool},
    tun::{IpRecv, IpSend, MtuWatcher},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use headers::{NOTE, Note};
use split::Plan;

/// Largest packet with its note.
const LARGEST: usize = NOTE + 65_536;
/// Received packets that are looked at together, and that may wait.
const BATCH: usize = 128;

type Device = Arc<AsyncFd<File>>;

/// Both directions of a TUN device that does not block. Received packets are written by a task of the current runtime, which ends with the sender.
pub(super) fn pair(device: AsyncFd<File>, mtu: u16) -> (Sender, Receiver) {
    let device = Arc::new(device);
    let (packets, inbox) = mpsc::channel(BATCH);
    tokio::spawn(write_all(Arc::clone(&device), inbox));
    let buffer = vec![0; LARGEST].into_boxed_slice();
    (Sender { packets }, Receiver { device, mtu, buffer, ready: Vec::new() })
}

/// Takes packets that were received from members.
pub(super) struct Sender {
    packets: mpsc::Sender<Packet<Ip>>,
}

impl IpSend for Sender {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.packets.send(packet).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// gotatun gives one packet after the other; those that arrive while the kernel is busy with earlier ones are written together.
async fn write_all(device: Device, mut inbox: mpsc::Receiver<Packet<Ip>>) {
    let mut batch: Vec<Packet> = Vec::with_capacity(BATCH);
    let mut arrived = Vec::with_capacity(BATCH);
    while inbox.recv_many(&mut arrived, BATCH).await > 0 {
        batch.extend(arrived.drain(..).map(Packet::into_bytes));
        if write_runs(&device, &batch).await.is_err() {
            return;
        }
        batch.clear();
    }
}

async fn write_runs(device: &AsyncFd<File>, batch: &[Packet]) -> io::Result<()> {
    for run in coalesce::runs(batch) {
        let mut members = run.members.iter().filter_map(|index| batch.get(*index));
        let Some(first) = members.next() else { continue };
        match run.headers(first) {
            None => write(device, &[IoSlice::new(&Note::default().bytes()), IoSlice::new(first)]).await?,
            Some((note, headers)) => {
                let (note, headers) = (note.bytes(), headers.bytes());
                let payload = |packet| <Packet>::as_ref(packet).get(headers.len()..).unwrap_or_default();
                let mut slices = vec![IoSlice::new(&note), IoSlice::new(headers), IoSlice::new(payload(first))];
                slices.extend(members.map(|packet| IoSlice::new(payload(packet))));
                write(device, &slices).await?;
            }
        }
    }
    Ok(())
}

/// Errors only when the device is gone: a packet that the kernel does not take is lost, as on any network.
async fn write(device: &AsyncFd<File>, slices: &[IoSlice<'_>]) -> io::Result<()> {
    let written = device.async_io(Interest::WRITABLE, |mut device| device.write_vectored(slices)).await;
    match written {
        Err(error) if is_gone(&error) => Err(error),
        Err(error) => {
            tracing::trace!(%error, "a packet was not taken by the kernel");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EBADFD | libc::ENODEV))
}

/// Gives packets that go out to members.
pub(super) struct Receiver {
    device: Device,
    mtu: u16,
    buffer: Box<[u8]>,
    ready: Vec<Packet<Ip>>,
}

impl IpRecv for Receiver {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let Self { device, buffer, ready, .. } = self;
        let length = device.async_io(Interest::READABLE, |mut device| device.read(buffer)).await?;
        unpack(buffer.get_mut(..length).unwrap_or_default(), pool, ready);
        Ok(ready.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu)
    }
}

/// The packets that one read gave. What the kernel was not asked for is no packet.
fn unpack(bytes: &mut [u8], pool: &PacketBufPool, into: &mut Vec<Packet<Ip>>) {
    let Some((note, bytes)) = bytes.split_first_chunk_mut() else { return };
    let Some(note) = Note::parse(*note) else { return };
    if note.segments.is_some() {
        let Some(plan) = Plan::of(&note, bytes) else { return };
        for part in plan.parts(bytes) {
            into.extend(packet(pool, &[part.headers, part.payload], |packet| plan.finish(&part, packet)));
        }
    } else if note.checksum.is_none_or(|checksum| split::complete(checksum, bytes).is_some()) {
        into.extend(packet(pool, &[bytes], |_| Some(())));
    }
}

fn packet(pool: &PacketBufPool, parts: &[&[u8]], finish: impl FnOnce(&mut [u8]) -> Option<()>) -> Option<Packet<Ip>> {
    let mut packet = pool.get();
    let bytes = packet.buf_mut();
    bytes.clear();
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    finish(bytes)?;
    packet.try_into_ip().ok()
}

#[cfg(test)]
mod tests;
