//! A terminal that follows a script: every message of a login and of a session channel, one at a time, right or wrong.

use super::stream::{self, Wire};
use super::{authority, random};
use crate::lan;
use crate::server::{self, ServerHost};
use crate::space::Space;
use anyhow::{Context, bail};
use cug_proto::login::{BoundTranscript, LoginKeys, OutcomeBinding, Transcript, ack_mac};
use cug_proto::message::{
    Ack, Attach, ClientMessage, Credentials, Grant, Hello, Login, Outcome, Purpose, ServerMessage, WgPublicKey,
};
use cug_proto::secret::{Secret, SecretBytes};
use cug_proto::session::ChannelKeys;
use cug_proto::trust::ServerObject;
use cug_proto::{PROTOCOL_VERSION, message::Fingerprint};
use rsa::pkcs8::{EncodePublicKey, LineEnding};
use rsa::{Oaep, RsaPrivateKey, RsaPublicKey};
use sha2::{Digest, Sha256};
use std::fs;
use std::net::SocketAddr;

/// A member whose card is a key in this process.
pub struct Member {
    /// Who.
    pub user: String,
    /// The card's key.
    pub key: RsaPrivateKey,
    /// What the card says about the server.
    pub server_object: Vec<u8>,
}

impl Member {
    /// Registers a key for `user` with `cug-server card register`, as a card made by a third party.
    ///
    /// # Errors
    /// With what the command says.
    pub fn register(server: &ServerHost, user: &str) -> anyhow::Result<Self> {
        let key = authority::rsa_key(2048)?;
        let pem = RsaPublicKey::from(&key).to_public_key_pem(LineEnding::LF)?;
        let (file, medium) = (format!("/run/{user}.pem"), format!("/run/{user}.medium"));
        server.space().write(&file, pem, 0o600)?;
        fs::create_dir_all(server.space().path(&medium))?;
        server.run(&["card", "register", user, "--key", &file, "--medium", &medium])?;
        let object =
            fs::read(server.space().path(format!("{medium}/server.crt"))).context("server.crt on the medium")?;
        Ok(Self { user: user.to_owned(), key, server_object: der(&object)? })
    }

