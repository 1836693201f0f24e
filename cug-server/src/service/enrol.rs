//! An enrolment, as [`cug_proto::enrol`] describes it.
//!
//! | step | here |
//! |---|---|
//! | does the other side have the code? | [`Service::enrol_claim`] |
//! | certificate and challenge for the card's new key | [`Service::enrol_key`] |
//! | password checked, everything registered at once | [`Service::enrol_commit`] |

use super::{Service, login::fault, password::PasswordError};
use crate::{
    clock,
    store::{Enrolled, NewCard, NewEnrolment, StoreError},
};
use cug_proto::{
    ProtocolError,
    enrol::{
        CommitKeys, EnrolChallenge, EnrolClaim, EnrolCommit, EnrolCredentials, EnrolHello, EnrolKey, EnrolOffer,
        EnrolReady, EnrolVerdict, Exchange, MAX_PUBLIC_KEY,
    },
    envelope::SealedEnvelope,
    id::{HostName, UserId},
    login::{self, CARD_KEY_BITS},
    message::{Fingerprint, Unavailable},
    secret::Secret,
};
use rsa::{
    RsaPublicKey,
    pkcs8::{DecodePublicKey, EncodePublicKey},
    traits::PublicKeyParts,
};
use sha2::{Digest, Sha256};
use std::{net::IpAddr, sync::Arc};

/// An enrolment whose code is not proved yet.
pub struct Enrolling {
    user: UserId,
    host_name: HostName,
    source: IpAddr,
}

/// An enrolment whose code was proved.
pub struct Claimed {
    enrolling: Enrolling,
    token: Secret<32>,
    verifier: Secret<32>,
    approval: bool,
}

/// A card's key with what is made for it.
pub struct NewKey {
    fingerprint: Fingerprint,
    public_key: Vec<u8>,
    bits: u32,
    kind: &'static str,
    certificate: Vec<u8>,
    ciphertext: Vec<u8>,
    challenge: Secret<32>,
}

impl Claimed {
    /// The answer to the claim, which is part of the transcript by now.
    pub fn ready(&self, exchange: &Exchange) -> EnrolReady {
        EnrolReady { approval: self.approval, proof: exchange.ready_proof(&self.verifier, self.approval) }
    }

    /// The answer to the key, which is part of the transcript by now.
    pub fn challenge(&self, exchange: &Exchange, key: &mut NewKey) -> EnrolChallenge {
        let (certificate, ciphertext) = (std::mem::take(&mut key.certificate), std::mem::take(&mut key.ciphertext));
        let mac = exchange.challenge_mac(&self.token, &certificate, &ciphertext);
        EnrolChallenge { certificate, ciphertext, mac }
    }

    /// With which the commits must be proved; without a key, the password alone is set.
    pub fn commit_keys(&self, exchange: &Exchange, key: Option<&NewKey>) -> CommitKeys {
        exchange.commit_keys(&self.token, key.map(|key| &key.challenge))
    }
}

impl Service {
    /// Whether a code may be tried now, and what to offer. The same for everybody.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] after too many wrong codes of this source or for this user.
    pub fn enrol_offer(&self, hello: EnrolHello, source: IpAddr) -> Result<(Enrolling, EnrolOffer), Unavailable> {
        self.tries.check(source, &hello.user, clock::monotonic()).map_err(Unavailable::Busy)?;
        let offer = EnrolOffer { server_object: self.keys.server_object().to_vec() };
        Ok((Enrolling { user: hello.user, host_name: hello.host_name, source }, offer))
    }

