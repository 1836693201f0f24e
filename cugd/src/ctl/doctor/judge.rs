//! What the facts mean, and what is to be done.

use std::fmt::Write as _;

use super::facts::{Card, CardTrouble, Configuration, Daemon, Facts, FoundCard, Outcome, Server, Validity};
use super::pam::Service;
use crate::{config::Config, guard::GuardChoice, names::NamesChoice, tunnel::BackendChoice};

/// How it stands with one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Well.
    Ok,
    /// It works, and should be looked at.
    Warning,
    /// Logins do not work, or are not safe.
    Failed,
    /// Not looked at; the text says why.
    Unknown,
}

impl Verdict {
    /// In JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// On the screen.
    pub(super) fn shown(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "WARNING",
            Self::Failed => "FAILED",
            Self::Unknown => "not seen",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug)]
pub(super) struct Finding {
    /// What: a word that does not change between versions.
    pub item: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was seen.
    pub text: String,
    /// What to do.
    pub advice: Option<String>,
}

fn ok(item: &'static str, text: impl Into<String>) -> Finding {
    Finding { item, verdict: Verdict::Ok, text: text.into(), advice: None }
}

fn unknown(item: &'static str, text: impl Into<String>) -> Finding {
    Finding { item, verdict: Verdict::Unknown, text: text.into(), advice: None }
}

fn failed(item: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { item, verdict: Verdict::Failed, text: text.into(), advice: Some(advice.into()) }
}

fn warning(item: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { item, verdict: Verdict::Warning, text: text.into(), advice: Some(advice.into()) }
}

/// Everything, in the order in which a workstation is set up.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let config = match &facts.config {
        Configuration::Valid(config) => Some(config.as_ref()),
        Configuration::Missing | Configuration::Wrong(_) => None,
    };
    let mut findings = vec![configuration(&facts.config), modes(facts), daemon(facts)];
    findings.extend(card(facts, config));
    findings.extend(facts.servers.iter().map(|server| reached(server, facts.now)));
    findings.push(clock(facts));
    findings.push(module(facts));
    findings.extend(stacks(&facts.services));
    findings.extend(network(facts, config));
    findings.push(names(facts, config));
    findings
}

fn configuration(configuration: &Configuration) -> Finding {
    const ITEM: &str = "configuration";
    match configuration {
        Configuration::Missing => failed(
            ITEM,
            "there is no /etc/cug/cugd.toml",
            "write into it the two lines that `cug-server terminal-config SERVER` prints at the server",
        ),
        Configuration::Wrong(why) => failed(ITEM, why, "correct /etc/cug/cugd.toml; cugd.toml(5) has all keys"),
        Configuration::Valid(config) => ok(ITEM, format!("servers: {}", config.servers.join(", "))),
    }
}

/// Who can write the configuration decides who may log in.
fn modes(facts: &Facts) -> Finding {
    const ITEM: &str = "file modes";
    let loose = facts.owners.iter().find(|owner| owner.uid != 0 || owner.mode & 0o022 != 0);
    match loose {
        Some(owner) => failed(
            ITEM,
            format!("others than root can write {} (owner {}, mode {:o})", owner.path.display(), owner.uid, owner.mode),
            format!("chown root: {0} && chmod go-w {0}", owner.path.display()),
        ),
        None if facts.owners.is_empty() => unknown(ITEM, "there is no /etc/cug to look at"),
        None => ok(ITEM, "only root can write the configuration"),
    }
}

