//! Nobody leads the search for a card to a reader of their own.

use cug_card::{CardError, Selection, find};
use std::{process::Command, time::Instant};

const TEST: &str = "a_redirected_service_is_refused";
const INSIDE: &str = "CUG_CARD_TEST_INSIDE";

/// The environment belongs to the whole process: the test runs itself again in processes of their own.
#[test]
#[allow(clippy::disallowed_methods, reason = "the edge of the test")]
fn a_redirected_service_is_refused() {
    if let Some(refused) = std::env::var_os(INSIDE) {
        let found = find(&Selection::default(), Instant::now(), Instant::now, &mut || panic!("no time to wait"));
        assert_eq!(matches!(found, Err(CardError::Redirected)), refused == "yes");
        return;
    }
    for (name, refused) in [("PCSCLITE_CSOCK_NAME", "yes"), ("LIBPCSCLITE_DELEGATE", "yes"), ("HARMLESS", "no")] {
        let mut inside = Command::new(std::env::current_exe().unwrap());
        inside.args(["--exact", TEST]).env_remove("PCSCLITE_CSOCK_NAME").env_remove("LIBPCSCLITE_DELEGATE");
        let output = inside.env(name, "/nonexistent").env(INSIDE, refused).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
