//! A terminal in software for tests: a card key in memory, the login and the session channel over real TLS. And a server on a free port.
#![allow(dead_code, missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cug_proto::{
    PROTOCOL_VERSION,
    envelope::EnvelopeKey,
    frame,
    id::GroupId,
    login::{self, EXPORTER_LABEL, LoginKeys, OutcomeBinding, Transcript},
    message::*,
    secret::{Secret, SecretBytes},
    session::ChannelKeys,
    trust,
};
use cug_server::{
    admin::{self, Password, Reply, Request},
    clock,
    config::Config,
    server::Server,
    store::UserSettings,
};
use rsa::{
    Oaep, RsaPrivateKey,
    pkcs8::{DecodePrivateKey, EncodePublicKey},
    sha2::Sha256,
};
use sha2::Digest;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, atomic::AtomicU32},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The longest that any wait of a test takes before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Card keys, made once for all tests of a program.
static KEYS: LazyLock<[RsaPrivateKey; 5]> = LazyLock::new(|| std::array::from_fn(|_| card_key()));

fn card_key() -> RsaPrivateKey {
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    RsaPrivateKey::from_pkcs8_der(key.serialized_der()).unwrap()
}

/// A server with its own state.
pub struct TestServer {
    pub config: Config,
    pub dir: PathBuf,
    text: String,
    running: Option<Server>,
    /// The address of a server in a process of its own.
    pub elsewhere: Option<SocketAddr>,
}

/// A server in a process of its own. Killed when it is dropped.
pub struct Process {
    child: tokio::process::Child,
    pub address: SocketAddr,
}

impl Process {
    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.start_kill().unwrap();
    }

    /// After [`Process::kill`]: gone.
    pub async fn gone(&mut self) {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
    }
}

impl TestServer {
    /// Initialised and running. `extra` is appended to the configuration.
    pub async fn start(extra: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("cug-server-test-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "listen = ['127.0.0.1:0']\nstate-dir = '{0}/state'\nadmin-socket = '{0}/admin.sock'\npassword.min-length = 6\npassword.blocklist = false\n{extra}\n[argon2]\nmemory-kib = 64\niterations = 1\n",
            dir.display()
        );
        std::fs::write(dir.join("server.toml"), &text).unwrap();
        let config = Config::parse(&text, &dir).unwrap();
        copy_template(&config.state_dir);
        let mut server = Self { config, dir, running: None, elsewhere: None, text };
        server.resume().await;
        server
    }

    pub async fn resume(&mut self) {
        self.running = Some(Server::start(self.config.clone()).await.unwrap());
    }

    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    /// The same server for another owner, who does not run it and does not remove its directory.
    pub fn nowhere(&self) -> Self {
        let (config, text) = (self.config.clone(), self.text.clone());
        Self { config, dir: PathBuf::new(), running: None, elsewhere: self.elsewhere, text }
    }

    /// The configuration as a file, for the program itself.
    pub fn write_config(&self) -> PathBuf {
        let path = self.dir.join("server.toml");
        std::fs::write(&path, &self.text).unwrap();
        path
    }

    pub fn address(&self) -> SocketAddr {
        if let Some(address) = self.elsewhere {
            return address;
        }
        self.running.as_ref().unwrap().addresses()[0]
    }

    /// Runs the program itself, which can be killed.
    pub async fn in_a_process(&self) -> Process {
        self.in_a_process_with(&[]).await
    }

    /// The same with these in its environment.
    pub async fn in_a_process_with(&self, environment: &[(&str, &std::ffi::OsStr)]) -> Process {
        let file = self.dir.join("server.toml");
        std::fs::write(&file, &self.text).unwrap();
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_cug-server"))
            .args([std::ffi::OsStr::new("--config"), file.as_os_str(), "serve".as_ref()])
            .env_remove("RUST_LOG")
            .env_remove("JOURNAL_STREAM")
            .envs(environment.iter().copied())
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let found = async {
            loop {
                let line = log.next_line().await.unwrap().expect("the server listens");
                if let Some((_, address)) = line.split_once("listening on ") {
                    return address.trim().parse().unwrap();
                }
            }
        };
        let address = tokio::time::timeout(PATIENCE, found).await.expect("the server listens");
        // Nobody shall wait for a log that is not read.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Process { child, address }
    }

