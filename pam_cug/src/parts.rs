//! The world around a login, part by part, so that a test can put a script in the place of each.

use crate::{
    daemon::{Cugd, Daemon},
    edge::{Clock, SystemClock},
    exempt::{Accounts, SystemAccounts},
    options::Options,
    server::{Servers, TlsServers},
};
use cug_card::{Card, CardError, Selection};
use std::time::Instant;

/// Where cards are looked for.
pub trait Readers {
    /// As [`cug_card::find`].
    fn find(
        &self,
        selection: &Selection,
        deadline: Instant,
        on_wait: &mut dyn FnMut(),
    ) -> Result<Box<dyn Card>, CardError>;
}

/// The PC/SC readers and the media of this workstation.
///
/// **Trap**: libpcsclite lets `PCSCLITE_CSOCK_NAME` lead it elsewhere, in set-uid programs too: a user could call su or sudo with a reader, and a card, of their own
/// making. Taking the variable out of the environment would not help, because the library keeps what it read first and a module before this one may have made it read; and
/// it is not safe in a host with threads. So [`cug_card::find`] uses no reader while it is set. Exempt users and remote logins never get that far.
pub struct SystemReaders;

impl Readers for SystemReaders {
    fn find(
        &self,
        selection: &Selection,
        deadline: Instant,
        on_wait: &mut dyn FnMut(),
    ) -> Result<Box<dyn Card>, CardError> {
        cug_card::find(selection, deadline, || SystemClock.now(), on_wait)
    }
}

/// Everything that a login talks to, besides its host.
pub struct Parts<'a> {
    /// Who has which number and groups.
    pub accounts: Box<dyn Accounts + 'a>,
    /// cugd.
    pub daemon: Box<dyn Daemon + 'a>,
    /// Cards.
    pub readers: Box<dyn Readers + 'a>,
    /// Management servers.
    pub servers: Box<dyn Servers + 'a>,
    /// Time.
    pub clock: &'a dyn Clock,
}

impl<'a> Parts<'a> {
    /// The real ones.
    pub fn real(options: &'a Options) -> Self {
        const CLOCK: &SystemClock = &SystemClock;
        Self {
            accounts: Box::new(SystemAccounts),
            daemon: Box::new(Cugd::new(&options.socket, CLOCK)),
            readers: Box::new(SystemReaders),
            servers: Box::new(TlsServers { clock: CLOCK }),
            clock: CLOCK,
        }
    }
}
