//! How the server is, and one user in full.

use super::AdminService;
use crate::{
    clock::{self, rfc3339},
    keys,
    store::{CardInfo, Result, SessionInfo, StoreFacts, UserInfo},
};
use cug_proto::id::UserId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How the server is.
#[derive(Serialize, Deserialize, Debug)]
pub struct StatusInfo {
    /// A server runs and answered; else the administrator's command looked at the state itself.
    pub running: bool,
    /// Version of who answered.
    pub version: String,
    /// Seconds since the server started.
    pub uptime_seconds: Option<u64>,
    /// Where it listens.
    pub listen: Vec<String>,
    /// Terminals with a session channel now.
    pub attached_terminals: Option<usize>,
    /// What the store holds.
    #[serde(flatten)]
    pub store: StoreFacts,
    /// The database file.
    pub database: PathBuf,
    /// Its size in bytes, with its write-ahead log.
    pub database_bytes: u64,
    /// When the server's TLS certificate expires, RFC 3339; it is renewed at a start during the last third of its life.
    pub tls_certificate_expires: Option<String>,
    /// When the organisation's CA expires, RFC 3339.
    pub ca_expires: Option<String>,
}

/// A user with cards and session.
#[derive(Serialize, Deserialize, Debug)]
pub struct UserDetail {
    /// The user.
    #[serde(flatten)]
    pub user: UserInfo,
    /// All cards, revoked ones too.
    pub card_list: Vec<CardInfo>,
    /// One row for each group of the session.
    pub session_list: Vec<SessionInfo>,
}

impl AdminService {
    pub(super) fn user_detail(&self, user: &UserId) -> Result<UserDetail> {
        let session_list = self.store.sessions()?.into_iter().filter(|s| s.user == *user).collect();
        Ok(UserDetail { user: self.store.user(user)?, card_list: self.store.cards(Some(user))?, session_list })
    }

    pub(super) fn status(&self) -> Result<StatusInfo> {
        let running = self.hub.is_some();
        let database = super::database(&self.config.state_dir);
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
        let log = database.with_extension("db-wal");
        let expiries = keys::expiries(&self.config.state_dir).ok();
        let [tls_certificate_expires, ca_expires] = expiries.map_or([None, None], |e| e.map(|at| Some(rfc3339(at))));
        Ok(StatusInfo {
            running,
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: running.then(|| clock::monotonic().duration_since(self.started).as_secs()),
            listen: self.config.listen.iter().map(ToString::to_string).collect(),
            attached_terminals: self.hub.as_ref().map(crate::hub::HubHandle::attached),
            store: self.store.facts()?,
            database_bytes: size(database.clone()) + size(log),
            database,
            tls_certificate_expires,
            ca_expires,
        })
    }
}
