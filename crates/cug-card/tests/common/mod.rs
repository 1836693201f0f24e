//! An organisation for the tests: a CA, a server object, certificates for members.
#![allow(dead_code, reason = "each test binary uses its part")]

use cug_proto::trust;
use rcgen::{
    CertificateParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize,
    SignatureAlgorithm,
};
use rsa::{RsaPublicKey, pkcs1::EncodeRsaPublicKey, pkcs8::DecodePublicKey};
use sha2::{Digest, Sha256};

/// A CA and what it has issued.
pub struct Organisation {
    issuer: Issuer<'static, KeyPair>,
    /// DER.
    pub server_object: Vec<u8>,
}

/// A public key whose private half is elsewhere.
struct Foreign(Vec<u8>);

impl PublicKeyData for Foreign {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

impl Organisation {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "Test CA");
        ca.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.key_identifier_method = KeyIdMethod::PreSpecified(Sha256::digest(key.subject_public_key_info()).to_vec());
        let issuer = Issuer::new(ca, key);
        let server_key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let mut server = CertificateParams::default();
        server.distinguished_name.push(DnType::CommonName, "Test server");
        server.use_authority_key_identifier_extension = true;
        let server_object = server.signed_by(&server_key, &issuer).unwrap().der().to_vec();
        trust::ServerObject::parse(&server_object).unwrap();
        Self { issuer, server_object }
    }

    /// A certificate in DER for a key given as DER `SubjectPublicKeyInfo`.
    pub fn certify(&self, spki: &[u8]) -> Vec<u8> {
        let key = RsaPublicKey::from_public_key_der(spki).unwrap();
        let mut member = CertificateParams::default();
        member.distinguished_name.push(DnType::CommonName, "A member");
        member.signed_by(&Foreign(key.to_pkcs1_der().unwrap().into_vec()), &self.issuer).unwrap().der().to_vec()
    }
}
