//! The server goes away, at any moment, and comes back: no session is lost or doubled, and no terminal is told to use a key that it was not
//! given.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_proto::{
    PROTOCOL_VERSION, frame,
    id::{Epoch, GroupId},
    login::EXPORTER_LABEL,
    message::*,
    secret::Secret,
    session::ChannelKeys,
    trust,
};
use cug_server::{
    admin::{self, Request},
    clock,
    keys::Keys,
    store::{By, LoginFacts, NewCard, NewGroup, NewSession, PasswordRecord, Store},
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A terminal that survives its server: what it knows of its session.
struct Survivor {
    session: SessionId,
    secret: Secret<32>,
    pin: trust::CaPin,
    /// Keys that it was given.
    keys: HashMap<(GroupId, Epoch), [u8; 32]>,
    /// What it was told to use.
    active: HashMap<GroupId, Epoch>,
}

/// Why a connection is over.
#[derive(Debug, PartialEq)]
enum Gone {
    Lost,
    Ended,
}

struct Wire {
    stream: TlsStream<TcpStream>,
    keys: ChannelKeys,
}

impl Wire {
    async fn send(&mut self, message: &ClientMessage) -> Result<(), Gone> {
        let frame = frame::encode(message, frame::MAX_SESSION).unwrap();
        self.stream.write_all(&frame).await.map_err(|_| Gone::Lost)?;
        self.stream.flush().await.map_err(|_| Gone::Lost)
    }

    async fn receive(&mut self) -> Result<ServerMessage, Gone> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).await.map_err(|_| Gone::Lost)?;
        let mut body = vec![0; frame::body_len(header, frame::MAX_SESSION).unwrap()];
        self.stream.read_exact(&mut body).await.map_err(|_| Gone::Lost)?;
        Ok(frame::decode(&body).unwrap())
    }
}

impl Survivor {
    fn new(grant: &Grant, pin: trust::CaPin) -> Self {
        let keys = grant.groups.iter().map(|g| ((g.id, g.epoch), *g.key.expose())).collect();
        let active = grant.groups.iter().map(|g| (g.id, g.epoch)).collect();
        Self { session: grant.session, secret: grant.secret.duplicate(), pin, keys, active }
    }

    /// One attempt.
    async fn attach(&self, server: SocketAddr) -> Result<Wire, Gone> {
        let lost = |_| Gone::Lost;
        let tcp = TcpStream::connect(server).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let config = Arc::new(trust::client_config(self.pin).unwrap());
        let stream = TlsConnector::from(config).connect(trust::server_name(), tcp).await.map_err(lost)?;
        let exporter = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
        let keys = ChannelKeys::new(self.session, &self.secret, &exporter);
        let newest = |group| self.keys.keys().filter(|(g, _)| *g == group).map(|(_, e)| *e).max().unwrap();
        let known = self.active.keys().map(|g| Known { group: *g, revision: 0, epoch: newest(*g) }).collect();
        let attach = Attach { version: PROTOCOL_VERSION, session: self.session, proof: keys.terminal_proof(), known };
        let mut wire = Wire { stream, keys };
        wire.send(&ClientMessage::Attach(attach)).await?;
        match wire.receive().await? {
            ServerMessage::Attached(attached) => wire.keys.verify_server(&attached.proof).unwrap(),
            ServerMessage::End(_) => return Err(Gone::Ended),
            _ => return Err(Gone::Lost),
        }
        Ok(wire)
    }

    /// Takes what the server says until `enough`.
    async fn follow(
        &mut self,
        wire: &mut Wire,
        mut enough: impl FnMut(&Self, &ServerMessage) -> bool,
    ) -> Result<(), Gone> {
        loop {
            let message = wire.receive().await?;
            match &message {
                ServerMessage::Group(sealed) => {
                    let group = wire.keys.open_group(sealed).unwrap();
                    self.keys.insert((group.id, group.epoch), *group.key.expose());
                    wire.send(&ClientMessage::KeyAck(KeyAck { group: group.id, epoch: group.epoch })).await?;
                }
                ServerMessage::Activate(KeyAck { group, epoch }) => {
                    assert!(self.keys.contains_key(&(*group, *epoch)), "told to use epoch {epoch} without its key");
                    assert!(self.active[group] <= *epoch, "told to go back to epoch {epoch}");
                    self.active.insert(*group, *epoch);
                }
                ServerMessage::End(_) => return Err(Gone::Ended),
                _ => {}
            }
            if enough(self, &message) {
                return Ok(());
            }
        }
    }

