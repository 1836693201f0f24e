//! One thing wrong at a time: it is found, said, and nothing else is blamed.

use std::path::{Path, PathBuf};

use cug_proto::local::Status;

use super::*;
use crate::ctl::doctor::facts::{Module, NameService, Network, Owner};

const NOW: i64 = 1_800_000_000;
const PIN: [u8; 32] = [7; 32];

fn config() -> Config {
    let text = format!("servers = [\"vpn\"]\nca-pins = [\"{}\"]\n", "07".repeat(32));
    Config::parse(Path::new("x"), &text).unwrap()
}

fn status(version: &str) -> Daemon {
    Daemon::Answers(Box::new(Status {
        version: version.into(),
        backend: "kernel".into(),
        sessions: vec![],
        leftovers: 0,
        teardowns: 0,
        uptime_ms: None,
        host_name: None,
    }))
}

fn service(name: &str) -> Service {
    Service { name: name.into(), auth: true, account: true, session: true, before_systemd: false }
}

fn trusted(from: i64, until: i64) -> Vec<Server> {
    vec![Server {
        name: "vpn:7531".into(),
        outcome: Outcome::Trusted { validity: Some(Validity { from, until }), ms: 3 },
    }]
}

fn well() -> Facts {
    Facts {
        now: NOW,
        config: Configuration::Valid(Box::new(config())),
        owners: vec![Owner { path: PathBuf::from("/etc/cug/cugd.toml"), uid: 0, mode: 0o644 }],
        daemon: status(env!("CARGO_PKG_VERSION")),
        card: Card::Found(FoundCard {
            fingerprint: [1; 32],
            ca_pin: PIN,
            validity: Some(Validity { from: NOW - 1, until: NOW + 1 }),
        }),
        servers: trusted(NOW - 90 * DAY, NOW + 90 * DAY),
        services: vec![service("login"), service("sudo")],
        module: Some(Module { path: "/m/pam_cug.so".into(), version: Some(env!("CARGO_PKG_VERSION").into()) }),
        network: Network { tun: true, nft: true, bpf: Some(Ok(())) },
        names: NameService { resolved: false, hosts: true },
    }
}

/// Items that are not well after `change`.
fn blamed(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Verdict)> {
    let mut facts = well();
    change(&mut facts);
    let findings = judge(&facts);
    for finding in &findings {
        let needs_advice = matches!(finding.verdict, Verdict::Failed | Verdict::Warning);
        assert_eq!(needs_advice, finding.advice.is_some(), "{finding:?}");
    }
    findings.into_iter().filter(|f| f.verdict != Verdict::Ok).map(|f| (f.item, f.verdict)).collect()
}

fn trouble(kind: CardTrouble) -> Card {
    Card::Trouble { text: "said".into(), kind }
}

#[test]
fn all_well() {
    assert_eq!(blamed(|_| ()), []);
}

#[test]
fn one_fault_one_blame() {
    use Verdict::{Failed, Unknown, Warning};
    assert_eq!(
        blamed(|f| f.config = Configuration::Wrong("line 3".into())),
        [("configuration", Failed), ("names", Unknown)]
    );
    assert_eq!(blamed(|f| f.owners[0].mode = 0o664), [("file modes", Failed)]);
    assert_eq!(blamed(|f| f.owners[0].uid = 1000), [("file modes", Failed)]);
    assert_eq!(blamed(|f| f.daemon = Daemon::Away), [("cugd", Failed)]);
    assert_eq!(blamed(|f| f.daemon = status("0.0.1")), [("cugd", Failed)]);
    assert_eq!(blamed(|f| f.card = trouble(CardTrouble::NoService)), [("pcscd", Failed)]);
    assert_eq!(blamed(|f| f.card = trouble(CardTrouble::NoReader)), [("reader", Failed)]);
    assert_eq!(blamed(|f| f.card = trouble(CardTrouble::NoCard)), [("card", Unknown)]);
    assert_eq!(blamed(|f| f.card = trouble(CardTrouble::Unusable)), [("card", Failed)]);
    assert_eq!(blamed(|f| f.network.nft = false), [("nft", Failed)]);
    assert_eq!(blamed(|f| f.network.bpf = Some(Err("no".into()))), [("BPF", Warning)]);
    assert_eq!(blamed(|f| f.network.bpf = None), [("BPF", Unknown)]);
    assert_eq!(blamed(|f| f.names.hosts = false), [("names", Warning)]);
    assert_eq!(blamed(|f| f.module = None), [("module", Failed)]);
    assert_eq!(blamed(|f| f.module.as_mut().unwrap().version = Some("9".into())), [("module", Failed)]);
}

#[test]
fn the_organisation() {
    let foreign = |f: &mut Facts| match &mut f.card {
        Card::Found(card) => card.ca_pin = [8; 32],
        _ => unreachable!(),
    };
    assert_eq!(blamed(foreign), [("card", Verdict::Failed)]);
    let untrusted = |f: &mut Facts| f.servers[0].outcome = Outcome::NotTrusted("unknown issuer".into());
    assert_eq!(blamed(untrusted), [("server", Verdict::Failed), ("clock", Verdict::Unknown)]);
    let away = |f: &mut Facts| f.servers[0].outcome = Outcome::Silent;
    assert_eq!(blamed(away), [("server", Verdict::Failed), ("clock", Verdict::Unknown)]);
}

#[test]
fn the_clock() {
    let early = |f: &mut Facts| f.servers[0].outcome = Outcome::NotNow { early: true };
    assert_eq!(blamed(early), [("server", Verdict::Failed), ("clock", Verdict::Failed)]);
    assert_eq!(blamed(|f| f.servers = trusted(NOW - DAY, NOW + 3 * DAY)), [("server", Verdict::Warning)]);
    assert_eq!(blamed(|f| f.now = NOW - 10), [("card", Verdict::Failed)], "a card that is not valid yet");
}

#[test]
fn the_pam_stack() {
    use Verdict::{Failed, Warning};
    let bare = Service { auth: false, account: false, session: false, ..service("login") };
    assert_eq!(blamed(|f| f.services = vec![bare.clone()]), [("PAM", Failed)]);
    assert_eq!(blamed(|f| f.services = vec![]), [("PAM", Failed)]);
    // `passwd` asks the module too, and is no login.
    assert_eq!(blamed(|f| f.services = vec![bare, service("passwd")]), [("PAM", Failed)]);
    assert_eq!(blamed(|f| f.services[0].account = false), [("PAM", Failed)]);
    assert_eq!(blamed(|f| f.services[0].session = false), [("PAM", Failed)]);
    assert_eq!(blamed(|f| f.services[1].session = false), [], "sudo holds no session");
    assert_eq!(blamed(|f| f.services[0].before_systemd = true), [("PAM", Warning)]);
}

#[test]
fn what_is_not_configured_yet_is_not_called_broken_twice() {
    let text = |facts: &Facts| judge(facts).into_iter().find(|f| f.item == "cugd").unwrap().text;
    let facts = Facts { config: Configuration::Missing, daemon: Daemon::Away, ..well() };
    assert!(text(&facts).contains("waits for its configuration"));
    assert!(text(&Facts { daemon: Daemon::Away, ..well() }).contains("does not run"));
}
