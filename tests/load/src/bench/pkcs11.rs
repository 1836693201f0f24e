//! A login with password and card as distributions have it: pam_unix with yescrypt, and pam_pkcs11 with OpenSC, in one stack.

use anyhow::ensure;
use cug_cards::{OwnCard, OwnOptions};
use cug_tests::terminal::Terminal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, RsaKeySize};
use rsa::RsaPrivateKey;
use rsa::pkcs8::DecodePrivateKey;
use std::path::Path;
use std::process::Command;

/// The PAM service with that stack.
pub(super) const SERVICE: &str = "pkcs11-login";

/// Slot "PIV authentication" and its certificate: what such logins use.
const SLOT: u8 = 0x9A;
const CERTIFICATE: u32 = 0x5F_C105;

const MODULE: &str = "/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so";

/// pam_unix comes first: it would take the PIN that pam_pkcs11 leaves behind for the password.
const STACK: &str = "auth required pam_unix.so\nauth required pam_pkcs11.so\naccount required pam_unix.so\nsession required pam_unix.so\n";

/// The user's name is in the certificate, which a CA has signed; the card signs a challenge.
const CONFIG: &str = r#"
pam_pkcs11 {
  nullok = false;
  debug = false;
  use_first_pass = false;
  try_first_pass = false;
  use_authtok = false;
  card_only = false;
  wait_for_card = false;
  use_pkcs11_module = opensc;
  pkcs11_module opensc {
    module = /usr/lib/x86_64-linux-gnu/opensc-pkcs11.so;
    description = "OpenSC";
    slot_description = "none";
    ca_dir = /etc/pam_pkcs11/cacerts/ca.pem;
    crl_dir = /etc/pam_pkcs11/crls;
    support_threads = false;
    cert_policy = ca,signature;
    token_type = "Smart card";
  }
  use_mappers = cn;
  mapper cn {
    debug = false;
    module = internal;
    ignorecase = false;
    mapfile = "none";
  }
}
"#;

/// Configures a terminal for it, and makes the card; nothing of ours is on it yet.
///
/// # Errors
/// When a package is missing.
pub(super) fn prepare(terminal: &Terminal, user: &str, password: &str) -> anyhow::Result<OwnCard> {
    let modules = cug_tests::paths::pam_modules()?;
    for needed in [modules.join("pam_pkcs11.so").as_path(), Path::new(MODULE)] {
        ensure!(needed.exists(), "{} is missing: the packages libpam-pkcs11 and opensc-pkcs11", needed.display());
    }
    let space = terminal.space();
    let (authority, certificate, key) = certify(user)?;
    space.write(&format!("/etc/pam.d/{SERVICE}"), STACK, 0o644)?;
    space.write("/etc/pam_pkcs11/pam_pkcs11.conf", CONFIG, 0o644)?;
    space.write("/etc/pam_pkcs11/cacerts/ca.pem", authority, 0o644)?;
    let shadow = std::fs::read_to_string(space.path("/etc/shadow"))?;
    let locked = format!("\n{user}:!:");
    ensure!(shadow.contains(&locked), "the account of {user} is not as expected");
    space.write("/etc/shadow", shadow.replace(&locked, &format!("\n{user}:{}:", yescrypt(password)?)), 0o640)?;

    let mut card = OwnCard::new(OwnOptions::default())?;
    card.set_key(SLOT, key, None)?;
    let [high, low] = u16::try_from(certificate.len())?.to_be_bytes();
    // The certificate, not compressed, without error detection code (SP 800-73-4 part 1, table 10).
    let object = [&[0x70, 0x82, high, low][..], &certificate, &[0x71, 0x01, 0x00, 0xFE, 0x00]].concat();
    card.set_object(CERTIFICATE, &object)?;
    Ok(card)
}

/// A CA in PEM, the user's certificate in DER, and its key.
fn certify(user: &str) -> anyhow::Result<(String, Vec<u8>, RsaPrivateKey)> {
    let rsa = || KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048);
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Card CA");
    let key = rsa()?;
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(Vec::new())?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    let key = rsa()?;
    let certificate = params.signed_by(&key, &issuer)?.der().to_vec();
    Ok((authority, certificate, RsaPrivateKey::from_pkcs8_der(key.serialized_der())?))
}

/// Hashed as passwd(1) does it on Debian: crypt(5) with its usual cost.
fn yescrypt(password: &str) -> anyhow::Result<String> {
    const SETTING: &str = "$y$j9T$cugBenchSaltcugBenchSa.";
    let output = Command::new("perl").args(["-e", "print crypt($ARGV[0], $ARGV[1])", password, SETTING]).output()?;
    let hash = String::from_utf8(output.stdout)?;
    ensure!(hash.starts_with("$y$") && hash.len() > SETTING.len(), "crypt(3) knows no yescrypt");
    Ok(hash)
}
