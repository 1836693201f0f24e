//! Keys reach neither core dumps nor swap.

use nix::sys::{
    mman::{MlockAllFlags, mlockall},
    prctl::set_dumpable,
    resource::{Resource, setrlimit},
};

/// For a command that a user runs and that handles a password: what the system refuses (locking memory, mostly) is no news to that user.
pub fn for_a_command() {
    let _refused = (set_dumpable(false), setrlimit(Resource::RLIMIT_CORE, 0, 0));
    // Only what is there: future pages would run into the limit of an ordinary user.
    let _refused = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT));
}

/// For the start, before there is a secret. What the system refuses is logged and does not stop the daemon: a container may allow neither.
pub fn apply() {
    if let Err(error) = set_dumpable(false) {
        tracing::warn!(%error, "memory may be read by debuggers of the same user");
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!(%error, "a crash may write a core dump");
    }
    // Pages are locked as they are used: locking the whole stack of every thread would cost megabytes for nothing.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault) {
        tracing::warn!(%error, "keys may reach the swap space");
    }
}
