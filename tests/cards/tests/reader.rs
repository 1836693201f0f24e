//! Both cards in a virtual reader behind a real pcscd, seen by PC/SC clients and by tools that we did not write.
//!
//! PC/SC clients find a private pcscd through an environment variable, which a test must not set for its whole process:
//! each test starts pcscd and runs its inner part, marked `#[ignore]`, as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cug_cards::rig::{self, Pcscd, reader_name, wait_until};
use cug_cards::{Card, Fault, Management, OwnCard, OwnOptions, PinPolicy, PivAuthenticatorCard, VirtualCard, host};
use pcsc::{Context, Protocols, ReaderState, Scope, ShareMode, State};
use rsa::pkcs8::EncodePublicKey;
use rsa::{BoxedUint, RsaPublicKey};

const LIMIT: Duration = Duration::from_secs(10);
/// What the mission calls at once, with room for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(100);

fn run_inner(pcscd: &Pcscd, name: &str) {
    let output = pcscd
        .command(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
        .env("CUG_READER_0", pcscd.reader(0))
        .env("CUG_READER_1", pcscd.reader(1))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{}", pcscd.log());
    for line in text.lines().filter(|line| line.contains("measured")) {
        println!("{line}");
    }
}

fn reader(n: usize) -> PathBuf {
    std::env::var_os(format!("CUG_READER_{n}")).expect("run by its outer test only").into()
}

/// Both cards with an RSA-2048 key in 9D, and the public keys.
fn cards() -> Vec<(&'static str, Box<dyn Card>, RsaPublicKey)> {
    let mut own = OwnCard::new(OwnOptions::default()).unwrap();
    own.make_key(0x9D, 2048, None).unwrap();
    let own_key = own.key(0x9D).unwrap().to_public_key();
    let mut other = PivAuthenticatorCard::new("123456").unwrap();
    host::select(&mut other).unwrap();
    host::authenticate(&mut other, &Management::default()).unwrap();
    let other_key = host::generate(&mut other, 0x9D, 2048, None).unwrap();
    vec![("own", Box::new(own), own_key), ("piv-authenticator", Box::new(other), other_key)]
}

/// Waits for this state of the reader, by PC/SC events.
fn wait_for(context: &Context, name: &str, wanted: State) {
    let name = std::ffi::CString::new(name).unwrap();
    let mut states = [ReaderState::new(name, State::UNAWARE)];
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.checked_duration_since(Instant::now()).expect("the reader never got there");
        context.get_status_change(left, &mut states).unwrap();
        if states[0].event_state().contains(wanted) {
            return;
        }
        states[0].sync_current_state();
    }
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], *times.last().unwrap())
}

#[test]
fn cards_come_and_go_at_once() {
    run_inner(&Pcscd::start(2).unwrap(), "inner_come_and_go");
}

#[test]
#[ignore = "run by cards_come_and_go_at_once"]
fn inner_come_and_go() {
    let context = Context::establish(Scope::User).unwrap();
    let names: Vec<_> =
        context.list_readers_owned().unwrap().iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    assert_eq!(names, [reader_name(0), reader_name(1)]);
    for (kind, mut card, key) in cards() {
        let (mut insertions, mut removals) = (Vec::new(), Vec::new());
        for turn in 0..20 {
            // Odd turns at the other reader: the same card moves.
            let (n, name) = (turn % 2, reader_name(turn % 2));
            wait_for(&context, &name, State::EMPTY);
            let start = Instant::now();
            let inserted = VirtualCard::insert(reader(n), card).unwrap();
            wait_for(&context, &name, State::PRESENT);
            insertions.push(start.elapsed());
            if turn < 2 {
                decrypt(&context, &name, &key);
            }
            let start = Instant::now();
            inserted.pull();
            wait_for(&context, &name, State::EMPTY);
            removals.push(start.elapsed());
            card = inserted.eject();
        }
        let ((insert, _), (remove, worst)) = (median(insertions), median(removals));
        println!(
            "{kind}: measured insertion {insert:?} (median), removal {remove:?} (median), {worst:?} (worst of 20)"
        );
        assert!(remove < AT_ONCE, "{kind}: removal took {remove:?}");
        assert!(insert < AT_ONCE, "{kind}: insertion took {insert:?}");
    }
}

