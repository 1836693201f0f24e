//! Imports, exports and the audit, for administrators.

use super::{AdminService, Reply, service::done, state::ULA};
use crate::{
    clock::rfc3339,
    store::{AuditQuery, By, Directory, ImportMeans, LineProblem, PasswordRecord, Result, StoreError},
};
use cug_proto::{
    hours::Rule,
    id::{GroupName, UserId},
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What `export` writes and `import` reads.
#[derive(Serialize, Deserialize, Debug)]
pub struct Export {
    /// `cug-directory/1`.
    pub format: String,
    /// Groups.
    pub groups: Vec<ExportGroup>,
    /// Users.
    pub users: Vec<ExportUser>,
}

/// A group of an [`Export`].
#[derive(Serialize, Deserialize, Debug)]
pub struct ExportGroup {
    /// Name.
    pub group: GroupName,
    /// Overlay network.
    pub prefix4: Ipv4Net,
    /// Overlay network.
    pub prefix6: Ipv6Net,
}

/// A user of an [`Export`].
#[derive(Serialize, Deserialize, Debug)]
pub struct ExportUser {
    /// User ID.
    pub user: UserId,
    /// By an administrator.
    pub disabled: bool,
    /// When the account ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// When the user may log in, with the time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<Rule>,
    /// Groups.
    pub groups: Vec<GroupName>,
    /// Fingerprints of valid cards, 64 hexadecimal digits. Not imported.
    pub cards: Vec<String>,
    /// As the PHC string of Argon2id (`$argon2id$v=19$m=...`), with hexadecimal salt and hash; only when asked for. Not imported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
}

impl AdminService {
    /// All or nothing; in the reply every line that does not fit.
    pub(super) fn import(
        &self,
        by: By<'_>,
        directory: &Directory,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Reply> {
        let no_password = PasswordRecord::none;
        let ula = self.store.setting(ULA)?.and_then(|text| super::service::parse_ula(&text));
        let ula = ula.ok_or_else(|| StoreError::Fault("the setting \"ula\" is missing".into()))?;
        let mint = |group, epoch| self.mint(group, epoch);
        let means = ImportMeans { pool: self.config.overlay4, ula, no_password: &no_password, mint: &mint };
        let total = u64::try_from(directory.users.len()).unwrap_or(u64::MAX);
        let mut problems = Vec::new();
        let directory = &self.with_zones(directory, &mut problems);
        let imported = self.store.import(by, directory, &means, &mut problems, &mut |done| progress(done, total));
        match imported {
            Ok(made) => Ok(done(format!(
                "{} users, {} groups and {} memberships imported",
                made.users, made.groups, made.memberships
            ))),
            Err(StoreError::Refused(_)) if !problems.is_empty() => Ok(Reply::BadLines(problems)),
            Err(error) => Err(error),
        }
    }

    /// Hours with their time zones, as if each were set by itself.
    fn with_zones<'d>(&self, directory: &'d Directory, problems: &mut Vec<LineProblem>) -> Cow<'d, Directory> {
        if directory.users.iter().all(|user| user.settings.hours.is_none()) {
            return Cow::Borrowed(directory);
        }
        let mut directory = directory.clone();
        for user in &mut directory.users {
            match self.complete(&user.settings) {
                Ok(settings) => user.settings = settings,
                Err(error) => problems.push(LineProblem { line: user.line, problem: error.to_string() }),
            }
        }
        Cow::Owned(directory)
    }

    pub(super) fn export(&self, secrets: bool) -> Result<Reply> {
        let groups = self.store.groups()?.into_iter();
        let groups = groups.map(|g| ExportGroup { group: g.group, prefix4: g.prefix4, prefix6: g.prefix6 }).collect();
        let users = self.store.export()?.into_iter();
        let users = users
            .map(|u| ExportUser {
                password_hash: (secrets && !u.password.is_none()).then(|| phc(&u.password)),
                user: u.user,
                disabled: u.disabled,
                expires: u.expires.map(rfc3339),
                hours: u.hours,
                groups: u.groups,
                cards: u.cards,
            })
            .collect();
        Ok(Reply::Export(Export { format: "cug-directory/1".into(), groups, users }))
    }

    pub(super) fn audit(&self, query: &AuditQuery) -> Result<Reply> {
        Ok(Reply::Audit(self.store.audit(query)?))
    }

    pub(super) fn audit_verify(&self, noted: Option<&str>) -> Result<Reply> {
        Ok(Reply::AuditVerdict(self.store.audit_verify(noted)?))
    }
}

fn phc(record: &PasswordRecord) -> String {
    let PasswordRecord { salt, hash, memory_kib, iterations, lanes } = record;
    format!(
        "$argon2id$v=19$m={memory_kib},t={iterations},p={lanes}${}${}",
        crate::hex::encode(salt),
        crate::hex::encode(hash)
    )
}
