//! Noticing that the card of a session goes: woken by PC/SC or the kernel, without polling. Every error is a removal.

mod device;
mod interrupt;
pub(crate) mod media;

pub(crate) use interrupt::Interrupt;

use crate::{CardError, reader::Seat};
use cug_proto::local::{CardBinding, ReaderBinding};
use media::Removal;
use pcsc::{Context, ReaderState, Scope, State};
use std::{ffi::CString, fmt, io, sync::Arc};

/// Why a session has no card any more.
#[derive(Debug)]
pub enum RemovalCause {
    /// The card was taken out, or the medium unmounted, unplugged, or its key file deleted.
    Removed,
    /// Another card, or the same card inserted again.
    Exchanged,
    /// The reader went: unplugged, or the machine slept.
    ReaderGone,
    /// The watch itself failed, so nobody knows.
    Failed(io::Error),
    /// [`Canceller::cancel`] was called. Not a removal.
    Cancelled,
}

impl fmt::Display for RemovalCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed => f.write_str("the card was removed"),
            Self::Exchanged => f.write_str("the card was exchanged or inserted again"),
            Self::ReaderGone => f.write_str("the card reader went away"),
            Self::Failed(error) => write!(f, "the card cannot be watched any more: {error}"),
            Self::Cancelled => f.write_str("the watch was ended"),
        }
    }
}

/// Watches one card. Dropping it ends the watch.
pub struct Watch(Kind);

enum Kind {
    Reader { interrupt: Arc<Interrupt>, state: Box<ReaderState>, seat: Seat },
    Medium(Removal),
}

/// Ends [`Watch::wait`] from another thread. May be kept longer than the watch.
#[derive(Clone)]
pub struct Canceller(Cancel);

#[derive(Clone)]
enum Cancel {
    Reader(Arc<Interrupt>),
    Medium(media::Stop),
}

/// Begins to watch the very card of a login. Does not block.
///
/// # Errors
/// [`CardError::Removed`] when it is not there any more, or not without an interruption since the login; [`CardError::NoService`] and
/// [`CardError::Watch`] when it cannot be watched.
pub fn watch(binding: &CardBinding) -> Result<Watch, CardError> {
    match binding {
        CardBinding::Reader(reader) => watch_reader(reader),
        CardBinding::Medium(medium) => Ok(Watch(Kind::Medium(Removal::new(medium)?))),
    }
}

fn watch_reader(binding: &ReaderBinding) -> Result<Watch, CardError> {
    let reader = CString::new(binding.reader.as_str()).map_err(|_| CardError::Removed)?;
    let context = Context::establish(Scope::System)?;
    let mut state = ReaderState::new(reader.clone(), State::UNAWARE);
    context.get_status_change(std::time::Duration::ZERO, std::slice::from_mut(&mut state))?;
    let seat = Seat { reader, event_count: binding.event_count, atr: binding.atr.clone() };
    if Seat::of(&state).as_ref() != Some(&seat) {
        return Err(CardError::Removed);
    }
    Ok(Watch(Kind::Reader { interrupt: Arc::new(Interrupt::new(context)), state: Box::new(state), seat }))
}

impl Watch {
    /// Blocks until the card is gone, the watch fails, or it is cancelled. Call it once; a second call says the same again.
    pub fn wait(&mut self) -> RemovalCause {
        match &mut self.0 {
            Kind::Reader { interrupt, state, seat } => wait_for_reader(interrupt, state, seat),
            Kind::Medium(removal) => removal.wait(),
        }
    }

    /// To end [`Watch::wait`] with.
    pub fn canceller(&self) -> Canceller {
        match &self.0 {
            Kind::Reader { interrupt, .. } => Canceller(Cancel::Reader(Arc::clone(interrupt))),
            Kind::Medium(removal) => Canceller(Cancel::Medium(removal.stop())),
        }
    }
}

impl Canceller {
    /// Makes the present or the next [`Watch::wait`] return [`RemovalCause::Cancelled`]. Blocks for some milliseconds, at most two seconds.
    pub fn cancel(&self) {
        match &self.0 {
            Cancel::Reader(interrupt) => interrupt.interrupt(),
            Cancel::Medium(stop) => stop.stop(),
        }
    }
}

fn wait_for_reader(interrupt: &Interrupt, state: &mut ReaderState, seat: &Seat) -> RemovalCause {
    loop {
        match Seat::of(state) {
            Some(now) if now == *seat => {}
            Some(_) => return RemovalCause::Exchanged,
            None if state.event_state().intersects(State::UNKNOWN | State::UNAVAILABLE) => {
                return RemovalCause::ReaderGone;
            }
            None => return RemovalCause::Removed,
        }
        // With the event count in it: a pull and an insertion between two waits is a change.
        state.sync_current_state();
        match interrupt.wait(None, std::slice::from_mut(state)) {
            Ok(()) => {}
            Err(pcsc::Error::Cancelled) if interrupt.was_asked() => return RemovalCause::Cancelled,
            Err(pcsc::Error::UnknownReader | pcsc::Error::ReaderUnavailable) => return RemovalCause::ReaderGone,
            Err(error) => return RemovalCause::Failed(io::Error::other(error)),
        }
    }
}
