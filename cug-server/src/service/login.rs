//! A login, as the patent's Fig. 5 and the protocol describe it.
//!
//! | step | here |
//! |---|---|
//! | challenge for the card | [`Service::challenge`] |
//! | is it the card, on this connection? | [`Service::check_card`] |
//! | S22 decrypt ID and password | `Service::open_envelope` |
//! | S23 check ID and password | `Service::check_password` |
//! | S25, S26 group keys for the card's holder | `Service::grant` |
//! | S24 register the address, once acknowledged | [`Service::register`] |

use super::{Service, password::PasswordError};
use crate::{
    clock,
    policy::{self, hours::Standing},
    store::{
        Account, GroupKey, LoginFacts, LoginRefused, NewSession, PasswordRecord, Result as StoreResult, StoreError,
    },
    zone,
};
use cug_proto::{
    ProtocolError,
    envelope::SealedEnvelope,
    hours::Rule,
    id::UserId,
    login::{self, BoundTranscript, LoginKeys, OutcomeBinding, Transcript},
    message::{
        Credentials, DenyReason, Fingerprint, Grant, Hello, Login, MAX_ADDRESSES, Outcome, Purpose, SessionId,
        Unavailable,
    },
    secret::Secret,
};
use rsa::{RsaPublicKey, pkcs8::DecodePublicKey};
use std::{net::IpAddr, sync::Arc};

/// A login after the challenge was made.
pub struct Challenged {
    /// For [`cug_proto::message::Challenge`].
    pub ciphertext: Vec<u8>,
    user: UserId,
    card: Fingerprint,
    revoked: bool,
    source: IpAddr,
    expected: Secret<32>,
}

/// What the server says to a `Login`.
pub enum Answer {
    /// The proof was wrong.
    Rejected,
    /// Sealed; with a grant, an acknowledgement must follow.
    Outcome(Vec<u8>, Option<Granted>),
    /// Not now.
    Unavailable(Unavailable),
}

/// A session that waits for its acknowledgement.
pub struct Granted {
    grant: Grant,
    transcript: BoundTranscript,
    sealed: Vec<u8>,
}

/// What a login with the right password leads to.
enum Decision {
    Grant(Grant),
    Verified,
    PasswordChanged,
}

/// Why a login got no outcome.
pub(super) enum Stop {
    Deny(DenyReason),
    Unavailable(Unavailable),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a login failed");
        Self::Unavailable(Unavailable::Fault)
    }
}

impl From<ProtocolError> for Stop {
    fn from(error: ProtocolError) -> Self {
        tracing::error!(%error, "a login failed");
        Self::Unavailable(Unavailable::Fault)
    }
}

impl From<PasswordError> for Stop {
    fn from(error: PasswordError) -> Self {
        Self::Unavailable(match error {
            PasswordError::Busy => Unavailable::Busy(2),
            PasswordError::Fault(_) => fault(error),
        })
    }
}

impl Service {
    /// Makes the challenge: for the card, or for nobody when the user has no such card. The work is the same (P4).
    ///
    /// # Errors
    /// [`Unavailable::Fault`]
    pub async fn challenge(&self, hello: Hello, source: IpAddr) -> Result<Challenged, Unavailable> {
        let (card, sizes) = self.store(move |s| s.card(&hello.card)).await.map_err(fault)?;
        let nobodys_key = self.keys.decoys().choose(&hello.card, sizes);
        let key = card.as_ref().map_or(nobodys_key, |c| &c.public_key);
        let key = RsaPublicKey::from_public_key_der(key).map_err(fault)?;
        let sent = Secret::random(&mut clock::rng());
        let ciphertext = login::encrypt_challenge(&key, &sent, &mut clock::rng()).map_err(fault)?;
        // For another user's card, what the card will find is not what is expected: no proof can be right.
        let nobodys = Secret::random(&mut clock::rng());
        let (expected, revoked) = match card {
            Some(card) if card.user == hello.user => (sent, card.revoked),
            _ => (nobodys, false),
        };
        Ok(Challenged { ciphertext, user: hello.user, card: hello.card, revoked, source, expected })
    }

