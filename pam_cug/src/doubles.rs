//! Scripts in the place of the person, the card, the daemon and the server. Each asserts on drop that its script was used up.

mod host;
mod server;
mod tls;

pub use host::{Line, ScriptHost};
pub use server::{Act, CHALLENGE, FakeServers, FakeSession, encode_body, envelope_key, server_object};
pub use tls::{TestCa, tls_server};

use crate::{
    daemon::{Daemon, DaemonError},
    edge::{Clock, SystemClock},
    exempt::Accounts,
    parts::{Parts, Readers},
};
use cug_card::{Card, CardBinding, CardError, PinRequest, Selection};
use cug_proto::{
    id::UserId,
    local::{MediumBinding, Offer, Reply, Request},
    message::{Fingerprint, Purpose},
    secret::{Secret, SecretBytes},
    trust::ServerObject,
};
use nix::sys::signal::SigSet;
use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

pub fn user_a() -> UserId {
    "USER-A".parse().unwrap()
}

/// Left-over entries are a failure of the test, unless it failed already.
pub fn assert_used_up(what: &str, left: usize) {
    assert!(left == 0 || std::thread::panicking(), "{left} entries of the script of the {what} were not used");
}

/// A clock that stands still until it is told to go on.
pub struct ManualClock {
    begin: Instant,
    milliseconds: AtomicU64,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self { begin: SystemClock.now(), milliseconds: AtomicU64::new(0) }
    }
}

impl ManualClock {
    pub fn advance(&self, time: Duration) {
        self.milliseconds.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.begin + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }
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
            Request::Watch | Request::Status | Request::Peers | Request::Servers => {
                panic!("not a request of the module")
            }
        };
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
    }
}

/// A card that opens every challenge with the same key.
pub struct TestCard {
    /// What `pin` answers, one after the other; `NotNeeded` afterwards.
    pub pins: VecDeque<PinRequest>,
    /// What `unlock` expects and answers.
    pub unlocks: VecDeque<(&'static str, Result<(), CardError>)>,
    /// What `open_challenge` answers instead of the key.
    pub operation: Option<CardError>,
    pub panics: bool,
    pub mask_at_operation: Option<SigSet>,
    object: ServerObject,
}

impl Default for TestCard {
    fn default() -> Self {
        let (pins, unlocks) = (VecDeque::new(), VecDeque::new());
        Self { pins, unlocks, operation: None, panics: false, mask_at_operation: None, object: server_object() }
    }
}

impl TestCard {
    pub fn failing(error: CardError) -> Self {
        let mut card = Self::default();
        card.operation = Some(error);
        card
    }
    pub fn panicking() -> Self {
        let mut card = Self::default();
        card.panics = true;
        card
    }
    pub fn with_pin(tries: &[u8], unlocks: Vec<(&'static str, Result<(), CardError>)>) -> Self {
        let mut card = Self::default();
        card.pins = tries.iter().map(|&tries| PinRequest::Pin { tries_left: Some(tries) }).collect();
        card.unlocks = unlocks.into();
        card
    }
}

impl Card for TestCard {
    fn fingerprint(&self) -> &Fingerprint {
        &[1; 32]
    }
    fn server_object(&self) -> &ServerObject {
        &self.object
    }
    fn pin(&mut self) -> Result<PinRequest, CardError> {
        Ok(self.pins.pop_front().unwrap_or(PinRequest::NotNeeded))
    }
    fn unlock(&mut self, pin: &SecretBytes) -> Result<(), CardError> {
        let (expected, answer) = self.unlocks.pop_front().expect("an unexpected PIN");
        assert_eq!(pin.expose(), expected.as_bytes());
        answer
    }
    fn open_challenge(&mut self, ciphertext: &[u8]) -> Result<Secret<32>, CardError> {
        assert_eq!(ciphertext.len(), 256);
        assert!(!self.panics, "the card panics");
        self.mask_at_operation = Some(SigSet::thread_get_mask().unwrap());
        match self.operation.take() {
            Some(error) => Err(error),
            None => Ok(Secret::copy_from(&CHALLENGE).unwrap()),
        }
    }
    fn binding(&self) -> CardBinding {
        CardBinding::Medium(MediumBinding {
            directory: "/media/card".into(),
            device: 1,
            inode: 2,
            fingerprint: [1; 32],
        })
    }
}

impl Drop for TestCard {
    fn drop(&mut self) {
        assert_used_up("card", self.pins.len() + self.unlocks.len());
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
