//! Loads a PAM module into this process, and says what that took. A module of its own for the one `unsafe` call.

use anyhow::{Context, ensure};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

fn own_memory_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// How long loading took, and how many KiB of memory of its own the process has more.
///
/// # Errors
/// With what the loader says.
pub fn load(module: &Path) -> anyhow::Result<(Duration, u64)> {
    let path = CString::new(module.as_os_str().as_bytes())?;
    let before = own_memory_kib()?;
    let begin = Instant::now();
    // SAFETY: `path` ends with a NUL; the module is one that login programs load, and its constructors expect no more than that.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    let took = begin.elapsed();
    if handle.is_null() {
        // SAFETY: after a failure dlerror(3) answers with a string that lives until the next call.
        let error = unsafe { CStr::from_ptr(libc::dlerror()) };
        ensure!(false, "{}", error.to_string_lossy());
    }
    Ok((took, own_memory_kib()?.saturating_sub(before)))
}