    /// Checks a claim. `None` for an unknown user, and for a wrong, expired or used code: the work is the same, with a verifier that nobody has.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn enrol_claim(
        self: &Arc<Self>,
        enrolling: Enrolling,
        exchange: &Exchange,
        claim: &EnrolClaim,
    ) -> Result<Option<Claimed>, Unavailable> {
        let user = enrolling.user.clone();
        let found = self.store(move |s| s.invitation(&user, clock::unix_now())).await.map_err(fault)?;
        // Once more: tries that run side by side have all passed the first check. From here to the count nothing waits.
        self.tries.check(enrolling.source, &enrolling.user, clock::monotonic()).map_err(Unavailable::Busy)?;
        let nobodys = Secret::random(&mut clock::rng());
        let (verifier, approve) = found.map_or((nobodys, false), |found| (found.verifier, found.approve));
        if let Ok(token) = exchange.open_claim(&verifier, claim) {
            return Ok(Some(Claimed { enrolling, token, verifier, approval: approve || self.config.enrol_approval }));
        }
        self.tries.wrong(enrolling.source, &enrolling.user, clock::monotonic());
        self.note_refusal(&enrolling, "no such code");
        Ok(None)
    }

    /// Certificate and challenge for a card's new key.
    ///
    /// # Errors
    /// [`ProtocolError`] when the terminal misbehaves: another connection's key, or one that is no card key.
    pub async fn enrol_key(
        self: &Arc<Self>,
        claimed: &Claimed,
        exchange: &Exchange,
        sent: EnrolKey,
    ) -> Result<Result<NewKey, Unavailable>, ProtocolError> {
        exchange.verify_key(&claimed.token, &sent)?;
        let (key, bits) = card_key(&sent.public_key)?;
        let challenge = Secret::random(&mut clock::rng());
        let ciphertext = login::encrypt_challenge(&key, &challenge, &mut clock::rng())?;
        let (keys, user, public_key) = (self.keys.clone(), claimed.enrolling.user.clone(), sent.public_key);
        let certified = tokio::task::spawn_blocking(move || {
            let certificate = keys.certify_card(user.as_str(), &public_key, clock::unix_now());
            certificate.map(|certificate| (certificate, public_key))
        });
        Ok(match certified.await {
            Ok(Ok((certificate, public_key))) => Ok(NewKey {
                fingerprint: Sha256::digest(&public_key).into(),
                public_key,
                bits,
                kind: sent.kind.name(),
                certificate,
                ciphertext,
                challenge,
            }),
            Ok(Err(error)) => Err(fault(error)),
            Err(error) => Err(fault(error)),
        })
    }

    /// Registers, when the password may be; the commit's proof was checked.
    ///
    /// # Errors
    /// [`Unavailable`]: nothing was changed.
    pub async fn enrol_commit(
        self: &Arc<Self>,
        claimed: &Claimed,
        key: Option<&NewKey>,
        commit: &EnrolCommit,
    ) -> Result<EnrolVerdict, Unavailable> {
        let enrolling = &claimed.enrolling;
        let credentials = self.open_enrolment(&commit.envelope).await?;
        if credentials.user != enrolling.user {
            return Err(fault("two unequal user IDs in an enrolment"));
        }
        if let Err(rule) = self.config.password_rules.check(&credentials.user, credentials.password.expose()) {
            return Ok(EnrolVerdict::PasswordRefused(rule.to_string()));
        }
        let hashed = self.passwords.hash_new(credentials.password.duplicate(), clock::random()).await;
        let password = hashed.map_err(|error| match error {
            PasswordError::Busy => Unavailable::Busy(2),
            PasswordError::Fault(_) => fault(error),
        })?;
        let card = key.map(|key| (key.fingerprint, key.public_key.clone(), key.bits, key.kind));
        let (user, host_name, source) = (enrolling.user.clone(), enrolling.host_name.clone(), enrolling.source);
        let (keys, verifier, approve) = (self.keys.clone(), claimed.verifier.duplicate(), claimed.approval);
        let enrolled = self.store(move |s| {
            let card = card.as_ref().map(|(fingerprint, public_key, bits, kind)| NewCard {
                fingerprint: *fingerprint,
                user: &user,
                public_key,
                bits: *bits,
                kind,
            });
            let new = NewEnrolment {
                user: &user,
                verifier: verifier.expose(),
                password: &password,
                card,
                approve,
                source,
                host_name: &host_name,
                now: clock::unix_now(),
            };
            s.enrol(&new, &|group, epoch| keys.mint(group, epoch))
        });
        let enrolled = enrolled.await;
        self.hub.poke();
        match enrolled {
            Ok(Enrolled::Active) => Ok(EnrolVerdict::Active),
            Ok(Enrolled::Waiting) => Ok(EnrolVerdict::AwaitsApproval),
            Ok(Enrolled::Withdrawn) => Ok(EnrolVerdict::Withdrawn),
            Ok(Enrolled::CardTaken) => {
                self.note_refusal(enrolling, "card registered already");
                Ok(EnrolVerdict::CardTaken)
            }
            Err(StoreError::Refused(sentence)) => {
                tracing::warn!(user = %enrolling.user, "an enrolment cannot be carried out: {sentence}");
                self.note_refusal(enrolling, "cannot be carried out");
                Ok(EnrolVerdict::Impossible)
            }
            Err(error) => Err(fault(error)),
        }
    }

    async fn open_enrolment(self: &Arc<Self>, envelope: &[u8]) -> Result<EnrolCredentials, Unavailable> {
        let sealed = SealedEnvelope::parse(envelope).map_err(fault)?;
        if sealed.key_id() != self.keys.envelope_id() {
            return Err(fault("the envelope is for another server key"));
        }
        let keys = self.keys.clone();
        let opened = tokio::task::spawn_blocking(move || {
            keys.unwrap_content_key(sealed.wrapped_key()).and_then(|key| sealed.open_value(&key))
        });
        opened.await.map_err(fault)?.map_err(fault)
    }

    /// The card had its challenge and the terminal did not prove it: for the audit.
    pub fn enrol_unproved(self: &Arc<Self>, claimed: &Claimed) {
        self.note_refusal(&claimed.enrolling, "the card did not answer");
    }

    /// Beside the answer, not before it, and not more often than refused logins are written.
    fn note_refusal(self: &Arc<Self>, enrolling: &Enrolling, reason: &'static str) {
        if !self.rejections.take(clock::monotonic()) {
            return;
        }
        let (user, source) = (enrolling.user.clone(), enrolling.source);
        tracing::info!(%user, %source, "enrolment refused: {reason}");
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.enrol_refused(&user, source, reason, clock::unix_now()) {
                tracing::error!(%error, "a refused enrolment is not in the audit");
            }
        });
    }
}

/// A card key in its one form: what is stored is what was sent.
fn card_key(spki: &[u8]) -> Result<(RsaPublicKey, u32), ProtocolError> {
    if spki.len() > MAX_PUBLIC_KEY {
        return Err(ProtocolError::TooLarge);
    }
    let key = RsaPublicKey::from_public_key_der(spki).map_err(|_| ProtocolError::Key)?;
    let bits = key.size() * 8;
    let canonical = key.to_public_key_der().is_ok_and(|der| der.as_bytes() == spki);
    if canonical && CARD_KEY_BITS.contains(&bits) {
        Ok((key, u32::try_from(bits).map_err(|_| ProtocolError::Key)?))
    } else {
        Err(ProtocolError::Key)
    }
}