    /// Attaches, again and again if it must, and takes what was missed.
    async fn back(&mut self, server: SocketAddr) -> Wire {
        let attempts = async {
            loop {
                if let Ok(mut wire) = self.attach(server).await
                    && self.follow(&mut wire, |_, m| matches!(m, ServerMessage::Synced)).await.is_ok()
                {
                    return wire;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), attempts).await.expect("attached again")
    }
}

fn pin_of(server: &TestServer) -> trust::CaPin {
    Keys::ca_pin(&server.config.state_dir).unwrap()
}

/// Follows until the connection is lost, telling `something` of each message.
async fn until_lost(mut survivor: Survivor, server: SocketAddr, something: Arc<(AtomicUsize, Notify)>) -> Survivor {
    loop {
        let Ok(mut wire) = survivor.attach(server).await else { return survivor };
        let mut left = 3 + usize::from(clock::random::<1>()[0] % 6);
        let ended = survivor
            .follow(&mut wire, |_, _| {
                something.0.fetch_add(1, Ordering::Relaxed);
                something.1.notify_one();
                left -= 1;
                left == 0
            })
            .await;
        assert_ne!(ended, Err(Gone::Ended), "the session was lost");
        if ended.is_err() {
            return survivor;
        }
        // It attaches anew, so that the server is also killed in the middle of that.
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_terminals_attach_and_keys_change() {
    let mut server = TestServer::start("").await;
    let people = server.patent().await;
    for user in ["USER-C", "USER-D"] {
        server.done(Request::GroupJoin("VPN1".parse().unwrap(), user.parse().unwrap())).await;
    }
    let pin = pin_of(&server);
    let mut survivors = vec![];
    for person in &people {
        survivors.push(Survivor::new(&person.log_in(&server).await, pin));
    }
    let before = rows(&server).await;
    assert_eq!(before.len(), 6, "A and B in one group, C and D in two");
    server.stop().await;
    for round in 0..15 {
        let mut process = server.in_a_process().await;
        let address = process.address;
        let happened = Arc::new((AtomicUsize::new(0), Notify::new()));
        let following: Vec<_> =
            survivors.into_iter().map(|s| tokio::spawn(until_lost(s, address, happened.clone()))).collect();
        let config = server.config.clone();
        let rotating = tokio::task::spawn_blocking(move || {
            // Until the server is gone; what it did not answer may be done or not.
            while admin::ask_server(&config, &Request::GroupRotate("VPN1".parse().unwrap())).is_ok() {}
        });
        let wanted = usize::from(clock::random::<1>()[0] % 120) + 5;
        let enough = async {
            while happened.0.load(Ordering::Relaxed) < wanted {
                happened.1.notified().await;
            }
        };
        tokio::time::timeout(PATIENCE, enough).await.unwrap_or_else(|_| panic!("round {round}: nothing happens"));
        process.kill();
        process.gone().await;
        rotating.await.unwrap();
        survivors = vec![];
        for one in following {
            survivors.push(one.await.unwrap());
        }
        // Also no command is lost: the database opens, and everybody is where they were, once.
        assert_eq!(rows(&server).await, before, "round {round}");
    }

    server.resume().await;
    let address = server.address();
    let mut wires = vec![];
    for survivor in &mut survivors {
        wires.push(survivor.back(address).await);
    }
    server.done(Request::GroupRotate("VPN1".parse().unwrap())).await;
    let newest = server.epoch("VPN1").await;
    let group = *survivors[0].active.keys().next().unwrap();
    let mut keys = last_keys(survivors, wires, group, newest).await;
    keys.dedup();
    assert_eq!(keys.len(), 1, "all have the same key in the end");
}

/// The key of this epoch, as each of them has it.
async fn last_keys(survivors: Vec<Survivor>, wires: Vec<Wire>, group: GroupId, newest: Epoch) -> Vec<[u8; 32]> {
    // All at a time: nobody is told to use it before everybody has it.
    let following: Vec<_> = survivors
        .into_iter()
        .zip(wires)
        .map(|(mut survivor, mut wire)| {
            tokio::spawn(async move {
                if survivor.active[&group] < newest {
                    survivor.follow(&mut wire, |s, _| s.active[&group] >= newest).await.unwrap();
                }
                survivor.keys[&(group, newest)]
            })
        })
        .collect();
    let mut keys = vec![];
    for one in following {
        keys.push(tokio::time::timeout(PATIENCE, one).await.expect("the newest epoch").unwrap());
    }
    keys
}

async fn rows(server: &TestServer) -> Vec<(String, String)> {
    server.sessions().await.into_iter().map(|s| (s.group.to_string(), s.user.to_string())).collect()
}

const CROWD: usize = 300;

/// The worst case: no jitter at all, and all from one address.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_comes_back_at_once_and_everybody_is_served() {
    let mut server = TestServer::start("").await;
    server.stop().await;
    let survivors = crowd(&server);
    server.resume().await;
    let pin_and_place = (pin_of(&server), server.address());
    assert_eq!(server.sessions().await.len(), CROWD);
    let began = clock::monotonic();
    let attaching: Vec<_> = survivors
        .into_iter()
        .map(|(session, secret, group)| {
            tokio::spawn(async move {
                let (pin, address) = pin_and_place;
                let keys = HashMap::from([((group, 1), [0; 32])]);
                let mut one = Survivor { session, secret, pin, keys, active: HashMap::from([(group, 1)]) };
                let wire = one.back(address).await;
                (clock::monotonic(), wire)
            })
        })
        .collect();
    let mut wires = vec![];
    for one in attaching {
        wires.push(one.await.unwrap());
    }
    let last = wires.iter().map(|(at, _)| at.duration_since(began)).max().unwrap();
    assert_eq!(server.sessions().await.len(), CROWD, "nobody lost or doubled");
    assert!(last < Duration::from_secs(60), "{last:?}");
    eprintln!("{CROWD} terminals attached {last:?} after the server was there again");
}

/// Registered sessions, made in the store.
fn crowd(server: &TestServer) -> Vec<(SessionId, Secret<32>, GroupId)> {
    let keys = Keys::load(&server.config.state_dir).unwrap();
    let store = admin::open_store(&server.config.state_dir, &keys).unwrap();
    let now = clock::unix_now();
    let by = By { actor: "test", now };
    let name = "VPN1".parse().unwrap();
    let new = NewGroup { name: &name, prefix4: None, prefix6: None, pool: "10.0.0.0/8".parse().unwrap(), ula: [0; 5] };
    let group = store.add_group(by, &new, &|group, epoch| keys.mint(group, epoch)).unwrap();
    let password = PasswordRecord { salt: [0; 16], hash: [0; 32], memory_kib: 8, iterations: 1, lanes: 1 };
    (0..CROWD)
        .map(|number| {
            let user = format!("u{number}").parse().unwrap();
            store.add_user(by, &user, &password).unwrap();
            store.join(by, &name, &user).unwrap();
            let card = clock::random();
            store
                .add_card(by, &NewCard { fingerprint: card, user: &user, public_key: &[], bits: 2048, kind: "piv" })
                .unwrap();
            let (id, secret): (SessionId, _) = (clock::random(), Secret::random(&mut clock::rng()));
            let wrapped = keys.storage().wrap_session_secret(&id, &secret, &mut clock::rng()).unwrap();
            store
                .create_session(&NewSession {
                    new_password: None,
                    login: LoginFacts { user: &user, card: &card, source: [127, 0, 0, 1].into(), now },
                    id,
                    wg_public_key: clock::random(),
                    host_name: &format!("host{number}").parse().unwrap(),
                    addresses: &[],
                    wrapped_secret: &wrapped,
                    groups: &[(group.id, 1)],
                })
                .unwrap();
            assert!(store.register(&id, now).unwrap());
            (id, secret, group.id)
        })
        .collect()
}
