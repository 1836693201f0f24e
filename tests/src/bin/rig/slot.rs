//! In a virtual machine: the slot through which cards of the host get into the reader. A host that connects to the virtio port is a card that
//! is inserted, its end is a card that is pulled.

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Milliseconds between two looks for a card: the kernel wakes nobody up when the host connects.
const PAUSE: u16 = 20;

/// `PORT READER`: the virtio port and the reader's socket. Ends with the machine.
pub fn run(port: &str, reader: &str) -> anyhow::Result<u8> {
    let mut port = File::options().read(true).write(true).open(port).with_context(|| port.to_owned())?;
    loop {
        while hung_up(&port)? {
            poll(&mut [], PollTimeout::from(PAUSE))?;
        }
        match UnixStream::connect(reader) {
            Ok(mut reader) => while pass_on(&mut port, &mut reader)? {},
            // The card waits for an answer in vain, and says so.
            Err(error) => eprintln!("{reader}: {error}"),
        }
        // Out of the reader; the next one comes when the host has let go of this one.
        while !hung_up(&port)? {
            discard(&mut port)?;
        }
    }
}

fn hung_up(port: &File) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

/// Waits until either side says something, and tells it the other: `false` when one of them is gone.
fn pass_on(port: &mut File, reader: &mut UnixStream) -> anyhow::Result<bool> {
    let (from_card, from_reader) = {
        let mut fds = [PollFd::new(port.as_fd(), PollFlags::POLLIN), PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
        (fds[0].revents().unwrap_or(PollFlags::empty()), fds[1].any().unwrap_or(false))
    };
    if from_card.contains(PollFlags::POLLHUP) {
        return Ok(false);
    }
    let mut buffer = [0; 4096];
    if from_card.contains(PollFlags::POLLIN) {
        let length = port.read(&mut buffer)?;
        if length == 0 || reader.write_all(&buffer[..length]).is_err() {
            return Ok(false);
        }
    }
    if from_reader {
        let length = reader.read(&mut buffer).unwrap_or(0);
        // A card that was pulled meanwhile is seen by the next look.
        let _pulled = port.write_all(&buffer[..length]);
        return Ok(length > 0);
    }
    Ok(true)
}

fn discard(port: &mut File) -> anyhow::Result<()> {
    let mut fds = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(PAUSE))?;
    if fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
        let _ = port.read(&mut [0; 4096])?;
    }
    Ok(())
}
