//! The six entry points that libpam calls.
#![allow(unsafe_code)] // `pam_hooks!` writes the `extern "C"` functions; its checks of the arguments were read and are sound.

use crate::{
    account, authenticate,
    change::{self, Phase},
    guard,
    host::PamHost,
    later,
    options::Options,
    parts::Parts,
    session,
};
use pam::{
    constants::{PamFlag, PamResultCode},
    module::{PamHandle, PamHooks},
};
use std::ffi::CStr;

/// What `cugctl doctor` looks for in the module's file; exported, so that no linker leaves it out.
#[unsafe(no_mangle)]
pub static PAM_CUG_VERSION: &str = concat!("pam_cug version ", env!("CARGO_PKG_VERSION"), "\0");

struct PamCug;
pam::pam_hooks!(PamCug);

impl PamHooks for PamCug {
    fn sm_authenticate(handle: &mut PamHandle, args: Vec<&CStr>, flags: PamFlag) -> PamResultCode {
        guard::run(handle, |handle| {
            let mut host = PamHost::new(handle, flags);
            let options = Options::of(&args, &mut host);
            authenticate::authenticate(&mut host, &options, &Parts::real(&options))
        })
    }

    fn sm_setcred(handle: &mut PamHandle, args: Vec<&CStr>, flags: PamFlag) -> PamResultCode {
        guard::run(handle, |handle| {
            let mut host = PamHost::new(handle, flags);
            let options = Options::of(&args, &mut host);
            if later::unlocks(flags) {
                later::unlocked(&mut host, &options, &Parts::real(&options));
            }
            account::set_credentials(&mut host)
        })
    }

    fn acct_mgmt(handle: &mut PamHandle, _: Vec<&CStr>, flags: PamFlag) -> PamResultCode {
        guard::run(handle, |handle| account::manage(&mut PamHost::new(handle, flags)))
    }

    fn sm_open_session(handle: &mut PamHandle, args: Vec<&CStr>, flags: PamFlag) -> PamResultCode {
        guard::run(handle, |handle| {
            let mut host = PamHost::new(handle, flags);
            let options = Options::of(&args, &mut host);
            session::open(&mut host, &options, &Parts::real(&options))
        })
    }

    fn sm_close_session(handle: &mut PamHandle, args: Vec<&CStr>, flags: PamFlag) -> PamResultCode {
        guard::run(handle, |handle| {
            let mut host = PamHost::new(handle, flags);
            let options = Options::of(&args, &mut host);
            session::close(&mut host, &options, &Parts::real(&options))
        })
    }

    fn sm_chauthtok(handle: &mut PamHandle, args: Vec<&CStr>, flags: PamFlag) -> PamResultCode {
        guard::run(handle, |handle| {
            let mut host = PamHost::new(handle, flags);
            let options = Options::of(&args, &mut host);
            change::change(&mut host, &options, &Parts::real(&options), Phase::of(flags))
        })
    }
}
