//! Making keys and certificates (X.509, RFC 5280), and reading them back.

use super::storage::StoragePlace;
use crate::clock::{self, UnixTime};
use cug_proto::{login::CARD_KEY_BITS, trust};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize, SubjectPublicKeyInfo, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, pem::PemObject};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

const DAY: UnixTime = 86_400;
pub(super) const TLS_LIFE: UnixTime = 365 * DAY;
const CA_LIFE: UnixTime = 40 * 365 * DAY;

/// The keys cannot be made or used. One sentence.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No keys yet.
    #[error("{0} holds no keys: run `cug-server init` first")]
    NotInitialised(PathBuf),
    /// There are keys already.
    #[error("{0} is initialised already, and cards depend on its keys: remove the directory only if no card is in use")]
    Initialised(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{0} is damaged: restore it from a backup")]
    Damaged(PathBuf),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refuses.
    #[error("cannot use the TLS key: {0}")]
    Tls(String),
    /// A secret that is none.
    #[error("others can read {0}, which holds a secret: chmod 600 it, and think about who may have read it")]
    Exposed(PathBuf),
    /// The CA's key is kept elsewhere.
    #[error("{0} is not on this host: do this where the CA's key is kept")]
    NoCaKey(PathBuf),
    /// A file that was given cannot be used. One sentence.
    #[error("{0}")]
    Unfit(&'static str),
}

impl KeyError {
    pub(super) fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File { path: path.into(), source }
    }

    pub(super) fn bad(path: &Path) -> Self {
        Self::Damaged(path.into())
    }
}

/// Makes all keys of a new organisation. They appear at once or, after an error, not at all. Takes a second or two.
///
/// # Errors
/// [`KeyError::Initialised`] when there are keys already; else a file or certificate that could not be made.
pub fn create(state_dir: &Path, organisation: &str, now: UnixTime) -> Result<(), KeyError> {
    create_with(state_dir, &StoragePlace::choose(state_dir, None, None), organisation, now)
}

/// The same with the storage key in this place, where there may be one already.
///
/// # Errors
/// As [`create`].
pub fn create_with(
    state_dir: &Path,
    storage: &StoragePlace,
    organisation: &str,
    now: UnixTime,
) -> Result<(), KeyError> {
    let keys = state_dir.join("keys");
    if keys.exists() {
        return Err(KeyError::Initialised(state_dir.into()));
    }
    let unfinished = state_dir.join("keys.unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(|e| KeyError::file(&unfinished, e))?;
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&unfinished)
        .map_err(|e| KeyError::file(&unfinished, e))?;
    fill(&unfinished, organisation, now)?;
    if *storage == StoragePlace::choose(state_dir, None, None) {
        StoragePlace::choose(state_dir, Some(&unfinished.join("storage.key")), None).create()?;
    } else {
        storage.create()?;
    }
    fs::File::open(&unfinished).and_then(|d| d.sync_all()).map_err(|e| KeyError::file(&unfinished, e))?;
    fs::rename(&unfinished, &keys).map_err(|e| KeyError::file(&keys, e))?;
    fs::File::open(state_dir).and_then(|d| d.sync_all()).map_err(|e| KeyError::file(state_dir, e))
}

fn fill(dir: &Path, organisation: &str, now: UnixTime) -> Result<(), KeyError> {
    let ca_key = KeyPair::generate()?;
    let ca = ca_params(organisation, &ca_key, now);
    write_new(&dir.join("ca.key"), Zeroizing::new(ca_key.serialize_pem()).as_bytes())?;
    write_new(&dir.join("ca.pem"), ca.self_signed(&ca_key)?.pem().as_bytes())?;

    let envelope_key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072)?;
    write_new(&dir.join("envelope.key"), Zeroizing::new(envelope_key.serialize_pem()).as_bytes())?;
    let issuer = Issuer::new(ca, ca_key);
    let object = envelope_params(organisation, now).signed_by(&envelope_key, &issuer)?;
    write_new(&dir.join("envelope.pem"), object.pem().as_bytes())?;

    issue_tls(dir, &issuer, now)?;
    write_new(&dir.join("decoy.key"), Zeroizing::new(clock::random::<32>()).as_slice())?;
    for (bits, size) in CARD_KEY_BITS.into_iter().zip([RsaKeySize::_2048, RsaKeySize::_3072, RsaKeySize::_4096]) {
        let nobodys = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size)?;
        write_new(&dir.join(format!("decoy-{bits}.pem")), nobodys.public_key_pem().as_bytes())?;
    }
    Ok(())
}

