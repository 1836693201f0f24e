//! The organisation's keys, as files in `STATE-DIR/keys` that only the server's user can read.
//!
//! | file | what | changes |
//! |---|---|---|
//! | `ca.key`, `ca.pem` | the CA, ECDSA P-256; cards trust it through the server object | never |
//! | `envelope.key`, `envelope.pem` | RSA 3072, to which terminals encrypt ID and password; the certificate is the cards' server object | never |
//! | `tls.pem` | the TLS key of this server and its certificate, ECDSA P-256, a year | by itself, or by `tls rotate`, `tls install` |
//! | `storage.key` | 32 bytes that wrap group keys and session secrets in the database; may lie elsewhere | by `server-key rotate` |
//! | `audit.key` | 32 bytes that chain the audit | never |
//! | `decoy.key`, `decoy-BITS.pem` | what unknown users and cards are challenged with | never |

mod audit;
mod certify;
mod storage;
mod tls;
mod wrap;

pub use audit::{AuditKey, Chain};
pub use certify::{KeyError, create, create_with};
pub use storage::{Storage, StoragePlace};
pub use tls::{TLS_WARNING, TlsInfo};
pub use wrap::{Held, StorageKey, StorageKeyId, Wrapped};

use crate::{
    clock::{self, UnixTime},
    store::StoreError,
};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use cug_proto::{
    ProtocolError,
    id::{Epoch, GroupId},
    kdf,
    login::CARD_KEY_BITS,
    message::Fingerprint,
    secret::Secret,
    trust,
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tls::{Leaf, TlsFiles};
use zeroize::Zeroizing;

/// All keys, loaded.
pub struct Keys {
    dir: PathBuf,
    ca: CertificateDer<'static>,
    server_object: CertificateDer<'static>,
    envelope: OaepPrivateDecryptingKey,
    envelope_id: [u8; 32],
    storage: Storage,
    decoys: Decoys,
    audit: AuditKey,
    leaf: Arc<Leaf>,
}

impl Keys {
    /// Reads the keys of a state directory.
    ///
    /// # Errors
    /// [`KeyError`]: the server was not initialised, or a file cannot be read or is not what it should be.
    pub fn load(state_dir: &Path) -> Result<Self, KeyError> {
        Self::load_with(state_dir, StoragePlace::of(state_dir, None))
    }

    /// Reads the keys of a state directory, and the storage key from its place.
    ///
    /// # Errors
    /// As [`Keys::load`].
    pub fn load_with(state_dir: &Path, storage: StoragePlace) -> Result<Self, KeyError> {
        let dir = state_dir.join("keys");
        if !dir.is_dir() {
            return Err(KeyError::NotInitialised(state_dir.into()));
        }
        let ca = certify::read_certificate(&dir.join("ca.pem"))?;
        let server_object = certify::read_certificate(&dir.join("envelope.pem"))?;
        let object =
            trust::ServerObject::parse(&server_object).map_err(|_| KeyError::bad(&dir.join("envelope.pem")))?;
        let key = certify::read_private_key(&dir.join("envelope.key"))?;
        let envelope = PrivateDecryptingKey::from_pkcs8(key.secret_der())
            .ok()
            .and_then(|key| OaepPrivateDecryptingKey::new(key).ok())
            .ok_or_else(|| KeyError::bad(&dir.join("envelope.key")))?;
        let storage = Storage::load(storage)?;
        let decoys = Decoys::load(&dir)?;
        let audit = AuditKey::load(&dir, storage.key())?;
        let (envelope_id, leaf) = (*object.envelope_key().key_id(), Arc::default());
        Ok(Self { ca, server_object, envelope, envelope_id, storage, decoys, audit, leaf, dir })
    }

    /// SHA-256 of the public key of a state directory's CA: what terminals must be told.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn ca_pin(state_dir: &Path) -> Result<trust::CaPin, KeyError> {
        let dir = state_dir.join("keys");
        if !dir.is_dir() {
            return Err(KeyError::NotInitialised(state_dir.into()));
        }
        let file = dir.join("ca.pem");
        trust::spki_sha256(&certify::read_certificate(&file)?).map_err(|_| KeyError::bad(&file))
    }

    /// The server object for cards: a DER certificate.
    pub fn server_object(&self) -> &[u8] {
        &self.server_object
    }

    /// The CA's DER certificate.
    pub fn ca(&self) -> &[u8] {
        &self.ca
    }

    /// Wraps what must not be in the database in clear.
    pub fn storage(&self) -> &StorageKey {
        self.storage.key()
    }

    /// The same with its place: to check it and to exchange it.
    pub fn storage_place(&self) -> &Storage {
        &self.storage
    }

    /// Chains the audit.
    pub fn audit(&self) -> &AuditKey {
        &self.audit
    }

    /// Keeps the audit's key, when it has no file yet. Called once the chain has begun.
    ///
    /// # Errors
    /// [`KeyError::File`]
    pub fn keep_audit_key(&self) -> Result<(), KeyError> {
        self.audit.keep(&self.dir)
    }

    /// A new group key, wrapped at once.
    ///
    /// # Errors
    /// [`StoreError::Fault`]
    pub fn mint(&self, group: GroupId, epoch: Epoch) -> Result<Vec<u8>, StoreError> {
        let key = Secret::random(&mut clock::rng());
        let wrapped = self.storage().wrap_group_key(group, epoch, &key, &mut clock::rng());
        wrapped.map_err(|e| StoreError::Fault(e.into()))
    }

    /// What the unknown are challenged with.
    pub fn decoys(&self) -> &Decoys {
        &self.decoys
    }

    /// SHA-256 of the envelope key's DER `SubjectPublicKeyInfo`.
    pub fn envelope_id(&self) -> &[u8; 32] {
        &self.envelope_id
    }

    /// Decrypts a content key: RSA-OAEP with SHA-256 (patent, step S22). Blocks for a millisecond or two.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn unwrap_content_key(&self, wrapped: &[u8]) -> Result<Secret<32>, ProtocolError> {
        let mut buffer = Zeroizing::new(vec![0; self.envelope.min_output_size()]);
        let plain = self
            .envelope
            .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut buffer, None)
            .map_err(|_| ProtocolError::NotAuthentic)?;
        Secret::copy_from(plain).ok_or(ProtocolError::NotAuthentic)
    }

    /// The certificate of a card's key (DER), for the card's holder and other programs to look at; nothing here depends on it.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn certify_card(&self, user: &str, spki: &[u8], now: UnixTime) -> Result<Vec<u8>, KeyError> {
        certify::certify_card(&self.dir, &self.ca, user, spki, now)
    }

    /// The TLS configuration; makes a new TLS certificate first when less than a third of the present one's life is left and the CA's key is
    /// here. Later exchanges of the key show in it at once.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn tls_config(&self, now: UnixTime) -> Result<Arc<ServerConfig>, KeyError> {
        self.watch_tls(now)?;
        server_config(self.leaf.clone()).map_err(|e| KeyError::Tls(e.to_string()))
    }

    /// Renews the TLS certificate when it is time, warns when it cannot and should, and shows what is on disk now.
    ///
    /// # Errors
    /// [`KeyError`]; what is shown stays.
    pub fn watch_tls(&self, now: UnixTime) -> Result<TlsInfo, KeyError> {
        let files = self.tls_files();
        files.renew(now)?;
        files.show(&self.leaf)?;
        files.info()
    }

    /// Makes a new TLS key with a certificate of the CA, and shows it to connections that come from now on.
    ///
    /// # Errors
    /// [`KeyError::NoCaKey`] when the CA's key is kept elsewhere.
    pub fn rotate_tls(&self, now: UnixTime) -> Result<TlsInfo, KeyError> {
        let files = self.tls_files();
        files.issue(now)?;
        files.show(&self.leaf)?;
        files.info()
    }

    /// The TLS certificate in use.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn tls_info(&self) -> Result<TlsInfo, KeyError> {
        self.tls_files().info()
    }

    /// A new TLS key that is not used yet; a request (PKCS #10, PEM) for its certificate.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn request_tls(&self) -> Result<String, KeyError> {
        self.tls_files().request()
    }

    /// The certificate (PEM) of a management server for a request.
    ///
    /// # Errors
    /// [`KeyError`]: not a request, or the CA's key is kept elsewhere.
    pub fn sign_tls(&self, request: &str, now: UnixTime) -> Result<String, KeyError> {
        self.tls_files().sign(request, now)
    }

    /// Puts the certificate (PEM) for the last request into use, and shows it to connections that come from now on.
    ///
    /// # Errors
    /// [`KeyError::Unfit`] when terminals would not accept it.
    pub fn install_tls(&self, certificate: &str, now: UnixTime) -> Result<TlsInfo, KeyError> {
        let files = self.tls_files();
        files.install(certificate, now)?;
        files.show(&self.leaf)?;
        files.info()
    }

    fn tls_files(&self) -> TlsFiles<'_> {
        TlsFiles { dir: &self.dir, ca: &self.ca }
    }
}

