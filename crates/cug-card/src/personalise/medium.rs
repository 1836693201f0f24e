//! Making a key on a removable medium.

use super::{PublicKey, RsaKey, check};
use crate::{
    CardError,
    medium::{CERTIFICATE_FILE, KEY_FILE, SERVER_FILE},
};
use cug_proto::secret::SecretBytes;
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
    let temporary = |name: &str| directory.join(format!(".{name}.new"));
    for (name, content, mode) in files {
        let path = temporary(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path)?;
        made.push(path);
        file.write_all(content)?;
        file.sync_all()?;
    }
    for (name, _, _) in files {
        let path = directory.join(name);
        fs::rename(temporary(name), &path)?;
        made.push(path);
    }
    File::open(directory)?.sync_all()
}