/// The CA's key identifier is the whole SHA-256 of its key (RFC 7093 section 2, method 4): what cards pin.
fn ca_params(organisation: &str, key: &KeyPair, now: UnixTime) -> CertificateParams {
    let pin = Sha256::digest(key.subject_public_key_info()).to_vec();
    let mut params = named(&format!("{organisation} CA"), now, CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(pin);
    params
}

fn envelope_params(organisation: &str, now: UnixTime) -> CertificateParams {
    let mut params = named(&format!("{organisation} management server"), now, CA_LIFE - DAY);
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    params
}

fn named(name: &str, now: UnixTime, life: UnixTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let at = |time: UnixTime| date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(time).unwrap_or(0));
    // A day back, for terminals whose clock is slow.
    params.not_before = at(now - DAY);
    params.not_after = at(now + life);
    params
}

/// When the certificate in a PEM file expires.
pub(super) fn expiry(path: &Path) -> Result<UnixTime, KeyError> {
    let present = read_certificate(path)?;
    let parsed: x509_cert::Certificate = x509_cert::der::Decode::from_der(&present).map_err(|_| KeyError::bad(path))?;
    let end = parsed.tbs_certificate().validity().not_after.to_unix_duration().as_secs();
    Ok(UnixTime::try_from(end).unwrap_or(UnixTime::MAX))
}

/// What the certificate of a management server says: the same for each of them.
pub(super) fn tls_params(now: UnixTime) -> Result<CertificateParams, KeyError> {
    let mut params = named(trust::SERVER_NAME, now, TLS_LIFE);
    params.subject_alt_names = CertificateParams::new(vec![trust::SERVER_NAME.to_owned()])?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

pub(super) fn issue_tls(dir: &Path, issuer: &Issuer<'_, KeyPair>, now: UnixTime) -> Result<(), KeyError> {
    let key = KeyPair::generate()?;
    let certificate = tls_params(now)?.signed_by(&key, issuer)?;
    // Key and certificate in one file: a crash must not leave a pair that does not match.
    let both = Zeroizing::new([certificate.pem(), key.serialize_pem()].concat());
    replace(&dir.join("tls.pem"), both.as_bytes())
}

/// A certificate for a card's public key, from its DER `SubjectPublicKeyInfo`.
pub(super) fn certify_card(
    dir: &Path,
    ca: &CertificateDer<'_>,
    user: &str,
    spki: &[u8],
    now: UnixTime,
) -> Result<Vec<u8>, KeyError> {
    let mut params = named(user, now, CA_LIFE - DAY);
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    let card_key = SubjectPublicKeyInfo::from_der(spki)?;
    Ok(params.signed_by(&card_key, &issuer(dir, ca)?)?.der().to_vec())
}

pub(super) fn issuer(dir: &Path, ca: &CertificateDer<'_>) -> Result<Issuer<'static, KeyPair>, KeyError> {
    let path = dir.join("ca.key");
    if !path.exists() {
        return Err(KeyError::NoCaKey(path));
    }
    let key = KeyPair::try_from(&read_private_key(&path)?).map_err(|_| KeyError::bad(&path))?;
    Ok(Issuer::from_ca_cert_der(ca, key)?)
}

pub(super) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, KeyError> {
    let pem = fs::read(path).map_err(|e| KeyError::file(path, e))?;
    CertificateDer::from_pem_slice(&pem).map_err(|_| KeyError::bad(path))
}

pub(super) fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, KeyError> {
    super::storage::private(path, false)?;
    let pem = Zeroizing::new(fs::read(path).map_err(|e| KeyError::file(path, e))?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| KeyError::bad(path))
}

/// A DER `SubjectPublicKeyInfo`.
pub(super) fn read_public_key(path: &Path) -> Result<Vec<u8>, KeyError> {
    let pem = fs::read(path).map_err(|e| KeyError::file(path, e))?;
    let key = SubjectPublicKeyInfoDer::from_pem_slice(&pem).map_err(|_| KeyError::bad(path))?;
    Ok(key.to_vec())
}

/// Writes a secret file, all or nothing: after a crash it is the old one or the new one.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(KeyError::file(&new, e)),
        _ => {}
    }
    write_new(&new, content)?;
    fs::rename(&new, path).map_err(|e| KeyError::file(path, e))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| KeyError::file(dir, e))
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|e| KeyError::file(path, e))
}