    /// The newest epoch of a group.
    pub async fn epoch(&self, group: &str) -> u32 {
        match self.ask(Request::GroupShow(group.parse().unwrap())).await {
            Reply::Group(group, _) => group.next_epoch.unwrap_or(group.epoch),
            _ => panic!("another reply"),
        }
    }

    /// Where it tells metrics.
    pub fn metrics(&self) -> SocketAddr {
        self.running.as_ref().unwrap().metrics_address().unwrap()
    }

    /// An administrator's request, through the socket if the server runs.
    pub async fn ask(&self, request: Request) -> Reply {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || admin::ask(&config, &request).unwrap()).await.unwrap()
    }

    pub async fn done(&self, request: Request) {
        if let Reply::Refused(sentence) = self.ask(request).await {
            panic!("{sentence}");
        }
    }

    pub async fn sessions(&self) -> Vec<cug_server::store::SessionInfo> {
        match self.ask(Request::SessionList).await {
            Reply::Sessions(sessions) => sessions,
            _ => panic!("another reply"),
        }
    }

    /// The patent's example: USER-A, USER-B in VPN1, USER-C, USER-D in VPN2, each with a card.
    pub async fn patent(&self) -> [Person; 4] {
        let mut people = vec![];
        for (i, user) in ["USER-A", "USER-B", "USER-C", "USER-D"].into_iter().enumerate() {
            people.push(self.person(user, &format!("passwd{}", i + 1), i).await);
        }
        for (group, users) in [("VPN1", ["USER-A", "USER-B"]), ("VPN2", ["USER-C", "USER-D"])] {
            self.done(Request::GroupAdd { group: group.parse().unwrap(), prefix4: None, prefix6: None }).await;
            for user in users {
                self.done(Request::GroupJoin(group.parse().unwrap(), user.parse().unwrap())).await;
            }
        }
        people.try_into().ok().unwrap()
    }

    /// A user with a card: number `key` of the card keys.
    pub async fn person(&self, user: &str, password: &str, key: usize) -> Person {
        self.person_with(user, password, KEYS[key].clone()).await
    }

    /// A user with a card of their own: for tests that need many.
    pub async fn person_with_new_card(&self, user: &str, password: &str) -> Person {
        self.person_with(user, password, card_key()).await
    }

    async fn person_with(&self, user: &str, password: &str, card: RsaPrivateKey) -> Person {
        let public_key = card.to_public_key().to_public_key_der().unwrap().into_vec();
        let id: cug_proto::id::UserId = user.parse().unwrap();
        let secret = Password::new(password.as_bytes()).unwrap();
        self.done(Request::UserAdd { user: id.clone(), password: secret, settings: UserSettings::default() }).await;
        self.done(Request::CardRegister {
            user: id.clone(),
            public_key: public_key.clone(),
            kind: "registered".into(),
        })
        .await;
        let Reply::Der(object) = self.ask(Request::ServerObject).await else { panic!("another reply") };
        Person { user: id, password: password.into(), fingerprint: Sha256::digest(&public_key).into(), card, object }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if !self.dir.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A state directory that was initialised once: the keys take a second or two, each time.
fn copy_template(to: &Path) {
    static TEMPLATE: LazyLock<PathBuf> = LazyLock::new(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cug-server-template-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let config = Config::parse(&format!("state-dir = '{}'", dir.display()), &dir).unwrap();
        admin::initialise(&config, "Test").unwrap();
        dir
    });
    for sub in ["", "keys"] {
        std::fs::create_dir_all(to.join(sub)).unwrap();
        for entry in std::fs::read_dir(TEMPLATE.join(sub)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), to.join(sub).join(entry.file_name())).unwrap();
            }
        }
    }
}

/// A user with a card.
#[derive(Clone)]
pub struct Person {
    pub user: cug_proto::id::UserId,
    pub password: String,
    pub fingerprint: Fingerprint,
    pub card: RsaPrivateKey,
    pub object: Vec<u8>,
}

