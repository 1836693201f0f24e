//! `/etc/cug/cugd.toml`: read raw, used only when all of it is valid.

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use cug_proto::{DEFAULT_SERVER_PORT, local::SOCKET_PATH, trust::CaPin};
use serde::Deserialize;

use crate::{
    core::Removal,
    guard::GuardChoice,
    names::{NamesChoice, zone::Suffix},
    tunnel::BackendChoice,
};

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = cug_proto::local::CONFIG_PATH;

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// A valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `servers`: management servers, each `host:port`, at least one.
    pub servers: Vec<String>,
    /// `ca-pins`: SHA-256 of the public keys of the organisation's CAs, at least one. `cug-server terminal-config` prints them.
    pub ca_pins: Vec<CaPin>,
    /// `listen-ports`: UDP ports for WireGuard, one per session and group.
    pub listen_ports: RangeInclusive<u16>,
    /// `backend`: who encrypts.
    pub backend: BackendChoice,
    /// `socket`: where the login module and `cugctl` find the daemon.
    pub socket: PathBuf,
    /// `card-wait-seconds`: how long a login waits for a card; 0 not at all.
    pub card_wait: Duration,
    /// `server-timeout-seconds`: limit of one conversation with the server, and of opening.
    pub server_timeout: Duration,
    /// `readers`: PC/SC readers in which to look, each a prefix; empty for all.
    pub readers: Vec<String>,
    /// `exempt`: accounts that log in without a card, `@GROUP` for the members of a group.
    pub exempt: Vec<String>,
    /// `media`: directories on removable media in which to look.
    pub media: Vec<String>,
    /// `grant-seconds`: how long a grant may wait to be opened.
    pub grant_time: Duration,
    /// `guard`: what keeps other users out of the tunnels.
    pub guard: GuardChoice,
    /// `names-suffix`: what the members' names end with; empty for no names.
    pub names_suffix: Option<Suffix>,
    /// `names`: who is to know them.
    pub names: NamesChoice,
    /// `removal`: what becomes of the OS sessions when the card is gone.
    pub removal: Removal,
    /// `removal-grace-seconds`: how long the card may be back before that. The tunnel is gone at once in any case.
    pub removal_grace: Duration,
    /// `offline`, `offline-wait-minutes`: when no server can be reached, whether the other PAM modules decide about the OS login, and then for how long the closed group is
    /// waited for at most. `None`: there is no login without a server.
    pub offline_wait: Option<Duration>,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {file}; copy the lines that `cug-server terminal-config` prints")]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("{file} is larger than {MAX_FILE} bytes")]
    TooLarge {
        /// Which file.
        file: PathBuf,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{file}, line {line} ({text}): {problem}")]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// The line, with the key.
        text: String,
        /// What is wrong.
        problem: String,
    },
    /// A value that makes no sense.
    #[error("{file}: {key}: {problem}")]
    Value {
        /// Which file.
        file: PathBuf,
        /// Which key.
        key: &'static str,
        /// What is wrong and what is expected.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    servers: Vec<String>,
    ca_pins: Vec<String>,
    #[serde(default = "default_ports")]
    listen_ports: String,
    #[serde(default = "default_backend")]
    backend: String,
    #[serde(default = "default_socket")]
    socket: PathBuf,
    #[serde(default = "default_card_wait")]
    card_wait_seconds: u64,
    #[serde(default = "default_server_timeout")]
    server_timeout_seconds: u64,
    #[serde(default)]
    readers: Vec<String>,
    #[serde(default)]
    exempt: Vec<String>,
    #[serde(default)]
    media: Vec<String>,
    #[serde(default = "default_grant")]
    grant_seconds: u64,
    #[serde(default = "default_guard")]
    guard: String,
    #[serde(default = "default_suffix")]
    names_suffix: String,
    #[serde(default = "default_backend")]
    names: String,
    #[serde(default = "default_removal")]
    removal: String,
    #[serde(default)]
    removal_grace_seconds: u64,
    #[serde(default = "default_offline")]
    offline: String,
    #[serde(default = "default_offline_wait")]
    offline_wait_minutes: u64,
}

fn default_ports() -> String {
    "51820-51919".to_owned()
}

fn default_backend() -> String {
    "auto".to_owned()
}

fn default_socket() -> PathBuf {
    PathBuf::from(SOCKET_PATH)
}

fn default_card_wait() -> u64 {
    30
}

fn default_server_timeout() -> u64 {
    5
}

fn default_suffix() -> String {
    "cug".to_owned()
}

fn default_removal() -> String {
    "disconnect".to_owned()
}

fn default_grant() -> u64 {
    60
}

fn default_offline() -> String {
    "deny".to_owned()
}

fn default_offline_wait() -> u64 {
    60
}

