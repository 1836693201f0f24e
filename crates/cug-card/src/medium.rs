//! A key on a removable medium: a directory with
//!
//! | file | content |
//! |---|---|
//! | `card.p8` | the RSA private key, PKCS#8 encrypted with PBES2 (RFC 8018), PEM or DER; `openssl pkey` reads it |
//! | `server.crt` | the server object, an X.509 certificate, PEM or DER |
//! | `card.crt` | the member's certificate, PEM or DER; or |
//! | `card.pub` | the public key (`SubjectPublicKeyInfo`), PEM or DER |
//!
//! Whoever writes the medium chooses these bytes, and the reader is a root process: files are read as regular files only, up to a size, and the cost of
//! the key derivation is bounded. No file of the medium stays open, or it could not be unmounted.

use crate::{Card, CardError, PinRequest};
use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use cug_proto::{
    local::{CardBinding, MediumBinding},
    message::Fingerprint,
    secret::{Secret, SecretBytes},
    trust::{self, ServerObject},
};
use nix::fcntl::OFlag;
use pkcs8::{
    EncryptedPrivateKeyInfoRef,
    der::{Decode, Document},
    pkcs5::{EncryptionScheme, pbes2},
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

pub(crate) const KEY_FILE: &str = "card.p8";
pub(crate) const SERVER_FILE: &str = "server.crt";
pub(crate) const CERTIFICATE_FILE: &str = "card.crt";
pub(crate) const PUBLIC_FILE: &str = "card.pub";

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 * 1024;
/// Most iterations of PBKDF2: some 3 s.
const MAX_ITERATIONS: u32 = 10_000_000;
/// Most memory for scrypt, in bytes.
const MAX_SCRYPT: u64 = 64 * 1024 * 1024;

/// The directories that a pattern stands for, now: itself, or with a last component `*` those in its parent. Sorted.
pub(crate) fn directories(pattern: &str) -> Vec<PathBuf> {
    let path = Path::new(pattern);
    if path.file_name().is_none_or(|name| name != "*") {
        return vec![path.to_owned()];
    }
    let entries = path.parent().and_then(|parent| fs::read_dir(parent).ok());
    let mut found: Vec<_> =
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// Is there a key in this directory?
pub(crate) fn has_key(directory: &Path) -> bool {
    directory.join(KEY_FILE).symlink_metadata().is_ok_and(|file| file.is_file())
}

/// A key on a medium.
pub(crate) struct MediumCard {
    directory: PathBuf,
    device: u64,
    inode: u64,
    encrypted: Vec<u8>,
    server_object: ServerObject,
    fingerprint: Fingerprint,
    /// The key in DER, from `unlock` to `open_challenge`.
    opened: Option<Zeroizing<Vec<u8>>>,
}

impl MediumCard {
    /// Reads everything but the key itself.
    pub fn open(directory: &Path) -> Result<Self, CardError> {
        let directory = directory.canonicalize().map_err(CardError::Medium)?;
        let device = fs::metadata(&directory).map_err(CardError::Medium)?.dev();
        let (encrypted, inode) = read(&directory, KEY_FILE).map_err(CardError::Medium)?;
        let server = read(&directory, SERVER_FILE).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CardError::NotOurs,
            _ => CardError::Medium(error),
        })?;
        let server_object = ServerObject::parse(&der(server.0, SERVER_FILE)?).map_err(|_| CardError::NotOurs)?;
        let fingerprint = fingerprint(&directory)?;
        Ok(Self {
            encrypted: der(encrypted, KEY_FILE)?,
            directory,
            device,
            inode,
            server_object,
            fingerprint,
            opened: None,
        })
    }
}

impl Card for MediumCard {
    fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    fn server_object(&self) -> &ServerObject {
        &self.server_object
    }

    fn pin(&mut self) -> Result<PinRequest, CardError> {
        Ok(if self.opened.is_some() { PinRequest::NotNeeded } else { PinRequest::Passphrase })
    }

