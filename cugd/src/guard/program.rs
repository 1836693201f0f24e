//! The cgroup-skb programs, assembled here: which packet of which socket may pass. Pure.
//!
//! For each packet that a socket sends (egress) or is about to receive (ingress):
//!
//! 1. In another network namespace: pass. Where the kernel cannot tell (before 6.15), the index of the interface can: ours are large
//!    and follow from the session ([`crate::tunnel::InterfaceName::index`]), so a container has no interface of that index. So the index
//!    is looked at first, which costs nothing, and the kernel is asked for what may be ours.
//! 2. On an interface of ours: pass for the owner's sockets. On egress also for user 0: those are the kernel's own answers (echo
//!    replies, resets, the last words of a connection); root's programs are stopped by the packet filter, and root could remove both.
//! 3. On another interface, for a confined user: pass on loopback and to what is listed.
//! 4. Else: pass.
//!
//! By the socket's user ID and not by the file's, so that sockets without a file count as well: those that are closed but have data
//! left, and those that the kernel adds to a Multipath TCP connection.

use std::net::IpAddr;

use super::plan::{Exception, Plan};

/// One instruction of the BPF machine, as the kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Which way the packet goes, seen from the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a socket.
    Ingress,
    /// From a socket.
    Egress,
}

/// Longest program: a jump reaches 32,767 instructions.
const LONGEST: usize = 30_000;

/// `struct __sk_buff`.
mod packet {
    pub const PROTOCOL: i16 = 16;
    pub const INGRESS_IFINDEX: i16 = 36;
    pub const IFINDEX: i16 = 40;
    /// EtherTypes in network order, as a little- or big-endian machine reads them.
    pub const IPV4: i32 = 0x0800_u16.to_be() as i32;
    pub const IPV6: i32 = 0x86dd_u16.to_be() as i32;
}

/// Numbers of helper functions, from `linux/bpf.h`.
mod helper {
    pub const SKB_LOAD_BYTES: i32 = 26;
    pub const GET_SOCKET_UID: i32 = 47;
    pub const GET_NETNS_COOKIE: i32 = 122;
}

/// Linux numbers the loopback interface 1 in every network namespace.
const LOOPBACK: i32 = 1;
/// Where the network header is copied to, below the frame pointer.
const HEADER: i16 = -64;
/// Where the ports are copied to; zero when there are none.
const PORTS: i16 = -16;

// What lives where. R0 to R5 do not survive a call.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const CONTEXT: u8 = 6;
/// Whose socket it is.
const USER: u8 = 7;
/// Whose it should be, on an interface of ours.
const OWNER: u8 = 7;
const INTERFACE: u8 = 8;
const ARRIVED_ON: u8 = 9;
const FRAME: u8 = 10;

/// The program for a direction. `namespace` is the cookie of this network namespace, for kernels that can compare it.
/// `None` when it would be too long for the machine.
pub fn assemble(plan: &Plan, direction: Direction, namespace: Option<u64>) -> Option<Vec<Instruction>> {
    let mut asm = Assembler::default();
    let (pass, drop, fenced) = (asm.label(), asm.label(), asm.label());
    asm.mov(CONTEXT, R1);
    asm.load32(INTERFACE, CONTEXT, packet::IFINDEX);
    asm.load32(ARRIVED_ON, CONTEXT, packet::INGRESS_IFINDEX);
    // Most packets of a machine are none of ours, and where nobody is confined that is all that is asked of them.
    for fence in plan.fences.values() {
        let (ours, next) = (asm.label(), asm.label());
        let index = word(fence.name.index());
        asm.jump_if(INTERFACE, index, ours);
        if direction == Direction::Ingress {
            // The first one may be forgotten on the way up the stack.
            asm.jump_if(ARRIVED_ON, index, ours);
        }
        asm.jump(next);
        asm.here(ours);
        asm.set(OWNER, word(fence.uid));
        asm.jump(fenced);
        asm.here(next);
    }
    let confined = plan.confined();
    if !confined.is_empty() {
        elsewhere(&mut asm, namespace, pass);
        asm.socket_user();
        asm.mov(USER, R0);
    }
    for (uid, allowed) in confined {
        let next = asm.label();
        asm.jump_unless(USER, word(uid), next);
        asm.jump_if(INTERFACE, LOOPBACK, pass);
        exceptions(&mut asm, direction, &allowed, pass, drop);
        asm.here(next);
    }
    asm.jump(pass);
    if asm.leads_to(fenced) {
        asm.here(fenced);
        elsewhere(&mut asm, namespace, pass);
        asm.socket_user();
        asm.jump_if_same(R0, OWNER, pass);
        if direction == Direction::Egress {
            asm.jump_if(R0, 0, pass);
        }
        asm.jump(drop);
    }
    asm.here(pass);
    asm.set(R0, 1);
    asm.exit();
    // The verifier takes no instruction that nothing leads to.
    if asm.leads_to(drop) {
        asm.here(drop);
        asm.set(R0, 0);
        asm.exit();
    }
    asm.finish()
}

