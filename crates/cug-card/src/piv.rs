//! The PIV card commands that a login takes (SP 800-73-4 part 2), over any [`Transmit`](crate::apdu::Transmit).

use crate::{
    CardError, PinRequest,
    apdu::{Answer, Channel, Command, Reply, SW_BLOCKED, SW_NOT_FOUND, SW_OK, SW_SECURITY},
    oaep, tlv,
};
use cug_proto::{
    message::Fingerprint,
    secret::{Secret, SecretBytes},
    trust::{self, ServerObject},
};
use zeroize::Zeroizing;

/// PIV's application identifier, truncated before the version (SP 800-73-4 part 1, section 2.2).
const AID: [u8; 9] = [0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00];

/// Data object of the certificate in slot 9D.
pub const OBJECT_CERTIFICATE: [u8; 3] = [0x5F, 0xC1, 0x0B];
/// Data object of the first retired key's certificate: holds the server object.
pub const OBJECT_SERVER: [u8; 3] = [0x5F, 0xC1, 0x0D];
/// Slot "key management", where the member's key is.
pub const SLOT: u8 = 0x9D;

/// In a certificate object: the DER certificate.
pub const TAG_CERTIFICATE: u16 = 0x70;
/// In the server object: the card's fingerprint (the field that PIV calls MSCUID).
pub const TAG_FINGERPRINT: u16 = 0x72;
/// In the server object, private class: 1 when the key in 9D works without a PIN. A hint that saves a command per login; the card decides.
pub const TAG_PIN_POLICY: u16 = 0xD0;

/// Reference of the PIV application's PIN.
const PIN_REFERENCE: u8 = 0x80;

/// What a card says about itself.
pub struct Identity {
    /// Whom the card trusts.
    pub server_object: ServerObject,
    /// SHA-256 of the card key's `SubjectPublicKeyInfo`.
    pub fingerprint: Fingerprint,
    /// The key needs no PIN, by [`TAG_PIN_POLICY`].
    pub without_pin: bool,
}

/// Algorithm identifier (SP 800-78-5 table 9, and Yubico's for 4096) for a key with this many bytes in its modulus.
pub fn algorithm(modulus: usize) -> Option<u8> {
    match modulus {
        256 => Some(0x07),
        384 => Some(0x05),
        512 => Some(0x16),
        _ => None,
    }
}

/// The card's PIN, as far as it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinState {
    /// Given already since the last reset, or the card has none.
    Open,
    /// Wanted; tries left, if the card says so.
    Wanted(Option<u8>),
    /// No tries left.
    Blocked,
}

impl PinState {
    fn from_status(status: u16) -> Self {
        match status.to_be_bytes() {
            [0x69, 0x83] | [0x63, 0xC0] => Self::Blocked,
            [0x63, count @ 0xC1..=0xCF] => Self::Wanted(Some(count & 0x0F)),
            // No such reference or no such instruction: there is no PIN to give.
            [0x90, 0x00] | [0x6A, 0x81 | 0x88] | [0x6D, 0x00] => Self::Open,
            _ => Self::Wanted(None),
        }
    }

    /// What to ask the person for.
    ///
    /// # Errors
    /// [`CardError::PinBlocked`]
    pub fn request(self) -> Result<PinRequest, CardError> {
        match self {
            Self::Open => Ok(PinRequest::NotNeeded),
            Self::Wanted(tries_left) => Ok(PinRequest::Pin { tries_left }),
            Self::Blocked => Err(CardError::PinBlocked),
        }
    }
}

/// The PIV application of one card.
pub struct Piv<'a> {
    channel: Channel<'a>,
}

impl<'a> Piv<'a> {
    /// Over this channel. [`Piv::select`] comes first.
    pub fn new(channel: Channel<'a>) -> Self {
        Self { channel }
    }

    /// How many APDUs were sent.
    pub fn sent(&self) -> u32 {
        self.channel.sent()
    }

