//! Who may log in on a host, and through which PAM modules.

use crate::paths;
use crate::space::Space;
use anyhow::Context;
use std::fs;

/// PAM service of the login program of the harness; `login`, `su` and the rest have the same stack.
pub const SERVICE: &str = "cug-login";

/// A local account that is no member of anything, and its password.
pub const LOCAL_USER: (&str, &str) = ("porter", "local-passwd");

/// root's password.
pub const ROOT_PASSWORD: &str = "root-passwd";

/// `LOCAL_USER.1` and `ROOT_PASSWORD` for shadow(5), so that no crypt(3) is needed here (`openssl passwd -6`).
pub(crate) const LOCAL_HASH: &str =
    "$6$cugLocalSalt$NEl6KeRZM2xaB8jd5jl22iI52TEwnbEUbvzk4Rk88TyIVzxladF2J5IWk/cpRnEcqX15kTRwCxZ2KV6kFHR4j1";
pub(crate) const ROOT_HASH: &str =
    "$6$cugRootSalt$Bz5/cXS7VtiS.BpU0EnpyGmvgMm3PNd4MLJZ/Cg/agHhaEoz5NmX.7IObQOZ0cvOEK8ybiT9HEt0gNiDzON6M.";

/// The members of the patent's example, and some more; upper case as in the patent.
pub const USERS: [&str; 8] = ["USER-A", "USER-B", "USER-C", "USER-D", "USER-E", "USER-F", "USER-G", "USER-H"];

/// The host's own accounts: the machine's system accounts, root, a local user, and the members without a password.
///
/// # Errors
/// When the files cannot be written.
pub fn make(space: &Space) -> anyhow::Result<()> {
    let system = fs::read_to_string("/etc/passwd")?;
    let id = |line: &str| line.split(':').nth(2).and_then(|id| id.parse::<u32>().ok());
    let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
    let mut shadow = format!("root:{ROOT_HASH}:19000:0:99999:7:::\n");
    for line in system.lines().filter(|line| id(line).is_some_and(|id| id != 0 && (id < 1000 || id == 65_534))) {
        passwd += &format!("{line}\n");
        shadow += &format!("{}:*:19000:0:99999:7:::\n", line.split(':').next().unwrap_or_default());
    }
    let mut group = fs::read_to_string("/etc/group")?;
    let members = std::iter::once(LOCAL_USER.0).chain(USERS).zip(3001..);
    for (name, number) in members {
        let home = format!("/run/home/{name}");
        passwd += &format!("{name}:x:{number}:{number}::{home}:/bin/sh\n");
        group += &format!("{name}:x:{number}:\n");
        let hash = if name == LOCAL_USER.0 { LOCAL_HASH } else { "!" };
        shadow += &format!("{name}:{hash}:19000:0:99999:7:::\n");
        fs::create_dir_all(space.path(&home))?;
        std::os::unix::fs::chown(space.path(&home), Some(number), Some(number))?;
    }
    space.write("/etc/passwd", passwd, 0o644)?;
    space.write("/etc/group", group, 0o644)?;
    space.write("/etc/shadow", shadow, 0o640)
}

/// Every service has the stack that the packages install: members by card, root and local users by password.
///
/// # Errors
/// When the module was not built or cannot be put in its place.
pub fn pam_stack(space: &Space) -> anyhow::Result<()> {
    let module = paths::pam_modules()?.join("pam_cug.so");
    space.write(&module.to_string_lossy(), "", 0o644)?;
    let built = paths::built("libpam_cug.so")?;
    let (from, to) = (built.to_string_lossy(), module.to_string_lossy());
    space.run("mount", &["--bind", &from, &to])?.ok().context("pam_cug.so")?;
    let stack = format!(
        "auth     [success=done new_authtok_reqd=done ignore=ignore default=die] pam_cug.so exempt={local}\n\
         auth     required pam_unix.so\n\
         account  [success=ok new_authtok_reqd=ok ignore=ignore default=bad] pam_cug.so exempt={local}\n\
         account  required pam_unix.so\n\
         session  [success=ok ignore=ignore default=bad] pam_cug.so exempt={local}\n\
         session  required pam_unix.so\n\
         password [success=done ignore=ignore default=die] pam_cug.so exempt={local}\n\
         password required pam_unix.so\n",
        local = LOCAL_USER.0
    );
    for service in [SERVICE, "login", "su", "su-l", "sudo", "other", "pamtester", "passwd", "chpasswd"] {
        space.write(&format!("/etc/pam.d/{service}"), &stack, 0o644)?;
    }
    Ok(())
}
