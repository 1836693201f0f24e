//! `virtual-card`: a card as a process. It is in the reader as long as the process runs.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, ValueEnum};
use cug_cards::{Card, Fault, Inserted, Management, ManagementAlgorithm, OwnCard, OwnOptions, PinPolicy, VirtualCard};
use nix::sys::signal::{SigSet, Signal};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Our own card.
    Own,
    /// The firmware application of the Nitrokey 3.
    PivAuthenticator,
}

/// A virtual PIV card in a virtual reader. Prints "ready" when it is in. SIGTERM, SIGINT or the end of standard input
/// pull it. Exit status 0 if it was pulled, 3 if the reader went away, 1 if something else went wrong.
#[derive(Parser)]
#[command(name = "virtual-card")]
struct Arguments {
    /// UNIX socket of the reader
    #[arg(long)]
    socket: PathBuf,
    /// Which card
    #[arg(long, value_enum, default_value = "own")]
    kind: Kind,
    /// File that keeps the card's state; made if missing, and then the options for new cards apply
    #[arg(long)]
    state: PathBuf,
    /// Make an RSA key of this size in slot 9D, if there is no state file yet
    #[arg(long)]
    key_bits: Option<usize>,
    /// New card: when keys in slot 9D want the PIN (own card only; the other one wants it once)
    #[arg(long, value_parser = ["never", "once", "always"], default_value = "once")]
    pin_policy: String,
    /// New card: PIN
    #[arg(long, default_value = "123456")]
    pin: String,
    /// New card: tries for the PIN (own card only)
    #[arg(long, default_value_t = 3)]
    pin_tries: u8,
    /// New card: PUK (own card only)
    #[arg(long, default_value = "12345678")]
    puk: String,
    /// New card: algorithm of the management key (own card only)
    #[arg(long, value_parser = ["tdes", "aes128", "aes192", "aes256"], default_value = "tdes")]
    management_algorithm: String,
    /// New card: management key in hexadecimal (own card only)
    #[arg(long)]
    management_key: Option<String>,
    /// Added to every private RSA operation
    #[arg(long, default_value_t = 0)]
    rsa_delay_ms: u64,
    /// Write all APDUs to this file, PINs in the clear
    #[arg(long)]
    log: Option<PathBuf>,
    /// Pull the card after it has answered this many APDUs
    #[arg(long)]
    pull_after: Option<u64>,
    /// NUMBER:WHAT, from 0: that APDU goes wrong; WHAT is a status word in hexadecimal, hang, pull or garbage=HEX
    #[arg(long)]
    fault: Vec<String>,
    /// Seconds to wait for the reader to appear and be empty
    #[arg(long, default_value_t = 10)]
    wait: u64,
    /// Go in again when pcscd comes back, instead of ending
    #[arg(long)]
    keep: bool,
    /// Do not end with standard input
    #[arg(long)]
    ignore_stdin: bool,
}

enum Event {
    Pull,
    ReaderGone,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("virtual-card: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> cug_cards::Result<ExitCode> {
    let (sender, events) = mpsc::channel();
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    // Blocked in all threads made from now on; one of them waits for them.
    signals.thread_block()?;
    let pull = sender.clone();
    std::thread::spawn(move || {
        let _ = signals.wait();
        let _ = pull.send(Event::Pull);
    });
    if !arguments.ignore_stdin {
        let pull = sender.clone();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = pull.send(Event::Pull);
        });
    }
    let mut card = open(arguments)?;
    loop {
        let Some(inserted) = insert(arguments, card, &events)? else { return Ok(ExitCode::SUCCESS) };
        prepare(arguments, &inserted)?;
        println!("ready");
        std::io::stdout().flush()?;
        let gone = sender.clone();
        let planned = arguments.pull_after.is_some();
        let inserted = std::sync::Arc::new(inserted);
        let watcher = {
            let inserted = std::sync::Arc::clone(&inserted);
            std::thread::spawn(move || {
                while !inserted.wait_out(Duration::from_secs(3600)) {}
                let _ = gone.send(Event::ReaderGone);
            })
        };
        let event = events.recv()?;
        inserted.pull();
        let _ = watcher.join();
        let handle = std::sync::Arc::into_inner(inserted).context("the card is still in use")?;
        card = handle.eject();
        match event {
            Event::Pull => return Ok(ExitCode::SUCCESS),
            Event::ReaderGone if planned => return Ok(ExitCode::SUCCESS),
            Event::ReaderGone if arguments.keep => {}
            Event::ReaderGone => return Ok(ExitCode::from(3)),
        }
    }
}

