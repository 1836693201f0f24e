//! A management server that follows a script. It knows every secret that it gives away, so a test can look for them.

use super::authority::Authority;
use super::random;
use super::stream::{self, LIMIT, Wire};
use crate::space::Space;
use anyhow::{Context, bail};
use cug_proto::envelope::SealedEnvelope;
use cug_proto::login::{LoginKeys, Transcript, encrypt_challenge, verify_ack};
use cug_proto::message::{
    Attached, Challenge, ClientMessage, Credentials, Grant, GroupGrant, Outcome, Peers, Prefix4, Prefix6,
    SealedOutcome, ServerMessage,
};
use cug_proto::policy::Policy;
use cug_proto::secret::Secret;
use cug_proto::session::ChannelKeys;
use rsa::{Oaep, RsaPublicKey};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

/// The group that the script's server grants.
pub const GROUP: u32 = 1;

/// A listening server.
pub struct ScriptedServer {
    listener: TcpListener,
    /// Its keys.
    pub authority: Authority,
    /// The one card that it knows.
    pub card_key: RsaPublicKey,
    /// The one group's key.
    pub group_key: [u8; 32],
    /// The session's secret.
    pub session_secret: [u8; 32],
    /// Seconds between heartbeats, a third of the lease.
    pub heartbeat: u32,
    session: [u8; 16],
    member: u8,
}

impl ScriptedServer {
    /// Listens on `host`, for a card with this key.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(host: &Space, authority: Authority, card_key: RsaPublicKey) -> anyhow::Result<Self> {
        let listener = stream::listen(host, crate::server::PORT)?;
        Ok(Self {
            listener,
            authority,
            card_key,
            group_key: random()?,
            session_secret: random()?,
            heartbeat: 10,
            session: random()?,
            member: 1,
        })
    }

    /// The next connection, after its TLS handshake.
    ///
    /// # Errors
    /// When none comes, or it does not trust this server.
    pub fn accept(&self) -> anyhow::Result<Wire> {
        Wire::server(self.accept_tcp()?, self.authority.tls())
    }

    /// The next connection, before its TLS handshake.
    ///
    /// # Errors
    /// When none comes within [`LIMIT`].
    pub fn accept_tcp(&self) -> anyhow::Result<std::net::TcpStream> {
        self.listener.set_nonblocking(true)?;
        let tcp =
            crate::wait::until("a connection to the script's server", LIMIT * 2, || self.listener.accept().ok())?.0;
        tcp.set_nonblocking(false)?;
        Ok(tcp)
    }

    /// Whether somebody has connected who was not accepted yet.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn was_called(&self) -> anyhow::Result<bool> {
        self.listener.set_nonblocking(true)?;
        match self.listener.accept() {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The next login is another member's, with its own session and this host number in the overlay.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn next_member(&mut self, number: u8) -> anyhow::Result<()> {
        self.member = number;
        self.session = random()?;
        self.session_secret = random()?;
        Ok(())
    }

    /// The group as member `number` gets it, in `epoch`.
    ///
    /// # Errors
    /// Never with the lengths used here.
    pub fn group(&self, number: u8, epoch: u32) -> anyhow::Result<GroupGrant> {
        Ok(GroupGrant {
            id: GROUP,
            name: "VPN1".parse()?,
            epoch,
            key: Secret::copy_from(&self.group_key).context("length")?,
            prefix4: Prefix4 { address: Ipv4Addr::new(100, 96, 0, 0), len: 20 },
            prefix6: Prefix6 { address: Ipv6Addr::new(0xfd7e, 1, 2, 1, 0, 0, 0, 0), len: 64 },
            address4: Ipv4Addr::new(100, 96, 0, number),
            address6: Ipv6Addr::new(0xfd7e, 1, 2, 1, 0, 0, 0, u16::from(number)),
            policy: Policy::Open,
        })
    }

    /// The grant that this server gives.
    ///
    /// # Errors
    /// Never with the lengths used here.
    pub fn grant(&self) -> anyhow::Result<Grant> {
        let secret = Secret::copy_from(&self.session_secret).context("length")?;
        Ok(Grant { session: self.session, secret, groups: vec![self.group(self.member, 1)?], attach_within: 30 })
    }

    /// Hello, Challenge and Login of a connection.
    ///
    /// # Errors
    /// When the terminal does not keep to it.
    pub fn hear_login(&self, mut wire: Wire) -> anyhow::Result<Heard> {
        let hello = wire.receive_raw()?;
        let ClientMessage::Hello(_) = cug_proto::frame::decode(&hello)? else { bail!("no hello") };
        let challenge = Secret::<32>::random(&mut super::authority::rng());
        let ciphertext = encrypt_challenge(&self.card_key, &challenge, &mut super::authority::rng())?;
        let sent = wire.send(&ServerMessage::Challenge(Challenge { ciphertext }))?;
        let keys = LoginKeys::new(&challenge, &wire.exporter()?);
        let ClientMessage::Login(login) = wire.receive()? else { bail!("no login") };
        let bound = Transcript::new(&hello, &sent).with_envelope(&login.envelope);
        keys.verify_proof(&bound, &login.proof)?;
        let envelope = SealedEnvelope::parse(&login.envelope)?;
        let content = self.authority.envelope_key.decrypt(Oaep::<sha2::Sha256>::new(), envelope.wrapped_key())?;
        let credentials = envelope.open(&Secret::copy_from(&content).context("content key")?)?;
        Ok(Heard { wire, keys, bound, credentials })
    }

    /// A whole login that is granted: what the terminal said.
    ///
    /// # Errors
    /// When the terminal does not keep to it.
    pub fn grant_login(&self) -> anyhow::Result<Credentials> {
        let heard = self.hear_login(self.accept()?)?;
        let Heard { mut wire, keys, bound, credentials } = heard;
        let grant = self.grant()?;
        let outcome = Outcome::Grant(grant.duplicate());
        let sealed = keys.seal_outcome(&bound, &credentials.outcome_binding(), &outcome)?;
        wire.send(&ServerMessage::Outcome(SealedOutcome { sealed: sealed.clone() }))?;
        let ClientMessage::Ack(ack) = wire.receive()? else { bail!("no ack") };
        verify_ack(&grant, &bound, &sealed, &ack.mac)?;
        wire.send(&ServerMessage::Registered)?;
        Ok(credentials)
    }

    /// The session's channel: attached, the group's members told, synced. Returns it with its keys.
    ///
    /// # Errors
    /// When the terminal does not keep to it.
    pub fn attach(&self, peers: Peers) -> anyhow::Result<Channel> {
        let mut wire = self.accept()?;
        let ClientMessage::Attach(attach) = wire.receive()? else { bail!("no attach") };
        let keys = ChannelKeys::new(self.session, &self.grant()?.secret, &wire.exporter()?);
        keys.verify_terminal(&attach.proof)?;
        let (proof, heartbeat, lease) = (keys.server_proof(), self.heartbeat, 3 * self.heartbeat);
        wire.send(&ServerMessage::Attached(Attached { proof, lease, heartbeat, seen_at: None }))?;
        wire.send(&ServerMessage::Peers(peers))?;
        wire.send(&ServerMessage::Synced)?;
        let ClientMessage::Endpoints(endpoints) = wire.receive()? else { bail!("no endpoints") };
        let port = endpoints.ports.first().context("no port")?.port;
        // The heartbeat behind it tells the terminal that it was heard.
        let ClientMessage::Heartbeat(number) = wire.receive()? else { bail!("no heartbeat") };
        wire.send(&ServerMessage::Alive(number))?;
        Ok(Channel { wire, keys, port })
    }
}