fn daemon(facts: &Facts) -> Finding {
    const ITEM: &str = "cugd";
    let own = env!("CARGO_PKG_VERSION");
    match &facts.daemon {
        Daemon::Away if matches!(facts.config, Configuration::Missing) => {
            failed(ITEM, "the daemon waits for its configuration", "it starts when /etc/cug/cugd.toml is written")
        }
        Daemon::Away => failed(ITEM, "the daemon does not run", "systemctl start cugd; its log: journalctl -u cugd"),
        Daemon::Trouble(why) => {
            failed(ITEM, why, "systemctl restart cugd (open sessions end); its log: journalctl -u cugd")
        }
        Daemon::Answers(status) if status.version != own => failed(
            ITEM,
            format!("the daemon that runs has version {}, this program {own}", status.version),
            "systemctl restart cugd (open sessions end)",
        ),
        Daemon::Answers(status) if status.leftovers > 0 => warning(
            ITEM,
            format!("running, version {own}; {} things that ended sessions left over were found", status.leftovers),
            "journalctl -u cugd names them",
        ),
        Daemon::Answers(status) => ok(ITEM, format!("running, version {own}, WireGuard: {}", status.backend)),
    }
}

/// pcscd, the reader, and the card.
fn card(facts: &Facts, config: Option<&Config>) -> Vec<Finding> {
    let (text, kind) = match &facts.card {
        Card::NotLookedAt => {
            let why = "PCSCLITE_CSOCK_NAME or LIBPCSCLITE_DELEGATE is set in this environment";
            return vec![unknown("pcscd", why)];
        }
        Card::Found(card) => {
            return vec![
                ok("pcscd", "answers"),
                ok("reader", "there is one, with a card"),
                ours(card, config, facts.now),
            ];
        }
        Card::Trouble { text, kind } => (text, *kind),
    };
    let service = ok("pcscd", "answers");
    match kind {
        CardTrouble::NoService => vec![failed(
            "pcscd",
            "the smart-card service does not run",
            "apt install pcscd; systemctl enable --now pcscd.socket",
        )],
        CardTrouble::NoReader => vec![
            service,
            failed(
                "reader",
                text,
                "connect one; a USB reader needs the package libccid (pcsc-lite-ccid); `readers` in cugd.toml may exclude it",
            ),
        ],
        CardTrouble::NoCard => vec![
            service,
            ok("reader", "there is one"),
            unknown("card", "none is inserted; insert one and run this again to have it looked at"),
        ],
        CardTrouble::NotPermitted => vec![service, unknown("reader", format!("{text}; as root this can be seen"))],
        CardTrouble::Busy => vec![service, ok("reader", "there is one"), unknown("card", text)],
        CardTrouble::Unusable => vec![
            service,
            ok("reader", "there is one"),
            failed(
                "card",
                text,
                "take the card that the administrator issued, or have it issued (cug-server card issue)",
            ),
        ],
    }
}

fn ours(card: &FoundCard, config: Option<&Config>, now: i64) -> Finding {
    const ITEM: &str = "card";
    let short: String = card.fingerprint.iter().take(8).fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    });
    if config.is_some_and(|config| !config.ca_pins.contains(&card.ca_pin)) {
        return failed(
            ITEM,
            format!("the card {short}... is of another organisation than this workstation"),
            "compare `ca-pins` in cugd.toml with what `cug-server terminal-config` prints; else it is the wrong card",
        );
    }
    match card.validity {
        Some(valid) if now < valid.from => failed(
            ITEM,
            format!("the card {short}... is not valid yet by this workstation's clock"),
            "set the clock (timedatectl)",
        ),
        Some(valid) if now > valid.until => failed(
            ITEM,
            format!("what the card {short}... says about the server has expired"),
            "have the card issued again",
        ),
        _ => ok(ITEM, format!("of this organisation, fingerprint {short}...; its PIN and its key were not tried")),
    }
}

