//! The server's TLS key and its certificate: exchanged while the server runs, made here or signed elsewhere.

use super::certify::{self, KeyError, TLS_LIFE};
use crate::clock::{UnixTime, rfc3339};
use cug_proto::trust;
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PublicKeyData};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use zeroize::Zeroizing;

/// From this long before its end on, the certificate is worth a warning (30 days, in seconds).
pub const TLS_WARNING: UnixTime = 30 * 86_400;

/// What the server shows to terminals now. New connections see an exchange at once; those that stand are not touched.
#[derive(Debug, Default)]
pub(super) struct Leaf(RwLock<Option<Arc<CertifiedKey>>>);

impl Leaf {
    fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The TLS certificate, for the administrator.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TlsInfo {
    /// Valid until, RFC 3339.
    pub until: String,
    /// The same in seconds since 1970.
    pub until_unix: UnixTime,
    /// SHA-256 of the public key, hexadecimal.
    pub key: String,
    /// The CA's key is here: the certificate is renewed by itself.
    pub renews: bool,
}

/// The files of the TLS key.
pub(super) struct TlsFiles<'a> {
    /// The directory of all keys.
    pub(super) dir: &'a Path,
    /// The CA's certificate.
    pub(super) ca: &'a CertificateDer<'static>,
}

impl TlsFiles<'_> {
    fn present(&self) -> PathBuf {
        self.dir.join("tls.pem")
    }

    fn requested(&self) -> PathBuf {
        self.dir.join("tls-requested.key")
    }

    fn ca_key_is_here(&self) -> bool {
        self.dir.join("ca.key").exists()
    }

    /// What there is.
    pub(super) fn info(&self) -> Result<TlsInfo, KeyError> {
        let file = self.present();
        let certificate = certify::read_certificate(&file)?;
        let until_unix = end(&certificate).ok_or_else(|| KeyError::bad(&file))?;
        let key = trust::spki_sha256(&certificate).map_err(|_| KeyError::bad(&file))?;
        let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(TlsInfo { until: rfc3339(until_unix), until_unix, key, renews: self.ca_key_is_here() })
    }

    /// Makes the file what the server shows.
    pub(super) fn show(&self, leaf: &Leaf) -> Result<(), KeyError> {
        let file = self.present();
        let chain = vec![certify::read_certificate(&file)?, self.ca.clone()];
        let key = certify::read_private_key(&file)?;
        let certified = CertifiedKey::from_der(chain, key, &default_provider());
        leaf.set(certified.map_err(|e| KeyError::Tls(e.to_string()))?);
        Ok(())
    }

    /// A new key with a certificate of the CA, whose key must be here.
    pub(super) fn issue(&self, now: UnixTime) -> Result<(), KeyError> {
        certify::issue_tls(self.dir, &certify::issuer(self.dir, self.ca)?, now)
    }

    /// Renews when less than a third of the certificate's life is left. Without the CA's key it stays as long as it is valid.
    pub(super) fn renew(&self, now: UnixTime) -> Result<(), KeyError> {
        let left = self.info()?.until_unix.saturating_sub(now);
        if left >= TLS_LIFE / 3 {
            return Ok(());
        }
        if self.ca_key_is_here() {
            tracing::info!("the TLS certificate is renewed");
            return self.issue(now);
        }
        if left < TLS_WARNING {
            tracing::warn!(
                days_left = left.div_euclid(86_400),
                "the TLS certificate must be renewed: `cug-server tls request`, sign it where the CA's key is, `cug-server tls install`"
            );
        }
        Ok(())
    }

    /// Makes a key for which a certificate can be signed elsewhere; answers with the request (PKCS #10, PEM). The key in use stays.
    pub(super) fn request(&self) -> Result<String, KeyError> {
        let key = KeyPair::generate()?;
        let request = CertificateParams::new(vec![trust::SERVER_NAME.to_owned()])?.serialize_request(&key)?.pem()?;
        certify::replace(&self.requested(), Zeroizing::new(key.serialize_pem()).as_bytes())?;
        Ok(request)
    }

    /// Signs a request. Only its public key counts, and that whoever made it has the private key; everything else is always the same.
    pub(super) fn sign(&self, request: &str, now: UnixTime) -> Result<String, KeyError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|_| KeyError::Unfit("this is not a certificate signing request in PEM"))?;
        let issuer = certify::issuer(self.dir, self.ca)?;
        Ok(certify::tls_params(now)?.signed_by(&request.public_key, &issuer)?.pem())
    }

    /// Puts a certificate into use that was signed for the last request.
    pub(super) fn install(&self, certificate: &str, now: UnixTime) -> Result<(), KeyError> {
        let requested = self.requested();
        if !requested.exists() {
            return Err(KeyError::Unfit("nothing was requested here: begin with `cug-server tls request`"));
        }
        let key = KeyPair::try_from(&certify::read_private_key(&requested)?).map_err(|_| KeyError::bad(&requested))?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| KeyError::Unfit("this is not a certificate in PEM"))?;
        self.check(&certificate, &key, now)?;
        let pem = pem(&certificate);
        let both = Zeroizing::new([pem, key.serialize_pem()].concat());
        certify::replace(&self.present(), both.as_bytes())?;
        fs::remove_file(&requested).map_err(|e| KeyError::file(&requested, e))
    }

    /// What a terminal will check, so that no terminal is the first to find out.
    fn check(&self, certificate: &CertificateDer<'_>, key: &KeyPair, now: UnixTime) -> Result<(), KeyError> {
        let own = trust::spki_sha256(certificate).map_err(|_| KeyError::Unfit("this certificate cannot be read"))?;
        if own != <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(key.subject_public_key_info())) {
            return Err(KeyError::Unfit("this certificate is not for the key that was requested here last"));
        }
        if accepted(certificate, self.ca, now) {
            return Ok(());
        }
        Err(KeyError::Unfit(
            "terminals would not accept this certificate: it is not this organisation's for its management servers, or not valid now",
        ))
    }
}

/// Whether a terminal whose card names this CA would accept the certificate.
fn accepted(leaf: &CertificateDer<'_>, ca: &CertificateDer<'static>, now: UnixTime) -> bool {
    let since = Duration::from_secs(u64::try_from(now).unwrap_or(0));
    let now = rustls::pki_types::UnixTime::since_unix_epoch(since);
    let mut roots = RootCertStore::empty();
    if roots.add(ca.clone()).is_err() {
        return false;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider())).build();
    verifier.is_ok_and(|v| v.verify_server_cert(leaf, &[], &trust::server_name(), &[], now).is_ok())
}

/// When a certificate ends, in seconds since 1970.
fn end(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let parsed: x509_cert::Certificate = x509_cert::der::Decode::from_der(certificate).ok()?;
    UnixTime::try_from(parsed.tbs_certificate().validity().not_after.to_unix_duration().as_secs()).ok()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use x509_cert::der::EncodePem;
    let parsed: Option<x509_cert::Certificate> = x509_cert::der::Decode::from_der(certificate).ok();
    parsed.and_then(|c| c.to_pem(x509_cert::der::pem::LineEnding::LF).ok()).unwrap_or_default()
}
