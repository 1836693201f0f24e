//! The configuration file: raw as it is written, then valid as it is used.

use crate::{policy::password::PasswordRules, zone};
use cug_proto::id::ZoneName;
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
    /// Whose members may administer the server besides root.
    pub admin_group: Option<String>,
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
    /// Where the storage key is, unless it is a credential of the service or in its usual place.
    pub storage_key: Option<PathBuf>,
    /// No group key becomes older than this; `None`: they change only for a reason or on command.
    pub rotate_every: Option<Duration>,
    /// Metrics and health, if wanted.
    pub metrics: Option<MetricsConfig>,
    /// How often one source may connect.
    pub source_rate: SourceRate,
    /// What a new password must keep to.
    pub password_rules: PasswordRules,
    /// Seconds until a password must be changed; `None` for never.
    pub password_life: Option<i64>,
    /// How many passwords may be hashed at a time, and may wait for it.
    pub password_pool: PoolSize,
    /// Every enrolment by code waits for an administrator, whatever its invitation says.
    pub enrol_approval: bool,
    /// Whose clocks count for hours that name no zone; `None` for the system's.
    pub time_zone: Option<ZoneName>,
    /// Whether sessions end when their users' hours do.
    pub hours_end_sessions: bool,
}

/// Where metrics and health are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Most groups with figures of their own.
    pub max_groups: usize,
}

/// How often one source (an IPv4 address, an IPv6 /64) may connect: a bucket of `burst` connections that fills again by `per_second`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRate {
    /// Connections a second; 0 for no limit.
    pub per_second: u32,
    /// Connections at once after a rest.
    pub burst: u32,
}

/// Size of the pool that hashes passwords. Its memory is at most `workers` times the memory of one hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// Hashes at a time.
    pub workers: usize,
    /// Logins that may wait for each worker.
    pub queue: usize,
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
    #[error("the configuration {path} is not valid: line {line} ({text}): {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// The line, with the key.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A value that cannot be used.
    #[error("the configuration {path} is not valid: {place}{key} {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// `line N: `, or nothing for a key that is not in the file.
        place: String,
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
    admin_group: Option<String>,
    overlay4: String,
    lease_seconds: u32,
    heartbeat_seconds: u32,
    attach_seconds: u32,
    argon2: RawArgon2,
    max_unauthenticated: usize,
    max_unauthenticated_per_source: usize,
    storage_key: Option<PathBuf>,
    enrol_approval: bool,
    connections_per_second_per_source: u32,
    connection_burst_per_source: u32,
    password: RawPassword,
    keys: RawKeys,
    metrics: RawMetrics,
    time_zone: Option<String>,
    hours: RawHours,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawHours {
    end_sessions: bool,
}

