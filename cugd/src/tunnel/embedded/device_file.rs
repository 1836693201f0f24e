//! Makes a TUN device with the index of its name, which the TUN library cannot.
#![allow(unsafe_code, reason = "the ioctls of TUN devices")]

use std::{fs::File, io, os::fd::AsRawFd};

use crate::tunnel::InterfaceName;

/// From `linux/if_tun.h`; the library of C names only the other one.
const TUNSETIFINDEX: libc::Ioctl = 0x4004_54da;

/// The device, as a file that is not read or written yet. It is down, and gone when the file is closed.
///
/// # Errors
/// As the system says; EBUSY when there is an interface of that index.
pub(super) fn create(name: &InterfaceName) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let index = name.index();
    // SAFETY: the kernel reads one `unsigned int` from the address, which lives over the call.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFINDEX, &raw const index) };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `ifreq` is plain data, for which zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes().take(room)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes one `ifreq` at the address, which lives over the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
