//! Personalising a PIV card.

use super::{ManagementKey, PublicKey, check, management};
use crate::{
    CardError,
    apdu::SW_OK,
    piv::{OBJECT_CERTIFICATE, OBJECT_SERVER, Piv, SLOT, TAG_CERTIFICATE, TAG_FINGERPRINT, TAG_PIN_POLICY, algorithm},
    reader::{Connection, Seat},
    tlv,
};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeySize, PrivateDecryptingKey},
};
use cug_proto::{
    login,
    message::Fingerprint,
    secret::{Secret, SecretBytes},
    trust,
};
use pcsc::{Context, PNP_NOTIFICATION, ReaderState, Scope, State};
use pkcs8::{PrivateKeyInfoRef, der::Decode};
use rand_core::UnwrapErr;
use std::{ffi::CString, time::Duration};
use zeroize::Zeroizing;

/// An RSA private key outside of a card, wiped on drop.
pub struct RsaKey {
    /// PKCS#8 in DER.
    der: Zeroizing<Vec<u8>>,
}

impl RsaKey {
    /// From unencrypted PKCS#8 DER: two primes, 2048, 3072 or 4096 bits.
    ///
    /// # Errors
    /// [`CardError::KeyKind`]
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, CardError> {
        let key = PrivateDecryptingKey::from_pkcs8(der).map_err(|_| CardError::KeyKind)?;
        algorithm(key.key_size_bytes()).ok_or(CardError::KeyKind)?;
        Ok(Self { der: Zeroizing::new(der.to_vec()) })
    }

    /// A new key from the system's random numbers. Takes up to some seconds.
    ///
    /// # Errors
    /// [`CardError::KeyKind`] for other sizes than 2048, 3072 and 4096 bits.
    pub fn generate(bits: usize) -> Result<Self, CardError> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            _ => return Err(CardError::KeyKind),
        };
        let key = PrivateDecryptingKey::generate(size).map_err(|_| CardError::Random)?;
        let der: Pkcs8V1Der = key.as_der().map_err(|_| CardError::KeyKind)?;
        Ok(Self { der: Zeroizing::new(der.as_ref().to_vec()) })
    }

    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    /// The public half.
    ///
    /// # Errors
    /// [`CardError::KeyKind`]
    pub fn public(&self) -> Result<PublicKey, CardError> {
        self.with_parts(|key| PublicKey::from_parts(key.modulus.as_bytes(), key.public_exponent.as_bytes()))
    }

    fn with_parts<T>(
        &self,
        work: impl FnOnce(&rsa::pkcs1::RsaPrivateKeyRef<'_>) -> Result<T, CardError>,
    ) -> Result<T, CardError> {
        let info = PrivateKeyInfoRef::from_der(&self.der).map_err(|_| CardError::KeyKind)?;
        let key =
            rsa::pkcs1::RsaPrivateKeyRef::from_der(info.private_key.as_bytes()).map_err(|_| CardError::KeyKind)?;
        work(&key)
    }
}

/// Where the key comes from.
pub enum KeySource {
    /// Generated on the card, which it never leaves. The number is the size in bits.
    Generate(usize),
    /// Brought along (Yubico's import command).
    Import(RsaKey),
}

/// A PIV card in a reader, opened for writing. Other programs wait until this is dropped.
pub struct PivCard {
    connection: Connection,
    /// Cipher of the management key.
    cipher: u8,
}

impl PivCard {
    /// Opens the card in this reader (its PC/SC name, or the beginning of it; nothing for any) with the management key. Waits for reader and
    /// card for up to [`CARD_WAIT`]: a reader that was plugged in just now takes a moment to report its card.
    ///
    /// # Errors
    /// [`CardError::NoReader`], [`CardError::NoCard`], [`CardError::SeveralCards`] when the name fits several readers with cards,
    /// [`CardError::ManagementKey`]
    pub fn open(reader: &str, key: &ManagementKey) -> Result<Self, CardError> {
        let context = Context::establish(Scope::System)?;
        let seat = choose(&context, reader)?;
        let mut connection = Connection::new(context, seat);
        let cipher = connection.with(true, |piv| management::authenticate(piv, key))?;
        // The right to write must not stay with the card either.
        connection.mark_unlocked();
        Ok(Self { connection, cipher })
    }

