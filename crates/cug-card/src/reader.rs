//! A PIV card in a PC/SC reader.

use crate::{
    Card, CardError, PinRequest,
    apdu::{Channel, Transmit},
    lengths,
    piv::{PinState, Piv},
};
use cug_proto::{
    local::{CardBinding, ReaderBinding},
    message::Fingerprint,
    secret::{Secret, SecretBytes},
    trust::ServerObject,
};
use pcsc::{Context, Disposition, Protocols, ReaderState, ShareMode, State};
use std::{ffi::CStr, ffi::CString, time::Duration};

/// Which card sits in a reader: changes with every insertion and removal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seat {
    pub reader: CString,
    pub event_count: u32,
    pub atr: Vec<u8>,
}

impl Seat {
    /// From a state that PC/SC reported; `None` when no card that answers is there.
    pub fn of(state: &ReaderState) -> Option<Self> {
        let seen = state.event_state();
        let usable =
            seen.contains(State::PRESENT) && !seen.intersects(State::MUTE | State::UNKNOWN | State::UNAVAILABLE);
        usable.then(|| Self {
            reader: state.name().to_owned(),
            event_count: state.event_count(),
            atr: state.atr().to_vec(),
        })
    }

    /// What is in this reader now.
    pub fn now(context: &Context, reader: &CStr) -> Result<Option<Self>, pcsc::Error> {
        let mut states = [ReaderState::new(reader, State::UNAWARE)];
        context.get_status_change(Duration::ZERO, &mut states)?;
        Ok(states.first().and_then(Self::of))
    }
}

/// Sends APDUs within a transaction.
struct Link<'a> {
    card: &'a pcsc::Card,
    talk: Talk,
}

/// How a card and its reader are talked to.
#[derive(Clone, Copy, Default)]
struct Talk {
    t0: bool,
    /// Both say that they take extended lengths.
    extended: bool,
}

impl Talk {
    /// Asks the connection. Sends nothing to the card.
    fn with(card: &pcsc::Card, atr: &[u8]) -> Result<Self, CardError> {
        let (mut name, mut answer) = ([0; pcsc::MAX_BUFFER_SIZE], [0; pcsc::MAX_ATR_SIZE]);
        let t0 = card.status2(&mut name, &mut answer)?.protocol2() == Some(pcsc::Protocol::T0);
        // Under T=0 extended lengths need an envelope, which saves nothing.
        Ok(Self { t0, extended: !t0 && lengths::card_takes_extended(atr) && reader_takes_extended(card) })
    }
}

/// What the reader says; most say nothing when they can only do the ordinary.
fn reader_takes_extended(card: &pcsc::Card) -> bool {
    let (mut features, mut properties) = ([0; pcsc::MAX_BUFFER_SIZE], [0; pcsc::MAX_BUFFER_SIZE]);
    let code = card.control(pcsc::ctl_code(lengths::FEATURE_REQUEST.into()), &[], &mut features);
    let code = code.ok().and_then(lengths::properties_code);
    code.and_then(|code| card.control(code.into(), &[], &mut properties).ok())
        .is_some_and(lengths::reader_takes_extended)
}

impl Transmit for Link<'_> {
    fn transmit(&mut self, apdu: &[u8], receive: &mut [u8]) -> Result<usize, CardError> {
        Ok(self.card.transmit(apdu, receive)?.len())
    }

    fn is_t0(&self) -> bool {
        self.talk.t0
    }

    fn is_extended(&self) -> bool {
        self.talk.extended
    }
}

/// A connection to the card in a reader, shared with other programs between transactions.
pub(crate) struct Connection {
    context: Context,
    seat: Seat,
    card: Option<pcsc::Card>,
    talk: Talk,
    /// The reader could not carry what it said it could: extended lengths are not tried again.
    short_only: bool,
    /// A transaction is open beyond the call that began it.
    held: bool,
    /// The card knows a PIN from us: reset it on the way out.
    unlocked: bool,
}

impl Connection {
    /// Prepares; the card is connected to when it is used.
    pub fn new(context: Context, seat: Seat) -> Self {
        Self { context, seat, card: None, talk: Talk::default(), short_only: false, held: false, unlocked: false }
    }

