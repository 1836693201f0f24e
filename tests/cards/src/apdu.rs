//! ISO 7816-4: parsing of commands, command chaining, and responses in pieces (61xx, GET RESPONSE).

/// Status words.
pub mod sw {
    /// Done.
    pub const OK: u16 = 0x9000;
    /// Wrong PIN; the low digit is the number of tries left.
    pub const TRIES: u16 = 0x63C0;
    /// Wrong length.
    pub const LENGTH: u16 = 0x6700;
    /// The last command of a chain was expected.
    pub const CHAIN: u16 = 0x6883;
    /// PIN or management key needed.
    pub const SECURITY: u16 = 0x6982;
    /// PIN or PUK blocked.
    pub const BLOCKED: u16 = 0x6983;
    /// Conditions of use not satisfied.
    pub const CONDITIONS: u16 = 0x6985;
    /// Bad data.
    pub const DATA: u16 = 0x6A80;
    /// Object or application not found.
    pub const NOT_FOUND: u16 = 0x6A82;
    /// Wrong P1 or P2.
    pub const PARAMETERS: u16 = 0x6A86;
    /// Key reference not found.
    pub const REFERENCE: u16 = 0x6A88;
    /// Unknown instruction.
    pub const INSTRUCTION: u16 = 0x6D00;
    /// Unknown class.
    pub const CLASS: u16 = 0x6E00;
    /// Unspecified failure.
    pub const FAILURE: u16 = 0x6F00;
}

/// A command, complete after chaining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Class, without the chaining bit.
    pub cla: u8,
    /// Instruction.
    pub ins: u8,
    /// First parameter.
    pub p1: u8,
    /// Second parameter.
    pub p2: u8,
    /// Data field.
    pub data: Vec<u8>,
    /// Longest response asked for, in bytes; absent if the command had no Le.
    pub le: Option<usize>,
}

impl Command {
    /// Parses the cases 1 to 4 of ISO 7816-4, short and extended. None if the lengths do not fit.
    pub fn parse(apdu: &[u8]) -> Option<Self> {
        let (&[cla, ins, p1, p2], body) = apdu.split_first_chunk::<4>()?;
        let (data, le) = match *body {
            [] => (&[][..], None),
            [le] => (&[][..], Some(short_le(le))),
            [0, high, low] => (&[][..], Some(extended_le(high, low))),
            [0, high, low, ref rest @ ..] if !rest.is_empty() => {
                let (data, le) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
                match *le {
                    [] => (data, None),
                    [high, low] => (data, Some(extended_le(high, low))),
                    _ => return None,
                }
            }
            [lc, ref rest @ ..] => {
                let (data, le) = rest.split_at_checked(usize::from(lc))?;
                match *le {
                    [] => (data, None),
                    [le] => (data, Some(short_le(le))),
                    _ => return None,
                }
            }
        };
        Some(Self { cla, ins, p1, p2, data: data.to_vec(), le })
    }
}

fn short_le(le: u8) -> usize {
    if le == 0 { 256 } else { usize::from(le) }
}

fn extended_le(high: u8, low: u8) -> usize {
    match u16::from_be_bytes([high, low]) {
        0 => 65_536,
        n => usize::from(n),
    }
}

/// Longest data of a chain, in bytes.
const MAX_CHAIN: usize = 8 * 1024;

/// Chaining on the way in, pieces of at most 256 bytes on the way out.
#[derive(Default)]
pub(crate) struct Transport {
    chain: Option<Command>,
    pending: Vec<u8>,
}

impl Transport {
    /// Answers an APDU. `execute` gets every complete command and returns response data and status word.
    pub(crate) fn transmit(&mut self, apdu: &[u8], execute: impl FnOnce(&Command) -> (Vec<u8>, u16)) -> Vec<u8> {
        let Some(mut command) = Command::parse(apdu) else { return status(sw::LENGTH) };
        if command.ins == 0xC0 && command.cla == 0 {
            return self.piece(command.le.unwrap_or(256), sw::OK);
        }
        self.pending.clear();
        let more = command.cla & 0x10 != 0;
        command.cla &= !0x10;
        if let Some(mut chain) = self.chain.take() {
            if (chain.cla, chain.ins, chain.p1, chain.p2) != (command.cla, command.ins, command.p1, command.p2) {
                return status(sw::CHAIN);
            }
            chain.data.append(&mut command.data);
            command.data = chain.data;
            if command.data.len() > MAX_CHAIN {
                return status(sw::LENGTH);
            }
        }
        if more {
            self.chain = Some(command);
            return status(sw::OK);
        }
        let (data, code) = execute(&command);
        self.pending = data;
        // A host that gave no Le gets its data all the same: many do not give one.
        self.piece(command.le.unwrap_or(256), code)
    }

    fn piece(&mut self, le: usize, code: u16) -> Vec<u8> {
        let rest = self.pending.split_off(le.min(self.pending.len()));
        let mut answer = std::mem::replace(&mut self.pending, rest);
        let code = match self.pending.len() {
            0 => code,
            n => 0x6100 | u16::try_from(n).unwrap_or(0).min(256) & 0xFF,
        };
        answer.extend_from_slice(&code.to_be_bytes());
        answer
    }
}

pub(crate) fn status(code: u16) -> Vec<u8> {
    code.to_be_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cases_parse() {
        let parse = |apdu: &[u8]| Command::parse(apdu).map(|c| (c.data, c.le));
        assert_eq!(parse(&[0, 1, 2, 3]), Some((vec![], None)));
        assert_eq!(parse(&[0, 1, 2, 3, 0]), Some((vec![], Some(256))));
        assert_eq!(parse(&[0, 1, 2, 3, 1, 9]), Some((vec![9], None)));
        assert_eq!(parse(&[0, 1, 2, 3, 1, 9, 5]), Some((vec![9], Some(5))));
        assert_eq!(parse(&[0, 1, 2, 3, 0, 1, 0]), Some((vec![], Some(256))));
        assert_eq!(parse(&[0, 1, 2, 3, 0, 0, 1, 9]), Some((vec![9], None)));
        assert_eq!(parse(&[0, 1, 2, 3, 0, 0, 1, 9, 0, 0]), Some((vec![9], Some(65_536))));
        assert_eq!(parse(&[0, 1, 2]), None);
        assert_eq!(parse(&[0, 1, 2, 3, 2, 9]), None);
    }

    #[test]
    fn chains_join_and_long_answers_come_in_pieces() {
        let mut transport = Transport::default();
        let refuse = |_: &Command| -> (Vec<u8>, u16) { panic!("not complete") };
        assert_eq!(transport.transmit(&[0x10, 0xDB, 0, 0, 1, 7], refuse), [0x90, 0]);
        let answer = transport.transmit(&[0, 0xDB, 0, 0, 1, 8], |command| {
            assert_eq!(command.data, [7, 8]);
            (vec![5; 300], sw::OK)
        });
        assert_eq!((answer.len(), &answer[256..]), (258, &[0x61, 44][..]));
        assert_eq!(transport.transmit(&[0, 0xC0, 0, 0, 44], refuse).len(), 46);
    }
}
