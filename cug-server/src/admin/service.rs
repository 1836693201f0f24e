//! Carries out what administrators ask for.

use super::{Reply, Request, SNAPSHOT_EVENTS, SNAPSHOT_SESSIONS, Snapshot, state::ULA};
use crate::{
    clock,
    config::Config,
    hex,
    hub::HubHandle,
    keys::Keys,
    store::{By, GroupInfo, NewCard, NewGroup, PolicyKind, PolicyUpdate, Result, Store, StoreError},
};
use cug_proto::{
    id::{Epoch, GroupId, GroupName, UserId},
    login::CARD_KEY_BITS,
    message::{EndReason, Fingerprint},
};
use ipnet::{Ipv4Net, Ipv6Net};
use rsa::{
    RsaPublicKey,
    pkcs8::{DecodePublicKey, EncodePublicKey},
    traits::PublicKeyParts,
};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, pem::PemObject};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use x509_cert::der::{Decode, Encode};

/// Carries requests out on a store; tells the hub if there is one.
pub struct AdminService {
    pub(super) store: Arc<dyn Store>,
    keys: Arc<Keys>,
    pub(super) config: Arc<Config>,
    pub(super) hub: Option<HubHandle>,
    pub(super) started: tokio::time::Instant,
}

impl AdminService {
    /// With a hub in the running server, without one elsewhere.
    pub fn new(store: Arc<dyn Store>, keys: Arc<Keys>, config: Arc<Config>, hub: Option<HubHandle>) -> Self {
        Self { store, keys, config, hub, started: clock::monotonic() }
    }

    /// Carries a request of the account `uid` out. Blocks.
    pub fn carry_out(&self, request: &Request, uid: u32) -> Reply {
        self.carry_out_telling(request, uid, &mut |_, _| {})
    }

    /// Like [`AdminService::carry_out`]; `progress` hears how much of how much is done.
    pub fn carry_out_telling(&self, request: &Request, uid: u32, progress: &mut dyn FnMut(u64, u64)) -> Reply {
        let actor = account_name(uid);
        let by = By { actor: &actor, now: clock::unix_now() };
        let reply = self.dispatch(request, by, progress).unwrap_or_else(|error| {
            if let StoreError::Fault(_) = &error {
                tracing::error!(%error, "an administrator's request failed");
            }
            Reply::Refused(error.to_string())
        });
        if let Some(hub) = &self.hub {
            hub.poke();
            hub.look();
        }
        reply
    }

    fn dispatch(&self, request: &Request, by: By<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
        let store = &*self.store;
        let mint = |group, epoch| self.mint(group, epoch);
        Ok(match request {
            Request::UserAdd { user, password, settings } => self.add_user(by, user, password, settings)?,
            Request::UserList => Reply::Users(store.users()?),
            Request::UserShow(user) => Reply::User(store.user(user)?),
            Request::UserDisable(user) => {
                store.disable_user(by, user, &mint)?;
                done(format!("user {user} disabled; the keys of the user's groups change"))
            }
            Request::UserEnable(user) => {
                store.enable_user(by, user)?;
                done(format!("user {user} enabled"))
            }
            Request::UserSetPassword { user, password, must_change } => {
                self.set_password(by, user, password, *must_change)?
            }
            Request::GroupAdd { group, prefix4, prefix6 } => self.add_group(by, group, *prefix4, *prefix6)?,
            Request::GroupList => Reply::Groups(store.groups()?),
            Request::GroupShow(group) => {
                let (info, members) = store.group(group)?;
                Reply::Group(info, members)
            }
            Request::GroupJoin(..) | Request::GroupLeave(..) | Request::GroupRotate(_) => {
                self.change_group(request, by)?
            }
            Request::ServerObject => Reply::Der(self.keys.server_object().to_vec()),
            Request::CertifyCard { user, public_key } => self.certify(user, public_key)?,
            Request::CardRegister { user, public_key, kind } => self.register_card(by, user, public_key, kind)?,
            Request::CardList(user) => Reply::Cards(store.cards(user.as_ref())?),
            Request::CardRevoke(prefix) => self.revoke_card(by, prefix)?,
            Request::SessionList => Reply::Sessions(store.sessions()?),
            Request::SessionEnd(user) => {
                store.end_user_session(by, user, &EndReason::Administrator)?;
                done(format!("session of user {user} ended"))
            }
            Request::SessionEndNumber(prefix) => self.end_session(by, prefix)?,
            Request::GroupSet(group, update) => self.set_policy(by, group, update)?,
            Request::GroupDelete(group) => self.delete_group(by, group)?,
            Request::UserDelete(user) => self.delete_user(by, user)?,
            Request::UserDetail(user) => Reply::UserDetail(self.user_detail(user)?),
            Request::Status => Reply::Status(self.status()?),
            Request::Audit(query) => self.audit(query)?,
            Request::AuditVerify(noted) => self.audit_verify(noted.as_deref())?,
            Request::Import(directory) => self.import(by, directory, progress)?,
            Request::Export { secrets } => self.export(*secrets)?,
            Request::ServerKeyRotate => done(self.keys.storage_place().rotate(by, store)?),
            Request::TlsShow
            | Request::TlsRotate
            | Request::TlsRequest
            | Request::TlsSign(_)
            | Request::TlsInstall(_) => self.tls(request, by.now)?,
            Request::Snapshot => Reply::Snapshot(Box::new(self.snapshot(by.now)?)),
            Request::UserSet(user, settings) => self.set_user(by, user, settings)?,
            Request::UserUnlock(user) => self.unlock_user(by, user)?,
            Request::Enrol(request) => self.enrolment(request, by)?,
        })
    }

