//! The configuration file: raw as it is written, then valid as it is used.

use ipnet::Ipv4Net;
use serde::Deserialize;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/cug/server.toml";

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Directory of the database and of the keys.
    pub state_dir: PathBuf,
    /// The administrator's socket.
    pub admin_socket: PathBuf,
    /// Where new groups get their IPv4 networks from, a /20 each.
    pub overlay4: Ipv4Net,
    /// How long a session lives without a heartbeat.
    pub lease: Duration,
    /// How often terminals send a heartbeat.
    pub heartbeat: Duration,
    /// How long after a login the terminal may take until its session channel stands.
    pub attach: Duration,
    /// Cost of a password's hash.
    pub argon2: Argon2Cost,
    /// Most connections that have not logged in or attached yet.
    pub max_unauthenticated: usize,
    /// The same for one source address.
    pub max_unauthenticated_per_source: usize,
    /// Every enrolment by code waits for an administrator, whatever its invitation says.
    pub enrol_approval: bool,
}

/// Cost of Argon2id (RFC 9106).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// Lanes.
    pub lanes: u32,
}

/// The configuration cannot be used. One sentence that names file and key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of another type.
    #[error("the configuration {path} is not valid: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, key and what is wrong with it.
        message: String,
    },
    /// A value that cannot be used.
    #[error("the configuration {path} is not valid: {key} {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Raw {
    listen: Vec<String>,
    state_dir: PathBuf,
    admin_socket: PathBuf,
    overlay4: String,
    lease_seconds: u32,
    heartbeat_seconds: u32,
    attach_seconds: u32,
    argon2: RawArgon2,
    max_unauthenticated: usize,
    max_unauthenticated_per_source: usize,
    enrol_approval: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawArgon2 {
    memory_kib: u32,
    iterations: u32,
    lanes: u32,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: vec![format!("[::]:{}", cug_proto::DEFAULT_SERVER_PORT)],
            state_dir: "/var/lib/cug-server".into(),
            admin_socket: "/run/cug-server/admin.sock".into(),
            overlay4: "100.96.0.0/12".into(),
            lease_seconds: 60,
            heartbeat_seconds: 15,
            attach_seconds: 60,
            argon2: RawArgon2::default(),
            max_unauthenticated: 1024,
            max_unauthenticated_per_source: 128,
            enrol_approval: false,
        }
    }
}

impl Default for RawArgon2 {
    /// OWASP's first choice for Argon2id.
    fn default() -> Self {
        Self { memory_kib: 19_456, iterations: 2, lanes: 1 }
    }
}

impl Config {
    /// Reads `path`; without one, [`DEFAULT_PATH`] if it is there, else the defaults.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, file),
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => Self::parse("", file),
            Err(source) => Err(ConfigError::Read { path: file.into(), source }),
        }
    }

    /// Checks the text of a configuration file; `path` is for the error messages.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|e| ConfigError::Syntax { path: path.into(), message: e.to_string().trim_end().to_owned() })?;
        let bad = |key, problem: String| ConfigError::Value { path: path.into(), key, problem };
        let listen = raw
            .listen
            .iter()
            .map(|a| a.parse().map_err(|_| bad("listen", format!("has {a:?}, which is not an address and port"))))
            .collect::<Result<Vec<SocketAddr>, _>>()?;
        if listen.is_empty() {
            return Err(bad("listen", "is empty".into()));
        }
        let overlay4: Ipv4Net = raw
            .overlay4
            .parse()
            .map_err(|_| bad("overlay4", format!("has {:?}, which is not an IPv4 network", raw.overlay4)))?;
        if overlay4.prefix_len() > 20 {
            return Err(bad("overlay4", "must be a /20 or larger: each group gets a /20 of it".into()));
        }
        if !(1..=3600).contains(&raw.heartbeat_seconds) {
            return Err(bad("heartbeat-seconds", "must be from 1 to 3600".into()));
        }
        if raw.lease_seconds < raw.heartbeat_seconds.saturating_mul(2) || raw.lease_seconds > 86_400 {
            return Err(bad("lease-seconds", "must be at least twice heartbeat-seconds, and at most 86400".into()));
        }
        if !(5..=3600).contains(&raw.attach_seconds) {
            return Err(bad("attach-seconds", "must be from 5 to 3600".into()));
        }
        let argon2 = Argon2Cost {
            memory_kib: raw.argon2.memory_kib,
            iterations: raw.argon2.iterations,
            lanes: raw.argon2.lanes,
        };
        argon2::Params::new(argon2.memory_kib, argon2.iterations, argon2.lanes, Some(32))
            .map_err(|e| bad("argon2", format!("cannot be used: {e}")))?;
        if raw.max_unauthenticated == 0 || raw.max_unauthenticated_per_source == 0 {
            return Err(bad("max-unauthenticated", "and max-unauthenticated-per-source must not be 0".into()));
        }
        Ok(Self {
            listen,
            state_dir: raw.state_dir,
            admin_socket: raw.admin_socket,
            overlay4: overlay4.trunc(),
            lease: Duration::from_secs(raw.lease_seconds.into()),
            heartbeat: Duration::from_secs(raw.heartbeat_seconds.into()),
            attach: Duration::from_secs(raw.attach_seconds.into()),
            argon2,
            max_unauthenticated: raw.max_unauthenticated,
            max_unauthenticated_per_source: raw.max_unauthenticated_per_source,
            enrol_approval: raw.enrol_approval,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("server.toml")).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn the_empty_file_is_valid() {
        let config = Config::parse("", Path::new("x")).unwrap();
        assert_eq!(config.listen, ["[::]:7531".parse::<SocketAddr>().unwrap()]);
    }

    #[test]
    fn an_error_names_file_and_key() {
        for (text, key) in [
            ("lisen = []", "lisen"),
            ("listen = ['7531']", "listen"),
            ("listen = []", "listen"),
            ("overlay4 = '100.96.0.0/24'", "overlay4"),
            ("lease-seconds = 20", "lease-seconds"),
            ("heartbeat-seconds = 0", "heartbeat-seconds"),
            ("[argon2]\nmemory-kib = 1", "argon2"),
            ("[argon2]\nmemory = 1", "memory"),
        ] {
            let error = error(text);
            assert!(error.contains("server.toml") && error.contains(key), "{text}: {error}");
        }
    }
}