/// A raw RSA operation through PC/SC, checked with the public key.
fn decrypt(context: &Context, name: &str, key: &RsaPublicKey) {
    let card = context.connect(&std::ffi::CString::new(name).unwrap(), ShareMode::Shared, Protocols::ANY).unwrap();
    let mut card = Remote(card);
    host::select(&mut card).unwrap();
    host::verify(&mut card, "123456").unwrap();
    let message = BoxedUint::from_be_slice(&[vec![0, 2], vec![7; 254]].concat(), 2048).unwrap();
    let sealed = rsa::hazmat::rsa_encrypt(key, &message).unwrap();
    let opened = host::raw_decrypt(&mut card, 0x9D, 2048, &sealed.to_be_bytes()).unwrap();
    assert_eq!(opened, *message.to_be_bytes());
}

/// A card behind PC/SC, for the helpers that want a [`Card`].
struct Remote(pcsc::Card);

impl Card for Remote {
    fn atr(&self) -> Vec<u8> {
        self.0.get_attribute_owned(pcsc::Attribute::AtrString).unwrap()
    }
    fn reset(&mut self) {
        self.0.reconnect(ShareMode::Shared, Protocols::ANY, pcsc::Disposition::ResetCard).unwrap();
    }
    fn transmit(&mut self, apdu: &[u8]) -> Vec<u8> {
        let mut buffer = [0; pcsc::MAX_BUFFER_SIZE_EXTENDED];
        self.0.transmit(apdu, &mut buffer).unwrap().to_vec()
    }
}

#[test]
fn faults_reach_the_client() {
    run_inner(&Pcscd::start(2).unwrap(), "inner_faults");
}

#[test]
#[ignore = "run by faults_reach_the_client"]
fn inner_faults() {
    let context = Context::establish(Scope::User).unwrap();
    let name = std::ffi::CString::new(reader_name(0)).unwrap();
    let mut card = OwnCard::new(OwnOptions::default()).unwrap();
    let select = [0, 0xA4, 4, 0, 9, 0xA0, 0, 0, 3, 8, 0, 0, 0x10, 0];
    let faults = [
        Fault::Status(0x6F00),
        Fault::Garbage(vec![1, 2, 3, 4, 5]),
        Fault::Garbage(Vec::new()),
        Fault::Pull,
        Fault::PullAfter,
        Fault::Hang,
    ];
    for fault in faults {
        wait_for(&context, &reader_name(0), State::EMPTY);
        let inserted = VirtualCard::insert(reader(0), card).unwrap();
        assert!(inserted.wait_powered(LIMIT));
        wait_for(&context, &reader_name(0), State::PRESENT);
        let remote = context.connect(&name, ShareMode::Shared, Protocols::ANY).unwrap();
        inserted.fail_next(fault.clone());
        let mut buffer = [0; 300];
        let result = std::thread::scope(|scope| {
            if fault == Fault::Hang {
                scope.spawn(|| {
                    assert!(inserted.wait_for_apdus(1, LIMIT));
                    inserted.pull();
                });
            }
            remote.transmit(&select, &mut buffer).map(<[u8]>::to_vec)
        });
        match &fault {
            Fault::Status(_) => assert_eq!(result.unwrap(), [0x6F, 0x00]),
            Fault::Garbage(bytes) if !bytes.is_empty() => assert_eq!(&result.unwrap(), bytes),
            Fault::Garbage(_) => {
                let answer = result.unwrap_or_default();
                assert!(answer.len() < 2, "{answer:?}");
            }
            Fault::PullAfter => assert!(result.unwrap().ends_with(&[0x90, 0x00])),
            Fault::Pull | Fault::Hang => assert!(result.is_err(), "{result:?}"),
        }
        let pulled = matches!(fault, Fault::Pull | Fault::PullAfter | Fault::Hang);
        assert_eq!(inserted.wait_out(if pulled { LIMIT } else { Duration::ZERO }), pulled, "{fault:?}");
        assert_eq!(inserted.apdu_count(), 1);
        card = inserted.eject();
    }
    pulled_in_the_middle(&context, card);
}

