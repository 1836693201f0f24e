//! The harness of the end-to-end tests and of the demo: hosts, a LAN, card readers and logins, all real and all disposable.
//!
//! * [`space`]: a host in namespaces of its own, with a private copy-on-write view of the machine's files.
//! * [`lan`]: the Ethernet between them.
//! * [`server`]: a host that runs `cug-server`.
//! * [`accounts`]: who may log in on a host, and how.
//! * [`office`]: pcscd and a reader.
//! * [`terminal`]: a host with a card reader, `pcscd`, `cugd` and a PAM stack.
//! * [`machine`]: a workstation with a distribution's own systemd, logind, login and PAM configuration.
//! * [`installed`]: the same with the product from its packages.
//! * [`guest`]: the same in a virtual machine, with the distribution's own kernel.
//! * [`card`]: cards and media, and the processes that play them.
//! * [`doctor`]: a module or a daemon of another version.
//! * [`login`]: a login through real libpam, step by step.
//! * [`libpam`]: its C interface, for the programs that play a login program.
//! * [`probe`]: who reaches whom, and what a host has left over.
//! * [`capture`]: what crossed the LAN.
//! * [`flow`]: traffic that goes on while something happens, and how long it was interrupted.
//! * [`gate`]: a file that a program's threads do not get to for a while.
//! * [`memory`]: what a process holds in its memory.
//! * [`script`]: a terminal and a server that follow a script instead of the protocol.
//! * [`world`]: the patent's example: one server, four terminals, four users, two groups.
//! * [`wire`]: a cable that loses, doubles, delays and overtakes.
//! * [`wait`], [`process`], [`paths`]: deadlines, children, where things are.
//!
//! It needs root, and nothing of the machine changes: every host is a process tree in its own mount, network, PID, UTS and IPC namespaces
//! that ends when the process that made it ends, however that happens.

pub mod accounts;
pub mod capture;
pub mod card;
pub mod doctor;
pub mod flow;
pub mod gate;
pub mod guest;
pub mod installed;
pub mod lan;
pub mod libpam;
pub mod login;
pub mod machine;
pub mod memory;
pub mod office;
pub mod paths;
pub mod probe;
pub mod process;
pub mod script;
pub mod server;
pub mod space;
pub mod terminal;
pub mod wait;
pub mod wire;
pub mod world;
