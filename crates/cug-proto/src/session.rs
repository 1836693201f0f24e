//! The key schedule of the session channel, and the preshared key of two members. S is the grant's session secret,
//! X the TLS exporter of the channel's connection.
//!
//! ```text
//! terminal proof = HMAC(HKDF(salt X, S, "cug/1 attach terminal"), session id)
//! server proof   = HMAC(HKDF(salt X, S, "cug/1 attach server"), session id)
//! group sealed   = AES-256-GCM(HKDF(salt X, S, "cug/1 group seal"), nonce 0^4 | group | epoch, aad group | epoch | session id)
//! preshared key  = HKDF("", group key, "cug/1 psk" | group | epoch | smaller public key | larger public key)
//! ```
//! One (group, epoch) has one key, so a nonce of the sealing key is used for one plaintext only; a second sealing of it gives the same bytes.

use crate::{
    ProtocolError,
    id::{Epoch, GroupId},
    kdf,
    message::{GroupGrant, SealedGroup, SessionId, WgPublicKey},
    secret::{Secret, encode_wiped},
};

/// The keys of one connection of a session's channel.
pub struct ChannelKeys {
    terminal: Secret<32>,
    server: Secret<32>,
    seal: Secret<32>,
    session: SessionId,
}

impl ChannelKeys {
    /// From the session secret and the connection's TLS exporter.
    pub fn new(session: SessionId, secret: &Secret<32>, exporter: &[u8; 32]) -> Self {
        let key = |label: &[u8]| kdf::derive(exporter, secret.expose(), &[label]);
        Self {
            terminal: key(b"cug/1 attach terminal"),
            server: key(b"cug/1 attach server"),
            seal: key(b"cug/1 group seal"),
            session,
        }
    }

    /// For [`crate::message::Attach`].
    pub fn terminal_proof(&self) -> [u8; 32] {
        kdf::mac(&self.terminal, &[&self.session])
    }

    /// Checks [`ChannelKeys::terminal_proof`] in constant time.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn verify_terminal(&self, proof: &[u8; 32]) -> Result<(), ProtocolError> {
        kdf::verify_mac(&self.terminal, &[&self.session], proof)
    }

    /// For [`crate::message::Attached`].
    pub fn server_proof(&self) -> [u8; 32] {
        kdf::mac(&self.server, &[&self.session])
    }

    /// Checks [`ChannelKeys::server_proof`] in constant time.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`]
    pub fn verify_server(&self, proof: &[u8; 32]) -> Result<(), ProtocolError> {
        kdf::verify_mac(&self.server, &[&self.session], proof)
    }

    /// Seals a group's key for this terminal. `nonce` is random: the key is this connection's own, so 96 random bits never meet twice.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`]
    pub fn seal_group(&self, group: &GroupGrant, nonce: [u8; 12]) -> Result<SealedGroup, ProtocolError> {
        let plain = encode_wiped(group, MAX_GROUP)?;
        let sealed = kdf::seal(&self.seal, &nonce, &self.aad(group.id, group.epoch), &plain)?;
        Ok(SealedGroup { group: group.id, epoch: group.epoch, sealed, nonce })
    }

    /// Opens what [`ChannelKeys::seal_group`] made.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`], [`ProtocolError::Malformed`]
    pub fn open_group(&self, sealed: &SealedGroup) -> Result<GroupGrant, ProtocolError> {
        let plain = kdf::open(&self.seal, &sealed.nonce, &self.aad(sealed.group, sealed.epoch), &sealed.sealed)?;
        let group: GroupGrant = crate::frame::decode(&plain)?;
        if group.id == sealed.group && group.epoch == sealed.epoch { Ok(group) } else { Err(ProtocolError::Malformed) }
    }

    fn aad(&self, group: GroupId, epoch: Epoch) -> [u8; 24] {
        let mut aad = [0; 24];
        for (to, from) in
            aad.iter_mut().zip(group.to_be_bytes().into_iter().chain(epoch.to_be_bytes()).chain(self.session))
        {
            *to = from;
        }
        aad
    }
}

/// Most bytes of an encoded group: name, key, addresses and [`crate::policy::MAX_ALLOW`] exceptions of up to 28 bytes.
const MAX_GROUP: usize = 2048;

/// WireGuard's preshared key for two members of a group, the same on both sides. Without the group key of the epoch nobody can make it (P3).
pub fn preshared_key(
    group_key: &Secret<32>,
    group: GroupId,
    epoch: Epoch,
    one: &WgPublicKey,
    other: &WgPublicKey,
) -> Secret<32> {
    let (small, large) = if one <= other { (one, other) } else { (other, one) };
    kdf::derive(&[], group_key.expose(), &[b"cug/1 psk", &group.to_be_bytes(), &epoch.to_be_bytes(), small, large])
}
