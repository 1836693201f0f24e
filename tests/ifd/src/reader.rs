//! One reader: a listening socket, the card in it, and the wait for either to change.
//!
//! pcscd has one thread per reader that calls [`Reader::wait_for_change`] and then [`Reader::present`], in turn, while
//! other threads exchange APDUs. Only that event thread takes a card in or forgets a pulled one, so that every removal
//! is reported once even when the next card follows within the same millisecond.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::wire;

/// How long a card may take to say hello or to answer a reset.
const HELLO_TIME: Duration = Duration::from_secs(2);
/// How long a card may take over one APDU; making an RSA-4096 key in software is the slow one.
const APDU_TIME: Duration = Duration::from_secs(180);
/// How soon a reader that was unplugged is noticed when it is plugged in again.
const UNPLUGGED_TIME: Duration = Duration::from_millis(100);

/// What is in the reader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// A card.
    Card,
    /// Nothing.
    Empty,
    /// The reader itself is gone.
    Unplugged,
}

struct Card {
    stream: UnixStream,
    atr: Vec<u8>,
}

#[derive(Default)]
struct State {
    card: Option<Arc<Card>>,
    /// The card's connection has ended, which pcscd has not been told yet.
    pulled: bool,
    /// pcscd's event thread has been told that there is no card, or no reader.
    reported: bool,
    event_thread: Option<ThreadId>,
}

/// One reader.
pub struct Reader {
    path: PathBuf,
    listener: UnixListener,
    wake: EventFd,
    state: Mutex<State>,
    /// Held for one request and its answer.
    exchange: Mutex<()>,
}

impl Reader {
    /// Listens at `path`, replacing what an earlier pcscd left there.
    pub fn open(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Under another name first: who sees the socket may connect.
        let new = path.with_extension("new");
        let _left_by_an_earlier_pcscd = fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        // The card of a test may run as another user than pcscd.
        fs::set_permissions(&new, fs::Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        fs::rename(&new, path)?;
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { path: path.to_owned(), listener, wake, state: Mutex::default(), exchange: Mutex::default() })
    }

    /// Blocks until a card comes or goes, the reader is unplugged, [`Reader::interrupt`] is called, or `limit` is over.
    pub fn wait_for_change(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let card = {
                let mut state = self.lock();
                state.event_thread = Some(std::thread::current().id());
                if flag(&self.path).exists() {
                    return self.rest_unplugged(state, limit);
                }
                if state.pulled {
                    if !state.reported {
                        return;
                    }
                    *state = State { event_thread: state.event_thread, ..State::default() };
                }
                state.card.clone()
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let (woken, gone, knocked) = self.poll(card.as_deref(), left);
            if woken {
                // Cleared after one wake-up, or the thread would never sleep again.
                let _ = self.wake.read();
                return;
            }
            if gone {
                self.lock().pulled = true;
                return;
            }
            if knocked && self.admit() {
                return;
            }
        }
    }