    /// Makes or imports the key in slot 9D. With a PIN, the card shows with it that the key works.
    ///
    /// # Errors
    /// [`CardError::Unsupported`] when the card cannot do this size or this kind; those of [`Piv::verify`] and [`Piv::open_challenge`]
    pub fn prepare(mut self, source: &KeySource, pin: Option<&SecretBytes>) -> Result<PreparedPiv, CardError> {
        let public = self.connection.with(true, |piv| match source {
            KeySource::Generate(bits) => generate(piv, *bits),
            KeySource::Import(key) => import(piv, key),
        })?;
        if let Some(pin) = pin {
            self.connection.with(true, |piv| prove(piv, &public, pin))?;
        }
        Ok(PreparedPiv { card: self, public })
    }

    /// Writes only the server object: for cards whose key and certificate were made by a third party. `fingerprint` is that of the card's key.
    ///
    /// # Errors
    /// [`CardError::Mismatch`] when the card holds a certificate for another key; [`CardError::Refused`]
    pub fn write_server_object(&mut self, server_object: &[u8], fingerprint: &Fingerprint) -> Result<(), CardError> {
        check(fingerprint, None, server_object)?;
        self.connection.with(true, |piv| {
            if let Some(certificate) = piv.certificate()?
                && trust::spki_sha256(&certificate).ok() != Some(*fingerprint)
            {
                return Err(CardError::Mismatch("public key"));
            }
            write_server(piv, server_object, fingerprint)
        })
    }

    /// Whether the card holds a server object: it was issued for this network, or another one of its kind.
    ///
    /// # Errors
    /// [`CardError::Refused`], [`CardError::Malformed`]
    pub fn was_issued(&mut self) -> Result<bool, CardError> {
        self.connection.with(true, |piv| Ok(piv.object(OBJECT_SERVER)?.is_some()))
    }

    /// The key of the certificate in slot 9D: for cards whose key was made by a third party.
    ///
    /// # Errors
    /// [`CardError::NoKey`] without a certificate, [`CardError::KeyKind`]
    pub fn present_key(&mut self) -> Result<PublicKey, CardError> {
        let certificate = self.connection.with(true, |piv| piv.certificate())?.ok_or(CardError::NoKey)?;
        PublicKey::of_certificate(&certificate)
    }

    /// Tries a PIN. The card stays open also when it is the wrong one.
    ///
    /// # Errors
    /// Those of [`Piv::verify`].
    pub fn verify_pin(&mut self, pin: &SecretBytes) -> Result<(), CardError> {
        self.connection.with(true, |piv| keep_open(piv.verify(pin)))?
    }

    /// Changes the PIN.
    ///
    /// # Errors
    /// Those of [`Piv::change_pin`].
    pub fn change_pin(&mut self, present: &SecretBytes, new: &SecretBytes) -> Result<(), CardError> {
        self.connection.with(true, |piv| keep_open(piv.change_pin(present, new)))?
    }

    /// Reads back what was written, and lets the card open a challenge with its key and this PIN. Up to 2 s on slow cards.
    ///
    /// # Errors
    /// [`CardError::Mismatch`] when the card does not hold this server object; those of [`Piv::verify`] and [`Piv::open_challenge`]
    pub fn answer(
        &mut self,
        server_object: &[u8],
        pin: &SecretBytes,
        ciphertext: &[u8],
    ) -> Result<Secret<32>, CardError> {
        self.connection.with(true, |piv| {
            if piv.identity()?.server_object.certificate() != server_object {
                return Err(CardError::Mismatch("server object"));
            }
            piv.verify(pin)?;
            piv.open_challenge(ciphertext)
        })
    }

    /// Gives the card another management key (Yubico's command; most cards have it).
    ///
    /// # Errors
    /// [`CardError::Unsupported`], [`CardError::Refused`]
    pub fn change_management_key(&mut self, new: &ManagementKey) -> Result<(), CardError> {
        let present = self.cipher;
        self.connection.with(true, |piv| management::change(piv, present, new))
    }
}

/// A card with its key, still without certificates.
pub struct PreparedPiv {
    card: PivCard,
    public: PublicKey,
}

