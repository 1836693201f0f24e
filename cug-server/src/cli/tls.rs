//! `tls ...`

use super::output::Output;
use crate::{admin::Request, config::Config};
use anyhow::{Context, Result, bail};
use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Largest request or certificate that is read, in bytes.
const MAX_PEM: u64 = 32 * 1024;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Show until when the certificate is valid
    Show,
    /// Make a new key and certificate now; needs the CA's key on this host. Sessions go on
    Rotate,
    /// Make a new key that is not used yet, and print a request for its certificate
    Request,
    /// Sign the request of a management server (this one or another), and print the certificate; needs the CA's key on this host
    Sign {
        /// The request in PEM; - for standard input
        file: PathBuf,
    },
    /// Use the certificate that was signed for the last request. Sessions go on
    Install {
        /// The certificate in PEM; - for standard input
        file: PathBuf,
    },
}

impl Command {
    pub(super) fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        let request = match self {
            Self::Show => Request::TlsShow,
            Self::Rotate => Request::TlsRotate,
            Self::Request => Request::TlsRequest,
            Self::Sign { file } => Request::TlsSign(read(&file)?),
            Self::Install { file } => Request::TlsInstall(read(&file)?),
        };
        super::ask(config, output, &request)
    }
}

fn read(file: &Path) -> Result<String> {
    let what = || format!("cannot read {}", file.display());
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().take(MAX_PEM + 1).read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        std::fs::File::open(file).with_context(what)?.take(MAX_PEM + 1).read_to_string(&mut text).with_context(what)?;
    }
    if u64::try_from(text.len())? > MAX_PEM {
        bail!("{} is too large for a request or a certificate", file.display());
    }
    Ok(text)
}
