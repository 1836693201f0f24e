//! The hosts, the cards and the people of the demo.

use crate::keep;
use crate::matrix::Matrix;
use crate::report::{Report, directory};
use crate::screen::{Screen, time};
use anyhow::{Context, ensure};
use cug_tests::capture::Capture;
use cug_tests::card::{self, CardProcess};
use cug_tests::lan::{Lan, address4};
use cug_tests::login::{Login, Script};
use cug_tests::memory::{self, Pattern};
use cug_tests::office::Office;
use cug_tests::probe::{self, ECHO_PORT, Echo};
use cug_tests::script::{self, client::Member};
use cug_tests::server::{ServerHost, Session};
use cug_tests::terminal::Terminal;
use cug_tests::wait;
use cug_tests::world::{MEMBERS, password};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// Everything that is on the stage.
pub struct Stage {
    /// People who are logged in, by terminal.
    pub logins: BTreeMap<usize, (String, Login)>,
    /// Cards by owner.
    pub cards: BTreeMap<String, CardProcess>,
    /// Echo servers of the terminals.
    pub echoes: Vec<Echo>,
    /// What crosses the LAN.
    pub capture: Capture,
    /// Terminal N is at N-1.
    pub terminals: Vec<Terminal>,
    /// The management server.
    pub server: ServerHost,
    /// The Ethernet.
    pub lan: Lan,
    group_keys: BTreeMap<String, [u8; 32]>,
    payload: String,
}

impl Stage {
    /// Builds it: hosts, organisation, cards.
    pub fn build(screen: &Screen, report: &mut Report) -> anyhow::Result<Self> {
        let files = directory();
        if files.exists() {
            std::fs::remove_dir_all(&files)?;
        }
        std::fs::create_dir_all(&files)?;
        let (lan, mut server) = screen.step("A LAN and a management server at 10.0.0.254", report, |_| {
            let lan = Lan::new(&files)?;
            let mut server = ServerHost::new(&lan, &files)?;
            server.init_and_serve()?;
            Ok((lan, server))
        })?;
        let terminals =
            screen.step("Four workstations: reader, pcscd, cugd and PAM each, 10.0.0.1 to 10.0.0.4", report, |_| {
                let trusts = server.ca_pin()?;
                (1..=4).map(|number| Terminal::ready(&lan, &files, number, &trusts)).collect::<anyhow::Result<Vec<_>>>()
            })?;
        screen.step("Groups VPN1 = {A, B} and VPN2 = {C, D}, users with passwd1 to passwd4", report, |_| {
            people(&server)
        })?;
        let cards =
            screen.step("Four cards, issued with `cug-server card issue`", report, |_| issue(&mut server, &files))?;
        let group_keys = ["USER-A", "USER-C"].map(|user| group_key(&server, user));
        let group_keys = group_keys.into_iter().collect::<anyhow::Result<_>>()?;
        let capture = Capture::start(&lan, files.join("lan.pcap"))?;
        let echoes = terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<anyhow::Result<_>>()?;
        let payload = format!("ward-round-{:016x}", u64::from_ne_bytes(script::random()?));
        Ok(Self { logins: BTreeMap::new(), cards, echoes, capture, terminals, server, lan, group_keys, payload })
    }

    fn terminal(&self, number: usize) -> anyhow::Result<&Terminal> {
        self.terminals.get(number - 1).context("no such terminal")
    }

    /// The server's table.
    pub fn sessions(&self) -> anyhow::Result<Vec<Session>> {
        let mut rows = self.server.sessions()?;
        rows.sort();
        Ok(rows)
    }