/// Number `key` of the card keys: one that nobody registered, if `person` was not called for it.
pub fn strangers_key(key: usize) -> (RsaPrivateKey, Fingerprint) {
    let card = KEYS[key].clone();
    let der = card.to_public_key().to_public_key_der().unwrap();
    (card, Sha256::digest(der.as_bytes()).into())
}

/// A TLS connection with frames.
pub struct Connection {
    pub stream: TlsStream<TcpStream>,
    pub exporter: [u8; 32],
}

impl Connection {
    pub async fn open(server: SocketAddr, object: &[u8]) -> Self {
        let object = trust::ServerObject::parse(object).unwrap();
        let config = Arc::new(trust::client_config(*object.ca_pin()).unwrap());
        let tcp = TcpStream::connect(server).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let stream = TlsConnector::from(config).connect(trust::server_name(), tcp).await.unwrap();
        let exporter = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
        Self { stream, exporter }
    }

    /// Sends a message; answers with its body as sent. A peer that hung up is noticed by the next receive.
    pub async fn send(&mut self, message: &ClientMessage) -> Vec<u8> {
        let frame = frame::encode(message, frame::MAX_SESSION).unwrap();
        self.send_raw(&frame).await;
        frame[4..].to_vec()
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next message with its body, or `None` at the end of the connection.
    pub async fn receive_raw(&mut self) -> Option<(ServerMessage, Vec<u8>)> {
        let read = async {
            let mut header = [0; 4];
            self.stream.read_exact(&mut header).await.ok()?;
            let mut body = vec![0; frame::body_len(header, frame::MAX_SESSION).unwrap()];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((frame::decode(&body).unwrap(), body))
        };
        tokio::time::timeout(PATIENCE, read).await.expect("no message came in time")
    }

    pub async fn receive(&mut self) -> Option<ServerMessage> {
        self.receive_raw().await.map(|(message, _)| message)
    }

    /// The connection ended without another message.
    pub async fn assert_closed(&mut self) {
        assert!(self.receive().await.is_none(), "another message came");
    }
}

/// What a login led to.
pub enum LoginResult {
    Rejected,
    Outcome(Outcome, Box<PendingAck>),
    Unavailable(Unavailable),
    Closed,
}

/// A login between its outcome and its acknowledgement.
pub struct PendingAck {
    pub connection: Connection,
    mac: Option<[u8; 32]>,
}

impl PendingAck {
    /// Acknowledges; whether the server registered.
    pub async fn acknowledge(&mut self) -> bool {
        self.connection.send(&ClientMessage::Ack(Ack { mac: self.mac.unwrap() })).await;
        matches!(self.connection.receive().await, Some(ServerMessage::Registered))
    }
}

/// How a login is done; change a field to misbehave.
#[derive(Clone)]
pub struct Attempt {
    pub person: Person,
    pub hello_user: cug_proto::id::UserId,
    pub password: String,
    pub purpose: Purpose,
    pub host: String,
    pub wg_public_key: WgPublicKey,
    pub new_password: Option<String>,
}

impl Person {
    pub fn attempt(&self) -> Attempt {
        Attempt {
            person: self.clone(),
            hello_user: self.user.clone(),
            password: self.password.clone(),
            purpose: Purpose::Open,
            host: "terminal-1".into(),
            wg_public_key: clock::random(),
            new_password: None,
        }
    }

    pub async fn connect(&self, server: &TestServer) -> Connection {
        Connection::open(server.address(), &self.object).await
    }

    /// Logs in and acknowledges.
    pub async fn log_in(&self, server: &TestServer) -> Grant {
        self.attempt().log_in(server).await
    }

    /// Logs in, attaches, announces a port for each group.
    pub async fn sit_down(&self, server: &TestServer, host: &str) -> Terminal {
        let grant = Attempt { host: host.into(), ..self.attempt() }.log_in(server).await;
        let mut terminal = Terminal::attach(self, server, grant, &[]).await.ok().unwrap();
        terminal.synced().await;
        terminal.announce(51820).await;
        terminal
    }
}

impl Attempt {
    pub async fn log_in(&self, server: &TestServer) -> Grant {
        match self.run(server).await {
            LoginResult::Outcome(Outcome::Grant(grant), mut pending) => {
                assert!(pending.acknowledge().await, "not registered");
                grant
            }
            LoginResult::Outcome(Outcome::Denied(reason), _) => panic!("denied: {reason:?}"),
            _ => panic!("not granted"),
        }
    }

