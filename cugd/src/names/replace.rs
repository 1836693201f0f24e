//! Replacing a file that belongs to the system, whole or not at all.
//!
//! The new content goes into a file beside the old one, gets its owner, mode and extended attributes (SELinux context, access list), reaches the
//! disk, and takes the old one's name. In between, the old one must not have changed. Only a file that nobody but this process's user can have
//! put there or can write to is touched; links are not followed.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use rustix::{
    fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr},
    io::Errno,
};

/// Largest file that is replaced, in bytes: lists of blocked names are long.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// How often a file may change under our hands before we give up.
const TRIES: usize = 5;

/// Largest list of attribute names, and largest attribute, in bytes (the kernel's own limit, xattr(7)).
const MAX_ATTRIBUTE: usize = 64 * 1024;

/// Why a file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A link, a directory, a device.
    #[error("{0} is not a plain file")]
    NotAFile(PathBuf),
    /// Another user could have put it there or could write to it.
    #[error("{0}, or its directory, does not belong to the system alone")]
    Unsafe(PathBuf),
    /// Larger than any such file should be.
    #[error("{0} is too large")]
    TooLarge(PathBuf),
    /// It is a mount of its own, as in a container: it has no name that could be taken over.
    #[error("{0} is mounted by itself and cannot be replaced")]
    Mounted(PathBuf),
    /// The file system, or what the service may do, does not let it be written.
    #[error("{0} cannot be written: it is read-only for this service")]
    ReadOnly(PathBuf),
    /// Somebody else kept writing it.
    #[error("{0} was changed by somebody else each time")]
    Busy(PathBuf),
    /// Something else.
    #[error("{path} cannot be replaced")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Replaces what `path` holds by what `edit` makes of it; `false` when that is the same. Blocks on the disk.
///
/// # Errors
/// [`ReplaceError`]; the file is then as it was.
pub fn replace(path: &Path, edit: impl Fn(&[u8]) -> Vec<u8>) -> Result<bool, ReplaceError> {
    for _ in 0..TRIES {
        let old = Old::read(path)?;
        let new = edit(&old.content);
        if new == old.content {
            return Ok(false);
        }
        let beside = Beside::write(path, &old, &new)?;
        if old.is_unchanged(path) {
            beside.take_place(path)?;
            return Ok(true);
        }
    }
    Err(ReplaceError::Busy(path.to_owned()))
}

/// What `path` holds, if it may be read.
///
/// # Errors
/// As [`replace`].
pub fn read(path: &Path) -> Result<Vec<u8>, ReplaceError> {
    Old::read(path).map(|old| old.content)
}

/// Removes what a crash between two steps of [`replace`] left.
pub fn sweep(path: &Path) {
    if safe_directory(path).is_ok() {
        let _there_is_none = fs::remove_file(beside(path));
    }
}

/// The file as it was found.
struct Old {
    file: File,
    content: Vec<u8>,
    identity: Identity,
}

/// Changes with every change of a file or of its name.
type Identity = (u64, u64, u64, i64, i64, i64, i64);

fn identity(of: &fs::Metadata) -> Identity {
    (of.dev(), of.ino(), of.size(), of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec())
}

impl Old {
    fn read(path: &Path) -> Result<Self, ReplaceError> {
        let io = failed(path);
        safe_directory(path)?;
        let named = fs::symlink_metadata(path).map_err(&io)?;
        if !named.is_file() {
            return Err(ReplaceError::NotAFile(path.to_owned()));
        }
        let mut file =
            OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(&io)?;
        let found = file.metadata().map_err(&io)?;
        if !found.is_file() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(ReplaceError::Unsafe(path.to_owned()));
        }
        if found.len() > MAX_FILE {
            return Err(ReplaceError::TooLarge(path.to_owned()));
        }
        let mut content = Vec::new();
        (&mut file).take(MAX_FILE + 1).read_to_end(&mut content).map_err(&io)?;
        Ok(Self { file, content, identity: identity(&found) })
    }

    /// The name still means the file that was read, and nobody has written to it.
    fn is_unchanged(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|now| identity(&now) == self.identity)
    }
}

/// Nobody else can put a file there.
fn safe_directory(path: &Path) -> Result<(), ReplaceError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let there = fs::symlink_metadata(directory).map_err(failed(directory))?;
    let safe = there.is_dir() && there.uid() == geteuid().as_raw() && there.mode() & 0o022 == 0;
    if safe { Ok(()) } else { Err(ReplaceError::Unsafe(path.to_owned())) }
}

/// The new file, beside the old one; removed when dropped before it has taken its place.
struct Beside {
    path: PathBuf,
    done: bool,
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or(OsStr::new("file")).to_string_lossy();
    path.with_file_name(format!(".{name}.cugd"))
}