/// Tries until the reader takes the card. None if it was pulled before.
fn insert(
    arguments: &Arguments,
    mut card: Box<dyn Card>,
    events: &mpsc::Receiver<Event>,
) -> cug_cards::Result<Option<Inserted<Box<dyn Card>>>> {
    let deadline = Instant::now() + Duration::from_secs(arguments.wait);
    loop {
        match VirtualCard::try_insert(&arguments.socket, card) {
            Ok(inserted) => return Ok(Some(inserted)),
            Err((error, _)) if Instant::now() >= deadline && !arguments.keep => return Err(error),
            Err((_, back)) => card = back,
        }
        if let Ok(Event::Pull) = events.recv_timeout(Duration::from_millis(10)) {
            return Ok(None);
        }
    }
}

fn prepare(arguments: &Arguments, inserted: &Inserted<Box<dyn Card>>) -> cug_cards::Result<()> {
    inserted.set_rsa_delay(Duration::from_millis(arguments.rsa_delay_ms));
    if let Some(path) = &arguments.log {
        inserted.log_to(File::options().create(true).append(true).open(path)?);
    }
    for fault in &arguments.fault {
        let (number, what) = fault.split_once(':').context("a fault is NUMBER:WHAT")?;
        let fault = match what {
            "hang" => Fault::Hang,
            "pull" => Fault::Pull,
            _ => match what.strip_prefix("garbage=") {
                Some(bytes) => Fault::Garbage(from_hex(bytes)?),
                None => Fault::Status(u16::from_str_radix(what, 16).context("not a status word")?),
            },
        };
        inserted.fail_at(number.parse().context("a fault is NUMBER:WHAT")?, fault);
    }
    if let Some(count) = arguments.pull_after {
        inserted.pull_after_apdus(count);
    }
    Ok(())
}

fn open(arguments: &Arguments) -> cug_cards::Result<Box<dyn Card>> {
    let new = !arguments.state.exists();
    match arguments.kind {
        Kind::Own => {
            let mut card = OwnCard::open(&arguments.state, options(arguments)?)?;
            if let Some(bits) = arguments.key_bits.filter(|_| new) {
                card.make_key(0x9D, bits, None)?;
            }
            Ok(Box::new(card))
        }
        #[cfg(feature = "piv-authenticator")]
        Kind::PivAuthenticator => {
            let mut card = cug_cards::PivAuthenticatorCard::open(&arguments.state, &arguments.pin)?;
            if let Some(bits) = arguments.key_bits.filter(|_| new) {
                cug_cards::host::select(&mut card)?;
                cug_cards::host::authenticate(&mut card, &Management::default())?;
                cug_cards::host::generate(&mut card, 0x9D, bits, None)?;
                card.reset();
            }
            Ok(Box::new(card))
        }
        #[cfg(not(feature = "piv-authenticator"))]
        Kind::PivAuthenticator => bail!("built without the feature piv-authenticator"),
    }
}

fn options(arguments: &Arguments) -> cug_cards::Result<OwnOptions> {
    let algorithm = match arguments.management_algorithm.as_str() {
        "aes128" => ManagementAlgorithm::Aes128,
        "aes192" => ManagementAlgorithm::Aes192,
        "aes256" => ManagementAlgorithm::Aes256,
        _ => ManagementAlgorithm::Tdes,
    };
    let key = match &arguments.management_key {
        Some(text) => from_hex(text)?,
        None => [1, 2, 3, 4, 5, 6, 7, 8].repeat(algorithm.key_length() / 8),
    };
    let pin_policy = match arguments.pin_policy.as_str() {
        "never" => PinPolicy::Never,
        "always" => PinPolicy::Always,
        _ => PinPolicy::Once,
    };
    ensure!((1..=15).contains(&arguments.pin_tries), "1 to 15 tries");
    Ok(OwnOptions {
        pin: arguments.pin.clone(),
        pin_tries: arguments.pin_tries,
        puk: arguments.puk.clone(),
        management: Management::new(algorithm, key)?,
        pin_policy,
        ..OwnOptions::default()
    })
}

fn from_hex(text: &str) -> cug_cards::Result<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        bail!("not hexadecimal");
    }
    let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).context("not hexadecimal");
    (0..text.len()).step_by(2).map(pair).collect()
}