    /// Up to the server's answer.
    pub async fn run(&self, server: &TestServer) -> LoginResult {
        let (connection, transcript, challenge) = self.challenge(server).await;
        self.answer(connection, transcript, challenge).await
    }

    /// Up to the challenge: the transcript and what the card says of the challenge.
    pub async fn challenge(&self, server: &TestServer) -> (Connection, Transcript, Secret<32>) {
        let mut connection = self.person.connect(server).await;
        let hello = Hello { version: PROTOCOL_VERSION, user: self.hello_user.clone(), card: self.person.fingerprint };
        let hello = connection.send(&ClientMessage::Hello(hello)).await;
        let Some((ServerMessage::Challenge(challenge), body)) = connection.receive_raw().await else {
            panic!("no challenge")
        };
        let opened = self.person.card.decrypt(Oaep::<Sha256>::new(), &challenge.ciphertext);
        // A card that cannot open it goes on with a guess.
        let opened =
            opened.ok().and_then(|k| Secret::copy_from(&k)).unwrap_or_else(|| Secret::random(&mut clock::rng()));
        (connection, Transcript::new(&hello, &body), opened)
    }

    /// Makes the `Login` message for a challenge.
    pub fn login(
        &self,
        connection: &Connection,
        transcript: &Transcript,
        challenge: &Secret<32>,
    ) -> (Login, LoginKeys, OutcomeBinding) {
        let credentials = Credentials {
            user: self.person.user.clone(),
            password: SecretBytes::copy_from(self.password.as_bytes()).unwrap(),
            purpose: self.purpose,
            wg_public_key: self.wg_public_key,
            host_name: self.host.parse().unwrap(),
            addresses: vec!["192.0.2.7".parse().unwrap()],
            outcome_secret: Secret::random(&mut clock::rng()),
            new_password: self.new_password.as_ref().map(|new| SecretBytes::copy_from(new.as_bytes()).unwrap()),
        };
        let object = trust::ServerObject::parse(&self.person.object).unwrap();
        let envelope = EnvelopeKey::seal(object.envelope_key(), &credentials, &mut clock::rng()).unwrap();
        let keys = LoginKeys::new(challenge, &connection.exporter);
        let proof = keys.proof(&transcript.with_envelope(&envelope));
        (Login { envelope, proof }, keys, credentials.outcome_binding())
    }

    pub async fn answer(
        &self,
        mut connection: Connection,
        transcript: Transcript,
        challenge: Secret<32>,
    ) -> LoginResult {
        let (login, keys, binding) = self.login(&connection, &transcript, &challenge);
        let bound = transcript.with_envelope(&login.envelope);
        connection.send(&ClientMessage::Login(login)).await;
        match connection.receive().await {
            Some(ServerMessage::Rejected) => LoginResult::Rejected,
            Some(ServerMessage::Unavailable(why)) => LoginResult::Unavailable(why),
            Some(ServerMessage::Outcome(SealedOutcome { sealed })) => {
                let outcome = keys.open_outcome(&bound, &binding, &sealed).unwrap();
                let mac = match &outcome {
                    Outcome::Grant(grant) => Some(login::ack_mac(grant, &bound, &sealed)),
                    _ => None,
                };
                LoginResult::Outcome(outcome, Box::new(PendingAck { connection, mac }))
            }
            _ => LoginResult::Closed,
        }
    }
}

/// A session channel.
pub struct Terminal {
    pub connection: Connection,
    pub keys: ChannelKeys,
    pub grant: Grant,
    pub attached: Attached,
}

impl Terminal {
    /// Attaches; the server's refusal otherwise.
    pub async fn attach(
        person: &Person,
        server: &TestServer,
        grant: Grant,
        known: &[Known],
    ) -> Result<Self, ServerMessage> {
        let mut connection = person.connect(server).await;
        let keys = ChannelKeys::new(grant.session, &grant.secret, &connection.exporter);
        let (session, proof) = (grant.session, keys.terminal_proof());
        let attach = Attach { version: PROTOCOL_VERSION, session, proof, known: known.to_vec() };
        connection.send(&ClientMessage::Attach(attach)).await;
        match connection.receive().await.expect("an answer to Attach") {
            ServerMessage::Attached(attached) => {
                keys.verify_server(&attached.proof).unwrap();
                Ok(Self { connection, keys, grant, attached })
            }
            refusal => Err(refusal),
        }
    }

