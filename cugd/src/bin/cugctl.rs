//! `cugctl`: what the daemon at this terminal is doing. See [`cugd::ctl`].

use std::process::ExitCode;

use clap::Parser;
use cugd::ctl;

fn main() -> ExitCode {
    ctl::run(&ctl::Arguments::parse())
}
