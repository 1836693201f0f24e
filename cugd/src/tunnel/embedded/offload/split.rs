//! One large packet of the kernel into those that it stands for. Functions of bytes.

use super::{
    checksum::{Sum, pseudo_header},
    headers::{CHECKSUM, CWR, Checksum, FIN, FLAGS, Note, PSH, SEQUENCE, Version, put, tcp_header, word},
};

/// Completes the checksum of a packet that is sent as it is.
pub(super) fn complete(checksum: Checksum, packet: &mut [u8]) -> Option<()> {
    let from = usize::from(checksum.from);
    let mut sum = Sum::default().add(packet.get(from..)?).finish();
    if sum == [0, 0] {
        // For UDP, zero would say that there is none; for the others both are the same number.
        sum = [0xff, 0xff];
    }
    put(packet, from.checked_add(usize::from(checksum.at))?, sum)
}

/// How a large packet is to be split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    version: Version,
    /// Where TCP's header begins.
    tcp: usize,
    /// Length of all headers.
    headers: usize,
    size: usize,
}

impl Plan {
    /// None when the packet is not what the note says.
    pub(super) fn of(note: &Note, packet: &[u8]) -> Option<Self> {
        let (segments, checksum) = note.segments.zip(note.checksum)?;
        let (tcp, size) = (usize::from(checksum.from), usize::from(segments.size));
        let least = match segments.version {
            Version::Four => 20,
            Version::Six => 40,
        };
        let headers = tcp.checked_add(tcp_header(packet, tcp)?)?;
        let whole = Version::of(packet)? == segments.version && tcp >= least && headers < packet.len() && size > 0;
        whole.then_some(Self { version: segments.version, tcp, headers, size })
    }

    /// The parts of `packet`, each with the headers that it needs (see [`Plan::finish`]) and its payload.
    pub(super) fn parts<'a>(&self, packet: &'a [u8]) -> impl Iterator<Item = Part<'a>> + use<'a> {
        let (headers, payload) = packet.split_at_checked(self.headers).unwrap_or_default();
        let count = payload.len().div_ceil(self.size);
        let payloads = payload.chunks(self.size);
        payloads.enumerate().map(move |(number, payload)| Part { headers, payload, number, last: number + 1 == count })
    }

    /// Makes a packet of headers and payload of a part, which stand in `packet` one after the other.
    pub(super) fn finish(&self, part: &Part<'_>, packet: &mut [u8]) -> Option<()> {
        let length = u16::try_from(packet.len()).ok()?;
        match self.version {
            Version::Four => {
                put(packet, 2, length.to_be_bytes())?;
                // Wrapping: the numbers of a host's packets go round.
                let number = word(packet, 4)?.wrapping_add(u16::try_from(part.number).ok()?);
                put(packet, 4, number.to_be_bytes())?;
                put(packet, 10, [0, 0])?;
                let sum = Sum::default().add(packet.get(..self.tcp)?).finish();
                put(packet, 10, sum)?;
            }
            Version::Six => put(packet, 4, length.checked_sub(40)?.to_be_bytes())?,
        }
        let (ip, tcp) = packet.split_at_mut_checked(self.tcp)?;
        let before = u32::try_from(part.number.checked_mul(self.size)?).ok()?;
        let sequence: &mut [u8; 4] = tcp.get_mut(SEQUENCE)?.try_into().ok()?;
        *sequence = u32::from_be_bytes(*sequence).wrapping_add(before).to_be_bytes();
        let flags = tcp.get_mut(FLAGS)?;
        if !part.last {
            *flags &= !(FIN | PSH);
        }
        if part.number > 0 {
            *flags &= !CWR;
        }
        put(tcp, CHECKSUM, [0, 0])?;
        let sum = pseudo_header(ip.get(self.version.addresses())?, tcp.len()).add(tcp).finish();
        put(tcp, CHECKSUM, sum)
    }
}

/// A part of a large packet.
pub(super) struct Part<'a> {
    pub(super) headers: &'a [u8],
    pub(super) payload: &'a [u8],
    number: usize,
    last: bool,
}
