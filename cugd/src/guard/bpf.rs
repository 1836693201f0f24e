//! The edge to bpf(2): loads a program, attaches it to the root of the cgroup tree, replaces and removes it.
#![allow(unsafe_code, reason = "bpf(2) has no wrapper in the libraries that this project uses")]

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, socket},
    statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
};

use super::program::{Direction, Instruction};

/// Commands of bpf(2), from `linux/bpf.h`.
mod command {
    pub const PROG_LOAD: libc::c_long = 5;
    pub const OBJ_PIN: libc::c_long = 6;
    pub const OBJ_GET: libc::c_long = 7;
    pub const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub const PROG_QUERY: libc::c_long = 16;
    pub const LINK_CREATE: libc::c_long = 28;
    pub const LINK_UPDATE: libc::c_long = 29;
    pub const LINK_DETACH: libc::c_long = 34;
}

const PROG_TYPE_CGROUP_SKB: u32 = 8;
/// Bytes of the verifier's answer that are kept for the log.
const VERIFIER_LOG: usize = 16 * 1024;
/// Programs of one kind that a cgroup can have (`BPF_CGROUP_MAX_PROGS`).
const MOST_PROGRAMS: usize = 64;

#[derive(Default)]
#[repr(C)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// Four words are enough for the commands on links and queries up to the address.
#[derive(Default)]
#[repr(C)]
struct Words([u32; 4]);

#[derive(Default)]
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct Information {
    fd: u32,
    length: u32,
    to: u64,
}

#[derive(Default)]
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// bpf(2) said no.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// There is no cgroup v2 hierarchy to attach to.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoCgroup,
    /// The verifier, or the policy of this kernel.
    #[error("the kernel refuses the program{}{log}", if log.is_empty() { "" } else { ": " })]
    Load {
        /// What the verifier said, if it came to that.
        log: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// More members and exceptions than a program can hold.
    #[error("the policy is too long for a program")]
    TooLong,
    /// Anything else.
    #[error("the kernel refused {doing}")]
    Call {
        /// What was asked.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Calls bpf(2) with `attributes`.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is a `repr(C)` struct of this module of the given size, the first part of the kernel's union for this command; the
    // addresses in it are those of buffers that the callers below keep alive over the call. The kernel checks every other value.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for the caller, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn call(doing: &'static str) -> impl FnOnce(io::Error) -> BpfError {
    move |source| BpfError::Call { doing, source }
}

impl Direction {
    fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 0,
            Self::Egress => 1,
        }
    }

    /// What `bpftool` shows.
    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "cug_ingress",
            Self::Egress => "cug_egress",
        }
    }
}

/// A program in the kernel.
pub struct Program {
    fd: OwnedFd,
    direction: Direction,
}

impl Program {
    /// Loads it.
    ///
    /// # Errors
    /// [`BpfError::Load`] with the end of the verifier's log.
    pub fn load(code: &[Instruction], direction: Direction) -> Result<Self, BpfError> {
        let mut log = vec![0_u8; VERIFIER_LOG];
        let attempt = |log: Option<&mut Vec<u8>>| {
            let license = c"MIT";
            let mut name = [0; 16];
            name.iter_mut().zip(direction.name().bytes()).for_each(|(to, from)| *to = from);
            let mut attributes = LoadProgram {
                kind: PROG_TYPE_CGROUP_SKB,
                instruction_count: u32::try_from(code.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
                instructions: code.as_ptr() as u64,
                license: license.as_ptr() as u64,
                name,
                attach_type: direction.attach_type(),
                ..LoadProgram::default()
            };
            if let Some(log) = log {
                attributes.log_level = 1;
                attributes.log_size = u32::try_from(log.len()).unwrap_or_default();
                attributes.log = log.as_mut_ptr() as u64;
            }
            bpf(command::PROG_LOAD, &mut attributes)
        };
        match attempt(None) {
            Ok(fd) => Ok(Self { fd: owned(fd), direction }),
            Err(source) => {
                // Once more for the verifier's word; the first answer is the one that counts.
                let _same_answer = attempt(Some(&mut log)).map(owned);
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                let text = String::from_utf8_lossy(log.get(..end).unwrap_or_default()).into_owned();
                let last: Vec<_> = text.lines().rev().take(4).collect();
                Err(BpfError::Load { log: last.into_iter().rev().collect::<Vec<_>>().join(" | "), source })
            }
        }
    }
}

/// A program attached to a cgroup, beside those of others. It goes with its last descriptor and pin.
pub struct Link {
    fd: OwnedFd,
    program: Program,
    pin: Option<PathBuf>,
}

impl Link {
    /// Attaches.
    ///
    /// # Errors
    /// [`BpfError::Call`]
    pub fn attach(cgroup: &File, program: Program) -> Result<Self, BpfError> {
        let mut words = Words([number(&program.fd), number(cgroup), program.direction.attach_type(), 0]);
        let fd = bpf(command::LINK_CREATE, &mut words).map_err(call("to attach a program to the cgroup tree"))?;
        Ok(Self { fd: owned(fd), program, pin: None })
    }

