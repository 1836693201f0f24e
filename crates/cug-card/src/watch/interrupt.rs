//! Ending a wait for PC/SC from another thread, without a race.

use pcsc::{Context, ReaderState};
use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long to wait for the waiter before SCardCancel is repeated.
const AGAIN: Duration = Duration::from_millis(5);
/// How often it is repeated: two seconds in all, after which pcscd has other troubles.
const TRIES: u32 = 400;

/// A PC/SC wait that can be ended. SCardCancel reaches only a wait that pcscd knows of already; one that is just beginning would miss it and
/// wait for ever. So whoever interrupts says so first, and repeats until the waiter has left.
pub(crate) struct Interrupt {
    context: Context,
    gate: Mutex<Gate>,
    left: Condvar,
}

#[derive(Default)]
struct Gate {
    waiting: bool,
    asked: bool,
}

impl Interrupt {
    pub fn new(context: Context) -> Self {
        Self { context, gate: Mutex::default(), left: Condvar::new() }
    }

    /// SCardGetStatusChange; `Cancelled` when it is or was interrupted.
    pub fn wait(&self, timeout: impl Into<Option<Duration>>, states: &mut [ReaderState]) -> Result<(), pcsc::Error> {
        {
            let mut gate = self.gate();
            if gate.asked {
                return Err(pcsc::Error::Cancelled);
            }
            gate.waiting = true;
        }
        let result = self.context.get_status_change(timeout, states);
        self.gate().waiting = false;
        self.left.notify_all();
        result
    }

    /// Ends the present wait, or the next before it begins.
    pub fn interrupt(&self) {
        let mut gate = self.gate();
        gate.asked = true;
        for _ in 0..TRIES {
            if !gate.waiting {
                return;
            }
            if let Err(error) = self.context.cancel() {
                tracing::debug!(%error, "SCardCancel");
            }
            gate = self.left.wait_timeout(gate, AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Somebody interrupted.
    pub fn was_asked(&self) -> bool {
        self.gate().asked
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
