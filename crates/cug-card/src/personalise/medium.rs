//! Making a key on a removable medium.

use super::{PublicKey, RsaKey, check};
use crate::{
    Card, CardError,
    medium::{self as reading, CERTIFICATE_FILE, KEY_FILE, MediumCard, PUBLIC_FILE, SERVER_FILE},
};
use cug_proto::secret::{Secret, SecretBytes};
use pkcs8::{
    LineEnding, PrivateKeyInfoRef,
    der::{Decode, Document},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Makes a key for a medium: RSA with 2048, 3072 or 4096 bits. Takes up to some seconds. Nothing is written yet.
///
/// # Errors
/// [`CardError::KeyKind`]
pub fn medium(bits: usize) -> Result<PreparedMedium, CardError> {
    let key = RsaKey::generate(bits)?;
    Ok(PreparedMedium { public: key.public()?, key })
}

/// A key for a medium, still in memory only; wiped on drop.
pub struct PreparedMedium {
    key: RsaKey,
    public: PublicKey,
}

impl PreparedMedium {
    /// What the certificate is to be made for.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Writes key (encrypted with the passphrase: scrypt, AES-256-CBC), certificate and server object (both given in DER) into the directory,
    /// which must exist, and makes sure that they are on the medium. All or nothing.
    ///
    /// # Errors
    /// [`CardError::Exists`] when there is a key already, [`CardError::Mismatch`], [`CardError::Medium`]
    pub fn finish(
        self,
        directory: &Path,
        passphrase: &SecretBytes,
        certificate: &[u8],
        server_object: &[u8],
    ) -> Result<(), CardError> {
        check(&self.public.fingerprint(), Some(certificate), server_object)?;
        let info = PrivateKeyInfoRef::from_der(self.key.der()).map_err(|_| CardError::KeyKind)?;
        let encrypted =
            info.encrypt_with_rng(&mut getrandom::SysRng, passphrase.expose()).map_err(|_| CardError::Random)?;
        let key = encrypted.to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF).map_err(|_| CardError::KeyKind)?;
        let files = [
            (SERVER_FILE, pem(server_object)?, 0o600),
            (CERTIFICATE_FILE, pem(certificate)?, 0o600),
            // Last: only with this file is it a card.
            (KEY_FILE, key.as_bytes().to_vec(), 0o400),
        ];
        write_all(directory, &files)
    }
}

/// Reads back what was written to a medium, and opens a challenge with its key. Takes the time of the key derivation.
///
/// # Errors
/// [`CardError::Mismatch`] when it does not hold this server object; those of [`Card::unlock`] and [`Card::open_challenge`]
pub fn answer_of_medium(
    directory: &Path,
    server_object: &[u8],
    passphrase: &SecretBytes,
    ciphertext: &[u8],
) -> Result<Secret<32>, CardError> {
    let mut card = MediumCard::open(directory)?;
    if card.server_object().certificate() != server_object {
        return Err(CardError::Mismatch("server object"));
    }
    card.unlock(passphrase)?;
    card.open_challenge(ciphertext)
}

/// Whether there is a key, or part of what belongs to one, in this directory.
#[must_use]
pub fn medium_has_key(directory: &Path) -> bool {
    reading::has_key(directory) || FILES.iter().any(|name| directory.join(name).symlink_metadata().is_ok())
}

const FILES: [&str; 4] = [KEY_FILE, SERVER_FILE, CERTIFICATE_FILE, PUBLIC_FILE];

/// Removes key and certificates from a directory: the key first, because without it the rest is no card.
///
/// # Errors
/// [`CardError::Medium`]
pub fn clear_medium(directory: &Path) -> Result<(), CardError> {
    let remove = |path: PathBuf| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CardError::Medium(error)),
        _ => Ok(()),
    };
    FILES.iter().try_for_each(|name| remove(directory.join(name)).and_then(|()| remove(temporary(directory, name))))
}

fn temporary(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!(".{name}.new"))
}

fn pem(certificate: &[u8]) -> Result<Vec<u8>, CardError> {
    let document = Document::try_from(certificate).map_err(|_| CardError::Mismatch("certificate"))?;
    Ok(document.to_pem("CERTIFICATE", LineEnding::LF).map_err(|_| CardError::Mismatch("certificate"))?.into_bytes())
}

fn write_all(directory: &Path, files: &[(&str, Vec<u8>, u32)]) -> Result<(), CardError> {
    if files.iter().any(|(name, _, _)| directory.join(name).symlink_metadata().is_ok()) {
        return Err(CardError::Exists);
    }
    let mut made: Vec<PathBuf> = Vec::new();
    write_and_name(directory, files, &mut made).map_err(|error| {
        for path in made {
            let _best_effort = fs::remove_file(path);
        }
        CardError::Medium(error)
    })
}

/// Writes under temporary names, then gives the files theirs. FAT knows no links, so it is renaming.
fn write_and_name(directory: &Path, files: &[(&str, Vec<u8>, u32)], made: &mut Vec<PathBuf>) -> io::Result<()> {
    for (name, content, mode) in files {
        let path = temporary(directory, name);
        // Left by a write that was killed; without its name it never was a card.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path)?;
        made.push(path);
        file.write_all(content)?;
        file.sync_all()?;
    }
    for (name, _, _) in files {
        let path = directory.join(name);
        fs::rename(temporary(directory, name), &path)?;
        made.push(path);
    }
    File::open(directory)?.sync_all()
}