    /// Puts another program in its place, in one step.
    ///
    /// # Errors
    /// [`BpfError::Call`]; the old one stays.
    pub fn replace(&mut self, program: Program) -> Result<(), BpfError> {
        let mut words = Words([number(&self.fd), number(&program.fd), 0, 0]);
        bpf(command::LINK_UPDATE, &mut words).map_err(call("to replace a program"))?;
        self.program = program;
        Ok(())
    }

    /// Lets it outlive this process, under this path in a bpf file system.
    ///
    /// # Errors
    /// [`BpfError::Call`]
    pub fn pin(&mut self, path: &Path) -> Result<(), BpfError> {
        let name = c_path(path)?;
        let mut object = Object { path: name.as_ptr() as u64, fd: number(&self.fd), flags: 0 };
        bpf(command::OBJ_PIN, &mut object).map_err(call("to pin a program"))?;
        self.pin = Some(path.to_owned());
        Ok(())
    }

    /// The number by which the kernel lists the program.
    ///
    /// # Errors
    /// [`BpfError::Call`]
    pub fn program_id(&self) -> Result<u32, BpfError> {
        // `struct bpf_prog_info` begins with type and number.
        let mut info = [0_u32; 2];
        let mut request = Information {
            fd: number(&self.program.fd),
            length: u32::try_from(size_of_val(&info)).unwrap_or_default(),
            to: info.as_mut_ptr() as u64,
        };
        bpf(command::OBJ_GET_INFO_BY_FD, &mut request).map_err(call("to describe a program"))?;
        Ok(info[1])
    }

    /// Detaches at once, and removes the pin. Packets are not looked at any more when it returns.
    ///
    /// # Errors
    /// [`BpfError::Call`]
    pub fn remove(self) -> Result<(), BpfError> {
        if let Some(pin) = &self.pin {
            remove_pin(pin).map_err(call("to remove a pin"))?;
        }
        detach(&self.fd).map_err(call("to detach a program"))
    }
}

fn detach(link: &OwnedFd) -> io::Result<()> {
    let mut words = Words([number(link), 0, 0, 0]);
    match bpf(command::LINK_DETACH, &mut words) {
        // Before 5.9 there is no such command: closing the last descriptor detaches.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(()),
    }
}

fn remove_pin(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what is pinned at `path` by an earlier process. Whether there was something.
///
/// # Errors
/// [`BpfError::Call`]
pub fn remove_pinned(path: &Path) -> Result<bool, BpfError> {
    let name = c_path(path)?;
    let mut object = Object { path: name.as_ptr() as u64, ..Object::default() };
    let link = match bpf(command::OBJ_GET, &mut object) {
        Ok(fd) => owned(fd),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
        Err(error) => return Err(call("to find a pinned program")(error)),
    };
    remove_pin(path).map_err(call("to remove a pin"))?;
    detach(&link).map_err(call("to detach a program"))?;
    Ok(true)
}

/// Numbers of all programs of one direction that are attached to `cgroup`.
///
/// # Errors
/// [`BpfError::Call`]
pub fn attached(cgroup: &File, direction: Direction) -> Result<Vec<u32>, BpfError> {
    let mut ids = vec![0_u32; MOST_PROGRAMS];
    let mut query = Query {
        target: number(cgroup),
        attach_type: direction.attach_type(),
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).unwrap_or_default(),
        ..Query::default()
    };
    bpf(command::PROG_QUERY, &mut query).map_err(call("to list the programs of the cgroup tree"))?;
    ids.truncate(usize::try_from(query.count).unwrap_or(usize::MAX));
    Ok(ids)
}

/// The root of the cgroup v2 tree, where it is mounted.
///
/// # Errors
/// [`BpfError::NoCgroup`]
pub fn cgroup_root() -> Result<File, BpfError> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|_| BpfError::NoCgroup)?;
    // The last mount at a place hides the others, so what was opened is looked at, and not its name.
    let genuine = |file: &File| fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let mut opened = mounts.lines().filter_map(cgroup_mount).filter_map(|at| File::open(at).ok());
    opened.find(genuine).ok_or(BpfError::NoCgroup)
}

/// The mount point of a line of mountinfo that is a cgroup v2 hierarchy from its root on.
fn cgroup_mount(line: &str) -> Option<&Path> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    (root == "/" && after.starts_with("cgroup2 ")).then(|| Path::new(OsStr::from_bytes(at.as_bytes())))
}

/// What the kernel calls this process's network namespace; `None` before Linux 5.14.
pub fn namespace_cookie() -> Option<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    let (mut cookie, mut length) = (0_u64, libc::socklen_t::try_from(size_of::<u64>()).ok()?);
    // SAFETY: the kernel writes at most `length` bytes, the size of `cookie`, and both live over the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(cookie)
}

fn c_path(path: &Path) -> Result<CString, BpfError> {
    let wrong = |_| call("a path")(io::Error::from_raw_os_error(libc::EINVAL));
    CString::new(path.as_os_str().as_bytes()).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_tree_will_do() {
        let at = |line| cgroup_mount(line).map(Path::to_owned);
        assert_eq!(
            at("35 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"),
            Some("/sys/fs/cgroup".into())
        );
        assert_eq!(at("35 25 0:30 /user.slice /mnt rw - cgroup2 cgroup2 rw"), None, "a part of it leaves gaps");
        assert_eq!(at("36 25 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
        assert_eq!(at(""), None);
    }
}