    /// Members and keys.
    fn change_group(&self, request: &Request, by: By<'_>) -> Result<Reply> {
        let store = &*self.store;
        let mint = |group, epoch| self.mint(group, epoch);
        Ok(match request {
            Request::GroupJoin(group, user) => {
                store.join(by, group, user)?;
                done(format!("user {user} is in group {group} now"))
            }
            Request::GroupLeave(group, user) => {
                store.leave(by, group, user, &mint)?;
                done(format!("user {user} is no longer in group {group}; its key changes"))
            }
            Request::GroupRotate(group) => {
                let epoch = store.rotate(by, group, &mint)?;
                done(format!("group {group} gets a new key, epoch {epoch}"))
            }
            _ => return refuse("the request is not about a group"),
        })
    }

    fn add_group(
        &self,
        by: By<'_>,
        name: &GroupName,
        prefix4: Option<Ipv4Net>,
        prefix6: Option<Ipv6Net>,
    ) -> Result<Reply> {
        let ula = self.store.setting(ULA)?.and_then(|text| parse_ula(&text));
        let ula = ula.ok_or_else(|| StoreError::Fault("the setting \"ula\" is missing".into()))?;
        let (prefix4, prefix6) = (prefix4.map(|p| p.trunc()), prefix6.map(|p| p.trunc()));
        let new = NewGroup { name, prefix4, prefix6, pool: self.config.overlay4, ula };
        let group = self.store.add_group(by, &new, &|group, epoch| self.mint(group, epoch))?;
        Ok(done(format!("group {name} added: {}, {}", group.prefix4, group.prefix6)))
    }

    fn certify(&self, user: &UserId, public_key: &[u8]) -> Result<Reply> {
        self.store.user(user)?;
        let (spki, _) = card_key(public_key)?;
        let certificate = self.keys.certify_card(user.as_str(), &spki, clock::unix_now());
        certificate.map(Reply::Der).map_err(|e| StoreError::Fault(e.into()))
    }

    fn register_card(&self, by: By<'_>, user: &UserId, public_key: &[u8], kind: &str) -> Result<Reply> {
        let (public_key, bits) = card_key(public_key)?;
        let fingerprint: Fingerprint = Sha256::digest(&public_key).into();
        self.store.add_card(by, &NewCard { fingerprint, user, public_key: &public_key, bits, kind })?;
        Ok(Reply::Card(hex::encode(&fingerprint)))
    }

    fn set_policy(&self, by: By<'_>, group: &GroupName, update: &PolicyUpdate) -> Result<Reply> {
        let now = self.store.set_policy(by, group, update)?;
        let terminals = if now.sessions == 0 { "" } else { "; the terminals are told" };
        Ok(done(format!("group {group} is {} now{}{terminals}", now.policy.as_str(), exceptions(&now))))
    }

    fn delete_group(&self, by: By<'_>, group: &GroupName) -> Result<Reply> {
        self.store.delete_group(by, group)?;
        Ok(done(format!("group {group} deleted")))
    }

    fn delete_user(&self, by: By<'_>, user: &UserId) -> Result<Reply> {
        self.store.delete_user(by, user, &|group, epoch| self.mint(group, epoch))?;
        Ok(done(format!("user {user} deleted; the cards are revoked, the keys of the user's groups change")))
    }

