//! Where things stand in a packet of TCP, and what the kernel notes in front of a packet (`struct virtio_net_hdr`).

use std::ops::Range;

/// Length of a note.
pub(super) const NOTE: usize = 10;

/// The checksum is not there yet, only the sum of the pseudo-header.
const NEEDS_CHECKSUM: u8 = 1;
/// Kinds of segments.
const TCP4: u8 = 1;
const TCP6: u8 = 4;

/// Bits of the byte of flags in TCP's header.
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

/// Offsets in TCP's header.
pub(super) const SEQUENCE: Range<usize> = 4..8;
pub(super) const FLAGS: usize = 13;
pub(super) const CHECKSUM: usize = 16;

/// The two versions of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Four,
    Six,
}

impl Version {
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Some(Self::Four),
            6 => Some(Self::Six),
            _ => None,
        }
    }

    /// Where both addresses stand.
    pub(super) fn addresses(self) -> Range<usize> {
        match self {
            Self::Four => 12..20,
            Self::Six => 8..40,
        }
    }
}

/// What is to be done with a packet, or was left undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Where the checksum is to be put, after the sum over everything from `from` on was made.
    pub(super) checksum: Option<Checksum>,
    /// The packet stands for several, with this much payload each.
    pub(super) segments: Option<Segments>,
}

/// A checksum that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checksum {
    pub(super) from: u16,
    /// Counted from there.
    pub(super) at: u16,
}

/// A packet that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    pub(super) version: Version,
    /// Length of all headers.
    pub(super) headers: u16,
    /// Payload of each but the last.
    pub(super) size: u16,
}

impl Note {
    /// None for what was not asked for.
    pub(super) fn parse(bytes: [u8; NOTE]) -> Option<Self> {
        let [flags, kind, h0, h1, s0, s1, f0, f1, a0, a1] = bytes;
        let version = match kind {
            0 => None,
            TCP4 => Some(Version::Four),
            TCP6 => Some(Version::Six),
            _ => return None,
        };
        let (headers, size) = (u16::from_ne_bytes([h0, h1]), u16::from_ne_bytes([s0, s1]));
        let checksum = Checksum { from: u16::from_ne_bytes([f0, f1]), at: u16::from_ne_bytes([a0, a1]) };
        Some(Self {
            checksum: (flags & NEEDS_CHECKSUM != 0).then_some(checksum),
            segments: version.map(|version| Segments { version, headers, size }),
        })
    }

    /// As the kernel reads it.
    pub(super) fn bytes(self) -> [u8; NOTE] {
        let flags = if self.checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        let (kind, headers, size) = match self.segments {
            None => (0, 0, 0),
            Some(Segments { version: Version::Four, headers, size }) => (TCP4, headers, size),
            Some(Segments { version: Version::Six, headers, size }) => (TCP6, headers, size),
        };
        let Checksum { from, at } = self.checksum.unwrap_or(Checksum { from: 0, at: 0 });
        let [h0, h1] = headers.to_ne_bytes();
        let [s0, s1] = size.to_ne_bytes();
        let [f0, f1] = from.to_ne_bytes();
        let [a0, a1] = at.to_ne_bytes();
        [flags, kind, h0, h1, s0, s1, f0, f1, a0, a1]
    }
}

/// A number of two bytes, which stands at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

/// Writes `new` at `at`, if there is room.
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, new: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = new;
    Some(())
}

/// Length of TCP's header, which begins at `at`.
pub(super) fn tcp_header(bytes: &[u8], at: usize) -> Option<usize> {
    let length = usize::from(bytes.get(at.checked_add(12)?)? >> 4) * 4;
    (length >= 20).then_some(length)
}
