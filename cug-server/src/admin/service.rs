//! Carries out what administrators ask for.

use super::{Password, Reply, Request, state::ULA};
use crate::{
    clock,
    config::Config,
    hub::HubHandle,
    keys::Keys,
    service::PasswordPool,
    store::{By, NewCard, NewGroup, PasswordRecord, Result, Store, StoreError},
};
use cug_proto::{
    id::{Epoch, GroupId, GroupName, UserId},
    login::CARD_KEY_BITS,
    message::{EndReason, Fingerprint},
    secret::Secret,
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
    config: Arc<Config>,
    hub: Option<HubHandle>,
}

impl AdminService {
    /// With a hub in the running server, without one elsewhere.
    pub fn new(store: Arc<dyn Store>, keys: Arc<Keys>, config: Arc<Config>, hub: Option<HubHandle>) -> Self {
        Self { store, keys, config, hub }
    }

    /// Carries a request of the account `uid` out. Blocks.
    pub fn carry_out(&self, request: &Request, uid: u32) -> Reply {
        let actor = account_name(uid);
        let reply = self.dispatch(request, By { actor: &actor, now: clock::unix_now() }).unwrap_or_else(|error| {
            if let StoreError::Fault(_) = &error {
                tracing::error!(%error, "an administrator's request failed");
            }
            Reply::Refused(error.to_string())
        });
        if let Some(hub) = &self.hub {
            hub.poke();
        }
        reply
    }

    fn dispatch(&self, request: &Request, by: By<'_>) -> Result<Reply> {
        let store = &*self.store;
        let mint = |group, epoch| self.mint(group, epoch);
        Ok(match request {
            Request::UserAdd { user, password } => {
                store.add_user(by, user, &self.hash(password)?)?;
                done(format!("user {user} added"))
            }
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
            Request::UserSetPassword { user, password } => {
                store.set_password(by, user, &self.hash(password)?)?;
                done(format!("password of user {user} changed"))
            }
            Request::GroupAdd { group, prefix4, prefix6 } => self.add_group(by, group, *prefix4, *prefix6)?,
            Request::GroupList => Reply::Groups(store.groups()?),
            Request::GroupShow(group) => {
                let (info, members) = store.group(group)?;
                Reply::Group(info, members)
            }
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
            Request::Enrol(request) => self.enrolment(request, by)?,
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
        Ok(Reply::Card(hex(&fingerprint)))
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
        let Some(fingerprint) = unhex(&card.fingerprint) else { return refuse("there is no such card") };
        self.store.revoke_card(by, &fingerprint, &|group, epoch| self.mint(group, epoch))?;
        Ok(done(format!("card {} of user {} revoked", card.fingerprint, card.user)))
    }

    /// A new group key, wrapped at once.
    pub(super) fn mint(&self, group: GroupId, epoch: Epoch) -> Result<Vec<u8>> {
        let key = Secret::random(&mut clock::rng());
        let wrapped = self.keys.storage().wrap_group_key(group, epoch, &key, &mut clock::rng());
        wrapped.map_err(|e| StoreError::Fault(e.into()))
    }

    fn hash(&self, password: &Password) -> Result<PasswordRecord> {
        let record = PasswordPool::hash(self.config.argon2, password.secret(), clock::random());
        record.map_err(|e| StoreError::Fault(e.into()))
    }
}

fn done(sentence: String) -> Reply {
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

fn account_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    user.map_or_else(|| format!("uid {uid}"), |u| u.name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes from hexadecimal digits; `None` for anything else.
pub fn unhex_bytes(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |d: &u8| char::from(*d).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    unhex_bytes(text.as_bytes())?.try_into().ok()
}

/// The fingerprint of a card's key: a public key or a certificate, PEM or DER.
///
/// # Errors
/// [`StoreError::Refused`] when it is none.
pub fn card_fingerprint(input: &[u8]) -> Result<Fingerprint> {
    Ok(Sha256::digest(card_key(input)?.0).into())
}

fn parse_ula(text: &str) -> Option<[u8; 5]> {
    unhex(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_go_there_and_back() {
        assert_eq!(unhex::<2>("00ff"), Some([0, 255]));
        assert_eq!(unhex::<2>(&hex(&[18, 171])), Some([18, 171]));
        for bad in ["", "0", "00f", "00fg", "00ff00"] {
            assert_eq!(unhex::<2>(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_no_card_key_is_refused() {
        assert!(matches!(card_key(b"hello"), Err(StoreError::Refused(_))));
        let odd =
            rsa::RsaPrivateKey::new(&mut clock::rng(), 2176).unwrap().to_public_key().to_public_key_der().unwrap();
        assert!(matches!(card_key(odd.as_bytes()), Err(StoreError::Refused(s)) if s.contains("2048")));
    }
}
