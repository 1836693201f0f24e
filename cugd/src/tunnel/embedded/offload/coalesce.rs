//! Received packets that follow one another in a stream of TCP into one large packet for the kernel. Functions of bytes.
//!
//! What goes together is what the kernel's own receive offload would put together: the same stream, nothing but data, the same acknowledgement,
//! window and options, each packet but the last of one size. Both checksums of every packet are verified here, because the kernel takes a large
//! packet's for right. Everything else goes to the kernel as it came, in the order of its stream.

use std::collections::VecDeque;

use super::{
    checksum::{Sum, pseudo_header},
    headers::{ACK, CHECKSUM, Checksum, FLAGS, Note, PSH, SEQUENCE, Segments, Version, put, tcp_header, word},
};

/// Largest packet of IP.
const LARGEST: usize = 65_535;
/// Most packets in one.
const MOST: usize = 64;
/// Headers without options of IP, with all options of TCP.
const LONGEST_HEADERS: usize = 40 + 60;
/// Streams that are looked at together.
const STREAMS: usize = 16;

/// What is known of a packet that can be part of a larger one.
#[derive(Clone, Copy)]
struct Data {
    version: Version,
    /// Where TCP's header begins.
    tcp: usize,
    /// Length of all headers.
    headers: usize,
    sequence: u32,
    push: bool,
}

impl Data {
    /// None for what goes to the kernel as it is.
    fn of(packet: &[u8]) -> Option<Self> {
        let version = Version::of(packet)?;
        let (tcp, length, protocol) = match version {
            Version::Four => {
                // No options, and no part of a larger packet (only "don't fragment" may be set).
                let plain = packet.first()? & 0x0f == 5 && word(packet, 6)? & !0x4000 == 0;
                let right = plain && Sum::default().add(packet.get(..20)?).is_right();
                (20, usize::from(right.then_some(word(packet, 2)?)?), packet.get(9)?)
            }
            Version::Six => (40, usize::from(word(packet, 4)?) + 40, packet.get(6)?),
        };
        if *protocol != 6 || length != packet.len() {
            return None;
        }
        let headers = tcp + tcp_header(packet, tcp)?;
        let flags = packet.get(tcp + FLAGS)?;
        let segment = packet.get(tcp..)?;
        if headers >= packet.len() || flags & !PSH != ACK {
            return None;
        }
        let sum = pseudo_header(packet.get(version.addresses())?, segment.len()).add(segment);
        let sequence = u32::from_be_bytes(segment.get(SEQUENCE)?.try_into().ok()?);
        sum.is_right().then_some(Self { version, tcp, headers, sequence, push: flags & PSH != 0 })
    }

    /// Whether the headers of both packets say the same, apart from what is different in each packet.
    fn agrees(&self, other: &Self, packet: &[u8], other_packet: &[u8]) -> bool {
        let same = |range: std::ops::Range<usize>| packet.get(range.clone()) == other_packet.get(range);
        let ip = match self.version {
            // Type of service; "don't fragment", time to live and protocol; addresses.
            Version::Four => same(0..2) && same(6..10) && same(12..20),
            // Traffic class and flow label; next header and hop limit, addresses.
            Version::Six => same(0..4) && same(6..40),
        };
        // Ports; acknowledgement and length of the header; window; urgent pointer and options.
        let at = |from: usize, to: usize| self.tcp + from..self.tcp + to;
        let end = self.headers - self.tcp;
        ip && self.tcp == other.tcp
            && self.headers == other.headers
            && same(at(0, 4))
            && same(at(8, 13))
            && same(at(14, 16))
            && same(at(18, end))
    }
}

/// The same stream: version, addresses and ports. None for what has no ports that could be seen.
fn stream(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let version = Version::of(packet)?;
    let transport = match version {
        Version::Four => usize::from(packet.first()? & 0x0f) * 4,
        Version::Six => 40,
    };
    Some((packet.get(version.addresses())?, packet.get(transport..transport.checked_add(4)?)?))
}

/// Packets that go to the kernel in one write.
pub(super) struct Run {
    /// Where they stand in the list.
    pub(super) members: Vec<usize>,
    data: Option<Data>,
    /// Payload of the first.
    size: usize,
    /// Of all of it.
    length: usize,
    next: u32,
    open: bool,
    push: bool,
}