    fn unlock(&mut self, pin: &SecretBytes) -> Result<(), CardError> {
        self.opened = None;
        let opened = decrypt(&self.encrypted, pin)?;
        let key = PrivateDecryptingKey::from_pkcs8(&opened).map_err(|_| CardError::WrongPassphrase)?;
        let public: PublicKeyX509Der = key.public_key().as_der().map_err(|_| CardError::KeyKind)?;
        if Fingerprint::from(Sha256::digest(public.as_ref())) != self.fingerprint {
            return Err(CardError::NoKey);
        }
        self.opened = Some(opened);
        Ok(())
    }

    fn open_challenge(&mut self, ciphertext: &[u8]) -> Result<Secret<32>, CardError> {
        let opened = self.opened.take().ok_or(CardError::PinRequired)?;
        let key = PrivateDecryptingKey::from_pkcs8(&opened).map_err(|_| CardError::KeyKind)?;
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| CardError::KeyKind)?;
        let mut plain = Zeroizing::new(vec![0; key.min_output_size()]);
        let plain = key
            .decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut plain, None)
            .map_err(|_| CardError::NotForThisCard)?;
        Secret::copy_from(plain).ok_or(CardError::NotForThisCard)
    }

    fn binding(&self) -> CardBinding {
        CardBinding::Medium(MediumBinding {
            directory: self.directory.to_string_lossy().into_owned(),
            device: self.device,
            inode: self.inode,
            fingerprint: self.fingerprint,
        })
    }
}

/// Opens the PBES2 envelope in a buffer that is wiped, capacity included.
fn decrypt(encrypted: &[u8], passphrase: &SecretBytes) -> Result<Zeroizing<Vec<u8>>, CardError> {
    const UNUSABLE: CardError = CardError::MediumFile(KEY_FILE);
    let info = EncryptedPrivateKeyInfoRef::from_der(encrypted).map_err(|_| UNUSABLE)?;
    let EncryptionScheme::Pbes2(parameters) = &info.encryption_algorithm else { return Err(UNUSABLE) };
    let affordable = match &parameters.kdf {
        pbes2::Kdf::Pbkdf2(kdf) => kdf.iteration_count <= MAX_ITERATIONS,
        pbes2::Kdf::Scrypt(kdf) => {
            let work = kdf.cost_parameter.checked_mul(u64::from(kdf.block_size)).and_then(|n| n.checked_mul(128));
            work.and_then(|n| n.checked_mul(u64::from(kdf.parallelization))).is_some_and(|n| n <= MAX_SCRYPT)
        }
        _ => false,
    };
    if !affordable {
        return Err(UNUSABLE);
    }
    let mut buffer = Zeroizing::new(info.encrypted_data.as_bytes().to_vec());
    let length =
        parameters.decrypt_in_place(passphrase.expose(), &mut buffer).map_err(|_| CardError::WrongPassphrase)?.len();
    buffer.truncate(length);
    Ok(buffer)
}

/// SHA-256 of the public key, from the certificate or the key beside it.
fn fingerprint(directory: &Path) -> Result<Fingerprint, CardError> {
    match read(directory, CERTIFICATE_FILE) {
        Ok((bytes, _)) => {
            trust::spki_sha256(&der(bytes, CERTIFICATE_FILE)?).map_err(|_| CardError::MediumFile(CERTIFICATE_FILE))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (bytes, _) = read(directory, PUBLIC_FILE).map_err(CardError::Medium)?;
            Ok(Sha256::digest(der(bytes, PUBLIC_FILE)?).into())
        }
        Err(error) => Err(CardError::Medium(error)),
    }
}

/// A file's content and inode. Neither a symbolic link nor a FIFO can lead or stop the reader.
fn read(directory: &Path, name: &str) -> io::Result<(Vec<u8>, u64)> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(directory.join(name))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file, or too large"));
    }
    let mut content = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut content)?;
    Ok((content, metadata.ino()))
}

/// DER out of DER or PEM.
fn der(content: Vec<u8>, name: &'static str) -> Result<Vec<u8>, CardError> {
    if !content.starts_with(b"-----BEGIN") {
        return Ok(content);
    }
    let text = std::str::from_utf8(&content).map_err(|_| CardError::MediumFile(name))?;
    let (_, document) = Document::from_pem(text).map_err(|_| CardError::MediumFile(name))?;
    Ok(document.as_bytes().to_vec())
}