impl PreparedPiv {
    /// What the certificate is to be made for.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Writes the member's certificate and, last, the server object: only with that is it a card of this network. Both in DER.
    ///
    /// # Errors
    /// [`CardError::Mismatch`], [`CardError::Refused`]
    pub fn finish(mut self, certificate: &[u8], server_object: &[u8]) -> Result<PivCard, CardError> {
        let fingerprint = self.public.fingerprint();
        check(&fingerprint, Some(certificate), server_object)?;
        self.card.connection.with(true, |piv| {
            let mut object = Vec::with_capacity(certificate.len() + 16);
            tlv::push(&mut object, TAG_CERTIFICATE, certificate);
            object.extend_from_slice(&[0x71, 0x01, 0x00, 0xFE, 0x00]);
            put(piv, OBJECT_CERTIFICATE, &object)?;
            write_server(piv, server_object, &fingerprint)
        })?;
        Ok(self.card)
    }
}

/// A wrong PIN is no reason to let the card go: the next try goes on where this one was.
fn keep_open(verified: Result<(), CardError>) -> Result<Result<(), CardError>, CardError> {
    match verified {
        Err(error @ (CardError::WrongPin { .. } | CardError::PinFormat | CardError::PinBlocked)) => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(()) => Ok(Ok(())),
    }
}

/// How long reader and card are waited for.
pub const CARD_WAIT: Duration = Duration::from_secs(3);

/// Changes at the readers after which no more is waited for: each may prolong the wait.
const MOST_CHANGES: u32 = 10;

