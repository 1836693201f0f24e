//! `card ...`

use super::{output::Output, prompt, user::user_id};
use crate::{
    admin::{self, Reply, Request},
    config::Config,
};
use anyhow::{Context, Result, bail};
use cug_card::personalise::{self, KeySource, ManagementKey, PivCard, RsaKey};
use cug_proto::id::UserId;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use x509_cert::der::{Decode, EncodePem, pem::LineEnding};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Make a card for a user: a PIV card in a reader, or a directory on a removable medium
    Issue(Issue),
    /// Register a card whose key was made elsewhere
    Register(Register),
    /// List cards
    List {
        /// Only those of this user
        #[arg(value_parser = user_id)]
        user: Option<UserId>,
    },
    /// Revoke a card: ends a session opened with it, changes the keys of the user's groups
    Revoke {
        /// Fingerprint, or its first 8 or more hexadecimal digits
        fingerprint: String,
    },
}

#[derive(clap::Args)]
pub(super) struct Issue {
    /// User ID
    #[arg(value_parser = user_id)]
    user: UserId,
    #[command(flatten)]
    place: Place,
    /// Size of the RSA key in bits
    #[arg(long, default_value = "2048", value_parser = ["2048", "3072", "4096"])]
    bits: String,
    /// Make the key on the card, which it never leaves [default]
    #[arg(long, conflicts_with_all = ["import", "medium"])]
    generate: bool,
    /// Make the key here and import it into the card
    #[arg(long, conflicts_with = "medium")]
    import: bool,
    #[command(flatten)]
    management: Management,
    /// Read one line from standard input: the card's PIN, to try the new key with; or the passphrase for a medium
    #[arg(long)]
    pin_stdin: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The reader with the card: its PC/SC name, or the beginning of it
    #[arg(long, value_name = "NAME")]
    reader: Option<String>,
    /// The directory on the medium
    #[arg(long, value_name = "DIR")]
    medium: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Management {
    /// File with the card's management key, hexadecimal or raw [default: the factory's]
    #[arg(long, value_name = "FILE")]
    management_key_file: Option<PathBuf>,
    /// Give the card another management key, from this file (32, 48 or 64 hexadecimal digits) [default: it keeps the one it has; with the factory's, whoever has the card in a reader can overwrite it]
    #[arg(long, value_name = "FILE", conflicts_with = "medium")]
    new_management_key_file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(super) struct Register {
    /// User ID
    #[arg(value_parser = user_id)]
    user: UserId,
    /// The card's RSA public key, or a certificate with it; PEM or DER
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Write the server object to the card in this reader
    #[arg(long, value_name = "NAME")]
    reader: Option<String>,
    /// Write the server object into this directory on a medium
    #[arg(long, value_name = "DIR", conflicts_with = "reader")]
    medium: Option<PathBuf>,
    #[command(flatten)]
    management: Management,
}

impl Command {
    pub(super) fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        match self {
            Self::Issue(issue) => issue.run(config, output),
            Self::Register(register) => register.run(config, output),
            Self::List { user } => super::ask(config, output, &Request::CardList(user)),
            Self::Revoke { fingerprint } => super::ask(config, output, &Request::CardRevoke(fingerprint)),
        }
    }
}

impl Issue {
    /// Key, certificate, server object, and only when all of it is on the card: registered.
    fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        let bits: usize = self.bits.parse()?;
        // Before anything is written to a card.
        let server_object = der(config, &Request::ServerObject)?;
        wanted(config, &Request::UserShow(self.user.clone()))?;
        let (public_key, kind) = match (&self.place.reader, &self.place.medium) {
            (Some(reader), _) => (self.issue_piv(config, reader, bits, &server_object)?, "piv"),
            (None, Some(directory)) => (self.issue_medium(config, directory, bits, &server_object)?, "medium"),
            (None, None) => bail!("give --reader or --medium"),
        };
        super::ask(config, output, &Request::CardRegister { user: self.user, public_key, kind: kind.into() })
    }

