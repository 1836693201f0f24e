//! What administrators set of a user's account and password.

use super::{AdminService, Password, Reply, service::done};
use crate::{
    clock,
    service::PasswordPool,
    store::{By, PasswordRecord, Result, StoreError, UserSettings},
    zone,
};
use cug_proto::id::UserId;

impl AdminService {
    pub(super) fn add_user(
        &self,
        by: By<'_>,
        user: &UserId,
        password: &Password,
        settings: &UserSettings,
    ) -> Result<Reply> {
        self.store.add_user_with(by, user, &self.hash(user, password)?, &self.complete(settings)?)?;
        Ok(done(format!("user {user} added")))
    }

    pub(super) fn set_password(
        &self,
        by: By<'_>,
        user: &UserId,
        password: &Password,
        must_change: bool,
    ) -> Result<Reply> {
        let settings = UserSettings { must_change: must_change.then_some(true), ..UserSettings::default() };
        self.store.set_password(by, user, &self.hash(user, password)?, &settings)?;
        let then = if must_change { "; it must be changed at the next login" } else { "" };
        Ok(done(format!("password of user {user} changed{then}")))
    }

    pub(super) fn set_user(&self, by: By<'_>, user: &UserId, settings: &UserSettings) -> Result<Reply> {
        self.store.set_user(by, user, &self.complete(settings)?)?;
        Ok(done(format!("user {user} changed")))
    }

    pub(super) fn unlock_user(&self, by: By<'_>, user: &UserId) -> Result<Reply> {
        self.store.unlock_user(by, user)?;
        Ok(done(format!("user {user} may try passwords again at once")))
    }

    /// Hours with their time zone.
    pub(super) fn complete(&self, settings: &UserSettings) -> Result<UserSettings> {
        let hours = match &settings.hours {
            Some(Some(rule)) => {
                let rule =
                    zone::complete(rule, &self.config).map_err(|error| StoreError::Refused(error.to_string()))?;
                Some(Some(rule))
            }
            hours => hours.clone(),
        };
        Ok(UserSettings { hours, ..settings.clone() })
    }

    /// The record of a password that keeps to the rules.
    fn hash(&self, user: &UserId, password: &Password) -> Result<PasswordRecord> {
        let checked = self.config.password_rules.check(user, password.secret().expose());
        checked.map_err(|problem| StoreError::Refused(problem.to_string()))?;
        let record = PasswordPool::hash(self.config.argon2, password.secret(), clock::random());
        record.map_err(|e| StoreError::Fault(e.into()))
    }
}
