//! Command and response APDUs (ISO 7816-4): short form with command chaining and GET RESPONSE, or extended lengths where card and reader take
//! them. No I/O: a [`Transmit`] carries the bytes.

use crate::CardError;
use zeroize::{Zeroize, Zeroizing};

/// Most bytes taken from a card in one reply, over all GET RESPONSE.
pub const MAX_REPLY: usize = 8192;

/// Data bytes in one short command.
const MAX_DATA: usize = 255;

/// Status word: done.
pub const SW_OK: u16 = 0x9000;
/// Status word: wrong length.
const SW_LENGTH: u16 = 0x6700;
/// Status word: a PIN or an authentication is wanted first.
pub const SW_SECURITY: u16 = 0x6982;
/// Status word: no tries left.
pub const SW_BLOCKED: u16 = 0x6983;
/// Status word: no such object or application.
pub const SW_NOT_FOUND: u16 = 0x6A82;

/// Carries one APDU to a card and its answer back.
pub trait Transmit {
    /// Sends `apdu`, writes the answer (data and status word) to the beginning of `receive`, and returns its length.
    ///
    /// # Errors
    /// Whatever keeps the card from answering, as a [`CardError`].
    fn transmit(&mut self, apdu: &[u8], receive: &mut [u8]) -> Result<usize, CardError>;

    /// The card speaks T=0, where a command with data carries no Le (ISO 7816-3 section 12.1.2).
    fn is_t0(&self) -> bool {
        false
    }

    /// Card and reader say that they take extended lengths: up to 65,535 bytes of data and 65,536 of an answer in one APDU.
    fn is_extended(&self) -> bool {
        false
    }
}

/// What a command wants to hear.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A status word.
    Status,
    /// Data, most likely of no more than 256 bytes; longer data is fetched with GET RESPONSE.
    Short,
    /// Data that may be longer: in one piece with extended lengths, if they are to be had.
    Long,
}

/// A command before it is cut into APDUs.
pub struct Command<'a> {
    /// Instruction.
    pub ins: u8,
    /// First parameter.
    pub p1: u8,
    /// Second parameter.
    pub p2: u8,
    /// Command data, any length; longer than 255 bytes is chained, or goes with an extended length.
    pub data: &'a [u8],
    /// What the card is to answer.
    pub answer: Answer,
}

/// What a card said: data, wiped on drop, and the last status word.
pub struct Reply {
    /// At most [`MAX_REPLY`] bytes.
    pub data: Zeroizing<Vec<u8>>,
    /// Status word.
    pub status: u16,
}

impl Reply {
    /// The data when the status is 9000.
    ///
    /// # Errors
    /// [`CardError::Refused`] with the status word.
    pub fn accepted(self) -> Result<Zeroizing<Vec<u8>>, CardError> {
        if self.status == SW_OK { Ok(self.data) } else { Err(CardError::Refused(self.status)) }
    }
}

/// Exchanges commands over a [`Transmit`]. Every buffer that held an APDU is wiped.
pub struct Channel<'a> {
    link: &'a mut dyn Transmit,
    receive: Zeroizing<Vec<u8>>,
    sent: u32,
    extended: bool,
}

impl<'a> Channel<'a> {
    /// Over `link`.
    pub fn new(link: &'a mut dyn Transmit) -> Self {
        let extended = link.is_extended();
        Self { link, receive: Zeroizing::new(vec![0; pcsc::MAX_BUFFER_SIZE_EXTENDED]), sent: 0, extended }
    }

    /// How many APDUs went to the card so far.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Sends a command, in one APDU or chained, and collects the whole answer.
    ///
    /// # Errors
    /// The link's errors; [`CardError::Malformed`] for an answer that is no APDU, too long, or without end.
    pub fn send(&mut self, command: &Command<'_>) -> Result<Reply, CardError> {
        if self.extended
            && command.answer == Answer::Long
            && let Some(apdu) = encode_extended(command)
        {
            let (status, length) = self.exchange(&apdu)?;
            if status != SW_LENGTH {
                return self.collect(status, length);
            }
            // The card has done nothing yet, and cannot do what its answer to reset says.
            self.extended = false;
        }
        self.send_short(command)
    }

