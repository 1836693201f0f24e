//! P3 against a server that lies: it names terminals to each other that are of different groups, have other keys, or are in other epochs. The
//! script's server says whatever it likes; the terminals are real, and so are their packets.

use crate::support::SOON;
use anyhow::{Context, ensure};
use cug_proto::message::{
    ClientMessage, GroupGrant, KeyAck, Peer, Peers, Prefix4, Prefix6, ServerMessage, WgPublicKey,
};
use cug_tests::lan::Lan;
use cug_tests::login::{Login, Script};
use cug_tests::probe::{self, PATIENCE};
use cug_tests::script::authority::Authority;
use cug_tests::script::random;
use cug_tests::script::server::{Channel, GROUP, ScriptedServer, nobody};
use cug_tests::server::ServerHost;
use cug_tests::space::scenario;
use cug_tests::terminal::Terminal;
use cug_tests::wait;
use std::net::{IpAddr, Ipv4Addr};
use x25519_dalek::{PublicKey, StaticSecret};

/// Another group, with the key bytes of the first.
const OTHER_GROUP: u32 = 2;

/// A terminal, and what the server knows of it.
struct Seat {
    number: u8,
    user: &'static str,
    terminal: Terminal,
    channel: Channel,
    key: WgPublicKey,
    _held: (Login, cug_tests::card::InReader),
}

/// What is said to a terminal of the other one.
#[derive(Clone, Copy)]
struct Word {
    group: u32,
    key: WgPublicKey,
    port: u16,
}

struct Liar {
    server: ScriptedServer,
    seats: [Seat; 2],
    revision: u64,
    _lan: Lan,
    _host: ServerHost,
}

impl Liar {
    fn new(logs: &std::path::Path) -> anyhow::Result<Self> {
        let lan = Lan::new(logs)?;
        let host = ServerHost::new(&lan, logs)?;
        let authority = Authority::new()?;
        let pin = authority.ca_pin()?;
        let (card, key) = authority.card()?;
        let mut server = ScriptedServer::start(host.space(), authority, key)?;
        // Nobody listens while the lies are tried.
        server.heartbeat = 60;
        let first = Self::sit_down(&server, Terminal::ready(&lan, logs, 1, &pin)?, "USER-A", card)?;
        let (card, key) = server.authority.card()?;
        server.card_key = key;
        server.next_member(2)?;
        let second = Self::sit_down(&server, Terminal::ready(&lan, logs, 2, &pin)?, "USER-B", card)?;
        Ok(Self { server, seats: [first, second], revision: 1, _lan: lan, _host: host })
    }

    fn sit_down(
        server: &ScriptedServer,
        terminal: Terminal,
        user: &'static str,
        card: cug_tests::card::PivCard,
    ) -> anyhow::Result<Seat> {
        let in_reader = terminal.insert(card)?;
        let mut login = terminal.login(&Script::new(user).password("passwd1"))?;
        let key = server.grant_login()?.wg_public_key;
        let channel = server.attach(nobody())?;
        login.open()?;
        Ok(Seat { number: terminal.number(), user, terminal, channel, key, _held: (login, in_reader) })
    }

    /// The truth about seat `of`.
    fn truth(&self, of: usize) -> Word {
        Word { group: GROUP, key: self.seats[of].key, port: self.seats[of].channel.port }
    }

    fn peers(&mut self, group: u32, present: Vec<Peer>, gone: &[usize]) -> Peers {
        self.revision += 1;
        let gone = gone.iter().map(|n| self.seats[*n].user.parse().unwrap()).collect();
        Peers { group, revision: self.revision, full: false, present, gone }
    }

    /// Tells terminal `to` this of the other one.
    fn tell(&mut self, to: usize, word: Word) -> anyhow::Result<()> {
        let other = &self.seats[1 - to];
        let number = other.number;
        let peer = Peer {
            user: other.user.parse()?,
            host_name: format!("terminal{number}").parse()?,
            wg_public_key: word.key,
            endpoints: vec![format!("10.0.0.{number}:{}", word.port).parse()?],
            address4: address(word.group, number),
            address6: format!("fd7e:1:2:{}::{number}", word.group).parse()?,
        };
        let peers = self.peers(word.group, vec![peer], &[]);
        self.seats[to].channel.wire.send(&ServerMessage::Peers(peers)).map(drop)
    }

    /// Each forgets the other, and the WireGuard session with it.
    fn part(&mut self) -> anyhow::Result<()> {
        for to in [0, 1] {
            for group in [GROUP, OTHER_GROUP] {
                let peers = self.peers(group, vec![], &[1 - to]);
                self.seats[to].channel.wire.send(&ServerMessage::Peers(peers))?;
            }
        }
        wait::for_true("both to forget the other", SOON, || {
            self.seats.iter().all(|seat| own_peers(&seat.terminal).is_empty())
        })
    }

    /// Both know the other as it was said, and they reach each other.
    fn they_meet(&self, what: &str) -> anyhow::Result<()> {
        for (seat, other) in [(0, 1), (1, 0)] {
            let to: IpAddr = address(GROUP, self.seats[other].number).into();
            probe::wait_ping(self.seats[seat].terminal.space(), self.seats[seat].user, to, SOON)
                .with_context(|| what.to_owned())?;
        }
        Ok(())
    }