impl Run {
    fn begin(index: usize, packet: &[u8], data: Option<Data>) -> Self {
        let size = data.map_or(0, |data| packet.len() - data.headers);
        let next = data.map_or(0, |data| data.sequence.wrapping_add(u32::try_from(size).unwrap_or_default()));
        let push = data.is_some_and(|data| data.push);
        Self { members: vec![index], data, size, length: packet.len(), next, open: data.is_some() && !push, push }
    }

    /// Takes `packet` in, if it goes on where this ends.
    fn take(&mut self, index: usize, packet: &[u8], data: Option<Data>, first: &[u8]) -> bool {
        let (Some(own), Some(data)) = (self.data, data) else { return false };
        let payload = packet.len() - data.headers;
        let fits = self.open
            && data.sequence == self.next
            && payload <= self.size
            && self.length + payload <= LARGEST
            && self.members.len() < MOST
            && own.agrees(&data, first, packet);
        if fits {
            self.members.push(index);
            self.length += payload;
            self.next = self.next.wrapping_add(u32::try_from(payload).unwrap_or_default());
            self.push = data.push;
            self.open = payload == self.size && !data.push;
        }
        fits
    }

    /// What the kernel is told, and the headers of the large packet. None when the one packet goes as it is.
    pub(super) fn headers(&self, first: &[u8]) -> Option<(Note, Headers)> {
        let data = self.data.filter(|_| self.members.len() > 1)?;
        let mut headers = Headers { bytes: [0; LONGEST_HEADERS], length: data.headers };
        headers.bytes.get_mut(..data.headers)?.copy_from_slice(first.get(..data.headers)?);
        let (ip, tcp) = headers.bytes.split_at_mut_checked(data.tcp)?;
        let length = u16::try_from(self.length).ok()?;
        match data.version {
            Version::Four => {
                put(ip, 2, length.to_be_bytes())?;
                put(ip, 10, [0, 0])?;
                let sum = Sum::default().add(ip).finish();
                put(ip, 10, sum)?;
            }
            Version::Six => put(ip, 4, length.checked_sub(40)?.to_be_bytes())?,
        }
        if self.push {
            *tcp.get_mut(FLAGS)? |= PSH;
        }
        let sum = pseudo_header(ip.get(data.version.addresses())?, self.length - data.tcp).fold();
        put(tcp, CHECKSUM, sum)?;
        let checksum = Checksum { from: u16::try_from(data.tcp).ok()?, at: u16::try_from(CHECKSUM).ok()? };
        let segments = Segments {
            version: data.version,
            headers: u16::try_from(data.headers).ok()?,
            size: u16::try_from(self.size).ok()?,
        };
        Some((Note { checksum: Some(checksum), segments: Some(segments) }, headers))
    }
}

/// Headers of a large packet.
pub(super) struct Headers {
    bytes: [u8; LONGEST_HEADERS],
    length: usize,
}

impl Headers {
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Which packets go together. The packets of a stream stay in order.
pub(super) fn runs<P: AsRef<[u8]>>(packets: &[P]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::with_capacity(packets.len());
    // The last run of each stream, by its number. One that is forgotten takes nothing in any more, so the order stays.
    let mut latest: VecDeque<usize> = VecDeque::with_capacity(STREAMS);
    for (index, packet) in packets.iter().enumerate() {
        let packet = packet.as_ref();
        let data = Data::of(packet);
        let wanted = stream(packet);
        let first = |run: &Run| run.members.first().and_then(|first| packets.get(*first)).map(AsRef::as_ref);
        let same = |run: &Run| wanted.is_some() && first(run).and_then(stream) == wanted;
        let place = latest.iter().position(|number| runs.get(*number).is_some_and(same));
        let last = place.and_then(|place| latest.get(place)).and_then(|number| runs.get_mut(*number));
        if let Some(run) = last
            && let Some(first) = first(run)
            && run.take(index, packet, data, first)
        {
            continue;
        }
        if let Some(place) = place {
            latest.remove(place);
        } else if latest.len() == STREAMS {
            latest.pop_front();
        }
        latest.push_back(runs.len());
        runs.push(Run::begin(index, packet, data));
    }
    runs
}