    /// Answers a `Login`. The proof is checked before anything that costs: without the card there is one answer.
    pub async fn login(
        self: &Arc<Self>,
        challenged: Challenged,
        transcript: &Transcript,
        login: &Login,
        exporter: &[u8; 32],
    ) -> Answer {
        let mut counted = self.metrics.login();
        let transcript = transcript.with_envelope(&login.envelope);
        let keys = LoginKeys::new(&challenged.expected, exporter);
        if keys.verify_proof(&transcript, &login.proof).is_err() {
            counted.rejected();
            self.note_rejection(challenged);
            return Answer::Rejected;
        }
        let credentials = match self.open_envelope(&login.envelope).await {
            Ok(credentials) => credentials,
            Err(unavailable) => return Answer::Unavailable(unavailable),
        };
        let binding = credentials.outcome_binding();
        let (outcome, granted) = match self.decide(&challenged, credentials).await {
            Ok(Decision::Grant(grant)) => (Outcome::Grant(grant.duplicate()), Some(grant)),
            Ok(Decision::Verified) => (Outcome::Verified, None),
            Ok(Decision::PasswordChanged) => (Outcome::PasswordChanged, None),
            Err(Stop::Deny(reason)) => (Outcome::Denied(reason), None),
            Err(Stop::Unavailable(reason)) => return Answer::Unavailable(reason),
        };
        counted.decided(&outcome);
        seal(keys, transcript, &binding, &outcome, granted)
    }

    /// S24: the terminal has the grant; the user's address is registered, an earlier session of the user ends.
    ///
    /// # Errors
    /// [`ProtocolError::NotAuthentic`] when the acknowledgement is wrong or came too late.
    pub async fn register(&self, granted: &Granted, mac: &[u8; 32]) -> Result<(), ProtocolError> {
        login::verify_ack(&granted.grant, &granted.transcript, &granted.sealed, mac)?;
        let session = granted.grant.session;
        match self.store(move |s| s.register(&session, clock::unix_now())).await {
            Ok(true) => {
                self.hub.expect(session, clock::monotonic() + self.config.attach);
                self.hub.look();
                Ok(())
            }
            Ok(false) => Err(ProtocolError::NotAuthentic),
            Err(error) => {
                tracing::error!(%error, "a session cannot be registered");
                Err(ProtocolError::NotAuthentic)
            }
        }
    }

    /// The decision: no session yet, but everything that leads to one.
    async fn decide(self: &Arc<Self>, challenged: &Challenged, credentials: Credentials) -> Result<Decision, Stop> {
        if let Err(reason) = check_request(challenged, &credentials) {
            return self.deny(challenged, reason).await;
        }
        let turn = self.users.turn(&challenged.user).await;
        let account = match self.check_password(challenged, &credentials).await? {
            Ok(account) => account,
            Err(reason) => return self.deny(challenged, reason).await,
        };
        let new_password = match self.check_new_password(&account, &credentials).await? {
            Ok(new_password) => new_password,
            Err(reason) => return self.deny(challenged, reason).await,
        };
        let replaced = new_password.is_some();
        let decision = match (credentials.purpose, new_password) {
            (Purpose::Open, new_password) => Decision::Grant(self.grant(challenged, &credentials, new_password).await?),
            (Purpose::ChangePassword, Some(new_password)) => {
                let facts = challenged.owned();
                self.store(move |s| s.change_password(&facts.borrow(), &new_password)).await?;
                Decision::PasswordChanged
            }
            (Purpose::Verify | Purpose::ChangePassword, _) => {
                let facts = challenged.owned();
                self.store(move |s| s.login_verified(&facts.borrow())).await?;
                Decision::Verified
            }
        };
        drop(turn);
        if !replaced {
            self.upgrade_hash(&challenged.user, credentials.password, account.password);
        }
        Ok(decision)
    }

