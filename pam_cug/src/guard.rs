//! Nothing but a PAM code leaves the module: panics stop here, and the stack that the login used is overwritten.

use crate::ffi;
use cug_login::contain;
use pam::{constants::PamResultCode, module::PamHandle};

/// Runs an entry point. A panic becomes `PAM_SYSTEM_ERR` and a line in syslog that says where, not what: a message might hold a secret.
pub fn run(handle: &mut PamHandle, entry: impl FnOnce(&mut PamHandle) -> PamResultCode) -> PamResultCode {
    contain::keep_panics_off_stderr();
    let result = contain::caught(|| entry(handle));
    contain::scrub_stack::<{ 64 * 1024 }>();
    result.unwrap_or_else(|place| {
        ffi::syslog(handle, libc::LOG_CRIT, &format!("internal error at {place}; please report it"));
        PamResultCode::PAM_SYSTEM_ERR
    })
}