    /// A user inserts the card, types ID, password and PIN, and has the group.
    pub fn log_in(&mut self, screen: &Screen, report: &mut Report, terminal: usize, user: &str) -> anyhow::Result<()> {
        let what = format!("{user} logs in at terminal {terminal}: card, PIN, password, group open");
        let card = self.cards.get_mut(user).context("no card")?;
        let host = self.terminals.get(terminal - 1).context("no such terminal")?;
        let login = screen.step(&what, report, |report| {
            card.insert(&host.reader())?;
            let started = Instant::now();
            let mut login = host.login(&Script::new(user).password(password(user)))?;
            login.open()?;
            report.measured(&format!("login {user} at terminal {terminal}"), started.elapsed());
            Ok(login)
        })?;
        self.logins.insert(terminal, (user.to_owned(), login));
        Ok(())
    }

    /// A user pulls the card, and the terminal is as it was before (Fig. 9). Then the user's desktop goes, too.
    pub fn pull(&mut self, screen: &Screen, report: &mut Report, terminal: usize, user: &str) -> anyhow::Result<()> {
        let host = self.terminals.get(terminal - 1).context("no such terminal")?;
        let card = self.cards.get_mut(user).context("no card")?;
        let server = &self.server;
        let (down, cleared) =
            screen.step(&format!("{user} pulls the card at terminal {terminal}"), report, |report| {
                let started = Instant::now();
                card.pull()?;
                wait::for_true("the tunnel to go", SOON, || host.tunnels().is_empty())?;
                let down = started.elapsed();
                wait::for_true("the server to clear the address", SOON, || {
                    server.sessions().is_ok_and(|rows| rows.iter().all(|row| row.user != user))
                })?;
                let cleared = started.elapsed();
                report.measured(&format!("tunnel down {user}"), down);
                report.measured(&format!("row cleared {user}"), cleared);
                Ok((down, cleared))
            })?;
        if let Some((_, login)) = self.logins.remove(&terminal) {
            login.close()?;
        }
        self.terminal(terminal)?.wait_clean(SOON)?;
        screen.good(&format!(
            "tunnel gone after {}, row cleared after {}, no trace on the terminal",
            time(down),
            time(cleared)
        ));
        Ok(())
    }

    /// Probes all pairs, and checks every cell.
    pub fn matrix(
        &self,
        screen: &Screen,
        report: &mut Report,
        name: &str,
        seats: &[(usize, &str)],
    ) -> anyhow::Result<()> {
        let rows = self.sessions()?;
        let matrix =
            screen.step("All pairs: ping and TCP, IPv4 and IPv6, over the overlay addresses", report, |report| {
                self.first_contact(report, name, &rows, seats)?;
                Matrix::measure(&self.terminals, &rows, seats, &self.payload)
            })?;
        screen.matrix(&matrix);
        report.matrix(name, &matrix);
        ensure!(matrix.right(), "not everybody reaches exactly the members of their own group");
        Ok(())
    }

    /// Members of a group were told of each other a moment ago: how long until the first answer?
    fn first_contact(
        &self,
        report: &mut Report,
        name: &str,
        rows: &[Session],
        seats: &[(usize, &str)],
    ) -> anyhow::Result<()> {
        for (terminal, from) in seats {
            let group = rows.iter().find(|row| row.user == *from).map(|row| &row.group);
            let Some(other) = rows.iter().find(|row| Some(&row.group) == group && row.user != *from) else { continue };
            let started = Instant::now();
            probe::wait_ping(self.terminal(*terminal)?.space(), from, other.overlay4.parse()?, SOON)?;
            report.measured(&format!("{name} first answer {from} from {}", other.user), started.elapsed());
        }
        Ok(())
    }

    /// Where the group key of each terminal's user is in the memory of cugd and of the login program.
    fn keys_at(&mut self, number: usize) -> anyhow::Result<Vec<String>> {
        let patterns: Vec<_> =
            self.group_keys.iter().map(|(group, key)| Pattern::new(&format!("key of {group}"), key)).collect();
        let terminal = self.terminals.get_mut(number - 1).context("no such terminal")?;
        memory::find(terminal.cugd()?.pid()?, &patterns)
    }

