//! Waiting for a card.

use crate::{
    Card, CardError, Selection,
    medium::{self, MediumCard},
    pcsc_env,
    reader::{ReaderCard, Seat},
    watch::{Interrupt, media::Arrival},
};
use cug_proto::message::Fingerprint;
use pcsc::{Context, PNP_NOTIFICATION, ReaderState, Scope, State};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Waits until a card of this network is there, and reads it.
///
/// Calls `on_wait` once if it has to wait. Woken by PC/SC and by the kernel's mount table, it does not poll. When media are selected too, a scoped
/// thread with all signals blocked waits for these, and is joined before this returns. Blocks beyond `deadline` only as long as another program has
/// a transaction with the card, for which PC/SC knows no time limit.
///
/// # Errors
/// [`CardError::SeveralCards`] at once, when the selection leaves more than one; at the deadline the best reason: a card that is not ours, one that is
/// busy, no card, no reader. [`CardError::Redirected`], [`CardError::NoService`].
pub fn find(
    selection: &Selection,
    deadline: Instant,
    now: impl Fn() -> Instant,
    on_wait: &mut dyn FnMut(),
) -> Result<Box<dyn Card>, CardError> {
    search(selection, None, deadline, now, on_wait)
}

/// As [`find`], for one certain card: others are passed over. The card is known by its public objects; nothing proves yet that it has the key.
///
/// # Errors
/// As [`find`].
pub fn find_again(
    selection: &Selection,
    card: &Fingerprint,
    deadline: Instant,
    now: impl Fn() -> Instant,
) -> Result<Box<dyn Card>, CardError> {
    search(selection, Some(card), deadline, now, &mut || {})
}

fn search(
    selection: &Selection,
    wanted: Option<&Fingerprint>,
    deadline: Instant,
    now: impl Fn() -> Instant,
    on_wait: &mut dyn FnMut(),
) -> Result<Box<dyn Card>, CardError> {
    pcsc_env::check()?;
    let context = match Context::establish(Scope::System) {
        Ok(context) => Some(context),
        Err(error) if selection.media.is_empty() => return Err(error.into()),
        Err(error) => {
            tracing::debug!(%error, "no PC/SC service; looking for media only");
            None
        }
    };
    let mut search = Search::new(selection, wanted, context);
    let mut told = false;
    loop {
        // Set up before looking, so that nothing comes unseen between looking and waiting.
        let arrival = (!selection.media.is_empty()).then(|| Arrival::new(&selection.media)).transpose()?;
        if let Some(card) = search.look()? {
            return Ok(card);
        }
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(search.reason());
        }
        if !search.listening {
            search.listening = true;
            continue;
        }
        if !told {
            on_wait();
            told = true;
        }
        search.wait(left, arrival)?;
    }
}

struct Search<'a> {
    selection: &'a Selection,
    /// No other card than this.
    wanted: Option<&'a Fingerprint>,
    context: Option<Context>,
    /// The notification of new readers first, then the readers, as last seen.
    states: Vec<ReaderState>,
    /// Cards that were looked at in vain, as long as they stay where they are.
    rejected: Vec<(Seat, CardError)>,
    medium_error: Option<CardError>,
    busy: bool,
    /// Each look is followed by a wait. The first is not, as a rule: the card is there, and the notification costs a millisecond, because PC/SC asked
    /// for it without patience looks again and again for that long.
    listening: bool,
}

impl<'a> Search<'a> {
    fn new(selection: &'a Selection, wanted: Option<&'a Fingerprint>, context: Option<Context>) -> Self {
        let states = vec![ReaderState::new(PNP_NOTIFICATION(), State::UNAWARE)];
        Self {
            selection,
            wanted,
            context,
            states,
            rejected: Vec::new(),
            medium_error: None,
            busy: false,
            listening: false,
        }
    }

    /// One look at everything.
    fn look(&mut self) -> Result<Option<Box<dyn Card>>, CardError> {
        let mut found = self.look_at_readers()?;
        let (medium, error) = self.look_at_media();
        self.medium_error = error;
        found.extend(medium);
        if found.len() > 1 {
            return Err(CardError::SeveralCards);
        }
        Ok(found.pop())
    }

    fn look_at_readers(&mut self) -> Result<Vec<Box<dyn Card>>, CardError> {
        let Some(context) = self.context.clone() else { return Ok(Vec::new()) };
        self.refresh(&context)?;
        let seats: Vec<Seat> = self.states.iter().skip(1).filter_map(Seat::of).collect();
        self.rejected.retain(|(seat, _)| seats.contains(seat));
        self.busy = false;

        let mut found: Vec<(usize, Box<dyn Card>)> = Vec::new();
        for seat in seats {
            let Some(rank) = self.rank(&seat) else { continue };
            if self.rejected.iter().any(|(rejected, _)| *rejected == seat) {
                continue;
            }
            match ReaderCard::open(&context, seat.clone()) {
                Ok(card) if self.is_other(&card) => self.rejected.push((seat, CardError::NoCard)),
                Ok(card) => found.push((rank, Box::new(card))),
                Err(CardError::Busy) => self.busy = true,
                // It went while it was read; PC/SC will tell what comes next.
                Err(CardError::Removed) => {}
                Err(error @ CardError::NoService(_)) => return Err(error),
                Err(error) => {
                    tracing::debug!(reader = ?seat.reader, ?error, "not this card");
                    self.rejected.push((seat, error));
                }
            }
        }
        Ok(preferred(found))
    }

