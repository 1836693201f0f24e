//! End-to-end tests: real hosts, real libpam, real pcscd, virtual cards, real packets. See the crate's documentation.
//!
//! * `enrol`: a user sets the password and enrols a card with a one-time code.
//! * `harness`: what the other tests rely on.
//! * `path`: a member logs in, talks, leaves; with every kind of card.
//! * `sessions`: several groups, a second login, displacement, crashes and restarts.
//! * `refusals`: logins that must fail, with one sentence for the person.
//! * `pulled`: the card goes at each step of a login.
//! * `server_faults`: the server is down, slow, or another one.
//! * `frames`: bytes that no honest program sends, to the server and to cugd.
//! * `guard`: the tunnel belongs to its user; what is left over at the end.
//! * `secrets`: what is in memory, and what a tampered list of members is good for.
//! * `tools`: programs that were not written here.
//! * `standby`: another server takes the place of the first.
//! * `accounts`: passwords that are changed, must be, or are tried too often; accounts that have ended.
//! * `revocation`: how fast the others drop a member who is no longer one.
//! * `faults`: the network and the machine misbehave.
//! * `roaming`: terminals and servers that move, terminals with several addresses.
//! * `names`: members by name.
//! * `status`: what a terminal says of itself.
//! * `wire`: packets lost, doubled, delayed and overtaken.
//! * `lies`: a server that names members who are none.
//! * `lengths`: cards and readers that take long APDUs, that do not, and that do not keep their word.
//! * `readers`: two people with two readers at one terminal.
//! * `nat`: a terminal behind a router that translates addresses.
//! * `clocks`: a wall clock that is wrong, or is set.
//! * `offline`: logins while the server is away.
//! * `corners`: hosts of PAM that do unusual things.
//! * `versions`: a login module and a daemon of different versions.

mod accounts;
mod clocks;
mod corners;
mod enrol;
mod faults;
mod frames;
mod guard;
mod lengths;
mod lies;
mod names;
mod nat;
mod offline;
mod path;
mod pulled;
mod readers;
mod refusals;
mod revocation;
mod roaming;
mod secrets;
mod server_faults;
mod sessions;
mod standby;
mod status;
mod support;
mod tools;
mod versions;
mod wire;
