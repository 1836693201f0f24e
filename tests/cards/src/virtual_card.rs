//! A card in a reader: the thread that answers, and the hand that pulls, disturbs and watches.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::{Card, store, wire};

/// How long the driver may take to accept the card.
const ACCEPT_TIME: Duration = Duration::from_secs(10);

/// What goes wrong with one APDU, in place of the card's answer. The card does not see that APDU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status word and no data.
    Status(u16),
    /// These bytes (a response without any bytes is a transmission error in pcscd).
    Garbage(Vec<u8>),
    /// No answer until the card is pulled.
    Hang,
    /// The card is pulled before it answers.
    Pull,
    /// The card answers (it does see this APDU) and is pulled after that.
    PullAfter,
}

/// One APDU and its response.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The command as it came.
    pub command: Vec<u8>,
    /// The response; empty if there was none.
    pub response: Vec<u8>,
    /// When the command came.
    pub at: Instant,
    /// How long the answer took.
    pub took: Duration,
}

#[derive(Default)]
struct Shared {
    /// APDUs so far.
    count: u64,
    log: Vec<Exchange>,
    faults: BTreeMap<u64, Fault>,
    delay: Duration,
    powered: bool,
    out: bool,
    log_file: Option<File>,
}

#[derive(Default)]
struct Watch {
    shared: Mutex<Shared>,
    changed: Condvar,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` or the limit: whether it was done.
    fn wait(&self, limit: Duration, done: impl Fn(&Shared) -> bool) -> bool {
        let guard = self.lock();
        let waited = self.changed.wait_timeout_while(guard, limit, |shared| !done(shared));
        done(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// Puts cards into readers.
pub struct VirtualCard;

impl VirtualCard {
    /// Inserts `card` into the reader that listens at `socket`. Returns when the driver has taken it; pcscd sees it
    /// within a few milliseconds from then ([`Inserted::wait_powered`]). Fails if there is no reader or it is occupied.
    pub fn insert<C: Card + 'static>(socket: impl AsRef<Path>, card: C) -> crate::Result<Inserted<C>> {
        Self::try_insert(socket, card).map_err(|(error, _)| error)
    }

    /// Like [`VirtualCard::insert`], but gives the card back if it does not go in.
    pub fn try_insert<C: Card + 'static>(socket: impl AsRef<Path>, card: C) -> Result<Inserted<C>, (anyhow::Error, C)> {
        let opened = connect(socket.as_ref(), &card.atr()).and_then(|stream| Ok((stream.try_clone()?, stream)));
        let (stream, other) = match opened {
            Ok(streams) => streams,
            Err(error) => return Err((error, card)),
        };
        let watch = Arc::new(Watch::default());
        let seen = Arc::clone(&watch);
        let thread = std::thread::spawn(move || {
            let card = serve(&other, &seen, card);
            let _ = other.shutdown(Shutdown::Both);
            let mut shared = seen.lock();
            (shared.out, shared.powered) = (true, false);
            seen.changed.notify_all();
            drop(shared);
            card
        });
        Ok(Inserted { stream, watch, thread: Some(thread) })
    }
}

fn connect(socket: &Path, atr: &[u8]) -> crate::Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| format!("there is no reader at {}", socket.display()))?;
    wire::send(&stream, wire::HELLO, atr)?;
    stream.set_read_timeout(Some(ACCEPT_TIME))?;
    match wire::receive(&stream) {
        Ok((wire::INSERTED, _)) => {}
        Ok(_) => anyhow::bail!("the reader at {} does not speak our language", socket.display()),
        Err(_) => anyhow::bail!("the reader at {} is occupied or unplugged", socket.display()),
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// A card in a reader. Dropping the handle pulls the card.
pub struct Inserted<C> {
    stream: UnixStream,
    watch: Arc<Watch>,
    thread: Option<JoinHandle<C>>,
}

impl<C> Inserted<C> {
    /// Pulls the card and gives it back. The reader sees it go at once, even in the middle of an APDU; this call returns
    /// when the card has finished what it was doing.
    pub fn eject(mut self) -> C {
        self.pull();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(card)) => card,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("the thread is taken here and on drop only"),
        }
    }

    /// Pulls the card without waiting for its thread.
    pub fn pull(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        self.watch.lock().out = true;
        self.watch.changed.notify_all();
    }

    /// The next APDU goes wrong.
    pub fn fail_next(&self, fault: Fault) {
        self.fail_at(0, fault);
    }

    /// The APDU after `n` more goes wrong (0 is the next one).
    pub fn fail_at(&self, n: u64, fault: Fault) {
        let mut shared = self.watch.lock();
        let at = shared.count + n;
        shared.faults.insert(at, fault);
    }

    /// The card is pulled after it has answered `n` more APDUs; 0 pulls it now.
    pub fn pull_after_apdus(&self, n: u64) {
        match n.checked_sub(1) {
            Some(n) => self.fail_at(n, Fault::PullAfter),
            None => self.pull(),
        }
    }

    /// Every private RSA operation takes at least this much longer.
    pub fn set_rsa_delay(&self, delay: Duration) {
        self.watch.lock().delay = delay;
    }

    /// APDUs so far, including pieces of chains and GET RESPONSE.
    pub fn apdu_count(&self) -> u64 {
        self.watch.lock().count
    }

    /// All APDUs so far (PINs in them are in the clear).
    pub fn apdu_log(&self) -> Vec<Exchange> {
        self.watch.lock().log.clone()
    }

    /// Forgets the log, not the count.
    pub fn clear_log(&self) {
        self.watch.lock().log.clear();
    }

    /// Writes every APDU to this file from now on, two lines each.
    pub fn log_to(&self, file: File) {
        self.watch.lock().log_file = Some(file);
    }

    /// Whether the card is still in the reader.
    pub fn is_inserted(&self) -> bool {
        !self.watch.lock().out
    }

    /// Waits until pcscd has powered the card for the first time.
    pub fn wait_powered(&self, limit: Duration) -> bool {
        self.watch.wait(limit, |shared| shared.powered)
    }

    /// Waits until the card has got `count` APDUs altogether.
    pub fn wait_for_apdus(&self, count: u64, limit: Duration) -> bool {
        self.watch.wait(limit, |shared| shared.count >= count || shared.out) && self.apdu_count() >= count
    }

    /// Waits until the card is out: pulled by a fault, or because the reader or pcscd went away.
    pub fn wait_out(&self, limit: Duration) -> bool {
        self.watch.wait(limit, |shared| shared.out)
    }
}

impl<C> Drop for Inserted<C> {
    fn drop(&mut self) {
        self.pull();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers until the connection ends. Gives the card back without power.
fn serve<C: Card>(stream: &UnixStream, watch: &Watch, mut card: C) -> C {
    while let Ok((kind, body)) = wire::receive(stream) {
        let done = match kind {
            wire::POWER_UP | wire::RESET => {
                card.reset();
                watch.lock().powered = true;
                watch.changed.notify_all();
                wire::send(stream, kind, &card.atr())
            }
            wire::POWER_DOWN => {
                card.reset();
                Ok(())
            }
            wire::APDU => answer(stream, watch, &mut card, body),
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
        if done.is_err() {
            break;
        }
    }
    card.reset();
    card
}

/// Answers one APDU, or does what is planned for it. An error ends the connection.
fn answer<C: Card>(stream: &UnixStream, watch: &Watch, card: &mut C, command: Vec<u8>) -> io::Result<()> {
    let at = Instant::now();
    let (fault, delay) = {
        let mut shared = watch.lock();
        let number = shared.count;
        shared.count += 1;
        (shared.faults.remove(&number), shared.delay)
    };
    watch.changed.notify_all();
    let response = match &fault {
        None | Some(Fault::PullAfter) => {
            let response = card.transmit(&command);
            if !delay.is_zero() && is_private_rsa(&command) {
                watch.wait(delay, |shared| shared.out);
            }
            Some(response)
        }
        Some(Fault::Status(code)) => Some(code.to_be_bytes().to_vec()),
        Some(Fault::Garbage(bytes)) => Some(bytes.clone()),
        Some(Fault::Hang | Fault::Pull) => None,
    };
    record(watch, Exchange { command, response: response.clone().unwrap_or_default(), at, took: at.elapsed() });
    if fault == Some(Fault::Hang) {
        // Reading blocks until the driver or the test gives up; pulling shuts the stream down.
        let _ = wire::receive(stream);
    }
    let response = response.ok_or(io::ErrorKind::BrokenPipe)?;
    wire::send(stream, wire::APDU, &response)?;
    if fault == Some(Fault::PullAfter) { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
}

/// The last part of GENERAL AUTHENTICATE with an RSA key.
fn is_private_rsa(command: &[u8]) -> bool {
    matches!(command, [0x00, 0x87, 0x05 | 0x06 | 0x07 | 0x16, ..])
}

fn record(watch: &Watch, exchange: Exchange) {
    let mut shared = watch.lock();
    let (command, response) = (store::to_hex(&exchange.command), store::to_hex(&exchange.response));
    let (number, micros) = (shared.count, exchange.took.as_micros());
    if let Some(file) = &mut shared.log_file {
        let _ = writeln!(file, "{number} > {command}\n{number} < {response} ({micros} us)");
    }
    shared.log.push(exchange);
}
