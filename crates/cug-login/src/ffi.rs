//! The one call into C: the resolver's own settings. The only module with `unsafe` of this crate's own.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_ulong};

/// The first members of glibc's `struct __res_state`, unchanged since 2.0 (`bits/types/res_state.h`).
#[repr(C)]
struct ResolverHead {
    retrans: c_int,
    retry: c_int,
    options: c_ulong,
    nscount: c_int,
    nsaddr_list: [libc::sockaddr_in; 3],
    id: u16,
    dnsrch: [*mut c_char; 7],
}

// SAFETY: as glibc's resolv.h declares them; the state is the calling thread's own.
unsafe extern "C" {
    fn __res_init() -> c_int;
    fn __res_state() -> *mut ResolverHead;
}

/// Sets how long the calling thread's name look-ups wait for a DNS server, and that each is asked once. `seconds` is given the number of DNS servers, and whether
/// a name is also looked for below other domains. Other threads are not affected.
pub fn limit_resolver(seconds: impl FnOnce(u32, bool) -> c_int) {
    // SAFETY: the state is the calling thread's own; `__res_init` fills it in before members are read or written. glibc respects what is written as the
    // application's own settings.
    unsafe {
        if __res_init() == 0
            && let Some(state) = __res_state().as_mut()
        {
            let servers = u32::try_from(state.nscount).unwrap_or(1).max(1);
            state.retrans = seconds(servers, state.dnsrch.first().is_some_and(|domain| !domain.is_null()));
            state.retry = 1;
        }
    }
}