    pub async fn next(&mut self) -> ServerMessage {
        self.connection.receive().await.expect("a message")
    }

    /// Everything up to `Synced`.
    pub async fn synced(&mut self) -> Vec<ServerMessage> {
        let mut messages = vec![];
        loop {
            match self.next().await {
                ServerMessage::Synced => return messages,
                message => messages.push(message),
            }
        }
    }

    pub async fn announce(&mut self, port: u16) {
        let ports = self.grant.groups.iter().map(|g| GroupPort { group: g.id, port }).collect();
        let endpoints = Endpoints { ports, addresses: vec!["192.0.2.8".parse().unwrap()] };
        self.connection.send(&ClientMessage::Endpoints(endpoints)).await;
        // Answers come in order: when this one is here, the announcement was carried out.
        self.heartbeat().await;
    }

    /// A heartbeat and its answer; what came in between.
    pub async fn heartbeat(&mut self) -> Vec<ServerMessage> {
        let number = u64::from_be_bytes(clock::random());
        self.connection.send(&ClientMessage::Heartbeat(number)).await;
        let mut messages = vec![];
        loop {
            match self.next().await {
                ServerMessage::Alive(n) if n == number => return messages,
                message => messages.push(message),
            }
        }
    }

    /// Keeps the session alive, a heartbeat every now and then, until a message that `wanted` accepts has come.
    pub async fn until(&mut self, mut wanted: impl FnMut(&ServerMessage) -> bool) -> ServerMessage {
        let deadline = clock::monotonic() + PATIENCE;
        let mut beat = tokio::time::interval(Duration::from_millis(100));
        loop {
            assert!(clock::monotonic() < deadline, "no such message came in time");
            beat.tick().await;
            if let Some(message) = self.heartbeat_or_end().await.into_iter().find(&mut wanted) {
                return message;
            }
        }
    }

    /// Like [`Terminal::heartbeat`]; the end of the session instead of the answer is one of the messages.
    async fn heartbeat_or_end(&mut self) -> Vec<ServerMessage> {
        self.connection.send(&ClientMessage::Heartbeat(7)).await;
        let mut messages = vec![];
        loop {
            match self.next().await {
                ServerMessage::Alive(_) => return messages,
                message => {
                    let end = matches!(message, ServerMessage::End(_));
                    messages.push(message);
                    if end {
                        return messages;
                    }
                }
            }
        }
    }

    /// The next message about members.
    pub async fn peers(&mut self) -> Peers {
        match self.next().await {
            ServerMessage::Peers(peers) => peers,
            _ => panic!("another message"),
        }
    }

    /// The next message, which must be a sealed group key; acknowledges it.
    pub async fn take_key(&mut self) -> GroupGrant {
        let ServerMessage::Group(sealed) = self.next().await else { panic!("another message") };
        let group = self.keys.open_group(&sealed).unwrap();
        self.connection.send(&ClientMessage::KeyAck(KeyAck { group: group.id, epoch: group.epoch })).await;
        group
    }

    pub async fn clear(mut self) {
        self.connection.send(&ClientMessage::Clear(ClearReason::CardRemoved)).await;
        loop {
            if let ServerMessage::Cleared = self.next().await {
                return self.connection.assert_closed().await;
            }
        }
    }
}

/// Group numbers of a grant.
pub fn groups(grant: &Grant) -> Vec<GroupId> {
    grant.groups.iter().map(|g| g.id).collect()
}
