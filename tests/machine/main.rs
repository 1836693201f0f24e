//! The product on a distribution's own workstation: real systemd, logind, login, sshd, su and sudo, and the PAM profile that is shipped.

mod console;
mod greeter;
mod programs;
mod scene;
