//! Makes a TUN device with the index of its name, and with large packets where the kernel has them.
#![allow(unsafe_code, reason = "the ioctls of TUN devices")]

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use tokio::io::unix::AsyncFd;

use crate::tunnel::InterfaceName;

/// From `linux/if_tun.h`; the library of C names only the other one.
const TUNSETIFINDEX: libc::Ioctl = 0x4004_54da;

/// The device, as a file that is not read or written yet and that the current runtime watches; a note stands in front of each packet. It is
/// down, and gone when the file is closed.
///
/// # Errors
/// As the system says; EBUSY when there is an interface of that index.
pub(super) fn create(name: &InterfaceName) -> io::Result<AsyncFd<File>> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
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
    // Any kernel that the guard runs on has notes.
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes one `ifreq` at the address, which lives over the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    ask_for_large_packets(&file);
    // SAFETY: a file keeps its descriptor open for as long as it lives, and it is the same one every time.
    unsafe { AsyncFd::register(file) }.map_err(io::Error::from)
}

/// Without them the kernel splits by itself, and takes ours all the same.
fn ask_for_large_packets(file: &File) {
    let wanted = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6);
    // SAFETY: this request takes a number and no address.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, wanted) };
    if set < 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the kernel hands over no large packets");
    }
}
