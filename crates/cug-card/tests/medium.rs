//! Keys on removable media: made, read by OpenSSL, used, and noticed when they go.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod common;

use common::Organisation;
use cug_card::{Card, CardBinding, CardError, PinRequest, RemovalCause, Selection, Watch, find, personalise, watch};
use cug_proto::{
    login,
    secret::{Secret, SecretBytes},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use pkcs8::{
    EncryptedPrivateKeyInfoRef,
    der::{Encode, asn1::OctetStringRef},
    pkcs5::pbes2,
};
use rand_core::UnwrapErr;
use rsa::{
    RsaPublicKey,
    pkcs8::{DecodePublicKey, EncodePublicKey},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

const PASSPHRASE: &str = "correct horse";
const LIMIT: Duration = Duration::from_secs(10);

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cug-card-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn secret(text: &str) -> SecretBytes {
    SecretBytes::copy_from(text.as_bytes()).unwrap()
}

fn organisation() -> &'static Organisation {
    static ORGANISATION: OnceLock<Organisation> = OnceLock::new();
    ORGANISATION.get_or_init(Organisation::new)
}

fn scrypt_parameters() -> pbes2::ScryptParams {
    let recommended = pbes2::Parameters::generate_scrypt(&mut getrandom::SysRng).unwrap();
    *recommended.kdf.scrypt().unwrap()
}

/// Makes a medium; gives its public key in DER.
fn issue(directory: &Path, bits: usize) -> Vec<u8> {
    let prepared = personalise::medium(bits).unwrap();
    let public = prepared.public_key().der().to_vec();
    let certificate = organisation().certify(&public);
    prepared.finish(directory, &secret(PASSPHRASE), &certificate, &organisation().server_object).unwrap();
    public
}

#[allow(clippy::disallowed_methods, reason = "the edge of the test")]
fn now() -> Instant {
    Instant::now()
}

/// As `find`, on media only: these tests run in an environment without a PC/SC service, or with one without readers.
fn find_medium(pattern: &Path, wait: Duration, on_wait: &mut dyn FnMut()) -> Result<Box<dyn Card>, CardError> {
    let selection = Selection {
        readers: vec!["no such reader".into()],
        media: vec![pattern.to_str().unwrap().to_owned()],
        ..Selection::default()
    };
    find(&selection, now() + wait, now, on_wait)
}

fn sealed(public: &[u8]) -> (Secret<32>, Vec<u8>) {
    let mut rng = UnwrapErr(getrandom::SysRng);
    let challenge = Secret::random(&mut rng);
    let key = RsaPublicKey::from_public_key_der(public).unwrap();
    let sealed = login::encrypt_challenge(&key, &challenge, &mut rng).unwrap();
    (challenge, sealed)
}

#[test]
fn a_medium_is_issued_found_and_used() {
    for bits in [2048, 3072, 4096] {
        let directory = Directory::new(&format!("use-{bits}"));
        let public = issue(&directory.0, bits);
        assert_eq!(fs::metadata(directory.0.join("card.p8")).unwrap().permissions().mode() & 0o777, 0o400);

        let mut card = find_medium(&directory.0, Duration::ZERO, &mut || panic!("nothing to wait for")).unwrap();
        assert_eq!(card.server_object().certificate(), organisation().server_object);
        assert_eq!(card.pin().unwrap(), PinRequest::Passphrase);
        let (challenge, ciphertext) = sealed(&public);
        assert!(matches!(card.open_challenge(&ciphertext), Err(CardError::PinRequired)));
        assert!(matches!(card.unlock(&secret("wrong")), Err(CardError::WrongPassphrase)));
        card.unlock(&secret(PASSPHRASE)).unwrap();
        assert!(card.open_challenge(&ciphertext).unwrap().matches(challenge.expose()));
        // Used up: the key is not kept.
        assert!(matches!(card.open_challenge(&ciphertext), Err(CardError::PinRequired)));
        card.unlock(&secret(PASSPHRASE)).unwrap();
        assert!(matches!(card.open_challenge(&vec![3; bits / 8]), Err(CardError::NotForThisCard)));
    }
}

#[test]
fn openssl_reads_the_key_and_we_read_openssls() {
    let directory = Directory::new("openssl");
    let public = issue(&directory.0, 2048);
    let key = directory.0.join("card.p8");
    let pass = format!("pass:{PASSPHRASE}");
    let output = Command::new("openssl")
        .args(["pkey", "-passin", &pass, "-pubout", "-outform", "DER", "-in"])
        .arg(&key)
        .output()
        .unwrap();
    assert_eq!(output.stdout, public, "{}", String::from_utf8_lossy(&output.stderr));

    // The other way round: PBKDF2, as `openssl genpkey` writes it, with a public key file instead of a certificate.
    fs::remove_file(&key).unwrap();
    fs::remove_file(directory.0.join("card.crt")).unwrap();
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-aes-256-cbc", "-pass", &pass, "-out"])
        .arg(&key)
        .output();
    assert!(made.unwrap().status.success());
    let file = directory.0.join("card.pub");
    let output = Command::new("openssl")
        .args(["pkey", "-passin", &pass, "-pubout", "-in"])
        .arg(&key)
        .arg("-out")
        .arg(&file)
        .output();
    assert!(output.unwrap().status.success());
    let mut card = find_medium(&directory.0, Duration::ZERO, &mut || ()).unwrap();
    card.unlock(&secret(PASSPHRASE)).unwrap();
    let pem = fs::read_to_string(&file).unwrap();
    let public = RsaPublicKey::from_public_key_pem(&pem).unwrap().to_public_key_der().unwrap();
    let (challenge, ciphertext) = sealed(public.as_bytes());
    assert!(card.open_challenge(&ciphertext).unwrap().matches(challenge.expose()));
}

#[test]
fn damaged_media_are_refused_in_one_sentence() {
    let directory = Directory::new("damaged");
    issue(&directory.0, 2048);
    let again = personalise::medium(2048).unwrap();
    let certificate = organisation().certify(again.public_key().der());
    let result = again.finish(&directory.0, &secret(PASSPHRASE), &certificate, &organisation().server_object);
    assert!(matches!(result, Err(CardError::Exists)));
    let other = personalise::medium(2048).unwrap();
    let elsewhere = Directory::new("damaged-other");
    let result = other.finish(&elsewhere.0, &secret(PASSPHRASE), &certificate, &organisation().server_object);
    assert!(matches!(result, Err(CardError::Mismatch(_))));
    assert_eq!(fs::read_dir(&elsewhere.0).unwrap().count(), 0, "nothing is left of a failed attempt");

    let server = directory.0.join("server.crt");
    let good = fs::read(&server).unwrap();
    for bad in [&b"-----BEGIN nonsense"[..], b"", &[0x30; 20_000]] {
        fs::write(&server, bad).unwrap();
        assert!(find_medium(&directory.0, Duration::ZERO, &mut || ()).is_err());
    }
    fs::remove_file(&server).unwrap();
    assert!(matches!(find_medium(&directory.0, Duration::ZERO, &mut || ()), Err(CardError::NotOurs)));
    // A FIFO must not stop the reader.
    nix::unistd::mkfifo(&server, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(find_medium(&directory.0, Duration::ZERO, &mut || ()), Err(CardError::Medium(_))));
    fs::remove_file(&server).unwrap();
    fs::write(&server, good).unwrap();

    // A key derivation that would keep the login busy for long, or take much memory, is not begun.
    let scrypt =
        pbes2::ScryptParams { cost_parameter: 1 << 24, block_size: 8, parallelization: 1, ..scrypt_parameters() };
    let pbkdf2 = pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(20_000_000, &[1; 16], [2; 16]).unwrap();
    for kdf in [scrypt.into(), pbkdf2.kdf] {
        let parameters = pbes2::Parameters { kdf, encryption: pbkdf2.encryption };
        let content = OctetStringRef::new(&[0; 64]).unwrap();
        let costly = EncryptedPrivateKeyInfoRef { encryption_algorithm: parameters.into(), encrypted_data: content };
        let key = directory.0.join("card.p8");
        fs::remove_file(&key).unwrap();
        fs::write(&key, costly.to_der().unwrap()).unwrap();
        let mut card = find_medium(&directory.0, Duration::ZERO, &mut || ()).unwrap();
        assert!(matches!(card.unlock(&secret(PASSPHRASE)), Err(CardError::MediumFile(_))));
    }
}

#[test]
fn a_medium_that_comes_is_found_and_two_are_too_many() {
    let parent = Directory::new("comes");
    let pattern = parent.0.join("*");
    assert!(matches!(find_medium(&pattern, Duration::ZERO, &mut || panic!("no time to wait")), Err(CardError::NoCard)));
    let prepared = Directory::new("comes-prepared");
    issue(&prepared.0, 2048);
    let target = parent.0.join("stick");
    let mut waits = 0;
    let card = std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        scope.spawn(|| {
            receiver.recv_timeout(LIMIT).unwrap();
            fs::rename(&prepared.0, &target).unwrap();
            drop(receiver);
        });
        find_medium(&pattern, LIMIT, &mut || {
            waits += 1;
            sender.send(()).unwrap();
        })
    });
    assert!(card.is_ok() && waits == 1);
    fs::create_dir(parent.0.join("other")).unwrap();
    issue(&parent.0.join("other"), 2048);
    assert!(matches!(find_medium(&pattern, LIMIT, &mut || ()), Err(CardError::SeveralCards)));
}