    fn send_short(&mut self, command: &Command<'_>) -> Result<Reply, CardError> {
        let mut rest = command.data;
        loop {
            let (part, after) = rest.split_at(rest.len().min(MAX_DATA));
            let last = after.is_empty();
            let answer = last && command.answer != Answer::Status && (part.is_empty() || !self.link.is_t0());
            let mut apdu = encode(if last { 0x00 } else { 0x10 }, command, part, answer.then_some(0));
            let (mut status, mut length) = self.exchange(&apdu)?;
            if let ([0x6C, exact], true) = (status.to_be_bytes(), answer) {
                apdu = encode(0, command, part, Some(exact));
                (status, length) = self.exchange(&apdu)?;
            }
            if last {
                return self.collect(status, length);
            }
            if status != SW_OK {
                return Ok(Reply { data: Zeroizing::default(), status });
            }
            rest = after;
        }
    }

    /// Takes the answer of `length` bytes from the buffer and fetches the rest while the card says 61xx.
    fn collect(&mut self, mut status: u16, mut length: usize) -> Result<Reply, CardError> {
        let mut data = Zeroizing::new(Vec::with_capacity(MAX_REPLY));
        self.take(length, &mut data)?;
        while let [0x61, available] = status.to_be_bytes() {
            let before = data.len();
            (status, length) = self.exchange(&[0x00, 0xC0, 0x00, 0x00, available])?;
            self.take(length, &mut data)?;
            if data.len() == before && status >> 8 == 0x61 {
                return Err(CardError::Malformed("a reply without end"));
            }
        }
        Ok(Reply { data, status })
    }

    fn take(&mut self, length: usize, data: &mut Vec<u8>) -> Result<(), CardError> {
        let part = self.receive.get_mut(..length).ok_or(CardError::Malformed("a reply of impossible length"))?;
        let fits = data.len() + part.len() <= MAX_REPLY;
        if fits {
            data.extend_from_slice(part);
        }
        part.zeroize();
        if fits { Ok(()) } else { Err(CardError::Malformed("a reply that is too long")) }
    }

    /// One APDU: the status word, and how many data bytes lie in the buffer.
    fn exchange(&mut self, apdu: &[u8]) -> Result<(u16, usize), CardError> {
        self.sent += 1;
        let length = self.link.transmit(apdu, &mut self.receive)?;
        match self.receive.get(..length) {
            Some([data @ .., sw1, sw2]) => Ok((u16::from_be_bytes([*sw1, *sw2]), data.len())),
            _ => Err(CardError::Malformed("a reply without status word")),
        }
    }
}

/// One short APDU; `part` has at most 255 bytes. Wiped on drop, and its capacity suffices, so nothing is left by a reallocation.
fn encode(class: u8, command: &Command<'_>, part: &[u8], le: Option<u8>) -> Zeroizing<Vec<u8>> {
    let mut apdu = Zeroizing::new(Vec::with_capacity(MAX_DATA + 6));
    apdu.extend_from_slice(&[class, command.ins, command.p1, command.p2]);
    if let Some(length) = u8::try_from(part.len()).ok().filter(|length| *length > 0) {
        apdu.push(length);
        apdu.extend_from_slice(part);
    }
    apdu.extend(le);
    apdu
}

/// One APDU with extended lengths, for the longest answer (ISO 7816-4 section 5.1); `None` without data, or when there is too much of it.
fn encode_extended(command: &Command<'_>) -> Option<Zeroizing<Vec<u8>>> {
    let [high, low] = u16::try_from(command.data.len()).ok().filter(|length| *length > 0)?.to_be_bytes();
    let mut apdu = Zeroizing::new(Vec::with_capacity(command.data.len() + 9));
    apdu.extend_from_slice(&[0, command.ins, command.p1, command.p2, 0, high, low]);
    apdu.extend_from_slice(command.data);
    apdu.extend_from_slice(&[0, 0]);
    Some(apdu)
}
