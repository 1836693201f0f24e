//! What the card says about the server, and the TLS configuration that follows from it.
//!
//! The card's *server object* is an X.509 certificate (RFC 5280) for the server's RSA envelope key, issued by the organisation's CA. Its
//! AuthorityKeyIdentifier is the SHA-256 of the CA's `SubjectPublicKeyInfo` (RFC 7093 section 2, method 4). A TLS server is the right one when its chain
//! ends in a CA with that very key. So TLS keys rotate and servers are added without touching a card.

use crate::{ProtocolError, envelope::EnvelopeKey};
use rsa::{RsaPublicKey, pkcs8::DecodePublicKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
    ext::pkix::AuthorityKeyIdentifier,
};

/// The name in every management server's TLS certificate. Addresses change; who the server is comes from the card.
pub const SERVER_NAME: &str = "cug-server.internal";

/// TLS application protocol (RFC 7301).
pub const ALPN: &[u8] = b"cug/1";

/// Largest server object on a card, in bytes.
pub const MAX_SERVER_OBJECT: usize = 2048;

/// SHA-256 of the CA's DER `SubjectPublicKeyInfo`.
pub type CaPin = [u8; 32];

/// The server object: whom this card trusts.
pub struct ServerObject {
    certificate: Vec<u8>,
    ca_pin: CaPin,
    envelope_key: EnvelopeKey,
}

impl ServerObject {
    /// Reads the DER certificate from a card.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`] when it is no such certificate, [`ProtocolError::Key`] when its key is not RSA 2048 to 4096.
    pub fn parse(der: &[u8]) -> Result<Self, ProtocolError> {
        if der.len() > MAX_SERVER_OBJECT {
            return Err(ProtocolError::TooLarge);
        }
        let certificate = Certificate::from_der(der).map_err(|_| ProtocolError::Malformed)?;
        let tbs = certificate.tbs_certificate();
        let (_, issuer) = tbs
            .get_extension::<AuthorityKeyIdentifier>()
            .map_err(|_| ProtocolError::Malformed)?
            .ok_or(ProtocolError::Malformed)?;
        let key_identifier = issuer.key_identifier.ok_or(ProtocolError::Malformed)?;
        let ca_pin = CaPin::try_from(key_identifier.as_bytes()).map_err(|_| ProtocolError::Malformed)?;
        let spki = tbs.subject_public_key_info().to_der().map_err(|_| ProtocolError::Malformed)?;
        let key = RsaPublicKey::from_public_key_der(&spki).map_err(|_| ProtocolError::Key)?;
        Ok(Self { certificate: der.to_vec(), ca_pin, envelope_key: EnvelopeKey::new(key)? })
    }

    /// The DER certificate.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Whom to trust in TLS.
    pub fn ca_pin(&self) -> &CaPin {
        &self.ca_pin
    }

    /// To whom ID and password are encrypted.
    pub fn envelope_key(&self) -> &EnvelopeKey {
        &self.envelope_key
    }
}

/// SHA-256 of the DER `SubjectPublicKeyInfo` of a DER certificate: a CA's pin, or a card's fingerprint.
///
/// # Errors
/// [`ProtocolError::Malformed`]
pub fn spki_sha256(certificate: &[u8]) -> Result<[u8; 32], ProtocolError> {
    let certificate = Certificate::from_der(certificate).map_err(|_| ProtocolError::Malformed)?;
    let spki =
        certificate.tbs_certificate().subject_public_key_info().to_der().map_err(|_| ProtocolError::Malformed)?;
    Ok(Sha256::digest(spki).into())
}

/// A server object that came over the network: one that the CA in `ca` (a DER certificate) has signed, and that CA is the pinned one. An object on a
/// card needs no such check, because who wrote it had the card.
///
/// # Errors
/// Those of [`ServerObject::parse`]; [`ProtocolError::NotAuthentic`] when it is not of this CA, [`ProtocolError::Key`] for a signature of another kind.
pub fn signed_server_object(der: &[u8], ca: &[u8], pin: &CaPin) -> Result<ServerObject, ProtocolError> {
    let object = ServerObject::parse(der)?;
    if spki_sha256(ca)? != *pin || object.ca_pin() != pin {
        return Err(ProtocolError::NotAuthentic);
    }
    let malformed = |_| ProtocolError::Malformed;
    let (certificate, ca) =
        (Certificate::from_der(der).map_err(malformed)?, Certificate::from_der(ca).map_err(malformed)?);
    let signed = certificate.tbs_certificate().to_der().map_err(malformed)?;
    let key = ca.tbs_certificate().subject_public_key_info();
    // webpki's identifiers are the contents of the DER sequence, without its header.
    let (key_algorithm, signature_algorithm) =
        (key.algorithm.to_der().map_err(malformed)?, certificate.signature_algorithm().to_der().map_err(malformed)?);
    let (Some(key_bytes), Some(signature)) = (key.subject_public_key.as_bytes(), certificate.signature().as_bytes())
    else {
        return Err(ProtocolError::Malformed);
    };
    let known = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let fitting = known.all.iter().find(|algorithm| {
        key_algorithm.get(2..) == Some(algorithm.public_key_alg_id().as_ref())
            && signature_algorithm.get(2..) == Some(algorithm.signature_alg_id().as_ref())
    });
    fitting
        .ok_or(ProtocolError::Key)?
        .verify_signature(key_bytes, &signed, signature)
        .map_err(|_| ProtocolError::NotAuthentic)?;
    Ok(object)
}

/// TLS 1.3 towards the server whose CA the card names; nothing is resumed, nothing is sent early.
///
/// # Errors
/// [`TlsError`] when the TLS library refuses the configuration.
pub fn client_config(ca_pin: CaPin) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa { ca_pin, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The name to give to the TLS library.
pub fn server_name() -> ServerName<'static> {
    // A constant DNS name; the fallback is never reached and would only fail closed.
    ServerName::try_from(SERVER_NAME).unwrap_or(ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

/// Ordinary WebPKI verification, with the pinned CA out of the server's own chain as the only root.
#[derive(Debug)]
struct PinnedCa {
    ca_pin: CaPin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let unknown_issuer = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates
            .iter()
            .find(|c| spki_sha256(c).is_ok_and(|pin| pin == self.ca_pin))
            .ok_or_else(unknown_issuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned()).map_err(|_| unknown_issuer())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| unknown_issuer())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not used".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
