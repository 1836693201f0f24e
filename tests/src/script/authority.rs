//! An organisation with a server key, as a card knows it: made here, so that a test's server has keys of its own.

use anyhow::Context;
use cug_cards::{Management, OwnCard, OwnOptions, host};
use cug_proto::trust::{ALPN, CaPin, SERVER_NAME, ServerObject};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyIdMethod, KeyPair, PublicKeyData, SignatureAlgorithm,
};
use rsa::pkcs1::EncodeRsaPublicKey;
use rsa::pkcs8::EncodePublicKey;
use rsa::{RsaPrivateKey, RsaPublicKey};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// An organisation's CA, its server's RSA key, and its TLS key.
pub struct Authority {
    /// Decrypts ID and password.
    pub envelope_key: RsaPrivateKey,
    /// What goes on a card: a certificate of the key above.
    pub server_object: Vec<u8>,
    tls: Arc<ServerConfig>,
}

/// The server's RSA public key in the form that the certificate library wants.
struct RsaSubject(Vec<u8>);

impl PublicKeyData for RsaSubject {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn new() -> anyhow::Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_identifier_method = KeyIdMethod::PreSpecified(Sha256::digest(ca_key.subject_public_key_info()).to_vec());
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::from_params(&ca, &ca_key);

        let envelope_key = rsa_key(2048)?;
        let subject = RsaSubject(RsaPublicKey::from(&envelope_key).to_pkcs1_der()?.as_bytes().to_vec());
        let mut params = CertificateParams::new(Vec::new())?;
        params.use_authority_key_identifier_extension = true;
        let server_object = params.signed_by(&subject, &issuer)?.der().to_vec();

        let tls_key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![SERVER_NAME.to_owned()])?.signed_by(&tls_key, &issuer)?;
        let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone(), ca_certificate.der().clone()];
        let key = PrivateKeyDer::try_from(tls_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { envelope_key, server_object, tls: Arc::new(tls) })
    }

    /// The CA, as `cugd.toml` wants it.
    ///
    /// # Errors
    /// Never: the server object was made here.
    pub fn ca_pin(&self) -> anyhow::Result<CaPin> {
        Ok(*ServerObject::parse(&self.server_object)?.ca_pin())
    }

    /// TLS as the server.
    pub fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tls)
    }

    /// A card of this organisation, and its public key.
    ///
    /// # Errors
    /// When the card refuses.
    pub fn card(&self) -> anyhow::Result<(crate::card::PivCard, RsaPublicKey)> {
        let mut card = OwnCard::new(OwnOptions::default())?;
        host::select(&mut card)?;
        host::authenticate(&mut card, &Management::default())?;
        let key = host::generate(&mut card, 0x9D, 2048, None)?;
        let fingerprint = Sha256::digest(key.to_public_key_der()?.as_bytes());
        host::put_object(&mut card, 0x5F_C1_0D, &server_data(&self.server_object, &fingerprint)?)?;
        cug_cards::Card::reset(&mut card);
        Ok((crate::card::PivCard::from_own(card), key))
    }
}

/// The PIV data object with the server's certificate and the card's fingerprint.
fn server_data(certificate: &[u8], fingerprint: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u16::try_from(certificate.len()).context("a certificate of more than 64 KiB")?.to_be_bytes();
    let mut data = vec![0x70, 0x82, length[0], length[1]];
    data.extend_from_slice(certificate);
    data.extend_from_slice(&[0x71, 1, 0, 0x72, 32]);
    data.extend_from_slice(fingerprint);
    data.extend_from_slice(&[0xFE, 0]);
    Ok(data)
}

/// A new RSA key.
///
/// # Errors
/// When the size is not possible.
pub fn rsa_key(bits: usize) -> anyhow::Result<RsaPrivateKey> {
    Ok(RsaPrivateKey::new(&mut rng(), bits)?)
}

/// The system's random source in the form that the RSA library wants.
pub fn rng() -> impl rsa::rand_core::CryptoRng {
    rsa::rand_core::UnwrapErr(getrandom::SysRng)
}