    fn end_session(&self, by: By<'_>, prefix: &str) -> Result<Reply> {
        let prefix = prefix.to_ascii_lowercase();
        if prefix.len() < 8 || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return refuse("give at least the first 8 hexadecimal digits of the session's number");
        }
        // One row for each group of a session.
        let mut matching: Vec<_> =
            self.store.sessions()?.into_iter().filter(|s| s.id.starts_with(&prefix)).map(|s| (s.id, s.user)).collect();
        matching.sort_unstable();
        matching.dedup();
        let [(id, user)] = matching.as_slice() else {
            return refuse("there is no such session, or more than one: see `cug-server session list --json`");
        };
        let Some(number) = hex::decode(id) else { return refuse("there is no such session") };
        self.store.end_numbered_session(by, &number)?;
        Ok(done(format!("session {id} of user {user} ended")))
    }

    fn revoke_card(&self, by: By<'_>, prefix: &str) -> Result<Reply> {
        let prefix = prefix.to_ascii_lowercase();
        if prefix.len() < 8 || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return refuse("give at least the first 8 hexadecimal digits of the card's fingerprint");
        }
        let cards = self.store.cards(None)?;
        let mut matching = cards.iter().filter(|c| c.fingerprint.starts_with(&prefix));
        let (Some(card), None) = (matching.next(), matching.next()) else {
            return refuse("there is no such card, or more than one: see `cug-server card list`");
        };
        let Some(fingerprint) = hex::decode(&card.fingerprint) else { return refuse("there is no such card") };
        self.store.revoke_card(by, &fingerprint, &|group, epoch| self.mint(group, epoch))?;
        Ok(done(format!("card {} of user {} revoked", card.fingerprint, card.user)))
    }

    pub(super) fn mint(&self, group: GroupId, epoch: Epoch) -> Result<Vec<u8>> {
        self.keys.mint(group, epoch)
    }

    fn tls(&self, request: &Request, now: clock::UnixTime) -> Result<Reply> {
        let reply = match request {
            Request::TlsRotate => self.keys.rotate_tls(now).map(Reply::Tls),
            Request::TlsRequest => self.keys.request_tls().map(Reply::Pem),
            Request::TlsSign(csr) => self.keys.sign_tls(csr, now).map(Reply::Pem),
            Request::TlsInstall(certificate) => self.keys.install_tls(certificate, now).map(Reply::Tls),
            _ => self.keys.tls_info().map(Reply::Tls),
        };
        reply.map_err(|e| StoreError::Refused(e.to_string()))
    }

    fn snapshot(&self, now: clock::UnixTime) -> Result<Snapshot> {
        let mut sessions = self.store.sessions()?;
        let all_sessions = sessions.len();
        sessions.truncate(SNAPSHOT_SESSIONS);
        Ok(Snapshot {
            at: clock::rfc3339(now),
            groups: self.store.groups()?,
            sessions,
            all_sessions,
            events: self.store.recent_events(SNAPSHOT_EVENTS)?,
            attached: self.hub.as_ref().map_or(0, HubHandle::attached),
            tls: self.keys.tls_info().map_err(|e| StoreError::Refused(e.to_string()))?,
        })
    }
}

fn exceptions(group: &GroupInfo) -> String {
    match (group.policy, group.allow.len()) {
        (_, 0) => String::new(),
        (PolicyKind::Closed, n) => format!(", with {n} exception{}", if n == 1 { "" } else { "s" }),
        (PolicyKind::Open, _) => "; its exceptions count once it is closed".into(),
    }
}

pub(super) fn done(sentence: String) -> Reply {
    Reply::Done(sentence)
}

pub(super) fn refuse<T>(sentence: &str) -> Result<T> {
    Err(StoreError::Refused(sentence.into()))
}

/// The card's key as it is stored and fingerprinted, and its size: out of a public key or a certificate, PEM or DER.
fn card_key(input: &[u8]) -> Result<(Vec<u8>, u32)> {
    let from_pem = CertificateDer::from_pem_slice(input)
        .map(|c| c.to_vec())
        .or_else(|_| SubjectPublicKeyInfoDer::from_pem_slice(input).map(|k| k.to_vec()));
    let der = from_pem.unwrap_or_else(|_| input.to_vec());
    let spki = match x509_cert::Certificate::from_der(&der) {
        Ok(certificate) => certificate.tbs_certificate().subject_public_key_info().to_der().unwrap_or_default(),
        Err(_) => der,
    };
    let Ok(key) = RsaPublicKey::from_public_key_der(&spki) else {
        return refuse("this is neither an RSA public key nor a certificate with one (PEM or DER)");
    };
    let bits = key.size() * 8;
    if !CARD_KEY_BITS.contains(&bits) {
        return refuse("a card's RSA key must have 2048, 3072 or 4096 bits");
    }
    let spki = key.to_public_key_der().map_err(|e| StoreError::Fault(e.into()))?;
    Ok((spki.as_bytes().to_vec(), u32::try_from(bits).unwrap_or_default()))
}

pub(super) fn account_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    user.map_or_else(|| format!("uid {uid}"), |u| u.name)
}

/// The fingerprint of a card's key: a public key or a certificate, PEM or DER.
///
/// # Errors
/// [`StoreError::Refused`] when it is none.
pub fn card_fingerprint(input: &[u8]) -> Result<Fingerprint> {
    Ok(Sha256::digest(card_key(input)?.0).into())
}

pub(super) fn parse_ula(text: &str) -> Option<[u8; 5]> {
    hex::decode(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_card_key_is_refused() {
        assert!(matches!(card_key(b"hello"), Err(StoreError::Refused(_))));
        let odd =
            rsa::RsaPrivateKey::new(&mut clock::rng(), 2176).unwrap().to_public_key().to_public_key_der().unwrap();
        assert!(matches!(card_key(odd.as_bytes()), Err(StoreError::Refused(s)) if s.contains("2048")));
    }
}
