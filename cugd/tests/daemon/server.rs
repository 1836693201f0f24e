//! The server's side of session channels, as the protocol says it, on loopback.

use std::{
    collections::VecDeque,
    net::TcpListener as StdListener,
    sync::{Arc, Condvar, Mutex},
};

use cug_proto::{
    frame::{self, HEADER_LEN, MAX_SESSION},
    login::EXPORTER_LABEL,
    message::{Attached, ClientMessage, GroupGrant, Peer, Peers, ServerMessage},
    secret::Secret,
    session::ChannelKeys,
    trust,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::bench::PATIENCE;

#[derive(Clone)]
enum Order {
    Send(Arc<ServerMessage>),
    Seal(Arc<GroupGrant>),
    /// Cut all connections.
    Drop,
}

pub struct Server {
    pub address: String,
    pub ca_pin: [u8; 32],
    shared: Arc<Shared>,
    orders: broadcast::Sender<Order>,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    news: Condvar,
}

#[derive(Default)]
struct Heard {
    messages: VecDeque<ClientMessage>,
    known: Vec<(u32, u64, u32)>,
    forgotten: bool,
}

impl Server {
    pub fn start() -> Self {
        let (config, ca_pin) = tls();
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared::default());
        let (orders, _) = broadcast::channel(16);
        let (own_shared, own_orders) = (shared.clone(), orders.clone());
        // Ends with the test process.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((tcp, _)) = listener.accept().await {
                    let acceptor = TlsAcceptor::from(config.clone());
                    let (shared, orders) = (own_shared.clone(), own_orders.subscribe());
                    tokio::spawn(async move { connection(tcp, acceptor, &shared, orders).await });
                }
            });
        });
        Self { address, ca_pin, shared, orders }
    }

    pub fn send(&self, message: ServerMessage) {
        drop(self.orders.send(Order::Send(Arc::new(message))));
    }

    pub fn seal(&self, group: GroupGrant) {
        drop(self.orders.send(Order::Seal(Arc::new(group))));
    }

    pub fn cut(&self) {
        drop(self.orders.send(Order::Drop));
    }

    /// From now on it makes its proof with another session secret.
    pub fn forget(&self) {
        self.shared.heard.lock().unwrap().forgotten = true;
    }

    /// `known` of the last `Attach`.
    pub fn known(&self) -> Vec<(u32, u64, u32)> {
        self.shared.heard.lock().unwrap().known.clone()
    }

    pub fn expect(&self, wanted: impl Fn(&ClientMessage) -> bool) {
        let heard = self.shared.heard.lock().unwrap();
        let missing = |heard: &mut Heard| !heard.messages.iter().any(&wanted);
        let (_heard, late) = self.shared.news.wait_timeout_while(heard, PATIENCE, missing).unwrap();
        assert!(!late.timed_out(), "the server has not heard it");
    }

    pub fn nothing(&self) {
        assert!(self.shared.heard.lock().unwrap().messages.is_empty());
    }
}

fn tls() -> (Arc<ServerConfig>, [u8; 32]) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![trust::SERVER_NAME.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    let ca_pin = trust::spki_sha256(ca_certificate.der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone(), ca_certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    config.alpn_protocols = vec![trust::ALPN.to_vec()];
    (Arc::new(config), ca_pin)
}

async fn connection(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    shared: &Shared,
    mut orders: broadcast::Receiver<Order>,
) -> Option<()> {
    let mut stream = acceptor.accept(tcp).await.ok()?;
    let mut exporter = [0; 32];
    stream.get_ref().1.export_keying_material(&mut exporter, EXPORTER_LABEL, None).ok()?;
    let ClientMessage::Attach(attach) = receive(&mut stream).await? else { panic!("not an Attach") };
    let keys = ChannelKeys::new(attach.session, &Secret::fill(|bytes| bytes.fill(7)), &exporter);
    keys.verify_terminal(&attach.proof).expect("the terminal's proof");
    let forgotten = {
        let mut heard = shared.heard.lock().unwrap();
        heard.known = attach.known.iter().map(|known| (known.group, known.revision, known.epoch)).collect();
        heard.forgotten
    };
    let others = ChannelKeys::new(attach.session, &Secret::fill(|bytes| bytes.fill(8)), &exporter);
    let proof = if forgotten { others.server_proof() } else { keys.server_proof() };
    send(&mut stream, &ServerMessage::Attached(Attached { proof, lease: 60, heartbeat: 1, seen_at: None })).await?;
    let present = if attach.known.is_empty() { vec![peer()] } else { vec![] };
    send(
        &mut stream,
        &ServerMessage::Peers(Peers { group: 1, revision: 1, full: attach.known.is_empty(), present, gone: vec![] }),
    )
    .await?;
    send(&mut stream, &ServerMessage::Synced).await?;
    loop {
        // One frame is one write on the other side; the tests do not mind the one that a cancelled read might lose.
        tokio::select! {
            message = receive(&mut stream) => {
                match message? {
                    ClientMessage::Heartbeat(mark) => send(&mut stream, &ServerMessage::Alive(mark)).await?,
                    message => {
                        let clear = matches!(message, ClientMessage::Clear(_));
                        shared.heard.lock().unwrap().messages.push_back(message);
                        shared.news.notify_all();
                        if clear {
                            send(&mut stream, &ServerMessage::Cleared).await?;
                        }
                    }
                }
            }
            order = orders.recv() => match order.ok()? {
                Order::Send(message) => send(&mut stream, &message).await?,
                Order::Seal(group) => send(&mut stream, &ServerMessage::Group(keys.seal_group(&group, [0; 12]).unwrap())).await?,
                Order::Drop => return None,
            },
        }
    }
}

fn peer() -> Peer {
    Peer {
        user: "USER-B".parse().unwrap(),
        host_name: "term2".parse().unwrap(),
        wg_public_key: [50; 32],
        endpoints: vec!["10.0.0.2:51820".parse().unwrap()],
        address4: [100, 96, 1, 2].into(),
        address6: "fd00::2".parse().unwrap(),
    }
}

async fn receive(stream: &mut TlsStream<TcpStream>) -> Option<ClientMessage> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await.ok()?;
    let mut body = vec![0; frame::body_len(header, MAX_SESSION).unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some(frame::decode(&body).expect("a message of the protocol"))
}

async fn send(stream: &mut TlsStream<TcpStream>, message: &ServerMessage) -> Option<()> {
    stream.write_all(&frame::encode(message, MAX_SESSION).unwrap()).await.ok()?;
    stream.flush().await.ok()
}
