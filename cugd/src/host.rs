//! What this workstation is called.

use cug_proto::id::HostName;
use nix::unistd::gethostname;

/// The host name, with what the protocol does not allow replaced by `-`.
pub fn name() -> Option<HostName> {
    let name = gethostname().ok()?.into_string().ok()?;
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '-' };
    name.chars().map(allowed).take(HostName::MAX).collect::<String>().parse().ok()
}
