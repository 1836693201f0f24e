//! What this workstation is called.

use cug_proto::id::{HostName, UserId};
use nix::unistd::{User, gethostname};

/// The host name, with what the protocol does not allow replaced by `-`.
pub fn name() -> Option<HostName> {
    let name = gethostname().ok()?.into_string().ok()?;
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '-' };
    name.chars().map(allowed).take(HostName::MAX).collect::<String>().parse().ok()
}

/// The user ID of an account other than root. Asks the system's name services, which may block.
pub fn account(user: &UserId) -> Option<u32> {
    let account = User::from_name(user.as_str()).ok()??;
    (!account.uid.is_root()).then(|| account.uid.as_raw())
}
