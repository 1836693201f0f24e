//! Scripts in the place of the card and the server. Each asserts on drop that its script was used up.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::new_without_default
)] // for tests only

mod server;
mod tls;

pub use server::{Act, CHALLENGE, FakeServers, FakeSession, encode_body, envelope_key, server_object};
pub use tls::{TestCa, tls_server};

use crate::edge::{Clock, SystemClock};
use cug_card::{Card, CardBinding, CardError, PinRequest};
use cug_proto::{
    id::UserId,
    local::MediumBinding,
    message::Fingerprint,
    secret::{Secret, SecretBytes},
    trust::ServerObject,
};
use nix::sys::signal::SigSet;
use std::{
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
