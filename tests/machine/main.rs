//! The product on a distribution's own workstation: real systemd, logind, login, sshd, su and sudo, and the PAM profile that is shipped.

mod away;
mod console;
mod desk;
mod desktop;
mod greetd;
mod greeter;
mod installed;
mod locker;
mod older;
mod polkit;
mod programs;
mod scene;