fn choose(context: &Context, reader: &str) -> Result<Seat, CardError> {
    for _ in 0..MOST_CHANGES {
        let (seats, mut states) = look(context, reader)?;
        match (seats.as_slice(), states.len()) {
            ([seat], _) => return Ok(seat.clone()),
            ([], _) => {}
            (_, _) => return Err(CardError::SeveralCards),
        }
        match context.get_status_change(CARD_WAIT, &mut states) {
            Err(pcsc::Error::Timeout) => break,
            Ok(()) | Err(pcsc::Error::UnknownReader) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The notification is always there.
    let (seats, states) = look(context, reader)?;
    match seats.into_iter().next() {
        Some(seat) => Ok(seat),
        None if states.len() > 1 => Err(CardError::NoCard),
        None => Err(CardError::NoReader),
    }
}

/// What is there now: the cards in readers of that name, and the states to wait on for a change.
fn look(context: &Context, reader: &str) -> Result<(Vec<Seat>, Vec<ReaderState>), CardError> {
    let mut states = vec![ReaderState::new(PNP_NOTIFICATION(), State::UNAWARE)];
    // The notification first: a reader that comes after this ends the wait.
    settle(context.get_status_change(Duration::ZERO, &mut states))?;
    let names: Vec<CString> = match context.list_readers_owned() {
        Err(pcsc::Error::NoReadersAvailable) => Vec::new(),
        other => other?,
    };
    let exact = names.iter().any(|name| name.to_bytes() == reader.as_bytes());
    let fits = |name: &CString| {
        if exact { name.to_bytes() == reader.as_bytes() } else { name.to_bytes().starts_with(reader.as_bytes()) }
    };
    states.extend(names.into_iter().filter(fits).map(|name| ReaderState::new(name, State::UNAWARE)));
    if let Some(readers @ [_, ..]) = states.get_mut(1..) {
        settle(context.get_status_change(Duration::ZERO, readers))?;
    }
    states.iter_mut().for_each(ReaderState::sync_current_state);
    Ok((states.iter().skip(1).filter_map(Seat::of).collect(), states))
}

/// Nothing new, or a reader that went meanwhile, is no error.
fn settle(result: Result<(), pcsc::Error>) -> Result<(), CardError> {
    match result {
        Ok(()) | Err(pcsc::Error::Timeout | pcsc::Error::UnknownReader) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// GENERATE ASYMMETRIC KEY PAIR (SP 800-73-4 part 2, section 3.3.2).
fn generate(piv: &mut Piv<'_>, bits: usize) -> Result<PublicKey, CardError> {
    let algorithm = algorithm(bits / 8).filter(|_| bits.is_multiple_of(8)).ok_or(CardError::KeyKind)?;
    let reply = piv.send(0x47, 0x00, SLOT, &[0xAC, 0x03, 0x80, 0x01, algorithm])?;
    let data = match reply.status {
        SW_OK => reply.data,
        0x6A80 | 0x6A81 | 0x6A86 => return Err(CardError::Unsupported("keys of this size")),
        other => return Err(CardError::Refused(other)),
    };
    const BAD: CardError = CardError::Malformed("a public key");
    let template = tlv::find(&data, 0x7F49).map_err(|_| BAD)?;
    let modulus = tlv::find(template, 0x81).map_err(|_| BAD)?;
    let exponent = tlv::find(template, 0x82).map_err(|_| BAD)?;
    // Some cards put a zero before the modulus, as DER does.
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    if modulus.len() * 8 == bits { PublicKey::from_parts(modulus, exponent) } else { Err(BAD) }
}

/// Yubico's IMPORT ASYMMETRIC KEY: the primes and the values of the Chinese remainder theorem, each half as long as the modulus.
fn import(piv: &mut Piv<'_>, key: &RsaKey) -> Result<PublicKey, CardError> {
    let public = key.public()?;
    let status = key.with_parts(|parts| {
        let modulus = parts.modulus.as_bytes().len();
        let algorithm = algorithm(modulus).ok_or(CardError::KeyKind)?;
        let half = modulus / 2;
        let mut data = Zeroizing::new(Vec::with_capacity(5 * tlv::encoded_len(1, half)));
        let fields = [&parts.prime1, &parts.prime2, &parts.exponent1, &parts.exponent2, &parts.coefficient];
        for (tag, field) in (1..).zip(fields) {
            let padding = half.checked_sub(field.as_bytes().len()).ok_or(CardError::KeyKind)?;
            tlv::push_header(&mut data, tag, half);
            data.extend(std::iter::repeat_n(0, padding));
            data.extend_from_slice(field.as_bytes());
        }
        Ok(piv.send(0xFE, algorithm, SLOT, &data)?.status)
    })?;
    match status {
        SW_OK => Ok(public),
        0x6A80 | 0x6A81 | 0x6A86 | 0x6D00 => Err(CardError::Unsupported("the import of this key; let it generate one")),
        other => Err(CardError::Refused(other)),
    }
}

/// Encrypts a random challenge to the new key and lets the card open it.
fn prove(piv: &mut Piv<'_>, public: &PublicKey, pin: &SecretBytes) -> Result<(), CardError> {
    let mut rng = UnwrapErr(getrandom::SysRng);
    let challenge = Secret::<32>::try_fill(|bytes| getrandom::fill(bytes).map_err(|_| CardError::Random))?;
    let sealed = login::encrypt_challenge(public.rsa(), &challenge, &mut rng).map_err(|_| CardError::KeyKind)?;
    piv.verify(pin)?;
    if piv.open_challenge(&sealed)?.matches(challenge.expose()) { Ok(()) } else { Err(CardError::NoKey) }
}

fn write_server(piv: &mut Piv<'_>, server_object: &[u8], fingerprint: &Fingerprint) -> Result<(), CardError> {
    let mut object = Vec::with_capacity(server_object.len() + 64);
    tlv::push(&mut object, TAG_CERTIFICATE, server_object);
    object.extend_from_slice(&[0x71, 0x01, 0x00]);
    tlv::push(&mut object, TAG_FINGERPRINT, fingerprint);
    if works_without_pin(piv)? {
        tlv::push(&mut object, TAG_PIN_POLICY, &[1]);
    }
    object.extend_from_slice(&[0xFE, 0x00]);
    put(piv, OBJECT_SERVER, &object)
}

/// GET METADATA (Yubico, INS F7): tag 02 holds the PIN policy, 1 = never. Cards without this command have no such keys.
fn works_without_pin(piv: &mut Piv<'_>) -> Result<bool, CardError> {
    let reply = piv.send(0xF7, 0x00, SLOT, &[])?;
    Ok(reply.status == SW_OK && tlv::find(&reply.data, 0x02).is_ok_and(|policy| policy.first() == Some(&1)))
}

/// PUT DATA (SP 800-73-4 part 2, section 3.3.1).
fn put(piv: &mut Piv<'_>, tag: [u8; 3], object: &[u8]) -> Result<(), CardError> {
    let mut data = Vec::with_capacity(object.len() + 16);
    tlv::push(&mut data, 0x5C, &tag);
    tlv::push(&mut data, 0x53, object);
    match piv.send(0xDB, 0x3F, 0xFF, &data)?.status {
        SW_OK => Ok(()),
        0x6A84 => Err(CardError::Unsupported("objects of this size")),
        other => Err(CardError::Refused(other)),
    }
}