/// When the TLS certificate and the CA of a state directory expire.
///
/// # Errors
/// [`KeyError`]
pub fn expiries(state_dir: &Path) -> Result<[UnixTime; 2], KeyError> {
    let dir = state_dir.join("keys");
    Ok([certify::expiry(&dir.join("tls.pem"))?, certify::expiry(&dir.join("ca.pem"))?])
}

/// TLS 1.3 only; nothing is resumed and nothing is accepted early, so that every connection has its own exporter.
fn server_config(leaf: Arc<Leaf>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(leaf);
    config.alpn_protocols = vec![trust::ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Public keys whose private keys are gone: nobody can open a challenge made with one.
pub struct Decoys {
    secret: Secret<32>,
    keys: [Vec<u8>; CARD_KEY_BITS.len()],
}

impl Decoys {
    fn load(dir: &Path) -> Result<Self, KeyError> {
        let [small, middle, large] =
            CARD_KEY_BITS.map(|bits| certify::read_public_key(&dir.join(format!("decoy-{bits}.pem"))));
        Ok(Self { secret: read_secret(&dir.join("decoy.key"))?, keys: [small?, middle?, large?] })
    }

    /// The key (DER `SubjectPublicKeyInfo`, as cards' keys are stored) for an unknown card, always the same one for a fingerprint, of a size that real cards have too. `in_use` says which of
    /// [`CARD_KEY_BITS`] those are. The user ID plays no part: a registered card's size does not depend on it either.
    pub fn choose(&self, card: &Fingerprint, in_use: [bool; CARD_KEY_BITS.len()]) -> &[u8] {
        let [first, ..] = &self.keys;
        let candidates: Vec<_> = self.keys.iter().zip(in_use).filter_map(|(key, used)| used.then_some(key)).collect();
        let [draw, ..] = kdf::mac(&self.secret, &[card]);
        let index = usize::from(draw).checked_rem(candidates.len()).unwrap_or(0);
        candidates.get(index).copied().unwrap_or(first)
    }
}

fn read_secret(path: &Path) -> Result<Secret<32>, KeyError> {
    storage::private(path, false)?;
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|e| KeyError::file(path, e))?);
    Secret::copy_from(&bytes).ok_or_else(|| KeyError::bad(path))
}

#[cfg(test)]
mod tests;
