//! Looks at this workstation. Every look is bounded, and none changes anything.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use cug_card::{CardError, Selection};
use cug_proto::local::{Reply, Request};
use nix::unistd::geteuid;

use super::{
    facts::{Card, CardTrouble, Configuration, Daemon, Facts, FoundCard, Module, NameService, Network, Owner, Server},
    pam::{self, Service},
    reach,
};
use crate::{
    clock,
    config::{self, Config, ConfigError},
    ctl::Connection,
    guard::{Guard, GuardChoice, Lifetime},
    names,
};

/// Programs that log people in at a workstation.
const SERVICES: [&str; 8] = ["login", "gdm-password", "lightdm", "sddm", "sshd", "su", "sudo", "passwd"];

/// What precedes the version in the module's file.
const MARK: &[u8] = b"pam_cug version ";

/// Largest module that is looked through, in bytes.
const MAX_MODULE: u64 = 256 * 1024 * 1024;

pub(super) fn gather(socket: &Path) -> Facts {
    let file = Path::new(config::DEFAULT_PATH);
    let config = configuration(file);
    let (card, servers) = match &config {
        Configuration::Valid(config) => (card(config), servers(config)),
        Configuration::Missing | Configuration::Wrong(_) => (find(&Selection::default()), Vec::new()),
    };
    let root = geteuid().is_root();
    let now = clock::wall().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Facts {
        now: i64::try_from(now).unwrap_or(i64::MAX),
        owners: [file.parent(), Some(file)].into_iter().flatten().filter_map(owner).collect(),
        config,
        daemon: daemon(socket),
        card,
        servers,
        services: SERVICES.into_iter().filter_map(service).collect(),
        module: module(),
        network: network(root),
        names: NameService { resolved: names::resolved::is_asked(), hosts: plain_file(Path::new(names::HOSTS)) },
    }
}

fn configuration(file: &Path) -> Configuration {
    match Config::load(file) {
        Ok(config) => Configuration::Valid(Box::new(config)),
        Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Configuration::Missing,
        Err(error) => Configuration::Wrong(format!("{:#}", anyhow::Error::from(error))),
    }
}

fn owner(path: &Path) -> Option<Owner> {
    let seen = fs::metadata(path).ok()?;
    Some(Owner { path: path.to_owned(), uid: seen.uid(), mode: seen.mode() & 0o7777 })
}

fn daemon(socket: &Path) -> Daemon {
    let status = Connection::open(socket).and_then(|mut daemon| daemon.ask(&Request::Status));
    match status {
        Ok(Reply::Status(status)) => Daemon::Answers(Box::new(status)),
        Ok(_) => Daemon::Trouble(super::CtlError::Strange.to_string()),
        Err(super::CtlError::NotRunning(_)) => Daemon::Away,
        Err(error) => Daemon::Trouble(error.to_string()),
    }
}

fn card(config: &Config) -> Card {
    find(&Selection { readers: config.readers.clone(), media: config.media.clone(), taken: Vec::new() })
}

/// A service that is started by this very question needs a moment to find its readers.
const CARD_WAIT: Duration = Duration::from_secs(2);

fn find(selection: &Selection) -> Card {
    match cug_card::find(selection, clock::instant() + CARD_WAIT, clock::instant, &mut || ()) {
        Ok(card) => Card::Found(FoundCard {
            fingerprint: *card.fingerprint(),
            ca_pin: *card.server_object().ca_pin(),
            validity: reach::validity(card.server_object().certificate()),
        }),
        Err(CardError::Redirected) => Card::NotLookedAt,
        Err(error) => {
            let kind = match &error {
                CardError::NoService(_) => CardTrouble::NoService,
                CardError::NoReader => CardTrouble::NoReader,
                CardError::NoCard => CardTrouble::NoCard,
                CardError::NotPermitted(_) => CardTrouble::NotPermitted,
                CardError::Busy => CardTrouble::Busy,
                _ => CardTrouble::Unusable,
            };
            Card::Trouble { text: error.to_string(), kind }
        }
    }
}

fn servers(config: &Config) -> Vec<Server> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let tries = config.servers.iter().map(|name| reach::server(name, &config.ca_pins, config.server_timeout));
    let servers = runtime.block_on(futures_util::future::join_all(tries));
    // A name service that hangs must not hold the end up.
    runtime.shutdown_background();
    servers
}

fn service(name: &str) -> Option<Service> {
    let read = |name: &str| {
        // Names in these files are file names of their directories; distributions keep their own in /usr/lib.
        let plain = !name.contains('/') && !name.is_empty();
        ["/etc/pam.d", "/usr/lib/pam.d"]
            .iter()
            .filter(|_| plain)
            .find_map(|dir| fs::read_to_string(Path::new(dir).join(name)).ok())
    };
    read(name).map(|_| pam::service(name, &read))
}

/// The module where libpam looks for it.
fn module() -> Option<Module> {
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = [
        format!("/usr/lib/{multiarch}"),
        format!("/lib/{multiarch}"),
        "/usr/lib64".into(),
        "/lib64".into(),
        "/usr/lib".into(),
    ];
    let path = libraries.iter().map(|dir| PathBuf::from(dir).join("security/pam_cug.so")).find(|path| path.exists())?;
    let small = fs::metadata(&path).is_ok_and(|seen| seen.len() <= MAX_MODULE);
    let version = small.then(|| fs::read(&path).ok()).flatten().and_then(|bytes| written_version(&bytes));
    Some(Module { path, version })
}

/// The version that a module's file names.
fn written_version(bytes: &[u8]) -> Option<String> {
    let at = bytes.windows(MARK.len()).position(|part| part == MARK)?;
    let rest = bytes.get(at + MARK.len()..)?;
    let version: String =
        rest.iter().map(|byte| char::from(*byte)).take_while(|c| c.is_ascii_graphic()).take(40).collect();
    (!version.is_empty()).then_some(version)
}

fn network(root: bool) -> Network {
    let nft = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].iter().any(|path| Path::new(path).exists());
    let bpf = root.then(|| match Guard::select(GuardChoice::Bpf, Lifetime::Process) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
    });
    Network { tun: Path::new("/dev/net/tun").exists(), nft, bpf }
}

fn plain_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|seen| seen.is_file() && seen.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_to_its_end_and_no_further() {
        assert_eq!(written_version(b"\x7fELF..pam_cug version 0.1.0\0pam"), Some("0.1.0".into()));
        assert_eq!(written_version(b"pam_cug version \0"), None);
        assert_eq!(written_version(b"pam_cug"), None);
    }
}
