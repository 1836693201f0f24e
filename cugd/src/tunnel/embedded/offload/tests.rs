//! Packets as two kernels would make them, there and back; and bytes that nobody would make.

use super::{
    coalesce, headers,
    headers::{Checksum, Note, Segments, Version},
    split,
};
use gotatun::packet::PacketBufPool;
use proptest::prelude::*;

/// The checksum word by word, as its definition has it.
fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let sum = bytes
        .chunks(2)
        .fold(0_u64, |sum, word| sum + (u64::from(word[0]) << 8) + word.get(1).copied().map_or(0, u64::from));
    !((0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16)) as u16)
}

/// What TCP's checksum covers besides the segment.
fn pseudo(version: Version, packet: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = packet[version.addresses()].to_vec();
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, 6]);
    bytes
}

#[derive(Clone, Debug)]
struct Stream {
    version: Version,
    port: u16,
    options: Vec<u8>,
    acknowledged: u32,
}

impl Stream {
    fn ip(&self) -> usize {
        if self.version == Version::Four { 20 } else { 40 }
    }

    fn headers(&self) -> usize {
        self.ip() + 20 + self.options.len()
    }

    /// With everything but TCP's checksum.
    fn bare(&self, id: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let tcp = 20 + self.options.len() + payload.len();
        let mut packet = match self.version {
            Version::Four => {
                let mut ip = vec![0x45, 2];
                ip.extend(((20 + tcp) as u16).to_be_bytes());
                ip.extend(id.to_be_bytes());
                ip.extend([0x40, 0, 63, 6, 0, 0, 100, 96, 0, 1, 100, 96, 0, 2]);
                let sum = checksum(&[&ip]);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                ip
            }
            Version::Six => {
                let mut ip = vec![0x60, 0x20, 3, 4];
                ip.extend((tcp as u16).to_be_bytes());
                ip.extend([6, 62]);
                ip.extend([0xfd; 16]);
                ip.extend([0xfe; 16]);
                ip
            }
        };
        packet.extend(self.port.to_be_bytes());
        packet.extend(443_u16.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.extend(self.acknowledged.to_be_bytes());
        packet.extend([((20 + self.options.len()) / 4 * 16) as u8, flags, 1, 0, 0, 0, 0, 0]);
        packet.extend(&self.options);
        packet.extend(payload);
        packet
    }

    fn packet(&self, id: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.bare(id, sequence, flags, payload);
        let ip = self.ip();
        let sum = checksum(&[&pseudo(self.version, &packet, packet.len() - ip), &packet[ip..]]);
        packet[ip + 16..ip + 18].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// As the kernel hands it over: with the sum of the pseudo-header where the checksum will be.
    fn large(&self, id: u16, sequence: u32, flags: u8, payload: &[u8], size: u16) -> (Note, Vec<u8>) {
        let mut packet = self.bare(id, sequence, flags, payload);
        let ip = self.ip();
        let sum = !checksum(&[&pseudo(self.version, &packet, packet.len() - ip)]);
        packet[ip + 16..ip + 18].copy_from_slice(&sum.to_be_bytes());
        let segments = Segments { version: self.version, headers: self.headers() as u16, size };
        (Note { checksum: Some(Checksum { from: ip as u16, at: 16 }), segments: Some(segments) }, packet)
    }
}

fn streams() -> impl Strategy<Value = Stream> {
    let options = (0_usize..=10).prop_flat_map(|words| prop::collection::vec(any::<u8>(), words * 4));
    (any::<bool>(), any::<u16>(), options, any::<u32>()).prop_map(|(four, port, options, acknowledged)| Stream {
        version: if four { Version::Four } else { Version::Six },
        port,
        options,
        acknowledged,
    })
}

fn unpacked(note: Note, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut bytes = [note.bytes().as_slice(), packet].concat();
    super::unpack(&mut bytes, &PacketBufPool::new(1), &mut packets);
    packets.into_iter().map(|packet| packet.into_bytes().to_vec()).collect()
}

/// The large packets that the kernel is given, and the small ones that go as they are.
fn packed(packets: &[Vec<u8>]) -> Vec<(Note, Vec<u8>)> {
    let pack = |run: &coalesce::Run| {
        let first = &packets[run.members[0]];
        match run.headers(first) {
            None => {
                assert_eq!(run.members.len(), 1);
                (Note::default(), first.clone())
            }
            Some((note, headers)) => {
                let mut large = headers.bytes().to_vec();
                run.members.iter().for_each(|index| large.extend(&packets[*index][headers.bytes().len()..]));
                (note, large)
            }
        }
    };
    coalesce::runs(packets).iter().map(pack).collect()
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..20_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_large_packet_becomes_what_the_sender_would_have_sent(
        stream in streams(), payload in payloads(), size in 300_u16..1400, id: u16, sequence: u32, flags: u8,
    ) {
        let (note, large) = stream.large(id, sequence, flags, &payload, size);
        let parts: Vec<_> = payload.chunks(usize::from(size)).enumerate().collect();
        let last = parts.len() - 1;
        let expected: Vec<_> = parts.iter().map(|(number, payload)| {
            let first_only = if *number == 0 { 0xff } else { !headers::CWR };
            let last_only = if *number == last { 0xff } else { !(headers::FIN | headers::PSH) };
            let sequence = sequence.wrapping_add(*number as u32 * u32::from(size));
            stream.packet(id.wrapping_add(*number as u16), sequence, flags & first_only & last_only, payload)
        }).collect();
        prop_assert_eq!(unpacked(note, &large), expected);
    }

    #[test]
    fn what_was_split_is_put_together_again(
        stream in streams(), payload in payloads(), size in 500_u16..1400, id: u16, sequence: u32, push: bool,
    ) {
        let flags = headers::ACK | if push { headers::PSH } else { 0 };
        let (note, large) = stream.large(id, sequence, flags, &payload, size);
        let packets = unpacked(note, &large);
        let expected = if packets.len() == 1 { (Note::default(), packets[0].clone()) } else { (note, large) };
        prop_assert_eq!(packed(&packets), vec![expected]);
    }

    /// Whatever is put together: the kernel would make the same packets of it, stream by stream in the same order.
    #[test]
    fn nothing_is_lost_or_changed(
        sent in prop::collection::vec((0_usize..3, 1_usize..700, 0_usize..12, any::<bool>()), 1..80),
        streams in [streams(), streams(), streams()],
    ) {
        let mut sequences = [7_u32, u32::MAX - 900, 90_000];
        let mut packets = Vec::new();
        for (index, length, kind, damaged) in sent {
            let length = if kind < 8 { 600 } else { length };
            let flags = match kind { 9 => 0x18, 10 => 0x11, 11 => 0x02, _ => 0x10 };
            let mut packet = streams[index].packet(0, sequences[index], flags, &vec![length as u8; length]);
            sequences[index] = sequences[index].wrapping_add(length as u32);
            if damaged && kind == 8 {
                *packet.last_mut().unwrap() ^= 1;
            }
            packets.push(packet);
        }
        let again: Vec<_> = packed(&packets).into_iter().flat_map(|(note, packet)| {
            if note == Note::default() { vec![packet] } else { unpacked(note, &packet) }
        }).collect();
        // The number of a packet without "may be split" says nothing, and is counted on by whoever splits.
        let normal = |mut packet: Vec<u8>| {
            if packet[0] >> 4 == 4 { packet[4..6].fill(0); packet[10..12].fill(0) }
            packet
        };
        for stream in &streams {
            let of = |all: &[Vec<u8>]| -> Vec<_> {
                let at = stream.ip();
                let own = |packet: &&Vec<u8>| {
                    (packet[0] >> 4 == 4) == (at == 20) && packet[at..at + 2] == stream.port.to_be_bytes()
                };
                all.iter().filter(own).cloned().map(normal).collect()
            };
            prop_assert_eq!(of(&again), of(&packets));
        }
        prop_assert_eq!(again.len(), packets.len());
    }

    #[test]
    fn a_checksum_that_was_left_undone_is_made(stream in streams(), payload in payloads(), sequence: u32) {
        let (note, large) = stream.large(1, sequence, headers::ACK, &payload, 1);
        let packet = unpacked(Note { segments: None, ..note }, &large);
        prop_assert_eq!(packet, vec![stream.packet(1, sequence, headers::ACK, &payload)]);
    }

    #[test]
    fn a_damaged_packet_goes_alone(stream in streams(), at: prop::sample::Index, bit in 0_u32..8) {
        let payload = [1; 600];
        let mut packets: Vec<_> =
            (0..3).map(|number| stream.packet(number, u32::from(number) * 600, headers::ACK, &payload)).collect();
        let at = at.index(packets[1].len());
        packets[1][at] ^= 1 << bit;
        let alone = |runs: &[coalesce::Run]| runs.iter().any(|run| run.members == [1]);
        // IPv6 protects neither class and flow label nor the hop limit; they must agree.
        prop_assert!(alone(&coalesce::runs(&packets)), "{:?}", packed(&packets).len());
    }

    /// Notes and packets that no kernel would make.
    #[test]
    fn any_bytes_will_do(mut bytes in prop::collection::vec(any::<u8>(), 0..300), all in prop::collection::vec(
        prop::collection::vec(any::<u8>(), 0..120), 0..20)) {
        super::unpack(&mut bytes, &PacketBufPool::new(1), &mut Vec::new());
        let members: usize = coalesce::runs(&all).iter().map(|run| run.members.len()).sum();
        prop_assert_eq!(members, all.len());
    }

    /// Nearly right ones: they come further.
    #[test]
    fn any_damage_will_do(
        stream in streams(), payload in payloads(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut: prop::sample::Index,
    ) {
        let (note, large) = stream.large(1, 2, headers::ACK, &payload, 500);
        let mut bytes = [note.bytes().as_slice(), &large].concat();
        let near = bytes.len().min(120);
        for (at, to) in changes {
            bytes[at.index(near)] = to;
        }
        let mut cut_off = bytes[..cut.index(bytes.len())].to_vec();
        let mut packets = Vec::new();
        super::unpack(&mut bytes, &PacketBufPool::new(1), &mut packets);
        super::unpack(&mut cut_off, &PacketBufPool::new(1), &mut packets);
        let packets: Vec<_> = packets.into_iter().map(|packet| packet.into_bytes().to_vec()).collect();
        prop_assert!(packed(&packets).len() <= packets.len());
    }
}

#[test]
fn a_checksum_of_udp_is_never_zero() {
    let mut packet = [0xff, 0xff, 0, 0];
    split::complete(Checksum { from: 0, at: 2 }, &mut packet).unwrap();
    assert_eq!(packet, [0xff, 0xff, 0xff, 0xff]);
}