/// Pulled in the middle of a long operation: seen at once, not at its end.
fn pulled_in_the_middle(context: &Context, mut card: OwnCard) {
    let name = std::ffi::CString::new(reader_name(0)).unwrap();
    card.make_key(0x9D, 2048, Some(PinPolicy::Never)).unwrap();
    let inserted = VirtualCard::insert(reader(0), card).unwrap();
    inserted.set_rsa_delay(LIMIT);
    wait_for(context, &reader_name(0), State::PRESENT);
    let mut remote = Remote(context.connect(&name, ShareMode::Shared, Protocols::ANY).unwrap());
    host::select(&mut remote).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(inserted.wait_for_apdus(3, LIMIT));
            inserted.pull();
        });
        let part = vec![1; 250];
        let mut buffer = [0; 300];
        let apdu = |cla: u8, data: &[u8]| [&[cla, 0x87, 7, 0x9D, data.len() as u8][..], data].concat();
        let first = [&[0x7C, 0x82, 1, 6, 0x82, 0, 0x81, 0x82, 1, 0][..], &part[..200]].concat();
        assert_eq!(remote.0.transmit(&apdu(0x10, &first), &mut buffer).unwrap(), [0x90, 0]);
        assert!(remote.0.transmit(&apdu(0, &part[..56]), &mut buffer).is_err());
    });
    assert!(start.elapsed() < LIMIT / 2);
}

#[test]
fn a_reader_can_be_unplugged() {
    run_inner(&Pcscd::start(2).unwrap(), "inner_unplug");
}

#[test]
#[ignore = "run by a_reader_can_be_unplugged"]
fn inner_unplug() {
    let context = Context::establish(Scope::User).unwrap();
    let inserted = VirtualCard::insert(reader(1), OwnCard::new(OwnOptions::default()).unwrap()).unwrap();
    wait_for(&context, &reader_name(1), State::PRESENT);
    let start = Instant::now();
    rig::unplug(&reader(1)).unwrap();
    wait_for(&context, &reader_name(1), State::UNAVAILABLE);
    let took = start.elapsed();
    println!("measured unplugging {took:?}");
    assert!(took < AT_ONCE);
    assert!(inserted.wait_out(LIMIT));
    // The reader that stays still works.
    let left = VirtualCard::insert(reader(0), OwnCard::new(OwnOptions::default()).unwrap()).unwrap();
    wait_for(&context, &reader_name(0), State::PRESENT);
    drop(left);
    rig::plug(&reader(1)).unwrap();
    wait_for(&context, &reader_name(1), State::EMPTY);
    let back = VirtualCard::insert(reader(1), inserted.eject()).unwrap();
    wait_for(&context, &reader_name(1), State::PRESENT);
    drop(back);
}