fn default_guard() -> String {
    "auto".to_owned()
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and where it can the key.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { file: file.to_owned(), source };
        if fs::metadata(file).map_err(read)?.len() > MAX_FILE {
            return Err(ConfigError::TooLarge { file: file.to_owned() });
        }
        Self::parse(file, &fs::read_to_string(file).map_err(read)?)
    }

    /// Checks the contents of `file`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`], [`ConfigError::Value`]
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| syntax(file, text, &error))?;
        let wrong = |key| move |problem| ConfigError::Value { file: file.to_owned(), key, problem };
        Ok(Self {
            servers: servers(raw.servers).map_err(wrong("servers"))?,
            ca_pins: ca_pins(&raw.ca_pins).map_err(wrong("ca-pins"))?,
            listen_ports: ports(&raw.listen_ports).map_err(wrong("listen-ports"))?,
            backend: backend(&raw.backend).map_err(wrong("backend"))?,
            socket: absolute(raw.socket).map_err(wrong("socket"))?,
            card_wait: seconds(raw.card_wait_seconds, 0..=600).map_err(wrong("card-wait-seconds"))?,
            server_timeout: seconds(raw.server_timeout_seconds, 1..=60).map_err(wrong("server-timeout-seconds"))?,
            readers: raw.readers,
            exempt: exempt(raw.exempt).map_err(wrong("exempt"))?,
            media: media(raw.media).map_err(wrong("media"))?,
            grant_time: seconds(raw.grant_seconds, 1..=600).map_err(wrong("grant-seconds"))?,
            guard: guard(&raw.guard).map_err(wrong("guard"))?,
            names_suffix: suffix(&raw.names_suffix).map_err(wrong("names-suffix"))?,
            names: names(&raw.names).map_err(wrong("names"))?,
            removal: removal(&raw.removal).map_err(wrong("removal"))?,
            removal_grace: seconds(raw.removal_grace_seconds, 0..=120).map_err(wrong("removal-grace-seconds"))?,
            offline_wait: {
                let wait = minutes(raw.offline_wait_minutes, 1..=480).map_err(wrong("offline-wait-minutes"))?;
                offline(&raw.offline).map_err(wrong("offline"))?.then_some(wait)
            },
        })
    }
}

fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start);
    let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    let quoted = text.lines().nth(line - 1).unwrap_or_default().trim().to_owned();
    ConfigError::Syntax { file: file.to_owned(), line, text: quoted, problem: error.message().to_owned() }
}

/// Each gets the default port if it has none.
fn servers(raw: Vec<String>) -> Result<Vec<String>, String> {
    if raw.is_empty() {
        return Err("at least one management server is needed, as \"host:port\"".to_owned());
    }
    raw.into_iter().map(server).collect()
}

fn server(text: String) -> Result<String, String> {
    let wrong = || format!("\"{text}\" is not of the form \"host:port\" or \"[IPv6 address]:port\"");
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || (host.starts_with('[') && host.ends_with(']')) => {
            (host.to_owned(), port.parse::<u16>().map_err(|_| wrong())?)
        }
        Some(_) => return Err(wrong()),
        None => (text.clone(), DEFAULT_SERVER_PORT),
    };
    let named = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic());
    if named && port != 0 { Ok(format!("{host}:{port}")) } else { Err(wrong()) }
}

fn ca_pins(raw: &[String]) -> Result<Vec<CaPin>, String> {
    if raw.is_empty() {
        return Err("at least one is needed; `cug-server terminal-config` prints it".to_owned());
    }
    raw.iter().map(|text| ca_pin(text).ok_or_else(|| format!("\"{text}\" is not 64 hexadecimal digits"))).collect()
}

fn ca_pin(text: &str) -> Option<CaPin> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (digits.len() == 64).then_some(bytes)?.try_into().ok()
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if first > 0 && first <= last => Ok(first..=last),
        _ => Err(format!("\"{text}\" is not a range of UDP ports such as \"51820-51919\"")),
    }
}

fn backend(text: &str) -> Result<BackendChoice, String> {
    match text {
        "auto" => Ok(BackendChoice::Auto),
        "kernel" => Ok(BackendChoice::Kernel),
        "embedded" => Ok(BackendChoice::Embedded),
        _ => Err(format!("\"{text}\" is none of \"auto\", \"kernel\", \"embedded\"")),
    }
}

fn guard(text: &str) -> Result<GuardChoice, String> {
    match text {
        "auto" => Ok(GuardChoice::Auto),
        "bpf" => Ok(GuardChoice::Bpf),
        "nft" => Ok(GuardChoice::Nft),
        _ => Err(format!("\"{text}\" is none of \"auto\", \"bpf\", \"nft\"")),
    }
}

fn suffix(text: &str) -> Result<Option<Suffix>, String> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn names(text: &str) -> Result<NamesChoice, String> {
    match text {
        "auto" => Ok(NamesChoice::Auto),
        "resolved" => Ok(NamesChoice::Resolved),
        "hosts" => Ok(NamesChoice::Hosts),
        _ => Err(format!("\"{text}\" is none of \"auto\", \"resolved\", \"hosts\"")),
    }
}

fn removal(text: &str) -> Result<Removal, String> {
    match text {
        "disconnect" => Ok(Removal::Disconnect),
        "lock" => Ok(Removal::Lock),
        "logout" => Ok(Removal::Logout),
        _ => Err(format!("\"{text}\" is none of \"disconnect\", \"lock\", \"logout\"")),
    }
}