    fn issue_piv(&self, config: &Config, reader: &str, bits: usize, server_object: &[u8]) -> Result<Vec<u8>> {
        let pin = if self.pin_stdin { Some(prompt::pin_from_stdin()?) } else { None };
        // Before anything is written to the card.
        let new_management_key = self.management.new_key()?;
        let source = if self.import { KeySource::Import(RsaKey::generate(bits)?) } else { KeySource::Generate(bits) };
        let prepared = PivCard::open(reader, &self.management.key()?)?.prepare(&source, pin.as_ref())?;
        let public_key = prepared.public_key().der().to_vec();
        let mut card = prepared.finish(&self.certificate(config, &public_key)?, server_object)?;
        if let Some(key) = new_management_key {
            card.change_management_key(&key)?;
        }
        Ok(public_key)
    }

    fn issue_medium(&self, config: &Config, directory: &Path, bits: usize, server_object: &[u8]) -> Result<Vec<u8>> {
        let passphrase = prompt::new_passphrase(self.pin_stdin)?;
        let prepared = personalise::medium(bits)?;
        let public_key = prepared.public_key().der().to_vec();
        prepared.finish(directory, &passphrase, &self.certificate(config, &public_key)?, server_object)?;
        Ok(public_key)
    }

    fn certificate(&self, config: &Config, public_key: &[u8]) -> Result<Vec<u8>> {
        der(config, &Request::CertifyCard { user: self.user.clone(), public_key: public_key.to_vec() })
    }
}

impl Register {
    fn run(self, config: &Config, output: &Output) -> Result<ExitCode> {
        let public_key = std::fs::read(&self.key).with_context(|| format!("cannot read {}", self.key.display()))?;
        if self.reader.is_some() || self.medium.is_some() {
            let server_object = der(config, &Request::ServerObject)?;
            let fingerprint = admin::card_fingerprint(&public_key)?;
            if let Some(reader) = &self.reader {
                let new_management_key = self.management.new_key()?;
                let mut card = PivCard::open(reader, &self.management.key()?)?;
                card.write_server_object(&server_object, &fingerprint)?;
                if let Some(key) = new_management_key {
                    card.change_management_key(&key)?;
                }
            }
            if let Some(directory) = &self.medium {
                write_server_object(directory, &server_object)?;
            }
        }
        super::ask(config, output, &Request::CardRegister { user: self.user, public_key, kind: "registered".into() })
    }
}

impl Management {
    fn key(&self) -> Result<ManagementKey> {
        match &self.management_key_file {
            Some(path) => from_file(path),
            None => Ok(ManagementKey::factory()?),
        }
    }

    fn new_key(&self) -> Result<Option<ManagementKey>> {
        self.new_management_key_file.as_deref().map(from_file).transpose()
    }
}

fn from_file(path: &Path) -> Result<ManagementKey> {
    ManagementKey::from_file(path).with_context(|| path.display().to_string())
}

/// The server object alone, for a medium whose key was made elsewhere.
fn write_server_object(directory: &Path, server_object: &[u8]) -> Result<()> {
    let path = directory.join("server.crt");
    let pem = x509_cert::Certificate::from_der(server_object)?.to_pem(LineEnding::LF)?;
    std::fs::write(&path, pem).with_context(|| format!("cannot write {}", path.display()))
}

/// The certificate that a request gives.
fn der(config: &Config, request: &Request) -> Result<Vec<u8>> {
    match wanted(config, request)? {
        Reply::Der(der) => Ok(der),
        _ => bail!("the server gave another answer than expected; is it of the same version?"),
    }
}

/// What a request gives, a refusal being an error.
fn wanted(config: &Config, request: &Request) -> Result<Reply> {
    match admin::ask(config, request)? {
        Reply::Refused(sentence) => bail!(sentence),
        reply => Ok(reply),
    }
}