    /// The search for keys in memory finds them while they are in use.
    pub fn keys_are_held(&mut self, screen: &Screen, report: &mut Report, terminals: &[usize]) -> anyhow::Result<()> {
        for &number in terminals {
            ensure!(
                !self.keys_at(number)?.is_empty(),
                "the group key was not found in cugd's memory at terminal {number}: the search is blind"
            );
        }
        screen.good("The group keys were found in the memory of each cugd, as they must be while they are in use.");
        report.checked("keys while logged in", "found in each cugd");
        Ok(())
    }

    /// And does not find them afterwards.
    pub fn keys_are_gone(&mut self, screen: &Screen, report: &mut Report, terminals: &[usize]) -> anyhow::Result<()> {
        for &number in terminals {
            let found = self.keys_at(number)?;
            ensure!(found.is_empty(), "terminal {number} still holds {found:?}");
        }
        screen.good("The same search of the memory of cugd at terminals 1 and 3 finds no group key any more.");
        report.checked("keys after removal", "not found");
        Ok(())
    }

    /// What was said over the overlay never crossed the LAN in clear; what is said in clear is seen.
    pub fn capture_is_clean(&self, screen: &Screen, report: &mut Report) -> anyhow::Result<()> {
        let canary = format!("in-clear-{:016x}", u64::from_ne_bytes(script::random()?));
        let from = self.terminal(1)?.space();
        let heard = probe::exchange(from, "root", address4(2).into(), ECHO_PORT, &canary, SOON)?;
        ensure!(heard, "terminals 1 and 2 cannot talk on the plain LAN");
        wait::for_true("the words said in clear in the capture", SOON, || self.capture.saw(canary.as_bytes()))?;
        ensure!(!self.capture.saw(self.payload.as_bytes()), "the payload crossed the LAN in clear");
        for (user, secret, _) in MEMBERS {
            ensure!(!self.capture.saw(secret.as_bytes()), "the password of {user} crossed the LAN in clear");
            ensure!(!self.capture.saw(user.as_bytes()), "the name {user} crossed the LAN in clear");
        }
        let size = self.capture.len();
        screen.good(&format!(
            "{} KB captured: no payload, no password, no user ID in clear (a sentence sent in clear on purpose was found).",
            size / 1000
        ));
        report.checked("capture", &format!("{size} bytes, nothing in clear but the canary"));
        Ok(())
    }

    /// Everybody goes home.
    pub fn strike(self) {
        drop(self.logins);
        drop(self.cards);
        drop(self.echoes);
        drop(self.capture);
    }
}

fn people(server: &ServerHost) -> anyhow::Result<()> {
    for group in ["VPN1", "VPN2"] {
        server.run(&["group", "add", group])?;
    }
    for (user, password, group) in MEMBERS {
        server.add_user(user, password)?;
        server.run(&["group", "join", group, user])?;
    }
    Ok(())
}

fn issue(server: &mut ServerHost, files: &std::path::Path) -> anyhow::Result<BTreeMap<String, CardProcess>> {
    let office = Office::open(server)?;
    let mut cards = BTreeMap::new();
    for (user, _, _) in MEMBERS {
        let mut card = CardProcess::new(&files.join(format!("{user}.card")), keep::wanted());
        card.insert(&office.reader())?;
        let args = ["card", "issue", user, "--reader", &office.reader_name(), "--generate", "--pin-stdin"];
        server.run_with(&args, &format!("{}\n", card::PIN))?.ok().with_context(|| args.join(" "))?;
        card.pull()?;
        cards.insert(user.to_owned(), card);
    }
    Ok(cards)
}

/// The key of the user's group, so that the demo can look for it in memory: from a login of our own with a second card, which the
/// user's real login will displace.
fn group_key(server: &ServerHost, user: &str) -> anyhow::Result<(String, [u8; 32])> {
    let member = Member::register(server, user)?;
    let session = member.log_in(server.space(), password(user))?;
    let group = session.grant.groups.first().context("no group")?;
    let key = *group.key.expose();
    server.run(&["session", "end", user])?;
    Ok((group.name.to_string(), key))
}
