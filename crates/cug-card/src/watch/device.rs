//! Block devices below a directory, and the kernel's word when they go.

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
        },
        stat::{major, minor},
    },
};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, BufReader},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Largest uevent of the kernel, in bytes (UEVENT_BUFFER_SIZE is 2048, plus the header line).
const MAX_EVENT: usize = 8192;
/// Room in the socket for the events of a whole dock being pulled.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Major and minor number.
type Number = (u64, u64);

/// The block devices that a file system stands on: its own, those below it (encryption, LVM), and the disk of a partition. Empty for
/// file systems that stand on none.
pub(super) struct Devices(BTreeSet<Number>);

impl Devices {
    /// Of the file system with this `st_dev`.
    pub fn below(device: u64) -> Self {
        let mut all = BTreeSet::new();
        collect((major(device), minor(device)), 8, &mut all);
        if all.is_empty() {
            // FUSE, btrfs and others have an anonymous st_dev; the mount table names the device.
            if let Some(source) = source_of(device) {
                collect(source, 8, &mut all);
            }
        }
        Self(all)
    }

    /// All of them exist.
    pub fn exist(&self) -> bool {
        self.0.iter().all(|number| sys(*number).exists())
    }

    /// This event takes one of them away.
    pub fn lost_by(&self, event: &[u8]) -> bool {
        let event = Event::parse(event);
        let gone = event.action == Some("remove") || event.media_change;
        gone && event.subsystem == Some("block") && event.number.is_some_and(|number| self.0.contains(&number))
    }
}

fn sys((major, minor): Number) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

fn collect(number: Number, depth: u32, all: &mut BTreeSet<Number>) {
    let Ok(path) = sys(number).canonicalize() else { return };
    if depth == 0 || !all.insert(number) {
        return;
    }
    let slaves = fs::read_dir(path.join("slaves")).into_iter().flatten().flatten().map(|entry| entry.path());
    let disk = path.join("partition").exists().then(|| path.parent().map(Path::to_owned)).flatten();
    for other in slaves.chain(disk) {
        if let Some(number) = fs::read_to_string(other.join("dev")).ok().as_deref().and_then(parse_number) {
            collect(number, depth - 1, all);
        }
    }
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The device that the mount table gives as the source of a file system (proc_pid_mountinfo(5): field 3, and the second after the dash).
fn source_of(device: u64) -> Option<Number> {
    let wanted = (major(device), minor(device));
    let table = BufReader::new(fs::File::open("/proc/thread-self/mountinfo").ok()?);
    let source = table.lines().map_while(Result::ok).find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let number = parse_number(front.split(' ').nth(2)?)?;
        (number == wanted).then(|| back.split(' ').nth(1).map(PathBuf::from)).flatten()
    })?;
    let metadata = fs::metadata(source).ok()?;
    metadata.file_type().is_block_device().then(|| (major(metadata.rdev()), minor(metadata.rdev())))
}

#[derive(Default)]
struct Event<'a> {
    action: Option<&'a str>,
    subsystem: Option<&'a str>,
    number: Option<Number>,
    media_change: bool,
}

impl<'a> Event<'a> {
    /// A header line and `KEY=VALUE` lines, each ended by a zero byte (Documentation/core-api/kobject.rst).
    fn parse(bytes: &'a [u8]) -> Self {
        let mut event = Self::default();
        let (mut first, mut second) = (None, None);
        for line in bytes.split(|byte| *byte == 0) {
            match std::str::from_utf8(line).ok().and_then(|line| line.split_once('=')) {
                Some(("ACTION", value)) => event.action = Some(value),
                Some(("SUBSYSTEM", value)) => event.subsystem = Some(value),
                Some(("MAJOR", value)) => first = value.parse().ok(),
                Some(("MINOR", value)) => second = value.parse().ok(),
                Some(("DISK_MEDIA_CHANGE" | "DISK_EJECT_REQUEST", "1")) => event.media_change = true,
                _ => {}
            }
        }
        event.number = first.zip(second);
        event
    }
}

/// The kernel's events about devices (NETLINK_KOBJECT_UEVENT, group 1). Needs no privilege.
pub(super) struct Uevents(OwnedFd);

impl Uevents {
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self(socket))
    }

    /// Takes what has come: did one of the devices go? When events were lost, looks whether the devices are there.
    pub fn lost(&self, devices: &Devices) -> io::Result<bool> {
        let mut buffer = [0; MAX_EVENT];
        loop {
            match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                // Port 0 is the kernel; other programs can send to this socket, too.
                Ok((length, from)) if from.is_some_and(|from| from.pid() == 0) => {
                    if buffer.get(..length).is_some_and(|event| devices.lost_by(event)) {
                        return Ok(true);
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::ENOBUFS) if devices.exist() => {}
                Err(Errno::ENOBUFS) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(action: &str, subsystem: &str, number: (u32, u32), more: &str) -> Vec<u8> {
        let (major, minor) = number;
        format!("{action}@/devices/x\0ACTION={action}\0SUBSYSTEM={subsystem}\0MAJOR={major}\0MINOR={minor}\0{more}\0")
            .into_bytes()
    }

    #[test]
    fn only_the_loss_of_one_of_the_devices_counts() {
        let devices = Devices(BTreeSet::from([(8, 16), (8, 17)]));
        assert!(devices.lost_by(&event("remove", "block", (8, 17), "")));
        assert!(devices.lost_by(&event("change", "block", (8, 16), "DISK_MEDIA_CHANGE=1")));
        assert!(!devices.lost_by(&event("remove", "block", (8, 18), "")));
        assert!(!devices.lost_by(&event("remove", "usb", (8, 17), "")));
        assert!(!devices.lost_by(&event("change", "block", (8, 17), "")));
        assert!(!devices.lost_by(b""));
    }

    #[test]
    fn a_file_system_without_device_has_none() {
        assert!(Devices::below(0).0.is_empty());
        assert!(Devices::below(0).exist());
    }

    #[test]
    fn the_disk_of_a_partition_belongs_to_it() {
        // Whatever partition this machine has; without one there is nothing to see.
        let partition = fs::read_dir("/sys/class/block")
            .into_iter()
            .flatten()
            .flatten()
            .find(|e| e.path().join("partition").exists());
        if let Some(entry) = partition {
            let number = parse_number(&fs::read_to_string(entry.path().join("dev")).unwrap()).unwrap();
            let mut all = BTreeSet::new();
            collect(number, 8, &mut all);
            assert!(all.contains(&number) && all.len() >= 2, "{all:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_events_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!Devices(BTreeSet::from([(8, 16)])).lost_by(&bytes));
        }
    }
}
