//! The login's envelope against an implementation of COSE that was not written here: pycose, cbor2 and cryptography from PyPI,
//! in the environment that `tests/interop/setup` makes (`make test` runs it first).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use cug_proto::{
    envelope::{EnvelopeKey, SealedEnvelope},
    message::{Credentials, Purpose},
    secret::{Secret, SecretBytes},
};
use getrandom::{SysRng, rand_core::UnwrapErr};
use rsa::{
    Oaep, RsaPrivateKey,
    pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding},
    sha2::Sha256,
};
use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

static SERVER: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::new(&mut rng(), 2048).unwrap());

fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// What `cose.py` says, or what it complains about.
fn cose(command: &str, pem: &str, input: &[u8]) -> Result<Vec<u8>, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("../../target/interop-venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run 'crates/cug-proto/tests/interop/setup target/interop-venv' in the project's directory first",
        python.display()
    );
    let key = KeyFile::new(command, pem);
    let mut child = Command::new(python)
        .arg("-I")
        .arg(here.join("tests/interop/cose.py"))
        .arg(command)
        .arg(&key.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A key in a file that goes with the test.
struct KeyFile(PathBuf);

impl KeyFile {
    fn new(name: &str, pem: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}.pem", std::process::id()));
        std::fs::write(&path, pem).unwrap();
        Self(path)
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

fn private_pem(key: &RsaPrivateKey) -> String {
    key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
}

fn public_pem(key: &RsaPrivateKey) -> String {
    key.to_public_key().to_public_key_pem(LineEnding::LF).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn sealed_here() -> Vec<u8> {
    let credentials = Credentials {
        user: "USER-A".parse().unwrap(),
        password: SecretBytes::copy_from("pässwd1".as_bytes()).unwrap(),
        purpose: Purpose::Verify,
        wg_public_key: std::array::from_fn(|i| u8::try_from(i).unwrap()),
        host_name: "terminal-1.ward".parse().unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        outcome_secret: Secret::fill(|s| s.fill(0x0c)),
        new_password: SecretBytes::copy_from(b"new"),
    };
    EnvelopeKey::new(SERVER.to_public_key()).unwrap().seal(&credentials, &mut rng()).unwrap()
}

#[test]
fn another_implementation_opens_our_envelope_and_finds_every_field() {
    let key_id = hex(EnvelopeKey::new(SERVER.to_public_key()).unwrap().key_id());
    let wg = hex(&std::array::from_fn::<u8, 32, _>(|i| u8::try_from(i).unwrap()));
    // Tag 96; protected {1: 3} = A256GCM; unprotected 5 = a 12-byte IV; one recipient: -41 = RSAES-OAEP with SHA-256, 4 = key ID.
    let expected = format!(
        "tag 96\n\
         protected h'a10103'\n\
         unprotected [5] 12\n\
         recipient h'' [(1, '-41'), (4, \"h'{key_id}'\")] 256\n\
         field 0 \"USER-A\"\n\
         field 1 h'70c3a47373776431'\n\
         field 2 1\n\
         field 3 h'{wg}'\n\
         field 4 \"terminal-1.ward\"\n\
         field 5 [[0, h'0a000001'], [1, h'fd000000000000000000000000000001']]\n\
         field 6 h'{outcome_secret}'\n\
         field 7 h'6e6577'\n",
        outcome_secret = "0c".repeat(32),
    );
    let found = cose("open", &private_pem(&SERVER), &sealed_here()).unwrap();
    assert_eq!(String::from_utf8(found).unwrap(), expected);
}

#[test]
fn another_implementation_refuses_our_envelope_when_altered_or_for_another_key() {
    let sealed = sealed_here();
    let other = RsaPrivateKey::new(&mut rng(), 2048).unwrap();
    assert!(cose("open", &private_pem(&other), &sealed).is_err(), "another server's key");

    // The content's ciphertext begins after the headers; its last byte is the tag's, right before the recipients.
    let parsed = SealedEnvelope::parse(&sealed).unwrap();
    let wrapped_at = sealed.windows(256).position(|w| w == parsed.wrapped_key()).unwrap();
    for (what, at) in [("content", 40), ("wrapped key", wrapped_at + 9)] {
        let mut altered = sealed.clone();
        *altered.get_mut(at).unwrap() ^= 1;
        let complaint = cose("open", &private_pem(&SERVER), &altered).unwrap_err();
        assert!(complaint.contains("decrypt") || complaint.contains("Decryption"), "{what}: {complaint}");
    }
}

#[test]
fn we_open_what_another_implementation_sealed() {
    let fields = br#"[
        [0, "plain", "USER-B"],
        [1, "bytes", "7061737377643200ff"],
        [2, "plain", 0],
        [3, "bytes", "0303030303030303030303030303030303030303030303030303030303030303"],
        [4, "plain", "terminal-2"],
        [5, "ips", [[0, "0a000002"], [1, "fd000000000000000000000000000002"]]],
        [6, "bytes", "0606060606060606060606060606060606060606060606060606060606060606"],
        [99, "plain", "a field of a later version, to be skipped"]
    ]"#;
    let sealed = cose("seal", &public_pem(&SERVER), fields).unwrap();

    let envelope = SealedEnvelope::parse(&sealed).unwrap();
    assert_eq!(envelope.key_id(), EnvelopeKey::new(SERVER.to_public_key()).unwrap().key_id());
    let content_key = SERVER.decrypt(Oaep::<Sha256>::new(), envelope.wrapped_key()).unwrap();
    let opened = envelope.open(&Secret::copy_from(&content_key).unwrap()).unwrap();
    assert_eq!(opened.user.as_str(), "USER-B");
    assert_eq!(opened.password.expose(), b"passwd2\x00\xff");
    assert_eq!(opened.purpose, Purpose::Open);
    assert_eq!(opened.wg_public_key, [3; 32]);
    assert_eq!(opened.host_name.as_str(), "terminal-2");
    assert!(opened.outcome_secret.matches(&[6; 32]) && opened.new_password.is_none());
    let addresses: Vec<String> = opened.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.2", "fd00::2"]);
}