/// Ends at `pass` when the packet is of another network namespace than `ours`; goes on when it is of this one, or the kernel cannot tell.
fn elsewhere(asm: &mut Assembler, ours: Option<u64>, pass: Label) {
    if let Some(cookie) = ours {
        asm.mov(R1, CONTEXT);
        asm.call(helper::GET_NETNS_COOKIE);
        asm.load_wide(R1, cookie);
        asm.jump_unless_same(R0, R1, pass);
    }
}

/// Ends at `pass` or `drop`. The other side is the destination of what is sent and the source of what comes.
fn exceptions(asm: &mut Assembler, direction: Direction, allowed: &[Exception], pass: Label, drop: Label) {
    let (ipv4, ipv6) = (asm.label(), asm.label());
    let egress = direction == Direction::Egress;
    asm.store_zero(FRAME, PORTS);
    asm.load32(R2, CONTEXT, packet::PROTOCOL);
    asm.jump_if(R2, packet::IPV4, ipv4);
    asm.jump_if(R2, packet::IPV6, ipv6);
    asm.jump(drop);

    asm.here(ipv4);
    asm.copy_packet(0, HEADER, 20, drop);
    // Header length in words of four bytes.
    asm.load8(R2, FRAME, HEADER);
    asm.and(R2, 0x0f);
    asm.shift_left(R2, 2);
    ports(asm, HEADER + 9, drop);
    let port = if egress { PORTS + 2 } else { PORTS };
    let other = if egress { HEADER + 16 } else { HEADER + 12 };
    matches(asm, allowed.iter().filter(|a| a.net.addr().is_ipv4()), other, port, pass);
    asm.jump(drop);

    asm.here(ipv6);
    asm.copy_packet(0, HEADER, 40, drop);
    // Behind extension headers no port is looked for: then only exceptions without a port count.
    asm.set(R2, 40);
    ports(asm, HEADER + 6, drop);
    let other = if egress { HEADER + 24 } else { HEADER + 8 };
    matches(asm, allowed.iter().filter(|a| a.net.addr().is_ipv6()), other, port, pass);
    asm.jump(drop);
}

/// Copies the ports at offset R2 of the packet when the protocol at `protocol` is TCP or UDP.
fn ports(asm: &mut Assembler, protocol: i16, drop: Label) {
    let (has_ports, done) = (asm.label(), asm.label());
    asm.load8(R1, FRAME, protocol);
    asm.jump_if(R1, libc::IPPROTO_TCP, has_ports);
    asm.jump_if(R1, libc::IPPROTO_UDP, has_ports);
    asm.jump(done);
    asm.here(has_ports);
    asm.copy_packet_at(R2, PORTS, 4, drop);
    asm.here(done);
}

fn matches<'a>(
    asm: &mut Assembler,
    allowed: impl Iterator<Item = &'a Exception>,
    address: i16,
    port: i16,
    pass: Label,
) {
    for exception in allowed {
        let next = asm.label();
        for (offset, (mask, value)) in (address..).step_by(4).zip(words(exception)) {
            if mask != 0 {
                asm.load32(R1, FRAME, offset);
                asm.and(R1, mask);
                asm.jump_unless(R1, value, next);
            }
        }
        if let Some(number) = exception.port {
            asm.load16(R1, FRAME, port);
            asm.jump_unless(R1, i32::from(number.get().to_be()), next);
        }
        asm.jump(pass);
        asm.here(next);
    }
}

/// Masks and values of a network, four bytes each, as the machine reads them from a packet.
fn words(exception: &Exception) -> Vec<(i32, i32)> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let (mask, value) = (bytes(exception.net.netmask()), bytes(exception.net.network()));
    let word = |chunk: &[u8]| chunk.try_into().map(i32::from_ne_bytes).unwrap_or_default();
    mask.chunks_exact(4).zip(value.chunks_exact(4)).map(|(mask, value)| (word(mask), word(value))).collect()
}

fn word(number: u32) -> i32 {
    i32::from_ne_bytes(number.to_ne_bytes())
}

#[derive(Clone, Copy)]
struct Label(usize);

/// Instructions, and jumps that do not know yet how far. All jumps go forward.
#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    labels: Vec<usize>,
    jumps: Vec<(usize, Label)>,
}

/// Parts of operation codes, from `linux/bpf_common.h` and `linux/bpf.h`.
mod op {
    pub const LOAD_IMMEDIATE_WIDE: u8 = 0x18;
    pub const LOAD: u8 = 0x61;
    pub const LOAD_HALF: u8 = 0x69;
    pub const LOAD_BYTE: u8 = 0x71;
    pub const STORE_IMMEDIATE_WIDE: u8 = 0x7a;
    pub const MOVE: u8 = 0xbf;
    pub const MOVE_IMMEDIATE: u8 = 0xb7;
    pub const ADD_IMMEDIATE: u8 = 0x07;
    pub const AND_IMMEDIATE_32: u8 = 0x54;
    pub const SHIFT_LEFT_IMMEDIATE: u8 = 0x67;
    pub const JUMP: u8 = 0x05;
    pub const JUMP_UNEQUAL: u8 = 0x5d;
    pub const JUMP_EQUAL_32: u8 = 0x1e;
    pub const JUMP_EQUAL_IMMEDIATE_32: u8 = 0x16;
    pub const JUMP_UNEQUAL_IMMEDIATE_32: u8 = 0x56;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
}

