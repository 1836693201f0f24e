//! The calls into C that `pam-bindings` does not offer, or not in a form that fits. The only module with `unsafe` of our own.
//!
//! From `pam-bindings` come the entry points, the handle, the items that are read, the conversation and the codes. Not from there:
//! setting PAM_AUTHTOK (its type cannot be constructed), `pam_putenv`, `pam_fail_delay`, `pam_syslog`, and reading the handle's data (`get_data` is unsafe).
#![allow(unsafe_code)]

use crate::host::{Kept, Later, Marker};
use cug_proto::secret::SecretBytes;
use pam::{
    constants::PamResultCode,
    items::ItemType,
    module::{PamHandle, PamResult},
};
use std::{
    cell::Cell,
    ffi::{CString, c_char, c_int, c_uint, c_void},
    time::Duration,
};
use zeroize::Zeroizing;

// SAFETY: as Linux-PAM's headers declare them (security/pam_modules.h, pam_ext.h).
#[link(name = "pam")]
unsafe extern "C" {
    fn pam_set_item(handle: *mut PamHandle, item: c_int, value: *const c_void) -> c_int;
    fn pam_putenv(handle: *mut PamHandle, name_value: *const c_char) -> c_int;
    fn pam_fail_delay(handle: *mut PamHandle, microseconds: c_uint) -> c_int;
    fn pam_syslog(handle: *const PamHandle, priority: c_int, format: *const c_char, ...);
}

fn check(code: c_int) -> PamResult<()> {
    match PamResultCode::try_from(code) {
        Ok(PamResultCode::PAM_SUCCESS) => Ok(()),
        Ok(other) => Err(other),
        Err(_) => Err(PamResultCode::PAM_SYSTEM_ERR),
    }
}

/// Gives the password to the modules that come after this one. libpam makes its own copy, and wipes it.
pub fn set_authtok(handle: &mut PamHandle, password: &SecretBytes) -> PamResult<()> {
    let bytes = password.expose();
    if bytes.contains(&0) {
        return Err(PamResultCode::PAM_BUF_ERR);
    }
    let mut text = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    text.extend_from_slice(bytes);
    text.push(0);
    // SAFETY: the handle is the one libpam called us with; `text` ends with a NUL and outlives the call, which copies it.
    check(unsafe { pam_set_item(handle, ItemType::AuthTok as c_int, text.as_ptr().cast()) })
}

/// Sets a variable in the environment of the session to come.
pub fn put_env(handle: &mut PamHandle, name: &str, value: &str) -> PamResult<()> {
    let pair = CString::new(format!("{name}={value}")).map_err(|_| PamResultCode::PAM_BUF_ERR)?;
    // SAFETY: the handle is the one libpam called us with; `pair` outlives the call, which copies it.
    check(unsafe { pam_putenv(handle, pair.as_ptr()) })
}

/// libpam waits for about so long before it gives a failure back to the program.
pub fn fail_delay(handle: &mut PamHandle, delay: Duration) -> PamResult<()> {
    let microseconds = c_uint::try_from(delay.as_micros()).unwrap_or(c_uint::MAX);
    // SAFETY: the handle is the one libpam called us with; the call notes a number on it.
    check(unsafe { pam_fail_delay(handle, microseconds) })
}

/// One line to syslog, facility authpriv, with the names of the module and of the PAM service before it.
pub fn syslog(handle: &PamHandle, priority: c_int, line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Ok(line) = CString::new(line) {
        // SAFETY: the format is a constant that takes one string; both strings end with a NUL and outlive the call.
        unsafe { pam_syslog(handle, priority, c"%s".as_ptr(), line.as_ptr()) };
    }
}

/// Under which name the handle keeps our [`Marker`]. The number grows when the type changes.
const MARKER: &str = "pam_cug/marker/1";

/// Remembers on the handle what became of the login. No secrets.
pub fn set_marker(handle: &mut PamHandle, marker: Marker) -> PamResult<()> {
    handle.set_data(MARKER, Box::new(marker))
}

/// What [`set_marker`] remembered.
pub fn marker(handle: &PamHandle) -> Option<Marker> {
    // SAFETY: data of this name is only set by `set_marker`, always with this type, by this very library: libpam loads a module once per handle.
    unsafe { handle.get_data::<Marker>(MARKER) }.ok().cloned()
}

/// Under which name the handle keeps a [`Kept`]. The number grows when the type changes.
const KEPT: &str = "pam_cug/kept/1";

/// Keeps on the handle what was typed. libpam drops it with the handle, or when something else is kept.
pub fn set_kept(handle: &mut PamHandle, kept: Kept) -> PamResult<()> {
    handle.set_data(KEPT, Box::new(Cell::new(Some(kept))))
}

/// Takes what [`set_kept`] kept; nothing is left there.
pub fn take_kept(handle: &mut PamHandle) -> Option<Kept> {
    // SAFETY: data of this name is only set by `set_kept`, always with this type, by this very library. The handle is borrowed for as long as the cell is.
    unsafe { handle.get_data::<Cell<Option<Kept>>>(KEPT) }.ok().and_then(Cell::take)
}

/// Under which name the handle keeps a [`Later`]. The number grows when the type changes.
const LATER: &str = "pam_cug/later/1";

/// Keeps on the handle what was typed while no server could be reached. libpam drops it with the handle, or when something else is kept.
pub fn set_later(handle: &mut PamHandle, later: Later) -> PamResult<()> {
    handle.set_data(LATER, Box::new(Cell::new(Some(later))))
}

/// Takes what [`set_later`] kept; nothing is left there.
pub fn take_later(handle: &mut PamHandle) -> Option<Later> {
    // SAFETY: data of this name is only set by `set_later`, always with this type, by this very library. The handle is borrowed for as long as the cell is.
    unsafe { handle.get_data::<Cell<Option<Later>>>(LATER) }.ok().and_then(Cell::take)
}
