//! What this crate does to the process that it runs in: panics stop at its edge, and the stack that keys were on is overwritten.

use std::{
    cell::RefCell,
    hint::black_box,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};
use zeroize::Zeroize;

thread_local! {
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What `work` returns.
///
/// # Errors
/// The place where it panicked; never the message, which might hold a secret.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        // Dropping the payload could panic again.
        std::mem::forget(payload);
        PANICKED_AT.take().unwrap_or_else(|| "an unknown place".into())
    })
}

/// To be called once before [`caught`] is of use. The default hook writes to standard error, which in a PAM host may be a terminal, a socket or a log. The hook is that of the
/// standard library inside this module; the host's is not touched.
pub fn keep_panics_off_stderr() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map_or_else(String::new, ToString::to_string);
            PANICKED_AT.with_borrow_mut(|at| *at = Some(place));
        }));
    });
}

/// Overwrites `N` bytes of stack below the caller. Cryptographic code leaves copies of keys in its frames; those frames lie where this one lies now.
#[inline(never)]
pub fn scrub_stack<const N: usize>() {
    let mut stack = [0xa5_u8; N];
    black_box(&mut stack).zeroize();
    black_box(&stack);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_even_if_its_payload_panics() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        assert_eq!(caught(|| 7), Ok(7));
        assert!(caught(|| panic!("once")).is_err());
        assert!(caught(|| std::panic::panic_any(Bomb)).is_err());
    }
}