    fn is_other(&self, card: &dyn Card) -> bool {
        self.wanted.is_some_and(|wanted| wanted != card.fingerprint())
    }

    /// Which of the configured prefixes, or `None` when the reader is not selected.
    fn rank(&self, seat: &Seat) -> Option<usize> {
        let name = seat.reader.to_string_lossy();
        if self.selection.taken.iter().any(|taken| *taken == name) {
            return None;
        }
        match self.selection.readers.as_slice() {
            [] => Some(0),
            prefixes => prefixes.iter().position(|prefix| name.starts_with(prefix)),
        }
    }

    /// Brings `states` up to what is there now.
    fn refresh(&mut self, context: &Context) -> Result<(), CardError> {
        // The notification first: a reader that comes after this line wakes the next wait.
        if let Some(notification) = self.states.first_mut().filter(|_| self.listening) {
            settle(context.get_status_change(Duration::ZERO, std::slice::from_mut(notification)))?;
            notification.sync_current_state();
        }
        let names = match context.list_readers_owned() {
            Err(pcsc::Error::NoReadersAvailable) => Vec::new(),
            other => other?,
        };
        let mut known = 0;
        self.states.retain(|state| {
            known += 1;
            known == 1 || names.iter().any(|name| name.as_c_str() == state.name())
        });
        for name in names {
            if !self.states.iter().any(|state| state.name() == name.as_c_str()) {
                self.states.push(ReaderState::new(name, State::UNAWARE));
            }
        }
        if let Some(readers @ [_, ..]) = self.states.get_mut(1..) {
            settle(context.get_status_change(Duration::ZERO, readers))?;
            readers.iter_mut().for_each(ReaderState::sync_current_state);
        }
        Ok(())
    }

    fn look_at_media(&self) -> (Vec<Box<dyn Card>>, Option<CardError>) {
        let mut found: Vec<(usize, Box<dyn Card>)> = Vec::new();
        let mut seen: Vec<PathBuf> = Vec::new();
        let mut last_error = None;
        let patterns = self.selection.media.iter().enumerate();
        for (rank, directory) in
            patterns.flat_map(|(rank, pattern)| medium::directories(pattern).into_iter().map(move |d| (rank, d)))
        {
            let here = directory.canonicalize().unwrap_or_else(|_| Path::to_owned(&directory));
            let taken =
                self.selection.taken.iter().any(|taken| directory == Path::new(taken) || here == Path::new(taken));
            if taken || !medium::has_key(&directory) || seen.contains(&here) {
                continue;
            }
            seen.push(here);
            match MediumCard::open(&directory) {
                Ok(card) if self.is_other(&card) => {}
                Ok(card) => found.push((rank, Box::new(card))),
                Err(error) => {
                    tracing::debug!(?directory, ?error, "not this medium");
                    last_error = Some(error);
                }
            }
        }
        (preferred(found), last_error)
    }

    /// Waits until something changes, or for `left`.
    fn wait(&mut self, left: Duration, arrival: Option<Arrival>) -> Result<(), CardError> {
        let changed = match (&self.context, arrival) {
            (Some(context), None) => context.get_status_change(left, &mut self.states),
            (None, Some(arrival)) => {
                arrival.wait(Some(left)).map_err(CardError::Medium)?;
                Ok(())
            }
            (Some(context), Some(arrival)) => wait_for_both(context, &mut self.states, left, &arrival),
            (None, None) => Ok(()),
        };
        settle(changed)
    }

    /// Why there is no card, the most telling reason first.
    fn reason(&mut self) -> CardError {
        let no_reader = self.states.len() == 1 && self.selection.media.is_empty();
        let rejected = self.rejected.pop().map(|(_, error)| error).or(self.medium_error.take());
        match rejected {
            Some(error) => error,
            None if self.busy => CardError::Busy,
            None if no_reader => CardError::NoReader,
            None => CardError::NoCard,
        }
    }
}

/// Only those of the best rank.
fn preferred(mut found: Vec<(usize, Box<dyn Card>)>) -> Vec<Box<dyn Card>> {
    let best = found.iter().map(|(rank, _)| *rank).min();
    found.retain(|(rank, _)| Some(*rank) == best);
    found.into_iter().map(|(_, card)| card).collect()
}

/// What merely ends a wait is no error: the next look shows what is there.
fn settle(result: Result<(), pcsc::Error>) -> Result<(), CardError> {
    match result {
        Ok(()) | Err(pcsc::Error::Timeout | pcsc::Error::Cancelled | pcsc::Error::UnknownReader) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// PC/SC in this thread, media in another, which ends this one's wait.
fn wait_for_both(
    context: &Context,
    states: &mut [ReaderState],
    left: Duration,
    arrival: &Arrival,
) -> Result<(), pcsc::Error> {
    let interrupt = Interrupt::new(context.clone());
    std::thread::scope(|scope| {
        // Threads inherit the mask: all is blocked before the thread begins, so that the host's signals stay with the host's threads.
        let before = nix::sys::signal::SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
        let waiting = std::thread::Builder::new().spawn_scoped(scope, || {
            if let Ok(true) = arrival.wait(None) {
                interrupt.interrupt();
            }
        });
        if let Ok(before) = before {
            let _best_effort = before.thread_set_mask();
        }
        let changed = match waiting {
            Ok(_) => interrupt.wait(left, states),
            Err(_) => Err(pcsc::Error::NoMemory),
        };
        arrival.stop();
        changed
    })
}
