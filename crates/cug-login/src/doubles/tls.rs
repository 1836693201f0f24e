//! A certificate authority and a TLS server on the loopback interface.

use cug_proto::{
    login::EXPORTER_LABEL,
    trust::{ALPN, CaPin, SERVER_NAME, spki_sha256},
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, PublicKeyData,
    SignatureAlgorithm,
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

pub struct TestCa {
    pub pin: CaPin,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

struct RsaPublic(Vec<u8>);

impl PublicKeyData for RsaPublic {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl TestCa {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let pin = spki_sha256(&certificate).unwrap();
        params.key_identifier_method = KeyIdMethod::PreSpecified(pin.to_vec());
        Self { pin, certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for the server's RSA key, as it is on a card.
    pub fn server_object(&self, spki: &rsa::pkcs8::Document) -> Vec<u8> {
        // The bit string of a SubjectPublicKeyInfo is its end: here the 270 bytes of a PKCS #1 key of 2048 bits.
        let key = RsaPublic(spki.as_bytes()[spki.as_bytes().len() - 270..].to_vec());
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }

    fn leaf(&self) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![SERVER_NAME.into()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }
}

/// A server that takes one connection and sends the first bytes that it receives back.
pub struct Echo {
    pub address: String,
    exporter: mpsc::Receiver<[u8; 32]>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    /// The exporter as the server sees it.
    pub fn exporter(&self) -> [u8; 32] {
        self.exporter.recv_timeout(Duration::from_secs(5)).unwrap()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn tls_server(ca: &TestCa) -> Echo {
    let (leaf, key) = ca.leaf();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf, ca.certificate.clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (send, exporter) = mpsc::channel();
    let thread = thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), tcp);
        let mut bytes = [0; 64];
        if let Ok(n) = tls.read(&mut bytes) {
            tls.write_all(&bytes[..n]).unwrap();
            // As much as the first bytes announce, when they are the header of a larger frame.
            let announced = u32::from_be_bytes(bytes[..4].try_into().unwrap());
            tls.write_all(&vec![0; (announced as usize + 4).saturating_sub(n)]).unwrap();
            let _sent = send.send(tls.conn.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap());
        }
    });
    Echo { address, exporter, thread: Some(thread) }
}