/// Runs the watch in another thread, `act`s, and gives what the watch said.
fn outcome(mut watch: Watch, act: impl FnOnce()) -> RemovalCause {
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let canceller = watch.canceller();
        scope.spawn(move || sender.send(watch.wait()));
        act();
        let cause = receiver.recv_timeout(LIMIT);
        canceller.cancel();
        cause.unwrap()
    })
}

fn binding(directory: &Path) -> CardBinding {
    find_medium(directory, Duration::ZERO, &mut || ()).unwrap().binding()
}

#[test]
fn deleting_moving_and_replacing_the_key_are_removals() {
    let directory = Directory::new("removal");
    let key = directory.0.join("card.p8");
    let kept = directory.0.join("kept");
    issue(&directory.0, 2048);
    let restore = || fs::rename(&kept, &key).unwrap();

    let card = binding(&directory.0);
    assert!(matches!(outcome(watch(&card).unwrap(), || fs::rename(&key, &kept).unwrap()), RemovalCause::Removed));
    assert!(matches!(watch(&card), Err(CardError::Removed)));
    restore();
    fs::copy(&key, &kept).unwrap();
    assert!(matches!(outcome(watch(&card).unwrap(), restore), RemovalCause::Removed));
    assert!(matches!(watch(&card), Err(CardError::Removed)), "a copy is another card");

    let card = binding(&directory.0);
    let moved = directory.0.with_extension("moved");
    assert!(matches!(
        outcome(watch(&card).unwrap(), || fs::rename(&directory.0, &moved).unwrap()),
        RemovalCause::Removed
    ));
    fs::rename(&moved, &directory.0).unwrap();
    assert!(matches!(outcome(watch(&card).unwrap(), || fs::remove_file(&key).unwrap()), RemovalCause::Removed));
}