fn reached(server: &Server, now: i64) -> Finding {
    const ITEM: &str = "server";
    let name = &server.name;
    match &server.outcome {
        Outcome::NoAddress(why) => failed(
            ITEM,
            format!("{name} has no address: {why}"),
            "look at the name in cugd.toml and at the name service",
        ),
        Outcome::Refused(why) => failed(
            ITEM,
            format!("{name} cannot be reached: {why}"),
            "is the server running (systemctl status cug-server there), are address and port right, is there a firewall between?",
        ),
        Outcome::Silent => failed(
            ITEM,
            format!("{name} does not answer"),
            "look at the network and at firewalls between (TCP, port 7531 unless set otherwise)",
        ),
        Outcome::NotTrusted(why) => failed(
            ITEM,
            format!("{name} is not a server of this organisation: {why}"),
            "compare `ca-pins` in cugd.toml with what `cug-server terminal-config` prints at the server; if they are the same, somebody stands between",
        ),
        Outcome::NotNow { early } => failed(
            ITEM,
            format!(
                "the certificate of {name} is {} by this workstation's clock",
                if *early { "not valid yet" } else { "expired" }
            ),
            "set the clock (timedatectl); if it is right: cug-server tls show, tls rotate at the server",
        ),
        Outcome::Broken(why) => {
            failed(ITEM, format!("{name} does not speak TLS as it should: {why}"), "is it the port of cug-server?")
        }
        Outcome::Trusted { validity, ms } => match validity {
            Some(valid) if valid.until - now < 7 * DAY => warning(
                ITEM,
                format!("{name} answers, trusted; its certificate ends in {} days", (valid.until - now) / DAY),
                "cug-server tls show at the server says why it was not renewed",
            ),
            _ => ok(ITEM, format!("{name} answers within {ms} ms, trusted")),
        },
    }
}

const DAY: i64 = 86_400;

/// There is no time service in the protocol: what certificates of the server allow is what can be said.
fn clock(facts: &Facts) -> Finding {
    const ITEM: &str = "clock";
    let seen: Vec<Validity> = facts
        .servers
        .iter()
        .filter_map(|server| match &server.outcome {
            Outcome::Trusted { validity, .. } => *validity,
            _ => None,
        })
        .collect();
    let wrong = facts.servers.iter().any(|server| matches!(server.outcome, Outcome::NotNow { .. }));
    if wrong {
        failed(
            ITEM,
            "a server's certificate is not valid at this time",
            "compare with another clock: date -u; timedatectl set-ntp true",
        )
    } else if seen.is_empty() {
        unknown(ITEM, "no trusted server was reached to compare with")
    } else {
        ok(ITEM, "plausible: within the validity of the servers' certificates; not compared any closer")
    }
}

fn module(facts: &Facts) -> Finding {
    const ITEM: &str = "module";
    let own = env!("CARGO_PKG_VERSION");
    let named = facts.services.iter().any(|service| service.auth || service.account || service.session);
    match &facts.module {
        None if named => failed(
            ITEM,
            "PAM names pam_cug.so and it is not there: nobody can log in",
            "install libpam-cug, or take the lines out of /etc/pam.d, before you log out",
        ),
        None => failed(ITEM, "the login module pam_cug.so is not installed", "apt install libpam-cug"),
        Some(module) => match &module.version {
            Some(version) if version == own => ok(ITEM, format!("{}, version {own}", module.path.display())),
            Some(version) => failed(
                ITEM,
                format!("{} has version {version}, the daemon's package {own}", module.path.display()),
                "install libpam-cug and cugd of the same version",
            ),
            None => warning(
                ITEM,
                format!("{} does not say its version", module.path.display()),
                "install libpam-cug of this version",
            ),
        },
    }
}

