//! B9: what a member of a large group costs the daemon at another member's terminal.

use super::Scale;
use anyhow::{Context, ensure};
use cug_cards::{OwnCard, OwnOptions, PinPolicy};
use cug_load::figures::{Report, Row};
use cug_load::fleet::Fleet;
use cug_load::host::{CHEAP, Site, Size};
use cug_load::terminal::{Member, Organisation, PASSWORD};
use cug_tests::card::PivCard;
use cug_tests::lan::Lan;
use cug_tests::terminal::Terminal;
use cug_tests::wait;
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::sync::Arc;
use std::time::Duration;

/// For the whole group to sit down, and to hear of one another.
const LIMIT: Duration = Duration::from_secs(120);

/// Ends long before the leases of those who sit there.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// A real terminal, and the rest of the group in software, on one host: only loopback is between them and the server.
pub(super) fn run(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let logs = super::logs("peers")?;
    let lan = Lan::new(&logs)?;
    let members = scale.of(1000);
    let site = Site::new(Size { groups: 1, members, with_cards: members }, CHEAP)?;
    // The organisation's CA has to be known before the terminal is made, and the server is to run on the terminal.
    let trusts = {
        let host = site.serve()?;
        site.organisation(&host)?.ca_pin()
    };
    let terminal = Terminal::new(&lan, &logs, 1, &trusts)?;
    setns(File::open(format!("/proc/{}/ns/net", terminal.space().pid()))?, CloneFlags::CLONE_NEWNET)?;
    let peers = measure(&site, terminal)?;
    report.row(Row {
        bench: "B9",
        what: format!("memory of cugd for each of {} members of its session's group", peers.count),
        figure: format!(
            "{:.1} KiB ({:.1} MiB of its own alone in the group, {:.1} MiB with all)",
            (peers.full - peers.alone) / peers.count as f64,
            peers.alone / 1024.0,
            peers.full / 1024.0,
        ),
        beside: "the WireGuard library: 18 KB".into(),
        ratio: None,
        aim: String::new(),
        reached: None,
    });
    fs::remove_dir_all(logs).ok();
    Ok(())
}

struct Peers {
    count: usize,
    /// KiB.
    alone: f64,
    full: f64,
}

/// From here on this thread, and what it starts, is on the terminal.
fn measure(site: &Site, mut terminal: Terminal) -> anyhow::Result<Peers> {
    let host = site.serve()?;
    let organisation = site.organisation(&host)?;
    let (own, others) = site.members.split_first().context("nobody")?;
    terminal.configure(&format!("servers = [\"{}\"]", host.address))?;
    account(&terminal, own)?;
    terminal.start_cugd()?;
    let _card = terminal.insert(card(own, &site.server_object()?)?)?;
    let login = terminal.log_in(own.user.as_str(), PASSWORD)?;
    let pid = terminal.cugd()?.pid()?;
    let alone = own_memory(pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let full = runtime.block_on(with_all(&organisation, others, &terminal, pid))?;
    login.close()?;
    Ok(Peers { count: others.len(), alone, full })
}

async fn with_all(to: &Arc<Organisation>, others: &[Member], terminal: &Terminal, pid: i32) -> anyhow::Result<f64> {
    let fleet = Fleet::sit_down(to, others, HEARTBEAT).await?;
    fleet.announce_all(others.len() - 1, LIMIT).await?;
    wait::for_true("all members at the terminal", LIMIT, || shown(terminal) == Some(others.len()))?;
    let full = own_memory(pid)?;
    ensure!(fleet.lost() == 0, "{} terminals lost their connection", fleet.lost());
    Ok(full)
}

/// How many members the terminal knows.
fn shown(terminal: &Terminal) -> Option<usize> {
    let peers = terminal.cugctl("peers").ok()?;
    Some(peers.as_array()?.iter().filter_map(|group| group["peers"].as_array()).map(Vec::len).sum())
}

/// An OS account for the member.
fn account(terminal: &Terminal, member: &Member) -> anyhow::Result<()> {
    let space = terminal.space();
    let add = |path: &str, line: String, mode| -> anyhow::Result<()> {
        space.write(path, fs::read_to_string(space.path(path))? + &line, mode)
    };
    let name = &member.user;
    add("/etc/passwd", format!("{name}:x:3900:3900::/run:/bin/sh\n"), 0o644)?;
    add("/etc/group", format!("{name}:x:3900:\n"), 0o644)?;
    add("/etc/shadow", format!("{name}:!:19000:0:99999:7:::\n"), 0o640)
}

/// The member's card, as `cug-server card issue` would have written it.
fn card(member: &Member, server_object: &[u8]) -> anyhow::Result<PivCard> {
    let mut card = OwnCard::new(OwnOptions { pin_policy: PinPolicy::Never, ..OwnOptions::default() })?;
    card.set_key(cug_card::piv::SLOT, member.card.key().clone(), Some(PinPolicy::Never))?;
    let mut object = Vec::new();
    cug_card::tlv::push(&mut object, cug_card::piv::TAG_CERTIFICATE, server_object);
    cug_card::tlv::push(&mut object, cug_card::piv::TAG_FINGERPRINT, &member.card.fingerprint);
    cug_card::tlv::push(&mut object, cug_card::piv::TAG_PIN_POLICY, &[1]);
    card.set_object(0x5F_C10D, &object)?;
    Ok(PivCard::from_own(card))
}

/// KiB.
fn own_memory(pid: i32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
