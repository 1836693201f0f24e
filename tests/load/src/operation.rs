//! Parts of a login and nothing else, each on the host that this runs on: what the card does, what is asked of the PC/SC service before, and the
//! interface with its guard.

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use cug_load::pace::Pace;
use cug_proto::secret::Secret;
use cugd::guard::plan::Fence;
use cugd::guard::{Guard, GuardChoice, Lifetime};
use cugd::tunnel::{Backend, DEFAULT_MTU, InterfaceConfig, InterfaceName, Routing};
use pcsc::{Context, Disposition, MAX_BUFFER_SIZE, Protocols, ReaderState, Scope, ShareMode, State};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which part.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Operation {
    /// Connect, SELECT, PIN, private key.
    Card,
    /// A connection to the PC/SC service, the names of the readers and their states.
    Readers,
    /// Guard and interface of one group.
    Interface,
}

/// How to measure it.
pub struct Order<'a> {
    /// How many times.
    pub times: usize,
    /// After a pause each.
    pub cold: bool,
    /// Of the card.
    pub pin: &'a str,
}

/// How long each of them takes.
///
/// # Errors
/// With what the service, the card or the kernel says.
pub fn time(operation: Operation, order: &Order<'_>) -> anyhow::Result<Vec<Duration>> {
    match operation {
        Operation::Card => card(order),
        Operation::Readers => Pace::new(order.cold).time(order.times, readers),
        Operation::Interface => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(interface(order))
        }
    }
}

/// SELECT of the PIV application.
const SELECT: [u8; 15] = [0x00, 0xA4, 0x04, 0x00, 9, 0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00, 0x00];

/// Bytes in the modulus of the card's key.
const MODULUS: usize = 256;

/// After each a reset, that closes what the PIN opened.
fn card(order: &Order<'_>) -> anyhow::Result<Vec<Duration>> {
    let context = Context::establish(Scope::System)?;
    let readers = context.list_readers_owned()?;
    let reader = readers.first().context("no reader")?;
    Pace::new(order.cold).time(order.times, || {
        let mut card = context.connect(reader, ShareMode::Shared, Protocols::T0 | Protocols::T1)?;
        let transaction = card.transaction()?;
        commands(&transaction, order.pin)?;
        transaction.end(Disposition::ResetCard).map_err(|(_, error)| error)?;
        Ok(card.disconnect(Disposition::LeaveCard).map_err(|(_, error)| error)?)
    })
}

fn commands(card: &pcsc::Card, pin: &str) -> anyhow::Result<()> {
    send(card, &SELECT, 0x90)?;
    let mut padded = pin.as_bytes().to_vec();
    padded.resize(8, 0xFF);
    send(card, &[&[0x00, 0x20, 0x00, 0x80, 8][..], &padded].concat(), 0x90)?;
    // GENERAL AUTHENTICATE with the key in 9D, in two parts, and what is left of the answer.
    let mut template = vec![0x7C, 0x82, 0x01, 0x06, 0x82, 0x00, 0x81, 0x82, 0x01, 0x00, 0x00];
    template.resize(template.len() + MODULUS - 1, 0x5A);
    let (first, rest) = template.split_at(255);
    send(card, &[&[0x10, 0x87, 0x07, 0x9D, 255][..], first].concat(), 0x90)?;
    let length = u8::try_from(rest.len())?;
    send(card, &[&[0x00, 0x87, 0x07, 0x9D, length][..], rest, &[0x00]].concat(), 0x61)?;
    send(card, &[0x00, 0xC0, 0x00, 0x00, 0x00], 0x90)
}

fn send(card: &pcsc::Card, apdu: &[u8], wanted: u8) -> anyhow::Result<()> {
    let mut buffer = [0; MAX_BUFFER_SIZE];
    let answer = card.transmit(apdu, &mut buffer)?;
    let status = answer.last_chunk::<2>().context("no status word")?;
    ensure!(status[0] == wanted, "the card answers {status:02X?} to {:02X?}", &apdu[..4]);
    Ok(())
}

fn readers() -> anyhow::Result<()> {
    let context = Context::establish(Scope::System)?;
    let names = context.list_readers_owned()?;
    ensure!(!names.is_empty(), "no reader");
    let mut states: Vec<_> = names.into_iter().map(|name| ReaderState::new(name, State::UNAWARE)).collect();
    Ok(context.get_status_change(Duration::ZERO, &mut states)?)
}

/// Whom the interface belongs to: no account needs to have the number.
const OWNER: u32 = 3002;

/// As long as somebody types at the least, while nft gets ready.
const TYPING: Duration = Duration::from_millis(20);

/// What the daemon's own library takes for it, with what it makes ready beforehand. After each it is taken down.
async fn interface(order: &Order<'_>) -> anyhow::Result<Vec<Duration>> {
    let guard = Guard::select(GuardChoice::Auto, Lifetime::Process)?;
    let name: InterfaceName = "cugbe7c4be7c4".parse()?;
    let addresses = vec!["198.18.77.1/24".parse()?, "fd07:7:7::1/64".parse()?];
    let mut pace = Pace::new(order.cold);
    let mut all = Vec::with_capacity(order.times);
    for number in 0..=order.times {
        guard.expect().await;
        tokio::time::sleep(TYPING).await;
        pace.next();
        let begin = Instant::now();
        let fence = Fence { name: name.clone(), uid: OWNER, addresses: addresses.clone(), closed: None };
        guard.raise([fence]).await?;
        let config = InterfaceConfig {
            name: name.clone(),
            private_key: Arc::new(Secret::fill(|key| key.fill(0x48))),
            ports: 0..=0,
            addresses: addresses.clone(),
            routes: Vec::new(),
            mtu: DEFAULT_MTU,
            routing: Routing::User(OWNER),
        };
        let tunnel = Backend::Embedded.up(config).await?;
        // The first one finds nothing in memory.
        if number > 0 {
            all.push(begin.elapsed());
        }
        tunnel.down().await?;
        guard.lower(std::slice::from_ref(&name)).await?;
    }
    Ok(all)
}