fn stacks(services: &[Service]) -> Vec<Finding> {
    const ITEM: &str = "PAM";
    let console: Vec<_> = services.iter().filter(|service| service.name != "passwd").collect();
    let with: Vec<_> = console.iter().filter(|service| service.auth).collect();
    if with.is_empty() {
        return vec![failed(
            ITEM,
            "no login program asks pam_cug",
            "pam-auth-update --enable cug cug-session (Debian, Ubuntu); else as pam_cug(8) says",
        )];
    }
    let names = |of: &[&&Service]| of.iter().map(|service| service.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut findings = vec![ok(ITEM, format!("card and password are asked for by: {}", names(&with)))];
    let no_account: Vec<_> = with.iter().copied().filter(|service| !service.account).copied().collect();
    if !no_account.is_empty() {
        let of: Vec<_> = no_account.iter().collect();
        findings.push(failed(
            ITEM,
            format!("no account line of pam_cug: {}", names(&of)),
            "without it who must change the password first is not held back; see pam_cug(8)",
        ));
    }
    let login = with.iter().find(|service| service.name != "su" && service.name != "sudo");
    if login.is_some_and(|service| !service.session) {
        findings.push(failed(
            ITEM,
            "logins are checked, and no session opens the tunnel: the session line is missing",
            "pam-auth-update --enable cug-session; else as pam_cug(8) says",
        ));
    }
    for service in with.iter().filter(|service| service.before_systemd) {
        findings.push(warning(
            ITEM,
            format!("in {} the session line of pam_cug comes before that of pam_systemd", service.name),
            "put it behind: where the kernel allows no BPF the tunnel cannot be opened else",
        ));
    }
    findings
}

fn network(facts: &Facts, config: Option<&Config>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match (&facts.daemon, config.map(|config| config.backend)) {
        (Daemon::Answers(status), _) => ok("WireGuard", format!("{} (the daemon's word)", status.backend)),
        (_, Some(BackendChoice::Kernel)) => {
            unknown("WireGuard", "the daemon does not run; it asks the kernel at its start")
        }
        _ if facts.network.tun => {
            ok("WireGuard", "/dev/net/tun is there; whether the kernel has WireGuard the daemon finds out at its start")
        }
        _ => failed("WireGuard", "there is no /dev/net/tun", "modprobe tun, or a kernel with WireGuard"),
    });
    findings.push(if facts.network.nft {
        ok("nft", "the program is there")
    } else {
        failed("nft", "the program nft is missing: no group is opened without it", "apt install nftables")
    });
    let wanted = config.map_or(GuardChoice::Auto, |config| config.guard);
    findings.push(match (&facts.network.bpf, wanted) {
        (_, GuardChoice::Nft) => ok("BPF", "not used (guard = \"nft\")"),
        (Some(Ok(())), _) => ok("BPF", "the kernel takes the guard's program"),
        (Some(Err(why)), GuardChoice::Bpf) => failed(
            "BPF",
            why,
            "guard = \"bpf\" cannot be had here: a kernel 5.7 or later with cgroup v2, or guard = \"auto\"",
        ),
        (Some(Err(why)), GuardChoice::Auto) => warning(
            "BPF",
            format!("not here ({why}); packet filter rules alone guard the tunnels"),
            "nothing, if that is meant; else a kernel 5.7 or later with cgroup v2",
        ),
        (None, _) => unknown("BPF", "only root can try it"),
    });
    findings
}

fn names(facts: &Facts, config: Option<&Config>) -> Finding {
    const ITEM: &str = "names";
    let Some(config) = config else { return unknown(ITEM, "no configuration says what they end with") };
    if config.names_suffix.is_none() {
        return ok(ITEM, "switched off (names-suffix = \"\")");
    }
    let hosts = || match facts.names.hosts {
        true => ok(ITEM, "in /etc/hosts"),
        false => warning(
            ITEM,
            "/etc/hosts is no plain file of root's: members have no names here",
            "make it one, or use systemd-resolved; sessions work without names",
        ),
    };
    match (config.names, facts.names.resolved) {
        (NamesChoice::Hosts, _) | (NamesChoice::Auto, false) => hosts(),
        (_, true) => ok(ITEM, "by systemd-resolved"),
        (NamesChoice::Resolved, false) => warning(
            ITEM,
            "names = \"resolved\", and the C library does not ask systemd-resolved",
            "nsswitch.conf or resolv.conf must lead to it, or names = \"auto\"",
        ),
    }
}

#[cfg(test)]
mod tests;