impl Assembler {
    fn emit(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: from << 4 | to, offset, immediate });
    }

    fn label(&mut self) -> Label {
        self.labels.push(usize::MAX);
        Label(self.labels.len() - 1)
    }

    fn here(&mut self, label: Label) {
        let at = self.code.len();
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = at;
        }
    }

    fn leads_to(&self, label: Label) -> bool {
        self.jumps.iter().any(|(_, to)| to.0 == label.0)
    }

    fn jump_with(&mut self, code: u8, to: u8, from: u8, immediate: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(code, to, from, 0, immediate);
    }

    fn jump(&mut self, label: Label) {
        self.jump_with(op::JUMP, 0, 0, 0, label);
    }

    fn jump_if(&mut self, register: u8, value: i32, label: Label) {
        self.jump_with(op::JUMP_EQUAL_IMMEDIATE_32, register, 0, value, label);
    }

    fn jump_unless(&mut self, register: u8, value: i32, label: Label) {
        self.jump_with(op::JUMP_UNEQUAL_IMMEDIATE_32, register, 0, value, label);
    }

    fn jump_if_same(&mut self, one: u8, other: u8, label: Label) {
        self.jump_with(op::JUMP_EQUAL_32, one, other, 0, label);
    }

    fn jump_unless_same(&mut self, one: u8, other: u8, label: Label) {
        self.jump_with(op::JUMP_UNEQUAL, one, other, 0, label);
    }

    fn mov(&mut self, to: u8, from: u8) {
        self.emit(op::MOVE, to, from, 0, 0);
    }

    fn set(&mut self, to: u8, value: i32) {
        self.emit(op::MOVE_IMMEDIATE, to, 0, 0, value);
    }

    fn load_wide(&mut self, to: u8, value: u64) {
        let halves = (value & 0xffff_ffff, value >> 32);
        let half = |half: u64| word(u32::try_from(half).unwrap_or_default());
        self.emit(op::LOAD_IMMEDIATE_WIDE, to, 0, 0, half(halves.0));
        self.emit(0, 0, 0, 0, half(halves.1));
    }

    fn load32(&mut self, to: u8, from: u8, offset: i16) {
        self.emit(op::LOAD, to, from, offset, 0);
    }

    fn load16(&mut self, to: u8, from: u8, offset: i16) {
        self.emit(op::LOAD_HALF, to, from, offset, 0);
    }

    fn load8(&mut self, to: u8, from: u8, offset: i16) {
        self.emit(op::LOAD_BYTE, to, from, offset, 0);
    }

    fn store_zero(&mut self, at: u8, offset: i16) {
        self.emit(op::STORE_IMMEDIATE_WIDE, at, 0, offset, 0);
    }

    fn and(&mut self, register: u8, mask: i32) {
        self.emit(op::AND_IMMEDIATE_32, register, 0, 0, mask);
    }

    fn shift_left(&mut self, register: u8, bits: i32) {
        self.emit(op::SHIFT_LEFT_IMMEDIATE, register, 0, 0, bits);
    }

    /// The user ID of the packet's socket, in R0.
    fn socket_user(&mut self) {
        self.mov(R1, CONTEXT);
        self.call(helper::GET_SOCKET_UID);
    }

    fn call(&mut self, function: i32) {
        self.emit(op::CALL, 0, 0, 0, function);
    }

    fn exit(&mut self) {
        self.emit(op::EXIT, 0, 0, 0, 0);
    }

    /// Copies `length` bytes from offset `from` of the packet to the stack; a packet that is shorter goes to `short`.
    fn copy_packet(&mut self, from: i32, to: i16, length: i32, short: Label) {
        self.set(R2, from);
        self.copy_packet_at(R2, to, length, short);
    }

    fn copy_packet_at(&mut self, from: u8, to: i16, length: i32, short: Label) {
        let ok = self.label();
        if from != R2 {
            self.mov(R2, from);
        }
        self.mov(R1, CONTEXT);
        self.mov(R3, FRAME);
        self.emit(op::ADD_IMMEDIATE, R3, 0, 0, i32::from(to));
        self.set(R4, length);
        self.call(helper::SKB_LOAD_BYTES);
        self.jump_if(R0, 0, ok);
        self.jump(short);
        self.here(ok);
    }

    fn finish(mut self) -> Option<Vec<Instruction>> {
        if self.code.len() > LONGEST {
            return None;
        }
        for (at, label) in self.jumps {
            let target = *self.labels.get(label.0)?;
            let distance = target.checked_sub(at + 1)?;
            self.code.get_mut(at)?.offset = i16::try_from(distance).ok()?;
        }
        Some(self.code)
    }
}
