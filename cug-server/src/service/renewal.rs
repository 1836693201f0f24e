//! A new password at a login, and a new hash of an old one.

use super::{Service, login::Stop};
use crate::{
    clock, policy,
    store::{Account, By, PasswordRecord},
};
use cug_proto::{
    id::UserId,
    message::{Credentials, DenyReason},
    password::PasswordProblem,
    secret::SecretBytes,
};
use std::sync::Arc;

impl Service {
    /// The record of the new password, if one came with the login; `None` where the old one may stay. To be called with the right password only.
    pub(super) async fn check_new_password(
        &self,
        account: &Account,
        credentials: &Credentials,
    ) -> Result<Result<Option<PasswordRecord>, DenyReason>, Stop> {
        let Some(new) = &credentials.new_password else {
            let must_change = policy::must_change(account, self.config.password_life, clock::unix_now());
            return Ok(if must_change { Err(DenyReason::MustChangePassword) } else { Ok(None) });
        };
        if let Err(problem) = self.config.password_rules.check(&credentials.user, new.expose()) {
            return Ok(Err(DenyReason::NewPassword(problem)));
        }
        if new.expose() == credentials.password.expose() {
            return Ok(Err(DenyReason::NewPassword(PasswordProblem::Unchanged)));
        }
        Ok(Ok(Some(self.passwords.hash_new(new.duplicate(), clock::random()).await?)))
    }

    /// Hashes a password again that was right, and was hashed when that was cheaper. Nobody waits for it; where there is no room, the next login will do.
    pub(super) fn upgrade_hash(self: &Arc<Self>, user: &UserId, password: SecretBytes, old: PasswordRecord) {
        if !self.passwords.is_cheap(&old) {
            return;
        }
        let (service, user) = (self.clone(), user.clone());
        tokio::spawn(async move {
            let new = match service.passwords.hash_new(password, clock::random()).await {
                Ok(new) => new,
                Err(error) => return tracing::debug!(%user, %error, "a password was not hashed again"),
            };
            let by = clock::unix_now();
            let stored =
                service.store(move |s| s.upgrade_password(By { actor: "server", now: by }, &user, &old, &new)).await;
            if let Err(error) = stored {
                tracing::error!(%error, "a password that was hashed again cannot be stored");
            }
        });
    }
}