#[test]
fn independent_tools_read_and_write_both_cards() {
    let pcscd = Pcscd::start(2).unwrap();
    let key = pcscd.directory().join("management-key");
    std::fs::write(&key, ["01:02:03:04:05:06:07:08"; 3].join(":")).unwrap();
    for (kind, card, public) in cards() {
        let inserted = VirtualCard::insert(pcscd.reader(0), card).unwrap();
        assert!(inserted.wait_powered(LIMIT));
        let run = |program: &str, arguments: &[&str]| {
            let mut command = pcscd.command(program);
            let output = command.args(arguments).env("PIV_EXT_AUTH_KEY", &key).stdin(Stdio::null()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            // piv-tool ends with the number of bytes it wrote; what it did is checked by reading.
            assert!(output.status.success() || program == "piv-tool", "{kind}: {program} {arguments:?}: {text}");
            text
        };
        assert!(run("opensc-tool", &["--list-readers"]).contains(&reader_name(0)));
        let name = run("opensc-tool", &["--reader", "0", "--name"]);
        assert!(name.contains("Personal Identity Verification"), "{name}");
        if kind == "own" {
            let status = run("yubico-piv-tool", &["-r", "Cug", "-a", "status"]);
            assert!(status.contains("PIN tries left:\t3"), "{status}");
        }
        certify_with_opensc(&run, pcscd.directory(), &public);
        let listed = run("pkcs15-tool", &["--reader", "0", "--list-certificates"]);
        assert!(listed.contains("X.509"), "{listed}");
        let read = run("pkcs15-tool", &["--reader", "0", "--read-certificate", "03"]);
        assert!(read.contains("BEGIN CERTIFICATE"), "{read}");
        // The other card wants nine bytes of its AID, and this tool sends five.
        if kind == "own" {
            let status = run("yubico-piv-tool", &["-r", "Cug", "-a", "status"]);
            assert!(status.contains("CN=USER-A"), "{status}");
            import_with_yubico(&run, pcscd.directory());
        }
        assert!(inserted.is_inserted());
    }
}

type Run<'a> = dyn Fn(&str, &[&str]) -> String + 'a;

/// A certificate for the public key, by a throw-away authority.
fn certify(run: &Run<'_>, directory: &Path, public: &str) -> String {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (authority, certificate) = (path("authority.pem"), path("certificate.pem"));
    run("openssl", &["genrsa", "-out", &authority, "2048"]);
    run(
        "openssl",
        &[
            "x509",
            "-new",
            "-subj",
            "/CN=USER-A",
            "-force_pubkey",
            public,
            "-signkey",
            &authority,
            "-days",
            "30",
            "-out",
            &certificate,
        ],
    );
    certificate
}

/// Puts a certificate for the key in 9D on the card through its management key, and has the card decrypt.
fn certify_with_opensc(run: &Run<'_>, directory: &Path, key: &RsaPublicKey) {
    let public = directory.join("public.pem").to_str().unwrap().to_owned();
    std::fs::write(&public, key.to_public_key_pem(rsa::pkcs8::LineEnding::LF).unwrap()).unwrap();
    let certificate = certify(run, directory, &public);
    run("piv-tool", &["--reader", "0", "-A", "M:9B:03", "-C", "9D", "-i", &certificate]);
    decrypt_with_opensc(run, directory, &public);
}

/// What openssl sealed for the public key, the card's key in 9D opens.
fn decrypt_with_opensc(run: &Run<'_>, directory: &Path, public: &str) {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (data, sealed, opened) = (path("data"), path("sealed"), path("opened"));
    std::fs::write(&data, "sealed for the card").unwrap();
    run("openssl", &["pkeyutl", "-encrypt", "-pubin", "-inkey", public, "-in", &data, "-out", &sealed]);
    run(
        "pkcs11-tool",
        &["--login", "--pin", "123456", "--decrypt", "-m", "RSA-PKCS", "--id", "03", "-i", &sealed, "-o", &opened],
    );
    assert_eq!(std::fs::read(&opened).unwrap(), b"sealed for the card");
    std::fs::remove_file(&opened).unwrap();
}

/// Yubico's import of a key made elsewhere into 9D, proved by decryption.
fn import_with_yubico(run: &Run<'_>, directory: &Path) {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (key, public) = (path("key.pem"), path("imported.pem"));
    run("openssl", &["genrsa", "-out", &key, "2048"]);
    run("openssl", &["rsa", "-in", &key, "-pubout", "-out", &public]);
    run("yubico-piv-tool", &["-r", "Cug", "-a", "import-key", "-s", "9d", "-i", &key]);
    let certificate = certify(run, directory, &public);
    run("yubico-piv-tool", &["-r", "Cug", "-a", "import-certificate", "-s", "9d", "-i", &certificate]);
    decrypt_with_opensc(run, directory, &public);
}

#[test]
fn the_program_keeps_its_card() {
    let pcscd = Pcscd::start(2).unwrap();
    for kind in ["own", "piv-authenticator"] {
        let state = pcscd.directory().join(format!("{kind}.json"));
        for n in [0, 1] {
            let mut program = Command::new(env!("CARGO_BIN_EXE_virtual-card"))
                .args(["--kind", kind, "--key-bits", "2048", "--pin", "654321", "--socket"])
                .arg(pcscd.reader(n))
                .arg("--state")
                .arg(&state)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            let verify = |pin: &str| {
                let pin: Vec<_> = pin.bytes().map(|byte| format!("{byte:02X}")).collect();
                let verify = format!("0020008008{}FFFF", pin.concat());
                let mut command = pcscd.command("opensc-tool");
                command.args(["--reader", &n.to_string(), "-s", "00A4040009A00000030800001000", "-s", &verify]);
                String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
            };
            // A try lost at the first reader is missing at the second.
            let answer = verify("111111");
            assert!(answer.contains(["SW1=0x63, SW2=0xC2", "SW1=0x63, SW2=0xC1"][n]), "{kind}: {answer}");
            if n == 1 {
                let answer = verify("654321");
                assert!(answer.rsplit("Received").next().unwrap().contains("SW1=0x90"), "{kind}: {answer}");
            }
            drop(program.stdin.take());
            assert!(wait_until(LIMIT, || program.try_wait().unwrap().is_some()), "the program did not end");
            assert!(program.wait().unwrap().success());
        }
    }
}