impl Default for RawHours {
    /// Hours that a session may outlast are none: who logged in before the end would stay for as long as they like.
    fn default() -> Self {
        Self { end_sessions: true }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawKeys {
    /// A day, or twice a lease that is longer than half a day.
    rotate_every: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawMetrics {
    listen: Option<String>,
    allow_remote: bool,
    max_groups: usize,
}

impl Default for RawMetrics {
    fn default() -> Self {
        Self { listen: None, allow_remote: false, max_groups: 100 }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawPassword {
    min_length: u32,
    blocklist: bool,
    expire_days: u32,
    workers: usize,
    queue: usize,
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
            admin_group: None,
            overlay4: "100.96.0.0/12".into(),
            lease_seconds: 60,
            heartbeat_seconds: 15,
            attach_seconds: 60,
            argon2: RawArgon2::default(),
            max_unauthenticated: 1024,
            max_unauthenticated_per_source: 128,
            storage_key: None,
            keys: RawKeys::default(),
            metrics: RawMetrics::default(),
            connections_per_second_per_source: 100,
            connection_burst_per_source: 1000,
            password: RawPassword::default(),
            enrol_approval: false,
            time_zone: None,
            hours: RawHours::default(),
        }
    }
}

impl Raw {
    /// The key whose value is out of its limits, and how.
    fn check_limits(&self) -> Result<(), (&'static str, String)> {
        if self.admin_group.as_deref().is_some_and(|g| g.is_empty() || g.contains(char::is_control)) {
            return Err(("admin-group", "is not the name of a group".into()));
        }
        if !(1..=3600).contains(&self.heartbeat_seconds) {
            return Err(("heartbeat-seconds", "must be from 1 to 3600".into()));
        }
        if self.lease_seconds < self.heartbeat_seconds.saturating_mul(2) || self.lease_seconds > 86_400 {
            return Err(("lease-seconds", "must be at least twice heartbeat-seconds, and at most 86400".into()));
        }
        if !(5..=3600).contains(&self.attach_seconds) {
            return Err(("attach-seconds", "must be from 5 to 3600".into()));
        }
        if self.max_unauthenticated == 0 || self.max_unauthenticated_per_source == 0 {
            return Err(("max-unauthenticated", "and max-unauthenticated-per-source must not be 0".into()));
        }
        if self.storage_key.as_ref().is_some_and(|file| !file.is_absolute()) {
            return Err(("storage-key", "must be an absolute path".into()));
        }
        if self.connections_per_second_per_source > 0 && self.connection_burst_per_source == 0 {
            return Err(("connection-burst-per-source", "must not be 0: nobody could connect".into()));
        }
        Ok(())
    }
}

impl Default for RawPassword {
    /// Length and expiry as NIST SP 800-63B advises; a queue that is short enough for the time that a terminal waits.
    fn default() -> Self {
        Self { min_length: 8, blocklist: true, expire_days: 0, workers: 0, queue: 64 }
    }
}

impl RawPassword {
    /// The key that is wrong, and how.
    fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=128).contains(&self.min_length) {
            return Err(("password.min-length", "must be from 1 to 128".into()));
        }
        if self.expire_days > 36_500 {
            return Err(("password.expire-days", "must be at most 36500; 0 is never".into()));
        }
        if self.workers > 1024 {
            return Err(("password.workers", "must be at most 1024; 0 leaves one processor for the rest".into()));
        }
        if !(1..=100_000).contains(&self.queue) {
            return Err(("password.queue", "must be from 1 to 100000".into()));
        }
        Ok(())
    }

    /// One processor is left for everything else: attached terminals must not wait for those who log in.
    fn pool(&self) -> PoolSize {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = if self.workers == 0 { processors.saturating_sub(1).max(1) } else { self.workers };
        PoolSize { workers, queue: self.queue }
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
        let raw: Raw = toml::from_str(text).map_err(|e| syntax(text, path, &e))?;
        let bad =
            |key, problem: String| ConfigError::Value { path: path.into(), place: place(text, key), key, problem };
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
        raw.check_limits().map_err(|(key, problem)| bad(key, problem))?;
        let argon2 = Argon2Cost {
            memory_kib: raw.argon2.memory_kib,
            iterations: raw.argon2.iterations,
            lanes: raw.argon2.lanes,
        };
        argon2::Params::new(argon2.memory_kib, argon2.iterations, argon2.lanes, Some(32))
            .map_err(|e| bad("argon2", format!("cannot be used: {e}")))?;
        let rotate_every =
            rotate_every(&raw.keys, raw.lease_seconds).map_err(|problem| bad("keys.rotate-every", problem))?;
        raw.password.check().map_err(|(key, problem)| bad(key, problem))?;
        Ok(Self {
            storage_key: raw.storage_key,
            rotate_every,
            metrics: metrics(&raw.metrics).map_err(|(key, problem)| bad(key, problem))?,
            listen,
            state_dir: raw.state_dir,
            admin_socket: raw.admin_socket,
            admin_group: raw.admin_group,
            overlay4: overlay4.trunc(),
            lease: Duration::from_secs(raw.lease_seconds.into()),
            heartbeat: Duration::from_secs(raw.heartbeat_seconds.into()),
            attach: Duration::from_secs(raw.attach_seconds.into()),
            argon2,
            max_unauthenticated: raw.max_unauthenticated,
            max_unauthenticated_per_source: raw.max_unauthenticated_per_source,
            source_rate: SourceRate {
                per_second: raw.connections_per_second_per_source,
                burst: raw.connection_burst_per_source,
            },
            password_rules: PasswordRules { min_length: raw.password.min_length, blocklist: raw.password.blocklist },
            password_life: (raw.password.expire_days > 0).then(|| i64::from(raw.password.expire_days) * 86_400),
            password_pool: raw.password.pool(),
            enrol_approval: raw.enrol_approval,
            time_zone: time_zone(raw.time_zone.as_deref()).map_err(|problem| bad("time-zone", problem))?,
            hours_end_sessions: raw.hours.end_sessions,
        })
    }
}

/// One that this system knows: said now, and not when somebody logs in.
fn time_zone(text: Option<&str>) -> Result<Option<ZoneName>, String> {
    let Some(text) = text else { return Ok(None) };
    let wrong = |_| format!("has {text:?}, which is not the name of a time zone such as \"Europe/Berlin\"");
    let name = text.parse().map_err(wrong)?;
    zone::named(&name).map(|zone| Some(zone.name)).map_err(|error| format!("cannot be used: {error}"))
}

/// A rotation may take a lease; the next one must not meet it.
fn rotate_every(raw: &RawKeys, lease_seconds: u32) -> Result<Option<Duration>, String> {
    let least = u64::from(lease_seconds) * 2;
    let every = match &raw.rotate_every {
        Some(text) => interval(text)?,
        None => Some(Duration::from_secs(least.max(86_400))),
    };
    match every {
        Some(every) if every.as_secs() < least => Err(format!("must be at least twice lease-seconds ({least}s)")),
        _ => Ok(every),
    }
}

fn metrics(raw: &RawMetrics) -> Result<Option<MetricsConfig>, (&'static str, String)> {
    let Some(text) = &raw.listen else { return Ok(None) };
    let wrong = |_| ("metrics.listen", format!("has {text:?}, which is not an address and port"));
    let listen: SocketAddr = text.parse().map_err(wrong)?;
    if !listen.ip().is_loopback() && !raw.allow_remote {
        let problem = "is not a loopback address, and there is no password: set allow-remote = true if everybody who can reach it may read it";
        return Err(("metrics.listen", problem.into()));
    }
    if raw.max_groups > 10_000 {
        return Err(("metrics.max-groups", "must be at most 10000".into()));
    }
    Ok(Some(MetricsConfig { listen, max_groups: raw.max_groups }))
}

/// `90s`, `30m`, `24h`, `7d`, or `never`.
fn interval(text: &str) -> Result<Option<Duration>, String> {
    let wrong = || format!("has {text:?}, which is not a time such as \"24h\" or \"7d\", nor \"never\"");
    if text == "never" {
        return Ok(None);
    }
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(seconds).filter(|s| (1..=3650 * 86_400).contains(s)).ok_or_else(wrong)?;
    Ok(Some(Duration::from_secs(seconds)))
}

fn syntax(text: &str, path: &Path, error: &toml::de::Error) -> ConfigError {
    let line = line_at(text, error.span().map_or(0, |span| span.start));
    let quoted = text.lines().nth(line - 1).unwrap_or_default().trim().to_owned();
    ConfigError::Syntax { path: path.into(), line, text: quoted, problem: error.message().replace('\n', " ") }
}

/// Where `key`, such as `metrics.listen`, stands in a file that is TOML.
fn place(text: &str, key: &str) -> String {
    let Ok(document) = toml::de::DeTable::parse(text) else { return String::new() };
    let mut table = Some(document.get_ref());
    let mut found = None;
    for part in key.split('.') {
        let entry = table.and_then(|t| t.iter().find(|(name, _)| name.get_ref() == part));
        let Some((name, value)) = entry else { return String::new() };
        found = Some(name.span().start);
        table = value.get_ref().as_table();
    }
    found.map_or_else(String::new, |at| format!("line {}: ", line_at(text, at)))
}

fn line_at(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or_default().matches('\n').count() + 1
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
        assert_eq!(config.rotate_every, Some(Duration::from_secs(86_400)));
        let config = Config::parse("lease-seconds = 86400", Path::new("x")).unwrap();
        assert_eq!(config.rotate_every, Some(Duration::from_secs(2 * 86_400)));
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
            ("storage-key = 'x'", "storage-key"),
            ("[keys]\nrotate-every = '24'", "rotate-every"),
            ("[keys]\nrotate-every = '90s'", "rotate-every"),
            ("[metrics]\nlisten = '0.0.0.0:9531'", "allow-remote"),
            ("[metrics]\nlisten = '9531'", "listen"),
            ("[metrics]\nlisten = '127.0.0.1:9531'\nmax-groups = 100000", "max-groups"),
            ("[password]\nmin-length = 0", "password.min-length"),
            ("password.expire-days = 40000", "password.expire-days"),
            ("[password]\nqueue = 0", "password.queue"),
            ("[password]\nminimum = 0", "minimum"),
            ("time-zone = 'Europe/Nowhere'", "time-zone"),
            ("time-zone = '/etc/localtime'", "time-zone"),
            ("[hours]\nend-session = true", "end-session"),
            ("connection-burst-per-source = 0", "connection-burst-per-source"),
        ] {
            let error = error(text);
            assert!(error.contains("server.toml") && error.contains(key), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn an_error_names_the_line() {
        for (text, line) in [
            ("\n\nlisen = []", "line 3"),
            ("overlay4 = '100.96.0.0/12'\nlisten = [", "line 2"),
            ("# first\nlisten = ['7531']", "line 2"),
            ("[argon2]\niterations = 1\nmemory-kib = 'much'", "line 3"),
            ("heartbeat-seconds = 15\nlease-seconds = 20", "line 2"),
            ("[metrics]\n\nlisten = '[::]:9531'", "line 3"),
            ("metrics.listen = '[::]:9531'", "line 1"),
        ] {
            let error = error(text);
            assert!(error.contains(line), "{text}: {error}");
        }
        // A value that became impossible through another one.
        assert!(error("heartbeat-seconds = 100").contains("lease-seconds"));
    }

    #[test]
    fn a_time_zone_must_be_one() {
        let config =
            Config::parse("time-zone = 'europe/berlin'\n[hours]\nend-sessions = false", Path::new("x")).unwrap();
        assert_eq!(config.time_zone.unwrap().as_str(), "Europe/Berlin");
        assert!(!config.hours_end_sessions);
        let config = Config::parse("", Path::new("x")).unwrap();
        assert!(config.time_zone.is_none() && config.hours_end_sessions);
        assert!(error("time-zone = 'Europe/Nowhere'").contains("tzdata"));
    }

    #[test]
    fn intervals_are_read() {
        let seconds = |text| interval(text).map(|i| i.map(|d| d.as_secs()));
        assert_eq!(seconds("never"), Ok(None));
        for (text, expected) in [("90s", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(seconds(text), Ok(Some(expected)));
        }
        for bad in ["", "h", "0h", "-1h", "24 h", "1w", "99999999999999999999d", "18446744073709551615d", "1ü"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