    /// S22. A terminal whose card names another server key is told so by the log only: to it this is a fault.
    async fn open_envelope(self: &Arc<Self>, envelope: &[u8]) -> Result<Credentials, Unavailable> {
        let sealed = SealedEnvelope::parse(envelope).map_err(fault)?;
        if sealed.key_id() != self.keys.envelope_id() {
            return Err(fault("the envelope is for another server key"));
        }
        let keys = self.keys.clone();
        let opened = tokio::task::spawn_blocking(move || {
            keys.unwrap_content_key(sealed.wrapped_key()).and_then(|key| sealed.open(&key))
        });
        opened.await.map_err(fault)?.map_err(fault)
    }

    /// S23: may the password be tried, is it right, and may this user log in now?
    async fn check_password(
        &self,
        challenged: &Challenged,
        credentials: &Credentials,
    ) -> Result<Result<Account, DenyReason>, Stop> {
        let user = challenged.user.clone();
        let found = self.store(move |s| Ok((s.account(&user)?, s.group_keys(&user)?.len()))).await?;
        let (Some(account), groups) = found else { return Ok(Err(DenyReason::BadRequest)) };
        if let Err(reason) = policy::admit(challenged.revoked, &account, clock::unix_now()) {
            return Ok(Err(reason));
        }
        let _counted = self.metrics.password_check();
        let right = self.passwords.verify(credentials.password.duplicate(), account.password.clone()).await?;
        let groups = (credentials.purpose != Purpose::ChangePassword).then_some(groups);
        let standing = self.standing(account.hours.as_ref().filter(|_| right)).await?;
        Ok(policy::authorise(&account, right, groups, standing.as_ref(), clock::unix_now()).map(|()| account))
    }

    /// How it is with the user's hours. Not asked before the password is known to be right, so that nobody else can tell who has any (P4).
    async fn standing(&self, rule: Option<&Rule>) -> Result<Option<Standing>, Stop> {
        let Some(rule) = rule.cloned() else { return Ok(None) };
        let (config, now) = (self.config.clone(), clock::unix_now());
        let standing = tokio::task::spawn_blocking(move || zone::standing(&rule, &config, now));
        Ok(Some(standing.await.map_err(|error| Stop::Unavailable(fault(error)))?))
    }

    /// S25: a session with the keys of all the user's groups.
    async fn grant(
        &self,
        challenged: &Challenged,
        credentials: &Credentials,
        new_password: Option<PasswordRecord>,
    ) -> Result<Grant, Stop> {
        let session: SessionId = clock::random();
        let secret = Secret::random(&mut clock::rng());
        let wg_public_key = credentials.wg_public_key;
        let host_name = credentials.host_name.clone();
        let addresses = super::session::usable(&credentials.addresses);
        let (facts, keys) = (challenged.owned(), self.keys.clone());
        // The keys are read first: if one changes before the session is there, the terminal gets the new one when it attaches. The policies
        // are read last: whoever changes one from then on finds the session, and marks it.
        let (groups, secret) = self
            .store(move |s| {
                let _until_stored = keys.storage().hold();
                let wrapped = keys.storage().wrap_session_secret(&session, &secret, &mut clock::rng());
                let wrapped_secret = wrapped.map_err(|e| StoreError::Fault(e.into()))?;
                let groups = s.group_keys(&facts.user)?;
                let epochs: Vec<_> = groups.iter().map(|g| (g.id, g.epoch)).collect();
                s.create_session(&NewSession {
                    login: facts.borrow(),
                    id: session,
                    wg_public_key,
                    host_name: &host_name,
                    addresses: &addresses,
                    wrapped_secret: &wrapped_secret,
                    groups: &epochs,
                    new_password: new_password.as_ref(),
                })?;
                let mut groups = groups;
                for now in s.group_keys(&facts.user)? {
                    if let Some(group) = groups.iter_mut().find(|g| g.id == now.id) {
                        group.policy = now.policy;
                    }
                }
                Ok((groups, secret))
            })
            .await?;
        let groups = groups.iter().map(|g| self.unwrap(g)).collect::<StoreResult<_>>()?;
        let attach_within = u32::try_from(self.config.attach.as_secs()).unwrap_or(u32::MAX);
        Ok(Grant { session, secret, groups, attach_within })
    }