#[test]
fn other_changes_are_no_removal_and_a_watch_can_be_cancelled() {
    let directory = Directory::new("cancel");
    issue(&directory.0, 2048);
    let mut watch = watch(&binding(&directory.0)).unwrap();
    let canceller = watch.canceller();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.send(watch.wait()));
        fs::write(directory.0.join("other"), "x").unwrap();
        fs::remove_file(directory.0.join("other")).unwrap();
        fs::set_permissions(directory.0.join("card.p8"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "the card is still there");
        canceller.cancel();
        assert!(matches!(receiver.recv_timeout(LIMIT).unwrap(), RemovalCause::Cancelled));
    });
    canceller.cancel();
}

/// Needs root, as the tests of this project do: in a mount namespace of its own.
#[test]
fn unmounting_is_a_removal() {
    // The namespace belongs to this thread and those that it makes.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let directory = Directory::new("unmount");
        for flags in [MntFlags::empty(), MntFlags::MNT_DETACH] {
            mount(Some("stick"), &directory.0, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            issue(&directory.0, 2048);
            let card = binding(&directory.0);
            let cause = outcome(watch(&card).unwrap(), || umount2(&directory.0, flags).unwrap());
            assert!(matches!(cause, RemovalCause::Removed), "{cause}");
            assert!(matches!(watch(&card), Err(CardError::Removed)));
        }
        // Mounted twice: the file system stays, and only the mount table tells that it is not here any more.
        let twin = Directory::new("unmount-twin");
        mount(Some("stick"), &directory.0, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        issue(&directory.0, 2048);
        mount(Some(&directory.0), &twin.0, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let card = binding(&directory.0);
        let cause = outcome(watch(&card).unwrap(), || umount2(&directory.0, MntFlags::empty()).unwrap());
        assert!(matches!(cause, RemovalCause::Removed), "{cause}");
        umount2(&twin.0, MntFlags::empty()).unwrap();
    })
    .join()
    .unwrap();
}