    /// SHA-256 of the card's public key.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn fingerprint(&self) -> anyhow::Result<Fingerprint> {
        Ok(Sha256::digest(RsaPublicKey::from(&self.key).to_public_key_der()?.as_bytes()).into())
    }

    /// What the card says about the server.
    ///
    /// # Errors
    /// When it is no server object.
    pub fn server(&self) -> anyhow::Result<ServerObject> {
        Ok(ServerObject::parse(&self.server_object)?)
    }

    /// A TLS connection to the server, from `host`.
    ///
    /// # Errors
    /// When it does not come about.
    pub fn connect(&self, host: &Space) -> anyhow::Result<Wire> {
        let tcp = stream::connect(host, server_address())?;
        Wire::terminal(tcp, *self.server()?.ca_pin())
    }

    /// Hello and Challenge, opened with the card's key.
    ///
    /// # Errors
    /// When the server does not answer with a challenge for this card.
    pub fn challenge(&self, mut wire: Wire) -> anyhow::Result<Challenged> {
        let hello = Hello { version: PROTOCOL_VERSION, user: self.user.parse()?, card: self.fingerprint()? };
        let hello = wire.send(&ClientMessage::Hello(hello))?;
        let body = wire.receive_raw()?;
        let ServerMessage::Challenge(challenge) = cug_proto::frame::decode(&body)? else { bail!("no challenge") };
        let opened = self.key.decrypt(Oaep::<Sha256>::new(), &challenge.ciphertext);
        // A decoy cannot be opened; a terminal that goes on regardless has to invent something.
        let secret = opened.ok().and_then(|plain| Secret::copy_from(&plain));
        let opened = secret.is_some();
        let secret = secret.map_or_else(|| Ok::<_, anyhow::Error>(Secret::fill(|bytes| bytes.fill(0x55))), Ok)?;
        Ok(Challenged {
            keys: LoginKeys::new(&secret, &wire.exporter()?),
            transcript: Transcript::new(&hello, &body),
            wire,
            opened,
            size: challenge.ciphertext.len(),
        })
    }

    /// The login's message for `password`.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn login(
        &self,
        challenged: &Challenged,
        password: &str,
        wg: WgPublicKey,
    ) -> anyhow::Result<(Login, LoginBinding)> {
        let credentials = Credentials {
            user: self.user.parse()?,
            password: SecretBytes::copy_from(password.as_bytes()).context("password too long")?,
            purpose: Purpose::Open,
            wg_public_key: wg,
            host_name: "script".parse()?,
            addresses: Vec::new(),
            outcome_secret: Secret::random(&mut authority::rng()),
            new_password: None,
        };
        let envelope = self.server()?.envelope_key().seal(&credentials, &mut authority::rng())?;
        let bound = challenged.transcript.with_envelope(&envelope);
        let proof = challenged.keys.proof(&bound);
        Ok((Login { envelope, proof }, LoginBinding { transcript: bound, outcome: credentials.outcome_binding() }))
    }

    /// A whole login.
    ///
    /// # Errors
    /// When it is not granted.
    pub fn log_in(&self, host: &Space, password: &str) -> anyhow::Result<Session> {
        let wg: WgPublicKey = random()?;
        let mut challenged = self.challenge(self.connect(host)?)?;
        let (login, bound) = self.login(&challenged, password, wg)?;
        challenged.wire.send(&ClientMessage::Login(login))?;
        let ServerMessage::Outcome(sealed) = challenged.wire.receive()? else { bail!("no outcome") };
        let Challenged { mut wire, keys, .. } = challenged;
        let Outcome::Grant(grant) = keys.open_outcome(&bound.transcript, &bound.outcome, &sealed.sealed)? else {
            bail!("not granted")
        };
        let mac = ack_mac(&grant, &bound.transcript, &sealed.sealed);
        wire.send(&ClientMessage::Ack(Ack { mac }))?;
        let ServerMessage::Registered = wire.receive()? else { bail!("not registered") };
        Ok(Session { grant, wg })
    }

    /// Opens the session's channel.
    ///
    /// # Errors
    /// When the server does not take it.
    pub fn attach(&self, host: &Space, session: &Session) -> anyhow::Result<Wire> {
        let mut wire = self.connect(host)?;
        let keys = ChannelKeys::new(session.grant.session, &session.grant.secret, &wire.exporter()?);
        let attach = Attach {
            version: PROTOCOL_VERSION,
            session: session.grant.session,
            proof: keys.terminal_proof(),
            known: Vec::new(),
        };
        wire.send(&ClientMessage::Attach(attach))?;
        match wire.receive()? {
            ServerMessage::Attached(attached) => keys.verify_server(&attached.proof)?,
            ServerMessage::End(reason) => bail!("not attached: {reason:?}"),
            _ => bail!("not attached"),
        }
        Ok(wire)
    }
}

/// A login after its challenge.
pub struct Challenged {
    /// The connection.
    pub wire: Wire,
    /// The keys of the login.
    pub keys: LoginKeys,
    /// What both sides have said.
    pub transcript: Transcript,
    /// The card opened the challenge: it was no decoy.
    pub opened: bool,
    /// Bytes of the challenge.
    pub size: usize,
}

/// What the server's answer to a login must fit.
pub struct LoginBinding {
    /// What both sides have said.
    pub transcript: BoundTranscript,
    /// What the envelope said.
    pub outcome: OutcomeBinding,
}

/// A granted session.
pub struct Session {
    /// The grant.
    pub grant: Grant,
    /// The public key that was announced for it.
    pub wg: WgPublicKey,
}

/// The server's address on the LAN.
pub fn server_address() -> SocketAddr {
    SocketAddr::new(lan::address4(server::NUMBER).into(), server::PORT)
}

/// DER of a file in PEM or DER.
fn der(file: &[u8]) -> anyhow::Result<Vec<u8>> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    if file.starts_with(b"-----") { Ok(CertificateDer::from_pem_slice(file)?.to_vec()) } else { Ok(file.to_vec()) }
}
