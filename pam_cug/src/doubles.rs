//! Scripts in the place of the person, the card, the daemon and the server. Each asserts on drop that its script was used up.

mod host;

pub use cug_login::doubles::{Act, FakeServers, ManualClock, TestCard, assert_used_up, server_object, user_a};
pub use host::{Line, ScriptHost};

use crate::{
    daemon::{Daemon, DaemonError},
    exempt::Accounts,
    parts::{Parts, Readers},
};
use cug_card::{Card, CardBinding, CardError, Selection};
use cug_proto::{
    local::{LOCAL_VERSION, Offer, Reply, Request},
    message::Purpose,
    waiting::HandOver,
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    path::Path,
    time::{Duration, Instant},
};

/// The card of the doubles.
pub fn binding() -> CardBinding {
    TestCard::default().binding()
}

#[derive(Default, Clone, Copy)]
pub struct TestAccounts {
    pub uids: &'static [(&'static str, u32)],
    pub groups: &'static [(&'static str, &'static str)],
}

impl Accounts for TestAccounts {
    fn uid(&self, user: &str) -> Option<u32> {
        self.uids.iter().find(|(name, _)| *name == user).map(|(_, uid)| *uid)
    }
    fn in_group(&self, user: &str, group: &str) -> bool {
        self.groups.contains(&(user, group))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Prepare,
    Deliver,
    Cancel,
    Open,
    Join,
    Close,
    Wait,
    WaitToo,
    HandOver,
    Exempt,
}

/// A daemon that expects these requests and gives these answers.
pub struct ScriptDaemon(RefCell<VecDeque<(Asked, Result<Reply, DaemonError>)>>);

impl ScriptDaemon {
    pub fn new(script: impl IntoIterator<Item = (Asked, Result<Reply, DaemonError>)>) -> Self {
        Self(RefCell::new(script.into_iter().collect()))
    }
}

pub const OFFER_ID: [u8; 16] = [0x0f; 16];

impl Daemon for ScriptDaemon {
    fn call(&self, request: &Request, _: Duration) -> Result<Reply, DaemonError> {
        let asked = match request {
            Request::Prepare(prepare) => {
                assert_eq!(prepare.user, user_a());
                Asked::Prepare
            }
            Request::Deliver(deliver) => {
                assert_eq!((deliver.offer, deliver.grant.groups.len()), (OFFER_ID, 1));
                assert_eq!(&deliver.ca_pin, server_object().ca_pin());
                Asked::Deliver
            }
            Request::Cancel(offer) => {
                assert_eq!(*offer, OFFER_ID);
                Asked::Cancel
            }
            Request::Open(open) if open.holds => Asked::Open,
            Request::Open(_) => Asked::Join,
            Request::Close(_) => Asked::Close,
            Request::Wait(wait) if wait.leads => Asked::Wait,
            Request::Wait(_) => Asked::WaitToo,
            Request::Exempt => Asked::Exempt,
            Request::Watch | Request::Status | Request::Peers | Request::Servers => {
                panic!("not a request of the module")
            }
        };
        self.next(asked)
    }

    fn hand_over(&self, _: &Path, typed: &HandOver, _: Duration) -> Result<(), DaemonError> {
        assert_eq!(typed.password.expose(), b"passwd1");
        self.next(Asked::HandOver).map(drop)
    }
}

impl ScriptDaemon {
    fn next(&self, asked: Asked) -> Result<Reply, DaemonError> {
        let (expected, answer) =
            self.0.borrow_mut().pop_front().unwrap_or_else(|| panic!("unexpected request {asked:?}"));
        assert_eq!(asked, expected);
        answer
    }
}

impl Drop for ScriptDaemon {
    fn drop(&mut self) {
        assert_used_up("daemon", self.0.borrow().len());
    }
}

pub fn offer(purpose: Purpose) -> Offer {
    Offer {
        id: OFFER_ID,
        wg_public_key: [9; 32],
        purpose,
        servers: vec!["server:1".into()],
        server_timeout_ms: 5000,
        host_name: "ws1".parse().unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap(); 20],
        card_wait_ms: 1000,
        readers: vec![],
        exempt: vec![],
        media: vec![],
        ca_pins: vec![[0; 32].into(), (*server_object().ca_pin()).into()],
        taken: vec![],
        without_groups: false,
        version: LOCAL_VERSION,
        offline_local: false,
    }
}

/// A reader in which this card is found, perhaps after a wait; or none, when the card was looked for already or must not be.
pub struct ScriptReaders {
    pub card: RefCell<Option<Result<TestCard, CardError>>>,
    pub waits: bool,
}

impl Readers for ScriptReaders {
    fn find(&self, _: &Selection, _: Instant, on_wait: &mut dyn FnMut()) -> Result<Box<dyn Card>, CardError> {
        if self.waits {
            on_wait();
        }
        let card = self.card.borrow_mut().take().expect("the card was not to be looked for")?;
        Ok(Box::new(card))
    }
}

impl Drop for ScriptReaders {
    fn drop(&mut self) {
        assert_used_up("reader", usize::from(self.card.borrow().is_some()));
    }
}

/// All doubles of a login but the host.
pub struct World {
    pub daemon: ScriptDaemon,
    pub readers: ScriptReaders,
    pub acts: RefCell<Vec<Act>>,
    pub clock: ManualClock,
}

impl World {
    /// Without a card or a server.
    pub fn with_daemon(daemon: ScriptDaemon) -> Self {
        let readers = ScriptReaders { card: RefCell::new(None), waits: false };
        Self { daemon, readers, acts: RefCell::new(vec![]), clock: ManualClock::default() }
    }

    pub fn parts(&self) -> Parts<'_> {
        Parts {
            accounts: Box::new(TestAccounts::default()),
            daemon: Box::new(&self.daemon),
            readers: Box::new(&self.readers),
            servers: Box::new(FakeServers::new(&self.clock, self.acts.take())),
            clock: &self.clock,
        }
    }
}

impl Daemon for &ScriptDaemon {
    fn call(&self, request: &Request, limit: Duration) -> Result<Reply, DaemonError> {
        (**self).call(request, limit)
    }

    fn hand_over(&self, socket: &Path, typed: &HandOver, limit: Duration) -> Result<(), DaemonError> {
        (**self).hand_over(socket, typed, limit)
    }
}

impl Readers for &ScriptReaders {
    fn find(
        &self,
        selection: &Selection,
        deadline: Instant,
        on_wait: &mut dyn FnMut(),
    ) -> Result<Box<dyn Card>, CardError> {
        (**self).find(selection, deadline, on_wait)
    }
}
