//! Cards and media, and how they get into a reader.

use crate::process::Daemon;
use crate::{paths, wait};
use anyhow::Context;
use cug_cards::{Card, Inserted, OwnCard, OwnOptions, VirtualCard};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// PIN of every card of the tests; the second kind of card comes with it and cannot have another one at first.
pub const PIN: &str = "123456";

/// Passphrase of every medium of the tests.
pub const PASSPHRASE: &str = "correct horse 7531";

/// What went wrong when a medium cannot be made ready.
pub const MEDIUM_NOTE: &str = "copying the files of a medium";

/// How long a reader may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Which program a card runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Our own emulator.
    Own,
    /// `piv-authenticator` of the Nitrokey 3.
    PivAuthenticator,
}

impl Kind {
    /// The kind that tests use unless they say which: `CUG_CARD=piv-authenticator` runs all of them with the other one.
    pub fn usual() -> Self {
        match std::env::var("CUG_CARD").as_deref() {
            Ok("piv-authenticator") => Self::PivAuthenticator,
            _ => Self::Own,
        }
    }
}

/// A card that is not in a reader.
pub struct PivCard(Box<dyn Card>);

impl PivCard {
    /// An empty card as it comes from the factory. One that keeps its state in a file does so in `dir`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn blank(kind: Kind, dir: &Path) -> anyhow::Result<Self> {
        match kind {
            Kind::Own => Self::own(OwnOptions::default()),
            Kind::PivAuthenticator => {
                let file = dir.join(format!("{:016x}.card", u64::from_ne_bytes(crate::script::random()?)));
                let card = cug_cards::PivAuthenticatorCard::open(&file, PIN)?;
                Ok(Self(Box::new(card)))
            }
        }
    }

    /// A card that was made elsewhere.
    pub fn from_own(card: OwnCard) -> Self {
        Self(Box::new(card))
    }

    /// One of our own cards with these options.
    ///
    /// # Errors
    /// When the options do not fit together.
    pub fn own(options: OwnOptions) -> anyhow::Result<Self> {
        Ok(Self(Box::new(OwnCard::new(options)?)))
    }
}

/// A card in a reader of a terminal.
pub struct InReader(Inserted<Box<dyn Card>>);

impl InReader {
    /// Puts `card` into the reader at `socket` and waits until pcscd has powered it.
    ///
    /// # Errors
    /// When there is no reader or it is occupied.
    pub fn insert(socket: &Path, card: PivCard) -> anyhow::Result<Self> {
        let inserted = VirtualCard::insert(socket, card.0)?;
        anyhow::ensure!(inserted.wait_powered(LIMIT), "pcscd does not see the card");
        Ok(Self(inserted))
    }

    /// Pulls it: the card for the next reader.
    #[must_use]
    pub fn pull(self) -> PivCard {
        PivCard(self.0.eject())
    }

    /// The handle that counts, records and disturbs APDUs.
    pub fn control(&self) -> &Inserted<Box<dyn Card>> {
        &self.0
    }
}

/// A card that is played by a process of its own, with its state in a file: for the demo, whose cards may outlive it.
pub struct CardProcess {
    state: PathBuf,
    stays: bool,
    running: Option<Daemon>,
}

impl CardProcess {
    /// A new card whose state will be in the file `state`. If it `stays`, it may outlive this process; else it goes with it.
    pub fn new(state: &Path, stays: bool) -> Self {
        Self { state: state.to_owned(), stays, running: None }
    }

    /// Puts it into the reader at `socket` and waits until the reader has taken it.
    ///
    /// # Errors
    /// When the reader does not take it.
    pub fn insert(&mut self, socket: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(paths::built("virtual-card")?);
        command.arg("--socket").arg(socket).arg("--state").arg(&self.state).args(["--pin", PIN]);
        if self.stays {
            command.arg("--ignore-stdin");
        }
        detach(&mut command);
        let log = self.state.with_extension("log");
        let _ = std::fs::remove_file(&log);
        let mut running = Daemon::spawn("virtual-card", command, &log, false)?;
        running.wait_log("ready", LIMIT)?;
        self.running = Some(running);
        Ok(())
    }

    /// Pulls it.
    ///
    /// # Errors
    /// When it was not in a reader.
    pub fn pull(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("the card is in no reader")?;
        running.signal(nix::sys::signal::Signal::SIGTERM)?;
        wait::until("the card to be out", LIMIT, || running.exited()).map(drop)
    }

    /// Lets it live on after this process. Its PID.
    ///
    /// # Errors
    /// When it was not in a reader.
    pub fn leave(&mut self) -> anyhow::Result<i32> {
        let running = self.running.take().context("the card is in no reader")?;
        let pid = running.pid()?;
        running.leave();
        Ok(pid)
    }
}

/// A process group of its own, so that Ctrl-C is answered by the program that started it.
pub fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}
