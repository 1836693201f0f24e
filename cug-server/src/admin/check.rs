//! `check`: what an administrator can get wrong around a server. Nothing is repaired.

use super::{StateLock, database, peer};
use crate::{
    clock::{self, UnixTime, rfc3339},
    config::Config,
    keys,
    store::Sqlite,
};
use serde::Serialize;
use std::{
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::Path,
};

const DAY: UnixTime = 86_400;

/// How bad it is.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, and somebody should look at it.
    Warning,
    /// The server does not work, or not safely.
    Failed,
}

/// One thing that was looked at.
#[derive(Serialize, Debug)]
pub struct Finding {
    /// What.
    pub item: String,
    /// How it is.
    pub verdict: Verdict,
    /// A sentence.
    pub text: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, item: &str, verdict: Verdict, text: impl Into<String>) {
        self.0.push(Finding { item: item.into(), verdict, text: text.into() });
    }

    /// What worked, in the words of `ok`; else why not.
    fn result<T>(&mut self, item: &str, result: Result<T, impl std::fmt::Display>, ok: &str) -> Option<T> {
        match result {
            Ok(value) => {
                self.add(item, Verdict::Ok, ok);
                Some(value)
            }
            Err(error) => {
                self.add(item, Verdict::Failed, error.to_string());
                None
            }
        }
    }
}

/// Looks at the configuration and the state, whether a server runs or not. Blocks. The configuration was parsed before.
pub fn check(config: &Config) -> Vec<Finding> {
    let mut found = Findings::default();
    found.add("configuration", Verdict::Ok, "valid");
    let running = UnixStream::connect(&config.admin_socket).is_ok();
    state_directory(&mut found, config, running);
    certificates(&mut found, config, clock::unix_now());
    store(&mut found, config, running);
    listening(&mut found, config, running);
    if let Some(group) = &config.admin_group {
        found.result("admin-group", peer::group_id(group).map_err(|e| format!("{e:#}")), "there is such a group");
    }
    found.0
}

fn state_directory(found: &mut Findings, config: &Config, running: bool) {
    let dir = &config.state_dir;
    let Ok(meta) = std::fs::metadata(dir) else {
        let text = format!("{} is not there or cannot be read: run `cug-server init` first, as root", dir.display());
        return found.add("state-dir", Verdict::Failed, text);
    };
    let mut bad = Vec::new();
    private(&mut bad, dir, meta.uid());
    for place in [dir.clone(), dir.join("keys")] {
        let Ok(entries) = std::fs::read_dir(&place) else {
            bad.push(format!("{} cannot be read", place.display()));
            continue;
        };
        entries.flatten().for_each(|entry| private(&mut bad, &entry.path(), meta.uid()));
    }
    if bad.is_empty() {
        found.add("file modes", Verdict::Ok, "only the server's user can read the state");
    }
    bad.into_iter().for_each(|text| found.add("file modes", Verdict::Failed, text));
    found.result("keys", super::keys_of(config), "complete and readable");
    let lock = if running { Ok(None) } else { StateLock::take(dir).map(Some).map_err(|e| format!("{e:#}")) };
    found.result("lock", lock, if running { "held by the running server" } else { "free; no server runs" });
}

/// Nobody but the owner may do anything with what is in the state directory, and the owner is one user.
fn private(bad: &mut Vec<String>, path: &Path, owner: u32) {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return bad.push(format!("{} cannot be looked at", path.display()));
    };
    // A database's files are shut off by the directory's mode.
    let open = meta.permissions().mode() & 0o077 != 0;
    let secret = meta.is_dir() || path.extension().is_some_and(|e| e == "key") || path.ends_with("tls.pem");
    if open && secret {
        bad.push(format!("{} is open to other users: chmod go= {0}", path.display()));
    }
    if meta.uid() != owner {
        bad.push(format!("{} belongs to another user than the state directory", path.display()));
    }
}

fn certificates(found: &mut Findings, config: &Config, now: UnixTime) {
    let Ok(expiries) = keys::expiries(&config.state_dir) else { return };
    for (item, at) in ["TLS certificate", "CA certificate"].into_iter().zip(expiries) {
        let verdict = match at - now {
            left if left <= 0 => Verdict::Failed,
            left if left < 30 * DAY => Verdict::Warning,
            _ => Verdict::Ok,
        };
        let renewal = if item.starts_with("TLS") { "; a start of the server renews it in time" } else { "" };
        found.add(item, verdict, format!("valid until {}{renewal}", rfc3339(at)));
    }
}

fn store(found: &mut Findings, config: &Config, running: bool) {
    let path = database(&config.state_dir);
    // Without a server the lock keeps one from starting meanwhile.
    let _lock = if running { None } else { StateLock::take(&config.state_dir).ok() };
    found.result("database", Sqlite::verify(&path), "whole, and of this version");
    if let Err(error) = super::state::give_to_owner(&config.state_dir) {
        found.add("database", Verdict::Failed, format!("{error:#}"));
    }
}

fn listening(found: &mut Findings, config: &Config, running: bool) {
    for address in &config.listen {
        let item = format!("listen {address}");
        match TcpListener::bind(address) {
            Ok(_) if running && address.port() != 0 => {
                found.add(
                    &item,
                    Verdict::Failed,
                    "the running server does not listen there: restart it after a change of the configuration",
                );
            }
            Ok(_) => found.add(&item, Verdict::Ok, "can be listened on"),
            Err(_) if running => found.add(&item, Verdict::Ok, "in use, by the running server"),
            Err(error) => found.add(&item, Verdict::Failed, format!("cannot be listened on: {error}")),
        }
    }
}
