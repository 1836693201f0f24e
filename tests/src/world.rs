//! The patent's example: one server, four terminals, USER-A to USER-D with passwd1 to passwd4, VPN1 = {A, B}, VPN2 = {C, D}.

use crate::card;
use crate::card::{Kind, MEDIUM_NOTE, PivCard};
use crate::lan::Lan;
use crate::office::Office;
use crate::server::ServerHost;
use crate::terminal::{MEDIUM, Terminal};
use anyhow::Context;
use std::fs;
use std::path::Path;

/// User, password and group of the patent's Fig. 6.
pub const MEMBERS: [(&str, &str, &str); 4] = [
    ("USER-A", "passwd1", "VPN1"),
    ("USER-B", "passwd2", "VPN1"),
    ("USER-C", "passwd3", "VPN2"),
    ("USER-D", "passwd4", "VPN2"),
];

/// Password of a member.
pub fn password(user: &str) -> &'static str {
    MEMBERS.iter().find(|(name, _, _)| *name == user).map_or("passwd-other", |(_, password, _)| password)
}

/// A LAN, a server with the example's users and groups, and as many terminals as wanted.
pub struct World {
    /// Terminal N is at N-1.
    pub terminals: Vec<Terminal>,
    /// The management server.
    pub server: ServerHost,
    /// The Ethernet.
    pub lan: Lan,
}

impl World {
    /// Builds it, with the server running and `cugd` running at every terminal. No cards yet.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn new(logs: &Path, terminals: u8) -> anyhow::Result<Self> {
        Self::with_config(logs, terminals, "")
    }

    /// The same with more lines in the server's configuration.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn with_config(logs: &Path, terminals: u8, server_config: &str) -> anyhow::Result<Self> {
        let lan = Lan::new(logs)?;
        let mut server = ServerHost::new(&lan, logs)?;
        server.configure(server_config)?;
        server.copy_and_serve()?;
        for group in ["VPN1", "VPN2"] {
            server.run(&["group", "add", group])?;
        }
        for (user, password, group) in MEMBERS {
            server.add_user(user, password)?;
            server.run(&["group", "join", group, user])?;
        }
        let trusts = server.ca_pin()?;
        let terminals =
            (1..=terminals).map(|number| Terminal::ready(&lan, logs, number, &trusts)).collect::<Result<_, _>>()?;
        Ok(Self { terminals, server, lan })
    }

    /// Terminal `number`, from 1.
    ///
    /// # Panics
    /// When there is no such terminal.
    pub fn terminal(&self, number: usize) -> &Terminal {
        &self.terminals[number - 1]
    }

    /// Terminal `number`, from 1.
    ///
    /// # Panics
    /// When there is no such terminal.
    pub fn terminal_mut(&mut self, number: usize) -> &mut Terminal {
        &mut self.terminals[number - 1]
    }

    /// Issues a card of the usual kind to `user`.
    ///
    /// # Errors
    /// With what `cug-server` says.
    pub fn card(&self, user: &str) -> anyhow::Result<PivCard> {
        self.card_of(Kind::usual(), user)
    }

    /// Issues a card to `user`: `cug-server card issue`, at a reader of the server's host that is there for this moment.
    ///
    /// # Errors
    /// With what `cug-server` says.
    pub fn card_of(&self, kind: Kind, user: &str) -> anyhow::Result<PivCard> {
        self.issue(PivCard::blank(kind, self.server.space().logs())?, user, &["--generate"])
    }

    /// Issues `blank` to `user` with these options.
    ///
    /// # Errors
    /// With what `cug-server` says.
    pub fn issue(&self, blank: PivCard, user: &str, options: &[&str]) -> anyhow::Result<PivCard> {
        let office = Office::open(&self.server)?;
        let in_reader = card::InReader::insert(&office.reader(), blank)?;
        let reader = office.reader_name();
        let mut args = vec!["card", "issue", user, "--reader", &reader, "--pin-stdin"];
        args.extend(options);
        self.server.run_with(&args, &format!("{}\n", card::PIN))?.ok().with_context(|| args.join(" "))?;
        Ok(in_reader.pull())
    }

    /// Issues a medium to `user` and puts its files into the terminal's drive.
    ///
    /// # Errors
    /// With what `cug-server` says.
    pub fn medium(&self, user: &str, terminal: usize) -> anyhow::Result<()> {
        let made_at = format!("/run/stick-{user}");
        fs::create_dir_all(self.server.space().path(&made_at))?;
        let args = ["card", "issue", user, "--medium", &made_at, "--pin-stdin"];
        self.server.run_with(&args, &format!("{}\n", card::PASSPHRASE))?.ok().with_context(|| args.join(" "))?;
        let host = self.terminal(terminal).space();
        fs::create_dir_all(host.path(MEDIUM))?;
        // A medium is a file system of its own: that is how its removal shows.
        host.run("mount", &["-t", "tmpfs", "stick", MEDIUM])?.ok()?;
        for file in fs::read_dir(self.server.space().path(&made_at))? {
            let file = file?;
            fs::copy(file.path(), host.path(MEDIUM).join(file.file_name())).context(MEDIUM_NOTE)?;
        }
        Ok(())
    }
}