    /// Sends a command of the caller's own.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send(&mut self, ins: u8, p1: u8, p2: u8, data: &[u8]) -> Result<Reply, CardError> {
        self.channel.send(&Command { ins, p1, p2, data, answer: Answer::Short })
    }

    /// Sends a command whose answer may be long.
    fn send_long(&mut self, ins: u8, p1: u8, p2: u8, data: &[u8]) -> Result<Reply, CardError> {
        self.channel.send(&Command { ins, p1, p2, data, answer: Answer::Long })
    }

    /// Makes PIV the current application.
    ///
    /// # Errors
    /// [`CardError::NotOurs`] when the card has no PIV.
    pub fn select(&mut self) -> Result<(), CardError> {
        match self.send(0xA4, 0x04, 0x00, &AID)?.status {
            SW_OK => Ok(()),
            _ => Err(CardError::NotOurs),
        }
    }

    /// Reads a data object: the contents of its tag 53; `None` when the card has none.
    ///
    /// # Errors
    /// [`CardError::Refused`], [`CardError::Malformed`]
    pub fn object(&mut self, tag: [u8; 3]) -> Result<Option<Zeroizing<Vec<u8>>>, CardError> {
        let [a, b, c] = tag;
        let reply = self.send_long(0xCB, 0x3F, 0xFF, &[0x5C, 0x03, a, b, c])?;
        if reply.status == SW_NOT_FOUND {
            return Ok(None);
        }
        let data = reply.accepted()?;
        let content = tlv::find(&data, 0x53).map_err(|_| CardError::Malformed("a data object"))?;
        Ok((!content.is_empty()).then(|| Zeroizing::new(content.to_vec())))
    }

    /// Reads the DER certificate of the key in slot 9D.
    ///
    /// # Errors
    /// [`CardError::Refused`], [`CardError::Malformed`]
    pub fn certificate(&mut self) -> Result<Option<Vec<u8>>, CardError> {
        let Some(object) = self.object(OBJECT_CERTIFICATE)? else { return Ok(None) };
        Ok(tlv::find(&object, TAG_CERTIFICATE).ok().map(<[u8]>::to_vec))
    }

    /// Reads who the card belongs to and whom it trusts.
    ///
    /// # Errors
    /// [`CardError::NotOurs`] without a server object, [`CardError::NoKey`] when the card does not say which key it has.
    pub fn identity(&mut self) -> Result<Identity, CardError> {
        let object = self.object(OBJECT_SERVER)?.ok_or(CardError::NotOurs)?;
        let certificate = tlv::find(&object, TAG_CERTIFICATE).map_err(|_| CardError::NotOurs)?;
        let server_object = ServerObject::parse(certificate).map_err(|_| CardError::NotOurs)?;
        let written = tlv::find(&object, TAG_FINGERPRINT).ok().and_then(|bytes| Fingerprint::try_from(bytes).ok());
        let fingerprint = match written {
            Some(fingerprint) => fingerprint,
            None => {
                let own = self.certificate()?.ok_or(CardError::NoKey)?;
                trust::spki_sha256(&own).map_err(|_| CardError::NoKey)?
            }
        };
        let without_pin = tlv::find(&object, TAG_PIN_POLICY).is_ok_and(|policy| policy == [1]);
        Ok(Identity { server_object, fingerprint, without_pin })
    }

    /// Asks for the PIN's state (VERIFY without data); costs no try.
    ///
    /// # Errors
    /// Those of the link.
    pub fn pin_state(&mut self) -> Result<PinState, CardError> {
        let reply =
            self.channel.send(&Command { ins: 0x20, p1: 0, p2: PIN_REFERENCE, data: &[], answer: Answer::Status })?;
        Ok(PinState::from_status(reply.status))
    }

    /// Gives the PIN: 4 to 8 bytes, padded with FF (SP 800-73-4 part 2, section 2.4.3).
    ///
    /// # Errors
    /// [`CardError::WrongPin`], [`CardError::PinBlocked`]; [`CardError::PinFormat`] for an impossible PIN, which costs no try.
    pub fn verify(&mut self, pin: &SecretBytes) -> Result<(), CardError> {
        let mut padded = Zeroizing::new(Vec::with_capacity(8));
        push_padded(&mut padded, pin)?;
        let reply = self.channel.send(&Command {
            ins: 0x20,
            p1: 0,
            p2: PIN_REFERENCE,
            data: &padded,
            answer: Answer::Status,
        })?;
        pin_accepted(reply.status)
    }

    /// Changes the PIN: CHANGE REFERENCE DATA (SP 800-73-4 part 2, section 3.2.2).
    ///
    /// # Errors
    /// As [`Piv::verify`], about the present PIN; [`CardError::PinFormat`] also when the card does not take the new one.
    pub fn change_pin(&mut self, present: &SecretBytes, new: &SecretBytes) -> Result<(), CardError> {
        let mut both = Zeroizing::new(Vec::with_capacity(16));
        push_padded(&mut both, present)?;
        push_padded(&mut both, new)?;
        let reply =
            self.channel.send(&Command { ins: 0x24, p1: 0, p2: PIN_REFERENCE, data: &both, answer: Answer::Status })?;
        pin_accepted(reply.status)
    }

    /// Lets the card open a challenge: GENERAL AUTHENTICATE with the key in 9D, then OAEP on this side.
    ///
    /// # Errors
    /// [`CardError::PinRequired`]; [`CardError::NotForThisCard`] when it was made for another key; [`CardError::NoKey`]
    pub fn open_challenge(&mut self, ciphertext: &[u8]) -> Result<Secret<32>, CardError> {
        let algorithm = algorithm(ciphertext.len()).ok_or(CardError::NotForThisCard)?;
        let inner = 2 + tlv::encoded_len(0x81, ciphertext.len());
        let mut data = Vec::with_capacity(inner + 4);
        tlv::push_header(&mut data, 0x7C, inner);
        tlv::push(&mut data, 0x82, &[]);
        tlv::push(&mut data, 0x81, ciphertext);

        let reply = self.send_long(0x87, algorithm, SLOT, &data)?;
        match reply.status {
            SW_OK => {}
            SW_SECURITY => return Err(CardError::PinRequired),
            SW_BLOCKED => return Err(CardError::PinBlocked),
            // A key of another size, or a number above its modulus.
            0x6A80 | 0x6A86 => return Err(CardError::NotForThisCard),
            0x6A81 | SW_NOT_FOUND | 0x6A88 => return Err(CardError::NoKey),
            other => return Err(CardError::Refused(other)),
        }
        const BAD: CardError = CardError::Malformed("the answer to a challenge");
        let template = tlv::find(&reply.data, 0x7C).map_err(|_| BAD)?;
        let block = tlv::find(template, 0x82).map_err(|_| BAD)?;
        if block.len() != ciphertext.len() {
            return Err(BAD);
        }
        let mut block = Zeroizing::new(block.to_vec());
        oaep::decode(&mut block).map_err(|_| CardError::NotForThisCard)
    }
}

/// A PIN as cards take it: 4 to 8 bytes, padded with FF.
fn push_padded(data: &mut Vec<u8>, pin: &SecretBytes) -> Result<(), CardError> {
    if !(4..=8).contains(&pin.expose().len()) {
        return Err(CardError::PinFormat);
    }
    let end = data.len() + 8;
    data.extend_from_slice(pin.expose());
    data.resize(end, 0xFF);
    Ok(())
}

/// What the card says of a PIN.
fn pin_accepted(status: u16) -> Result<(), CardError> {
    match status.to_be_bytes() {
        [0x90, 0x00] => Ok(()),
        [0x63, 0xC0] | [0x69, 0x83] => Err(CardError::PinBlocked),
        [0x63, count @ 0xC1..=0xCF] => Err(CardError::WrongPin { tries_left: Some(count & 0x0F) }),
        [0x63, _] => Err(CardError::WrongPin { tries_left: None }),
        [0x6A, 0x80] | [0x67, 0x00] => Err(CardError::PinFormat),
        _ => Err(CardError::Refused(status)),
    }
}