/// Whether other modules may let somebody in while the server is away.
fn offline(text: &str) -> Result<bool, String> {
    match text {
        "deny" => Ok(false),
        "local" => Ok(true),
        _ => Err(format!("\"{text}\" is neither \"deny\" nor \"local\"")),
    }
}

fn minutes(value: u64, allowed: RangeInclusive<u64>) -> Result<Duration, String> {
    seconds(value, allowed).map(|value| value * 60)
}

fn absolute(path: PathBuf) -> Result<PathBuf, String> {
    if path.is_absolute() { Ok(path) } else { Err(format!("\"{}\" is not an absolute path", path.display())) }
}

fn exempt(raw: Vec<String>) -> Result<Vec<String>, String> {
    match raw.iter().find(|name| name.strip_prefix('@').unwrap_or(name).is_empty()) {
        Some(name) => Err(format!("has \"{name}\", which is neither a name nor @GROUP")),
        None => Ok(raw),
    }
}

fn media(raw: Vec<String>) -> Result<Vec<String>, String> {
    match raw.iter().find(|path| !path.starts_with('/')) {
        Some(path) => Err(format!("\"{path}\" is not an absolute path")),
        None => Ok(raw),
    }
}

fn seconds(value: u64, allowed: RangeInclusive<u64>) -> Result<Duration, String> {
    if allowed.contains(&value) {
        Ok(Duration::from_secs(value))
    } else {
        Err(format!("{value} is not between {} and {}", allowed.start(), allowed.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/cug/cugd.toml"), text).map_err(|error| error.to_string())
    }

    fn pins(text: &str) -> String {
        format!("ca-pins = [\"{text}\"]\n")
    }

    #[test]
    fn two_lines_are_enough() {
        let text =
            format!("servers = [\"vpn.example\", \"10.0.0.9:1\", \"[fd00::1]:2\"]\n{}", pins(&"0aF9".repeat(16)));
        let config = parse(&text).unwrap();
        assert_eq!(config.ca_pins[0][..2], [0x0a, 0xf9]);
        assert_eq!(config.servers, ["vpn.example:7531", "10.0.0.9:1", "[fd00::1]:2"]);
        assert_eq!(config.listen_ports, 51820..=51919);
        assert_eq!(config.socket, Path::new(SOCKET_PATH));
        assert_eq!(config.server_timeout, Duration::from_secs(5));
        assert_eq!(config.offline_wait, None, "without a server nobody logs in unless it was asked for");
        let local = parse(&format!("{text}offline = \"local\"\noffline-wait-minutes = 480")).unwrap();
        assert_eq!(local.offline_wait, Some(Duration::from_secs(480 * 60)));
    }

    #[test]
    fn an_error_names_file_and_key() {
        for (text, key) in [
            ("servers = []", "servers"),
            ("servers = [\"a:b\"]", "servers"),
            ("servers = [\"fd00::1\"]", "servers"),
            ("servers = [\"a:0\"]", "servers"),
            ("servers = [\"a\"]\nlisten-ports = \"9-8\"", "listen-ports"),
            ("servers = [\"a\"]\nlisten-ports = \"0-8\"", "listen-ports"),
            ("servers = [\"a\"]\nbackend = \"magic\"", "backend"),
            ("servers = [\"a\"]\nguard = \"none\"", "guard"),
            ("servers = [\"a\"]\nsocket = \"x\"", "socket"),
            ("servers = [\"a\"]\nserver-timeout-seconds = 0", "server-timeout-seconds"),
            ("servers = [\"a\"]\nmedia = [\"usb\"]", "media"),
            ("servers = [\"a\"]\nexempt = [\"@\"]", "exempt"),
            ("servers = [\"a\"]\nnames-suffix = \"x.local\"", "names-suffix"),
            ("servers = [\"a\"]\nnames = \"dnsmasq\"", "names"),
            ("servers = [\"a\"]\nremoval = \"shutdown\"", "removal"),
            ("servers = [\"a\"]\nremoval-grace-seconds = 121", "removal-grace-seconds"),
            ("servers = [\"a\"]\noffline = \"allow\"", "offline"),
            ("servers = [\"a\"]\noffline-wait-minutes = 481", "offline-wait-minutes"),
            ("servers = [\"a\"]\noffline-wait-minutes = 0", "offline-wait-minutes"),
            ("servers = [\"a\"]\nsevrers = 1", "sevrers"),
            ("servers = 3", "servers"),
            ("", "servers"),
        ] {
            let error = parse(&(pins(&"ab".repeat(32)) + text)).unwrap_err();
            assert!(error.contains("/etc/cug/cugd.toml") && error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn without_knowing_the_organisation_there_is_no_trust() {
        for pins in ["", "ca-pins = []\n", &pins(""), &pins("ab"), &pins(&"xy".repeat(32)), &pins(&"ä".repeat(64))] {
            let error = parse(&format!("{pins}servers = [\"a\"]")).unwrap_err();
            assert!(error.contains("ca-pins"), "{pins}: {error}");
        }
    }
}
