//! Media that come and go: inotify, the mount table and the kernel's device events.

use super::{
    RemovalCause,
    device::{Devices, Uevents},
};
use crate::{
    CardError,
    medium::{KEY_FILE, directories},
};
use cug_proto::local::MediumBinding;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        inotify::{AddWatchFlags, InitFlags, Inotify},
    },
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Ends a wait. The mark stays: a later wait ends at once.
#[derive(Clone)]
pub(crate) struct Stop(Arc<EventFd>);

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)))
    }

    pub fn stop(&self) {
        // The only error is a full counter, and then the mark is there.
        let _already_marked = self.0.write(1);
    }
}

/// Inotify and the mount table together.
struct Eyes {
    inotify: Inotify,
    mounts: File,
    stop: Stop,
}

/// What woke a wait.
#[derive(PartialEq, Eq)]
enum Woken {
    Stopped,
    /// One of the descriptors, or a signal: look.
    Something,
    TimeOut,
}

impl Eyes {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, mounts: File::open("/proc/thread-self/mountinfo")?, stop: Stop::new()? })
    }

    fn wait(&self, more: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<Woken> {
        // A change of the mount table is urgent data (proc_pid_mounts(5)).
        let mut fds = vec![
            PollFd::new(self.stop.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI),
        ];
        fds.extend(more.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(limit) => PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut fds, timeout) {
            Ok(0) => Ok(Woken::TimeOut),
            Ok(_) if fds.first().and_then(PollFd::any) == Some(true) => Ok(Woken::Stopped),
            Ok(_) | Err(Errno::EINTR) => Ok(Woken::Something),
            Err(error) => Err(error.into()),
        }
    }

    /// Empties inotify's queue: whether anything was in it.
    fn drain(&self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) => any |= !events.is_empty(),
                Err(Errno::EAGAIN) => return Ok(any),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Tells when something happens where media may appear.
pub(crate) struct Arrival(Eyes);

impl Arrival {
    /// Begins to look at the places of these patterns (see [`crate::Selection::media`]), as they are now.
    pub fn new(patterns: &[String]) -> Result<Self, CardError> {
        let eyes = Eyes::new().map_err(CardError::Medium)?;
        for pattern in patterns {
            let mut places = directories(pattern);
            places.extend(Path::new(pattern).ancestors().skip(1).find(|ancestor| ancestor.is_dir()).map(PathBuf::from));
            let mask = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
            for place in places {
                // What is not there cannot be watched, but what it will appear in can.
                let _may_be_missing = eyes.inotify.add_watch(&place, mask | AddWatchFlags::IN_ONLYDIR);
            }
        }
        Ok(Self(eyes))
    }

    /// Blocks until something happens: `true`; stopped or after `timeout`: `false`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        Ok(self.0.wait(None, timeout)? == Woken::Something)
    }

    /// Ends the wait, from any thread.
    pub fn stop(&self) {
        self.0.stop.stop();
    }
}

/// Tells when the medium of a session goes.
pub(super) struct Removal {
    eyes: Eyes,
    uevents: Uevents,
    devices: Devices,
    directory: PathBuf,
    device: u64,
    inode: u64,
}

impl Removal {
    pub fn new(binding: &MediumBinding) -> Result<Self, CardError> {
        let directory = PathBuf::from(&binding.directory);
        let uevents = Uevents::new().map_err(CardError::Watch)?;
        let eyes = Eyes::new().map_err(CardError::Watch)?;
        let file = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ATTRIB;
        let inside = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_MOVED_TO;
        for (path, mask) in [(directory.clone(), file | inside), (directory.join(KEY_FILE), file)] {
            // Unmounting is always told.
            eyes.inotify.add_watch(&path, mask).map_err(|error| match error {
                Errno::ENOENT | Errno::ENOTDIR => CardError::Removed,
                other => CardError::Watch(other.into()),
            })?;
        }
        let devices = Devices::below(binding.device);
        let removal = Self { eyes, uevents, devices, directory, device: binding.device, inode: binding.inode };
        // Looked at after the watches stand, so nothing falls between.
        if removal.is_there() { Ok(removal) } else { Err(CardError::Removed) }
    }

    pub fn stop(&self) -> Stop {
        self.eyes.stop.clone()
    }

    pub fn wait(&self) -> RemovalCause {
        loop {
            if !self.is_there() {
                return RemovalCause::Removed;
            }
            match self.wait_once() {
                Ok(None) => {}
                Ok(Some(cause)) => return cause,
                Err(error) => return RemovalCause::Failed(error),
            }
        }
    }

    fn wait_once(&self) -> io::Result<Option<RemovalCause>> {
        if self.eyes.wait(Some(self.uevents.as_fd()), None)? == Woken::Stopped {
            return Ok(Some(RemovalCause::Cancelled));
        }
        self.eyes.drain()?;
        Ok(self.uevents.lost(&self.devices)?.then_some(RemovalCause::Removed))
    }

    /// The same key file at the same place.
    fn is_there(&self) -> bool {
        let directory = fs::metadata(&self.directory).is_ok_and(|it| it.dev() == self.device);
        let key = self.directory.join(KEY_FILE).symlink_metadata();
        directory
            && key.is_ok_and(|it| it.is_file() && it.dev() == self.device && it.ino() == self.inode)
            && self.devices.exist()
    }
}
