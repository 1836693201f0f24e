//! The watch of a session's card, on a thread of its own: PC/SC blocks.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use cug_card::{Canceller, Selection};
use cug_proto::{local::CardBinding, message::Fingerprint};
use tokio::sync::mpsc;

use crate::{
    clock,
    core::{Event, Number, WatchEvent},
};

/// Watches cards. Calls return at once; what happens comes as events.
pub trait Watches {
    /// Begins to watch `card`. `Started` or `Ended` follows.
    fn start(&mut self, number: Number, card: CardBinding);
    /// Looks for a card that was here before, beside those in `taken`, for as long as `within`. `Back` or `Ended` follows.
    fn find(&mut self, number: Number, fingerprint: Fingerprint, taken: Vec<String>, within: Duration);
    /// Stops, if it is watched or looked for.
    fn stop(&mut self, number: Number);
}

/// Watches by `cug-card`.
pub struct CardWatches {
    events: mpsc::Sender<Event>,
    readers: Vec<String>,
    media: Vec<String>,
    running: HashMap<Number, Arc<Mutex<Slot>>>,
}

enum Slot {
    /// The card is being looked for.
    Starting,
    Watching(Canceller),
    Stopped,
}

impl CardWatches {
    /// Reports to `events`; looks for cards in these readers and media.
    pub fn new(events: mpsc::Sender<Event>, readers: Vec<String>, media: Vec<String>) -> Self {
        Self { events, readers, media, running: HashMap::new() }
    }

    /// A thread for `work`, which may be stopped by its slot.
    fn spawn(&mut self, number: Number, work: impl FnOnce(&Mutex<Slot>, &dyn Fn(WatchEvent)) + Send + 'static) {
        let slot = Arc::new(Mutex::new(Slot::Starting));
        self.running.insert(number, slot.clone());
        let events = self.events.clone();
        let tell = {
            let events = events.clone();
            move |event| {
                let _daemon_stops = events.blocking_send(Event::Watch { number, event });
            }
        };
        let started: io::Result<_> =
            thread::Builder::new().name("card watch".to_owned()).spawn(move || work(&slot, &tell));
        if let Err(error) = started {
            let event = WatchEvent::Ended(format!("no thread for the card's watch: {error}"));
            tokio::spawn(async move { events.send(Event::Watch { number, event }).await });
        }
    }
}

impl Watches for CardWatches {
    fn start(&mut self, number: Number, card: CardBinding) {
        self.spawn(number, move |slot, tell| run(&card, slot, tell));
    }

    fn find(&mut self, number: Number, fingerprint: Fingerprint, taken: Vec<String>, within: Duration) {
        let selection = Selection { readers: self.readers.clone(), media: self.media.clone(), taken };
        self.spawn(number, move |slot, tell| {
            let found = cug_card::find_again(&selection, &fingerprint, clock::timer().into_std() + within, || {
                clock::timer().into_std()
            });
            if matches!(*lock(slot), Slot::Stopped) {
                return;
            }
            tell(match found {
                Ok(card) => WatchEvent::Back(card.binding()),
                Err(error) => WatchEvent::Ended(error.to_string()),
            });
        });
    }

    fn stop(&mut self, number: Number) {
        if let Some(slot) = self.running.remove(&number)
            && let Slot::Watching(canceller) = std::mem::replace(&mut *lock(&slot), Slot::Stopped)
        {
            // May take two seconds; nobody has to wait for it.
            tokio::task::spawn_blocking(move || canceller.cancel());
        }
    }
}

fn run(card: &CardBinding, slot: &Mutex<Slot>, tell: &dyn Fn(WatchEvent)) {
    let mut watch = match cug_card::watch(card) {
        Ok(watch) => watch,
        Err(error) => return tell(WatchEvent::Ended(error.to_string())),
    };
    {
        let mut slot = lock(slot);
        if matches!(*slot, Slot::Stopped) {
            return;
        }
        *slot = Slot::Watching(watch.canceller());
    }
    tell(WatchEvent::Started);
    let cause = watch.wait();
    if !matches!(*lock(slot), Slot::Stopped) {
        tell(WatchEvent::Ended(cause.to_string()));
    }
}

/// A slot is replaced as a whole: a panic elsewhere cannot leave it half done.
fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