    /// What it is bound to.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Runs `work` on the selected PIV application, in an exclusive transaction. With `hold`, the transaction stays open after a success, and
    /// the next call goes on in it, without selecting again.
    ///
    /// # Errors
    /// Those of `work`; [`CardError::Removed`] when the card is not the same any more. A reset by another program is overcome once.
    pub fn with<T>(
        &mut self,
        hold: bool,
        mut work: impl FnMut(&mut Piv<'_>) -> Result<T, CardError>,
    ) -> Result<T, CardError> {
        let done = match self.attempt(hold, &mut work) {
            Err(CardError::Reader(pcsc::Error::ResetCard)) if !self.unlocked => {
                self.release();
                self.attempt(hold, &mut work)
            }
            other => other,
        };
        if done.is_err() {
            self.end_hold();
        }
        done
    }

    /// From now on without extended lengths; `false` when there were none.
    fn shorten(&mut self) -> bool {
        self.release();
        self.short_only = true;
        std::mem::take(&mut self.talk.extended)
    }

    /// The PIN was accepted (or may have been): the card is reset when it is released.
    pub fn mark_unlocked(&mut self) {
        self.unlocked = true;
    }

    fn attempt<T>(
        &mut self,
        hold: bool,
        work: &mut impl FnMut(&mut Piv<'_>) -> Result<T, CardError>,
    ) -> Result<T, CardError> {
        self.connect()?;
        let talk = self.talk;
        let card = self.card.as_mut().ok_or(CardError::Removed)?;
        if self.held {
            let mut link = Link { card, talk };
            return work(&mut Piv::new(Channel::new(&mut link)));
        }
        let transaction = match card.transaction2() {
            Ok(transaction) => transaction,
            Err((card, pcsc::Error::ResetCard)) => {
                card.reconnect(ShareMode::Shared, Protocols::T0 | Protocols::T1, Disposition::LeaveCard)?;
                card.transaction()?
            }
            Err((_, error)) => return Err(error.into()),
        };
        let mut link = Link { card: &transaction, talk };
        let mut piv = Piv::new(Channel::new(&mut link));
        let result = piv.select().and_then(|()| work(&mut piv))?;
        tracing::debug!(apdus = piv.sent(), "card");
        if hold {
            // The transaction lasts until the card is disconnected; its guard cannot be kept beside the card that it borrows.
            std::mem::forget(transaction);
            self.held = true;
        }
        Ok(result)
    }

    fn connect(&mut self) -> Result<(), CardError> {
        if self.card.is_some() {
            return Ok(());
        }
        let card = self.context.connect(&self.seat.reader, ShareMode::Shared, Protocols::T0 | Protocols::T1)?;
        self.talk = Talk::with(&card, &self.seat.atr)?;
        self.talk.extended &= !self.short_only;
        self.card = Some(card);
        // Checked after the connection is made: what was read before it may have been about another card.
        if Seat::now(&self.context, &self.seat.reader)?.as_ref() == Some(&self.seat) {
            Ok(())
        } else {
            self.release();
            Err(CardError::Removed)
        }
    }

    fn end_hold(&mut self) {
        if self.held || self.unlocked {
            self.release();
        }
    }

    /// Lets the card go: a held transaction ends, and what the PIN opened is closed by a reset. Nothing else of the card changes.
    pub fn release(&mut self) {
        let disposition = if self.unlocked { Disposition::ResetCard } else { Disposition::LeaveCard };
        if let Some(Err((card, error))) = self.card.take().map(|card| card.disconnect(disposition)) {
            tracing::debug!(%error, "disconnecting from the card");
            drop(card);
        }
        self.held = false;
        self.unlocked = false;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.release();
    }
}

/// A card of this network in a reader.
pub(crate) struct ReaderCard {
    connection: Connection,
    server_object: ServerObject,
    fingerprint: Fingerprint,
    pin: PinState,
}

impl ReaderCard {
    /// Reads the card in this seat. Blocks while another program has a transaction with it.
    pub fn open(context: &Context, seat: Seat) -> Result<Self, CardError> {
        let mut connection = Connection::new(context.clone(), seat);
        let read = |piv: &mut Piv<'_>| {
            let identity = piv.identity()?;
            let pin = if identity.without_pin { PinState::Open } else { piv.pin_state()? };
            Ok((identity, pin))
        };
        let (identity, pin) = match connection.with(false, read) {
            // What either of the two makes of an APDU that it cannot carry, whatever it said, is anybody's guess.
            Err(error @ (CardError::Reader(_) | CardError::Malformed(_) | CardError::Refused(_)))
                if connection.shorten() =>
            {
                tracing::debug!(%error, "once more without extended lengths");
                connection.with(false, read)
            }
            other => other,
        }?;
        Ok(Self { connection, server_object: identity.server_object, fingerprint: identity.fingerprint, pin })
    }

    fn learn(&mut self, error: &CardError) {
        self.pin = match error {
            CardError::WrongPin { tries_left } => PinState::Wanted(*tries_left),
            CardError::PinBlocked => PinState::Blocked,
            CardError::PinRequired => PinState::Wanted(None),
            _ => self.pin,
        };
    }
}

impl Card for ReaderCard {
    fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    fn server_object(&self) -> &ServerObject {
        &self.server_object
    }

    fn pin(&mut self) -> Result<PinRequest, CardError> {
        self.pin.request()
    }

    fn unlock(&mut self, pin: &SecretBytes) -> Result<(), CardError> {
        self.connection.with(true, |piv| piv.verify(pin)).inspect_err(|error| self.learn(error))?;
        self.connection.mark_unlocked();
        self.pin = PinState::Open;
        Ok(())
    }

    fn open_challenge(&mut self, ciphertext: &[u8]) -> Result<Secret<32>, CardError> {
        let challenge = self.connection.with(false, |piv| piv.open_challenge(ciphertext));
        self.connection.release();
        challenge.inspect_err(|error| self.learn(error))
    }

    fn binding(&self) -> CardBinding {
        let seat = self.connection.seat();
        CardBinding::Reader(ReaderBinding {
            reader: seat.reader.to_string_lossy().into_owned(),
            event_count: seat.event_count,
            atr: seat.atr.clone(),
            fingerprint: self.fingerprint,
        })
    }
}
