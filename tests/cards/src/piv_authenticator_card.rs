//! The second card: `piv-authenticator`, the firmware application of the Nitrokey 3, on flash memory in a file.
//!
//! Its world is built of borrowed parts, so it runs on a thread of its own; a reset throws that thread away and starts
//! another on the same flash memory, which is what happens to the real one.
//!
//! Limits of that card: PIN once per session is fixed for 9D; only the standard data tags; no import but into 9A (with
//! a format of its own); management key 3DES `0102..08` at first; PUK 12345678.

mod platform;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::apdu::{Command, Transport, sw};
use crate::card::{self, Card};
use crate::store;
use platform::{BLOCK, FLASH};

const KIND: &str = "piv-authenticator";
const DELIVERED_PIN: &str = "123456";

/// Flash memory that outlives the card's thread.
#[derive(Clone)]
pub(crate) struct Flash {
    pub image: Arc<Mutex<Vec<u8>>>,
    pub dirty: Arc<AtomicBool>,
}

/// The blocks that are not erased, by number.
#[derive(Serialize, Deserialize)]
struct Image(BTreeMap<usize, String>);

impl Flash {
    fn new(image: Vec<u8>) -> Self {
        Self { image: Arc::new(Mutex::new(image)), dirty: Arc::default() }
    }

    fn save(&self) -> Image {
        let image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        let used = image.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|&byte| byte != 0xFF));
        Image(used.map(|(number, block)| (number, store::to_hex(block))).collect())
    }

    fn load(saved: &Image) -> crate::Result<Self> {
        let mut image = vec![0xFF; FLASH];
        for (number, block) in &saved.0 {
            let place = image.chunks_mut(BLOCK).nth(*number).context("no such block")?;
            let block = store::from_hex(block)?;
            ensure!(place.len() == block.len(), "a block has the wrong length");
            place.copy_from_slice(&block);
        }
        Ok(Self::new(image))
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    kind: String,
    internal: Image,
    external: Image,
}

struct Running {
    requests: mpsc::Sender<Command>,
    answers: mpsc::Receiver<(Vec<u8>, u16)>,
    thread: JoinHandle<()>,
}

/// The card.
pub struct PivAuthenticatorCard {
    internal: Flash,
    external: Flash,
    running: Option<Running>,
    transport: Transport,
    file: Option<PathBuf>,
}

impl PivAuthenticatorCard {
    /// A new card with this PIN, in memory only.
    pub fn new(pin: &str) -> crate::Result<Self> {
        let mut card = Self {
            internal: Flash::new(Vec::new()),
            external: Flash::new(Vec::new()),
            running: None,
            transport: Transport::default(),
            file: None,
        };
        if pin != DELIVERED_PIN {
            crate::host::select(&mut card)?;
            crate::host::change_pin(&mut card, DELIVERED_PIN, pin)?;
            card.reset();
        }
        Ok(card)
    }

    /// The card whose state is in `file`, or a new one that will keep its state there.
    pub fn open(file: &Path, pin: &str) -> crate::Result<Self> {
        let mut card = match store::load::<Saved>(file)? {
            Some(saved) => {
                ensure!(saved.kind == KIND, "this is the state of a card of kind {}", saved.kind);
                Self {
                    internal: Flash::load(&saved.internal)?,
                    external: Flash::load(&saved.external)?,
                    running: None,
                    transport: Transport::default(),
                    file: None,
                }
            }
            None => Self::new(pin)?,
        };
        card.file = Some(file.to_owned());
        card.save()?;
        Ok(card)
    }

    fn save(&self) -> crate::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let saved = Saved { kind: KIND.to_owned(), internal: self.internal.save(), external: self.external.save() };
        store::save(file, &saved)
    }

    fn start(&self) -> std::io::Result<Running> {
        let (requests, inbox) = mpsc::channel();
        let (outbox, answers) = mpsc::channel();
        let (internal, external) = (self.internal.clone(), self.external.clone());
        let thread = std::thread::Builder::new()
            .name("piv-authenticator".to_owned())
            // Its file system and key buffers live on the stack.
            .stack_size(16 << 20)
            .spawn(move || platform::run(internal, external, &inbox, &outbox))?;
        Ok(Running { requests, answers, thread })
    }
}

impl Card for PivAuthenticatorCard {
    fn atr(&self) -> Vec<u8> {
        card::atr(b"CUG NK PIV")
    }

    fn reset(&mut self) {
        self.transport = Transport::default();
        if let Some(Running { requests, answers, thread }) = self.running.take() {
            drop((requests, answers));
            let _ = thread.join();
        }
    }

    fn transmit(&mut self, apdu: &[u8]) -> Vec<u8> {
        let mut transport = std::mem::take(&mut self.transport);
        let answer = transport.transmit(apdu, |command| {
            if self.running.is_none() {
                self.running = self.start().ok();
            }
            let Some(running) = &self.running else { return (Vec::new(), sw::FAILURE) };
            let sent = running.requests.send(command.clone()).is_ok();
            let answer = if sent { running.answers.recv().ok() } else { None };
            answer.unwrap_or((Vec::new(), sw::FAILURE))
        });
        self.transport = transport;
        let changed = [&self.internal, &self.external].map(|flash| flash.dirty.swap(false, Ordering::AcqRel));
        if changed.contains(&true)
            && let Err(e) = self.save()
        {
            eprintln!("virtual card: its state could not be saved: {e:#}");
        }
        answer
    }
}

impl Drop for PivAuthenticatorCard {
    fn drop(&mut self) {
        self.reset();
    }
}
