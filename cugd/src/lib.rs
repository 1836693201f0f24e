//! The terminal's daemon.
//!
//! [`core`] decides, the other modules act: [`socket`] lets the login module and `cugctl` ask, [`link`] speaks to the management server,
//! [`watch`] and [`leaders`] notice when a card or a process is gone, [`logind`] when an OS session is over or the machine sleeps, [`addresses`] when the network changes, [`tunnels`] makes the interfaces (through [`tunnel`]),
//! [`guard`] keeps them to their owners, [`teardown`] looks whether all is gone. [`driver`] is
//! the one loop between them, [`daemon`] puts it together. [`ctl`] is the user's command.

pub mod addresses;
pub mod clock;
pub mod config;
pub mod core;
pub mod ctl;
pub mod daemon;
pub mod driver;
pub mod enrol;
pub mod guard;
pub mod hardening;
pub mod host;
pub mod keys;
pub mod leaders;
pub mod link;
pub mod logind;
pub mod names;
pub mod notify;
pub mod permit;
pub mod pidfd;
pub mod socket;
pub mod teardown;
pub mod tunnel;
pub mod tunnels;
pub mod waiting;
pub mod watch;
pub mod watchers;
