//! The management server of the closed user group VPN, and the administrator's command.
//!
//! * [`cli`]: the command line; [`admin`]: what it can ask for, over a socket to the running server or directly on the store.
//! * [`server`]: puts the parts together; [`api`]: TLS, frames, and which message may come when.
//! * [`service`]: the use-cases of a login and of a session; [`policy`]: the decisions, pure.
//! * [`store`]: what is kept, one atomic write per use-case; [`hub`]: tells terminals what changed.
//! * [`import`]: files with users and groups, pure.
//! * [`keys`]: the organisation's keys; [`config`]; [`clock`]: time and randomness.
//! * [`metrics`], [`health`]: what an operator watches.
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod health;
pub mod hex;
pub mod hub;
pub mod import;
pub mod keys;
pub mod metrics;
pub mod policy;
pub mod server;
pub mod service;
pub mod store;
pub mod zone;
