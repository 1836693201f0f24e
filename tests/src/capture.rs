//! What crosses the LAN.

use crate::lan::{BRIDGE, Lan};
use crate::process::Daemon;
use crate::{paths, wait};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

/// A running capture of all frames on a LAN, into a pcap file.
pub struct Capture {
    file: PathBuf,
    _daemon: Daemon,
}

impl Capture {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(lan: &Lan, file: PathBuf) -> anyhow::Result<Self> {
        let mut command = lan.space().command(paths::built("rig")?)?;
        command.args(["capture", BRIDGE]);
        crate::card::detach(&mut command);
        let log = file.with_extension("log");
        let daemon = Daemon::spawn_with("capture", command, File::create(&file)?, &log, true)?;
        let capture = Self { file, _daemon: daemon };
        wait::for_true("the capture to begin", Duration::from_secs(10), || !capture.is_empty())?;
        Ok(capture)
    }

    /// Whether `bytes` crossed the LAN in clear, in one frame.
    pub fn saw(&self, bytes: &[u8]) -> bool {
        crate::memory::contains(&fs::read(&self.file).unwrap_or_default(), bytes)
    }

    /// Bytes captured so far.
    pub fn len(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |data| data.len())
    }

    /// Whether nothing was captured yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