impl Beside {
    fn write(path: &Path, old: &Old, new: &[u8]) -> Result<Self, ReplaceError> {
        let io = failed(path);
        let at = beside(path);
        // Only we put files of this name here: an old one is from a crash.
        let _there_is_none = fs::remove_file(&at);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&at).map_err(&io)?;
        let this = Self { path: at, done: false };
        let was = old.file.metadata().map_err(&io)?;
        file.write_all(new).map_err(&io)?;
        fchown(&file, Some(was.uid()), Some(was.gid())).map_err(&io)?;
        copy_attributes(&old.file, &file).map_err(|errno| io(errno.into()))?;
        file.set_permissions(Permissions::from_mode(was.mode() & 0o7777)).map_err(&io)?;
        file.sync_all().map_err(&io)?;
        Ok(this)
    }

    fn take_place(mut self, path: &Path) -> Result<(), ReplaceError> {
        let io = failed(path);
        fs::rename(&self.path, path).map_err(&io)?;
        self.done = true;
        let directory = path.parent().unwrap_or(Path::new("/"));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(&io)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.done {
            let _swept_at_the_next_start = fs::remove_file(&self.path);
        }
    }
}

/// All attributes that can be read: a wrong SELinux context would keep the file from those who need it. What measures the content (IMA, EVM)
/// is the kernel's to renew.
fn copy_attributes(from: &File, to: &File) -> Result<(), Errno> {
    let mut names = vec![0; MAX_ATTRIBUTE];
    let length = match flistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut value = vec![0; MAX_ATTRIBUTE];
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // A copy on an overlay has its bookkeeping made anew.
        if matches!(name, b"security.ima" | b"security.evm") || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let length = match fgetxattr(from, name, &mut value) {
            Ok(length) => length,
            Err(Errno::NODATA | Errno::NOTSUP) => continue,
            Err(error) => return Err(error),
        };
        fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    }
    Ok(())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ReplaceError {
    let path = path.to_owned();
    move |source| match source.raw_os_error() {
        Some(libc::EROFS | libc::EACCES | libc::EPERM) => ReplaceError::ReadOnly(path.clone()),
        Some(libc::EBUSY) => ReplaceError::Mounted(path.clone()),
        Some(libc::ELOOP) => ReplaceError::NotAFile(path.clone()),
        _ => ReplaceError::Io { path: path.clone(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, os::unix::fs::symlink};

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("cugd-replace-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            fs::write(path.join("hosts"), "one\n").unwrap();
            fs::set_permissions(path.join("hosts"), Permissions::from_mode(0o644)).unwrap();
            Self(path)
        }

        fn hosts(&self) -> PathBuf {
            self.0.join("hosts")
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn two(_: &[u8]) -> Vec<u8> {
        b"two\n".to_vec()
    }

    #[test]
    fn owner_mode_and_attributes_stay() {
        let dir = Dir::new("keeps");
        let hosts = dir.hosts();
        fs::set_permissions(&hosts, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&hosts, None, Some(3)).unwrap();
        let file = File::open(&hosts).unwrap();
        let marked = fsetxattr(&file, "user.mark", b"kept", XattrFlags::empty()).is_ok();
        assert!(replace(&hosts, two).unwrap());
        assert!(!replace(&hosts, two).unwrap(), "nothing to do");
        let now = fs::metadata(&hosts).unwrap();
        assert_eq!((now.mode() & 0o7777, now.gid()), (0o640, 3));
        let mut value = [0; 8];
        let length = fgetxattr(File::open(&hosts).unwrap(), "user.mark", &mut value).unwrap_or_default();
        assert_eq!(&value[..length], if marked { b"kept".as_slice() } else { b"" });
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_others_could_have_put_there_is_not_touched() {
        let dir = Dir::new("refuses");
        let hosts = dir.hosts();
        fs::rename(&hosts, dir.0.join("elsewhere")).unwrap();
        symlink("elsewhere", &hosts).unwrap();
        assert!(matches!(replace(&hosts, two), Err(ReplaceError::NotAFile(_))));
        fs::remove_file(&hosts).unwrap();
        fs::rename(dir.0.join("elsewhere"), &hosts).unwrap();
        fs::set_permissions(&hosts, Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(replace(&hosts, two), Err(ReplaceError::Unsafe(_))));
        fs::set_permissions(&hosts, Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&dir.0, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(replace(&hosts, two), Err(ReplaceError::Unsafe(_))));
        fs::set_permissions(&dir.0, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&hosts, Some(65_534), None).unwrap();
        assert!(matches!(replace(&hosts, two), Err(ReplaceError::Unsafe(_))));
        assert_eq!(fs::read(&hosts).unwrap(), b"one\n");
    }

    /// An editor is faster, once: its change is not lost. An editor that never stops wins.
    #[test]
    fn a_change_in_between_is_not_lost() {
        let dir = Dir::new("races");
        let hosts = dir.hosts();
        let times = Cell::new(0);
        let edit = |limit: usize| {
            let (times, hosts) = (&times, hosts.clone());
            move |old: &[u8]| {
                times.set(times.get() + 1);
                if times.get() <= limit {
                    fs::write(&hosts, format!("editor {}\n", times.get())).unwrap();
                }
                [old, b"ours\n"].concat()
            }
        };
        assert!(replace(&hosts, edit(1)).unwrap());
        assert_eq!(fs::read(&hosts).unwrap(), b"editor 1\nours\n");
        times.set(0);
        assert!(matches!(replace(&hosts, edit(usize::MAX)), Err(ReplaceError::Busy(_))));
        assert_eq!(fs::read(&hosts).unwrap(), b"editor 5\n");
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
    }
}