    /// Both know the other (where `known` says so), both call, and neither gets an answer or a handshake.
    fn they_do_not_meet(&self, what: &str, known: [bool; 2], groups: [u32; 2]) -> anyhow::Result<()> {
        for (seat, known) in self.seats.iter().zip(known) {
            wait::for_true("the lie to be taken in", SOON, || own_peers(&seat.terminal).len() == usize::from(known))
                .with_context(|| what.to_owned())?;
        }
        for ((seat, other), group) in [(0, 1), (1, 0)].into_iter().zip(groups) {
            let to: IpAddr = address(group, self.seats[other].number).into();
            let seat = &self.seats[seat];
            ensure!(
                !probe::ping(seat.terminal.space(), seat.user, to, PATIENCE)?,
                "{what}: {} has an answer",
                seat.user
            );
        }
        for (seat, known) in self.seats.iter().zip(known) {
            let peers = own_peers(&seat.terminal);
            ensure!(peers.len() == usize::from(known), "{what}: {peers:?}");
            for peer in peers {
                ensure!(peer["handshake_ms"].is_null(), "{what}: a handshake: {peer}");
                // It was tried: an initiation has 148 bytes.
                ensure!(peer["sent"].as_u64() >= Some(148), "{what}: nothing was sent: {peer}");
            }
        }
        Ok(())
    }

    fn group(&self, seat: usize, group: u32, epoch: u32) -> anyhow::Result<GroupGrant> {
        let mut grant = self.server.group(self.seats[seat].number, epoch)?;
        if group != GROUP {
            grant.id = group;
            grant.name = "VPN2".parse()?;
            grant.prefix4 = Prefix4 { address: Ipv4Addr::new(100, 97, 0, 0), len: 20 };
            grant.prefix6 = Prefix6 { address: format!("fd7e:1:2:{group}::").parse()?, len: 64 };
            grant.address4 = address(group, self.seats[seat].number);
            grant.address6 = format!("fd7e:1:2:{group}::{}", self.seats[seat].number).parse()?;
        }
        Ok(grant)
    }

    /// The terminal goes over to `epoch`, with the same bytes for a key.
    fn activate(&mut self, seat: usize, epoch: u32) -> anyhow::Result<()> {
        let grant = self.group(seat, GROUP, epoch)?;
        let channel = &mut self.seats[seat].channel;
        channel.send_group(&grant)?;
        channel.wire.send(&ServerMessage::Activate(KeyAck { group: GROUP, epoch }))?;
        let (terminal, user) = (&self.seats[seat].terminal, self.seats[seat].user);
        wait::for_true("the epoch", SOON, || {
            terminal.overlay(user).is_ok_and(|groups| groups[0]["epoch"].as_u64() == Some(u64::from(epoch)))
        })
    }
}

fn address(group: u32, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, if group == GROUP { 96 } else { 97 }, 0, number)
}

/// The members that a terminal knows, of whatever group.
fn own_peers(terminal: &Terminal) -> Vec<serde_json::Value> {
    let peers = terminal.cugctl("peers").unwrap_or_default();
    let groups = peers.as_array().cloned().unwrap_or_default();
    groups.iter().flat_map(|group| group["peers"].as_array().cloned().unwrap_or_default()).collect()
}

fn somebody() -> anyhow::Result<WgPublicKey> {
    Ok(*PublicKey::from(&StaticSecret::from(random::<32>()?)).as_bytes())
}

#[test]
fn whatever_the_server_says_no_handshake_without_the_same_key_group_and_epoch() {
    scenario("lies", |logs| {
        let mut liar = Liar::new(logs)?;
        let [a, b] = [liar.truth(0), liar.truth(1)];
        let tell_both = |liar: &mut Liar, of_b: Word, of_a: Word| {
            liar.part()?;
            liar.tell(0, of_b)?;
            liar.tell(1, of_a)
        };
        tell_both(&mut liar, b, a)?;
        liar.they_meet("the truth")?;

        // Keys of others, at the right place: on both sides, and on one.
        let (c, d) = (somebody()?, somebody()?);
        tell_both(&mut liar, Word { key: c, ..b }, Word { key: d, ..a })?;
        liar.they_do_not_meet("others' keys", [true, true], [GROUP, GROUP])?;
        tell_both(&mut liar, b, Word { key: d, ..a })?;
        liar.they_do_not_meet("one side has another's key", [true, true], [GROUP, GROUP])?;
        // Each is told that the other has its own key.
        tell_both(&mut liar, Word { key: a.key, ..b }, Word { key: b.key, ..a })?;
        liar.they_do_not_meet("keys swapped between the two", [false, false], [GROUP, GROUP])?;

        // The same bytes for a key, the right members, another epoch.
        liar.activate(1, 2)?;
        tell_both(&mut liar, b, a)?;
        liar.they_do_not_meet("another epoch", [true, true], [GROUP, GROUP])?;
        liar.activate(0, 2)?;
        tell_both(&mut liar, b, a)?;
        liar.they_meet("the same epoch again")?;

        // The same bytes for a key, the right members, another group: B's interface of the second group is named to A as B's of the first.
        let grant = liar.group(1, OTHER_GROUP, 2)?;
        let sealed = liar.seats[1].channel.keys.seal_group(&grant, random()?)?;
        liar.seats[1].channel.wire.send(&ServerMessage::Group(sealed))?;
        let port = loop {
            if let ClientMessage::Endpoints(endpoints) = liar.seats[1].channel.hear()?
                && let Some(port) = endpoints.ports.iter().find(|port| port.group == OTHER_GROUP)
            {
                break port.port;
            }
        };
        tell_both(&mut liar, Word { port, ..b }, Word { group: OTHER_GROUP, ..a })?;
        liar.they_do_not_meet("another group", [true, true], [GROUP, OTHER_GROUP])?;
        tell_both(&mut liar, b, a)?;
        liar.they_meet("the truth at last")
    });
}