/// A login whose proof was right.
pub struct Heard {
    /// The connection.
    pub wire: Wire,
    /// The keys of the login.
    pub keys: LoginKeys,
    /// What both sides have said.
    pub bound: cug_proto::login::BoundTranscript,
    /// What the envelope held.
    pub credentials: Credentials,
}

/// A session's channel.
pub struct Channel {
    /// The connection.
    pub wire: Wire,
    /// Its keys.
    pub keys: ChannelKeys,
    /// The UDP port at which the terminal listens for the group.
    pub port: u16,
}

impl Channel {
    /// The next message that is no heartbeat; those are answered.
    ///
    /// # Errors
    /// When the terminal closes, or says nothing.
    pub fn hear(&mut self) -> anyhow::Result<ClientMessage> {
        loop {
            match self.wire.receive()? {
                ClientMessage::Heartbeat(number) => drop(self.wire.send(&ServerMessage::Alive(number))?),
                other => return Ok(other),
            }
        }
    }

    /// Gives the terminal a group's key, and waits until it has it.
    ///
    /// # Errors
    /// When the terminal does not acknowledge.
    pub fn send_group(&mut self, group: &GroupGrant) -> anyhow::Result<()> {
        let sealed = self.keys.seal_group(group, random()?)?;
        self.wire.send(&ServerMessage::Group(sealed))?;
        loop {
            match self.hear()? {
                ClientMessage::KeyAck(ack) if ack.epoch == group.epoch => return Ok(()),
                ClientMessage::Endpoints(_) => {}
                _ => bail!("no acknowledgement of the key"),
            }
        }
    }
}

/// A snapshot of the group with nobody else in it.
pub fn nobody() -> Peers {
    Peers { group: GROUP, revision: 1, full: true, present: Vec::new(), gone: Vec::new() }
}
