//! What can go wrong at the WireGuard edge.

use std::{error::Error, io, path::Path};

use super::InterfaceName;
use crate::guard::GuardError;

/// An error of the tunnel: one sentence for the person; the causes are for the log ([`TunnelError::with_causes`]).
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The kernel was asked for and has no WireGuard.
    #[error("the kernel has no WireGuard; install it or set the tunnel's backend to \"auto\"")]
    NoKernel,
    /// There is no TUN device file.
    #[error("there is no /dev/net/tun; load the kernel module \"tun\"")]
    NoTun,
    /// A name that [`InterfaceName`] does not accept.
    #[error("\"{0}\" is not an interface name of ours")]
    Name(String),
    /// An interface of that name exists.
    #[error("the network interface {0} exists already; restart cugd to remove leftovers")]
    Exists(InterfaceName),
    /// The interface went away while it was being configured.
    #[error("the network interface {0} went away while it was being configured")]
    Vanished(InterfaceName),
    /// The configuration of the interface makes no sense.
    #[error("the tunnel's configuration is not usable: {0}")]
    Config(&'static str),
    /// Every port of the range is in use.
    #[error("all UDP ports from {first} to {last} are in use; widen listen-ports in the configuration")]
    NoPort {
        /// First port tried.
        first: u16,
        /// Last port tried.
        last: u16,
    },
    /// The list of peers is refused; nothing was changed.
    #[error("the list of members is refused: {0}")]
    Refused(&'static str),
    /// The deadline passed.
    #[error("{0} took too long")]
    Timeout(&'static str),
    /// The kernel refused a request.
    #[error("the kernel refused {doing}")]
    Netlink {
        /// What was asked.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// The operating system refused something.
    #[error("the system refused {doing}")]
    Io {
        /// What was asked.
        doing: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The embedded engine failed.
    #[error("the embedded WireGuard failed at {doing}")]
    Engine {
        /// What was asked.
        doing: &'static str,
        /// Its answer.
        #[source]
        source: gotatun::device::Error,
    },
    /// The interface cannot be kept to its owner.
    #[error("the tunnel cannot be guarded")]
    Guard(#[from] GuardError),
    /// The tunnel is down.
    #[error("the tunnel is down")]
    Down,
    /// The interface could not be removed.
    #[error("the network interface {0} cannot be removed; remove it with \"ip link delete {0}\"")]
    StillThere(InterfaceName),
}

impl TunnelError {
    /// Whether a request was refused before anything was changed.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// The sentence and all causes, for the log.
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    pub(super) fn netlink(doing: &'static str) -> impl FnOnce(rtnetlink::Error) -> Self {
        move |source| Self::Netlink { doing, source }
    }

    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    pub(super) fn engine(doing: &'static str) -> impl FnOnce(gotatun::device::Error) -> Self {
        move |source| Self::Engine { doing, source }
    }

    /// A TUN device could not be opened: the missing device file deserves a sentence of its own.
    pub(super) fn tun(source: io::Error) -> Self {
        if Path::new("/dev/net/tun").exists() { Self::Io { doing: "a TUN device", source } } else { Self::NoTun }
    }
}

/// The errno of a netlink answer, positive.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| code.get().abs()),
        _ => None,
    }
}