    /// The reader is unplugged: returns at once if the event thread does not know it yet, and after a while otherwise.
    fn rest_unplugged(&self, mut state: MutexGuard<'_, State>, limit: Duration) {
        // The card goes with the reader, and so does whoever knocks.
        if let Some(card) = state.card.take() {
            let _ = card.stream.shutdown(std::net::Shutdown::Both);
        }
        state.pulled = false;
        while self.listener.accept().is_ok() {}
        if !state.reported {
            return;
        }
        drop(state);
        // Nothing announces that the flag goes, so this is a poll, in this state only.
        let _ =
            poll(&mut [PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)], wire::timeout(limit.min(UNPLUGGED_TIME)));
        let _ = self.wake.read();
        self.lock().reported = flag(&self.path).exists();
    }

    /// Waits on the wake-up, the card's end of connection and the listener: which of them happened.
    fn poll(&self, card: Option<&Card>, left: Duration) -> (bool, bool, bool) {
        let listener: BorrowedFd<'_> = self.listener.as_fd();
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN), PollFd::new(listener, PollFlags::POLLIN)];
        if let Some(card) = card {
            // Only the hang-up, which is always reported: answers to APDUs are for the thread that asked.
            fds.push(PollFd::new(card.stream.as_fd(), PollFlags::empty()));
        }
        if poll(&mut fds, wire::timeout(left)).is_err() {
            return (false, false, false);
        }
        let fired = |n: usize| fds.get(n).and_then(PollFd::any).unwrap_or(false);
        (fired(0), fired(2), fired(1))
    }

    /// Takes the waiting connection. True if it is a card that is now in the reader.
    fn admit(&self) -> bool {
        let Ok((stream, _)) = self.listener.accept() else { return false };
        let occupied = self.lock().card.is_some();
        if occupied || flag(&self.path).exists() || stream.set_nonblocking(true).is_err() {
            return false;
        }
        let deadline = Instant::now() + HELLO_TIME;
        match wire::receive(&stream, deadline) {
            Ok((wire::HELLO, atr)) if (2..=33).contains(&atr.len()) => {
                if wire::send(&stream, wire::INSERTED, &[], deadline).is_err() {
                    return false;
                }
                let mut state = self.lock();
                state.card = Some(Arc::new(Card { stream, atr }));
                (state.pulled, state.reported) = (false, false);
                true
            }
            _ => false,
        }
    }

    /// Ends a [`Reader::wait_for_change`] in another thread.
    pub fn interrupt(&self) {
        let _ = self.wake.write(1);
    }

    /// What is in the reader. Does not block.
    pub fn present(&self) -> Presence {
        let mut state = self.lock();
        let event_thread = state.event_thread == Some(std::thread::current().id());
        if flag(&self.path).exists() {
            state.reported |= event_thread;
            return Presence::Unplugged;
        }
        if !state.pulled && state.card.as_deref().is_some_and(hung_up) {
            state.pulled = true;
        }
        if state.card.is_some() && !state.pulled {
            return Presence::Card;
        }
        state.reported |= event_thread;
        Presence::Empty
    }

    /// The answer to reset of the card in the reader.
    pub fn atr(&self) -> Option<Vec<u8>> {
        self.card().map(|card| card.atr.clone())
    }

    /// Powers the card up or resets it: its answer to reset.
    pub fn power_up(&self, warm: bool) -> io::Result<Vec<u8>> {
        let kind = if warm { wire::RESET } else { wire::POWER_UP };
        self.ask(kind, &[], HELLO_TIME)
    }

    /// Powers the card down.
    pub fn power_down(&self) {
        if let Some(card) = self.card() {
            let _turn = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = wire::send(&card.stream, wire::POWER_DOWN, &[], Instant::now() + HELLO_TIME);
        }
    }

    /// Sends an APDU: its response. Blocks until the card answers or is pulled, at most three minutes.
    pub fn transmit(&self, apdu: &[u8]) -> io::Result<Vec<u8>> {
        self.ask(wire::APDU, apdu, APDU_TIME)
    }

    fn ask(&self, kind: u8, body: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
        let card = self.card().ok_or(io::ErrorKind::NotConnected)?;
        let _turn = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + limit;
        let answer =
            wire::send(&card.stream, kind, body, deadline).and_then(|()| wire::receive(&card.stream, deadline));
        match answer {
            Ok((got, answer)) if got == kind => Ok(answer),
            other => {
                // After a failure the frames may be out of step: the card counts as pulled.
                let _ = card.stream.shutdown(std::net::Shutdown::Both);
                Err(other.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()))
            }
        }
    }

    fn card(&self) -> Option<Arc<Card>> {
        let state = self.lock();
        if state.pulled { None } else { state.card.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(card) = self.lock().card.take() {
            let _ = card.stream.shutdown(std::net::Shutdown::Both);
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn hung_up(card: &Card) -> bool {
    let mut fds = [PollFd::new(card.stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, 0_u8).is_ok_and(|n| n > 0)
}

/// The file that means "this reader is unplugged".
fn flag(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unplugged");
    name.into()
}
