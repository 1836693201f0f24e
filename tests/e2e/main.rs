//! End-to-end tests: real hosts, real libpam, real pcscd, virtual cards, real packets. See the crate's documentation.
//!
//! * `harness`: what the other tests rely on.
//! * `path`: a member logs in, talks, leaves; with every kind of card.
//! * `sessions`: several groups, a second login, displacement, crashes and restarts.
//! * `refusals`: logins that must fail, with one sentence for the person.
//! * `pulled`: the card goes at each step of a login.
//! * `server_faults`: the server is down, slow, or another one.
//! * `frames`: bytes that no honest program sends, to the server and to cugd.
//! * `secrets`: what is in memory, and what a tampered list of members is good for.
//! * `tools`: programs that were not written here.
//! * `names`: members by name.
//! * `status`: what a terminal says of itself.

mod frames;
mod harness;
mod names;
mod path;
mod pulled;
mod refusals;
mod secrets;
mod server_faults;
mod sessions;
mod status;
mod support;
mod tools;