    /// A group with its key in clear, for one terminal.
    pub(super) fn unwrap(&self, group: &GroupKey) -> StoreResult<cug_proto::message::GroupGrant> {
        let key = self.keys.storage().unwrap_group_key(group.id, group.epoch, &group.wrapped);
        group.grant(key.map_err(|e| StoreError::Fault(e.into()))?)
    }

    async fn deny<T>(&self, challenged: &Challenged, reason: DenyReason) -> Result<T, Stop> {
        let facts = challenged.owned();
        self.store(move |s| {
            let wrong_password = reason == DenyReason::WrongPassword;
            s.login_refused(&LoginRefused { login: facts.borrow(), reason: reason_text(reason), wrong_password })
        })
        .await?;
        tracing::info!(user = %challenged.user, source = %challenged.source, reason = reason_text(reason), "login refused");
        Err(Stop::Deny(reason))
    }

    /// After the answer, not before it: how long the writing takes must not be seen outside.
    fn note_rejection(self: &Arc<Self>, challenged: Challenged) {
        if !self.rejections.take(clock::monotonic()) {
            return;
        }
        tracing::info!(user = %challenged.user, source = %challenged.source, "login rejected: not the user's card");
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            let login = challenged.facts();
            let refusal = LoginRefused { login, reason: "not the user's card", wrong_password: false };
            if let Err(error) = store.login_refused(&refusal) {
                tracing::error!(%error, "a rejected login is not in the audit");
            }
        });
    }
}

/// What a decent terminal sends.
fn check_request(challenged: &Challenged, credentials: &Credentials) -> Result<(), DenyReason> {
    let small_order = credentials.wg_public_key == [0; 32];
    let new_password_fits = match credentials.purpose {
        Purpose::Open => true,
        Purpose::Verify => credentials.new_password.is_none(),
        Purpose::ChangePassword => credentials.new_password.is_some(),
    };
    let place_fits = credentials.addresses.len() <= MAX_ADDRESSES && !small_order;
    if credentials.user == challenged.user && new_password_fits && place_fits {
        Ok(())
    } else {
        Err(DenyReason::BadRequest)
    }
}

fn seal(
    keys: LoginKeys,
    transcript: BoundTranscript,
    binding: &OutcomeBinding,
    outcome: &Outcome,
    grant: Option<Grant>,
) -> Answer {
    match keys.seal_outcome(&transcript, binding, outcome) {
        Ok(sealed) => {
            let granted = grant.map(|grant| Granted { grant, transcript, sealed: sealed.clone() });
            Answer::Outcome(sealed, granted)
        }
        Err(error) => Answer::Unavailable(fault(error)),
    }
}

pub(super) fn fault(error: impl std::fmt::Display) -> Unavailable {
    tracing::error!(%error, "a login or an enrolment failed");
    Unavailable::Fault
}

fn reason_text(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::WrongPassword => "wrong password",
        DenyReason::Disabled => "user disabled",
        DenyReason::CardRevoked => "card revoked",
        DenyReason::NoGroup => "in no group",
        DenyReason::TooManyAttempts(_) => "too many wrong passwords",
        DenyReason::MustChangePassword => "password must be changed",
        DenyReason::Expired => "account expired",
        DenyReason::OutsideHours(Some(_)) => "outside of hours",
        DenyReason::OutsideHours(None) => "time zone of the hours cannot be used",
        DenyReason::BadRequest => "terminal misbehaves",
        DenyReason::NewPassword(_) => "new password breaks a rule",
    }
}

/// [`LoginFacts`] that can go to another thread.
struct OwnedFacts {
    user: UserId,
    card: Fingerprint,
    source: IpAddr,
}

impl OwnedFacts {
    fn borrow(&self) -> LoginFacts<'_> {
        LoginFacts { user: &self.user, card: &self.card, source: self.source, now: clock::unix_now() }
    }
}

impl Challenged {
    fn owned(&self) -> OwnedFacts {
        OwnedFacts { user: self.user.clone(), card: self.card, source: self.source }
    }

    fn facts(&self) -> LoginFacts<'_> {
        LoginFacts { user: &self.user, card: &self.card, source: self.source, now: clock::unix_now() }
    }
}
