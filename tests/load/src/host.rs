//! A server in a process of its own, with a directory that was filled beforehand, and what the kernel says of the process.

use crate::cards::{BITS, Printer};
use crate::terminal::{Member, Organisation, PASSWORD};
use anyhow::{Context, bail, ensure};
use cug_proto::id::{GroupName, UserId};
use cug_proto::secret::SecretBytes;
use cug_server::admin::{self, Reply, Request};
use cug_server::clock;
use cug_server::config::Config;
use cug_server::service::PasswordPool;
use cug_server::store::{By, Directory, DirectoryGroup, DirectoryUser, NewCard, Store, UserSettings};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The size of a directory.
#[derive(Clone, Copy)]
pub struct Size {
    /// Groups.
    pub groups: usize,
    /// Members of each.
    pub members: usize,
    /// How many of all users have a card and a password.
    pub with_cards: usize,
}

/// A directory on disk. Removed when it is dropped.
pub struct Site {
    dir: PathBuf,
    config: Config,
    /// Those with cards.
    pub members: Vec<Member>,
}

/// Nobody is turned away: what is measured is not the limits.
const NO_LIMITS: &str =
    "max-unauthenticated = 20000\nmax-unauthenticated-per-source = 20000\nconnections-per-second-per-source = 0\n";

/// A cheap password, where passwords are not what is measured.
pub const CHEAP: &str = "[argon2]\nmemory-kib = 64\niterations = 1\n";

impl Site {
    /// Makes a directory. `lines` come last in the configuration.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(size: Size, lines: &str) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("cug-load-{}-{}", std::process::id(), clock::unix_now()));
        let dir = (0..).map(|n| dir.with_extension(n.to_string())).find(|d| !d.exists()).context("no free name")?;
        fs::create_dir_all(&dir)?;
        let text = format!(
            "listen = ['127.0.0.1:0']\nstate-dir = '{0}/state'\nadmin-socket = '{0}/admin.sock'\n{NO_LIMITS}{lines}",
            dir.display()
        );
        fs::write(dir.join("server.toml"), &text)?;
        let config = Config::parse(&text, &dir)?;
        let mut site = Self { dir, config, members: Vec::new() };
        admin::initialise(&site.config, "Load")?;
        site.fill(size)?;
        Ok(site)
    }

    fn fill(&mut self, size: Size) -> anyhow::Result<()> {
        let group_names: Vec<GroupName> =
            (0..size.groups).map(|g| Ok(format!("G{g}").parse()?)).collect::<anyhow::Result<_>>()?;
        let mut directory = Directory { groups: Vec::new(), users: Vec::new(), make_groups: false, merge: false };
        for (number, group) in group_names.iter().enumerate() {
            // The usual /20 has room for 4,094 members, and the usual pool for 256 groups.
            let prefix4 = match (size.members, size.groups) {
                (4001.., _) => Some(format!("10.{}.0.0/16", number + 1).parse()?),
                (..=200, 200..) => Some(format!("10.{}.{}.0/24", number / 256, number % 256).parse()?),
                _ => None,
            };
            directory.groups.push(DirectoryGroup { line: 0, group: group.clone(), prefix4, prefix6: None });
            for member in 0..size.members {
                let user: UserId = format!("u{number}-{member}").parse()?;
                directory.users.push(DirectoryUser {
                    line: 0,
                    user,
                    disabled: false,
                    groups: vec![group.clone()],
                    settings: UserSettings::default(),
                });
            }
        }
        let users: Vec<UserId> = directory.users.iter().map(|user| user.user.clone()).collect();
        match admin::ask(&self.config, &Request::Import(directory))? {
            Reply::Refused(sentence) => bail!(sentence),
            Reply::BadLines(problems) => bail!("{:?}", problems.first()),
            _ => {}
        }
        self.print_cards(users.get(..size.with_cards.min(users.len())).unwrap_or_default())
    }

    fn print_cards(&mut self, users: &[UserId]) -> anyhow::Result<()> {
        let store = self.store()?;
        let by = By { actor: "load", now: clock::unix_now() };
        let password = SecretBytes::copy_from(PASSWORD.as_bytes()).context("a password that is too long")?;
        let record = PasswordPool::hash(self.config.argon2, &password, clock::random())?;
        let mut printer = Printer::new()?;
        for user in users {
            let card = printer.print()?;
            store.set_password(by, user, &record, &UserSettings::default())?;
            store.add_card(
                by,
                &NewCard {
                    fingerprint: card.fingerprint,
                    user,
                    public_key: &card.public_key,
                    bits: BITS,
                    kind: "registered",
                },
            )?;
            self.members.push(Member { user: user.clone(), card });
        }
        Ok(())
    }

    /// The directory itself, as the server opens it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn store(&self) -> anyhow::Result<impl Store + use<>> {
        admin::open_store(&self.config.state_dir, &admin::keys_of(&self.config)?)
    }

    /// An administrator's request, to the running server if there is one.
    ///
    /// # Errors
    /// When it is refused.
    pub fn ask(&self, request: &Request) -> anyhow::Result<Reply> {
        match admin::ask(&self.config, request)? {
            Reply::Refused(sentence) => bail!(sentence),
            reply => Ok(reply),
        }
    }

    /// Starts the program.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn serve(&self) -> anyhow::Result<Host> {
        Host::start(&self.dir.join("server.toml"))
    }

    /// What terminals know of the server at `host`.
    ///
    /// # Errors
    /// When there is no server object.
    pub fn organisation(&self, host: &Host) -> anyhow::Result<Arc<Organisation>> {
        Ok(Arc::new(Organisation::new(host.address, &self.server_object()?)?))
    }

    /// What the cards say of their server.
    ///
    /// # Errors
    /// When there is no server object.
    pub fn server_object(&self) -> anyhow::Result<Vec<u8>> {
        let Reply::Der(object) = self.ask(&Request::ServerObject)? else { bail!("no server object") };
        Ok(object)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A running server. Killed when it is dropped.
pub struct Host {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// From the start of the program until it listened.
    pub started_in: Duration,
}

impl Host {
    fn start(config: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("cug-server");
        ensure!(program.exists(), "{} is not built", program.display());
        let begin = Instant::now();
        let mut command = Command::new(program);
        command.args(["--config".as_ref(), config.as_os_str(), "serve".as_ref()]);
        command.env_remove("RUST_LOG").env_remove("JOURNAL_STREAM").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = end_with_us(&mut command).spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("no log")?).lines();
        let mut heard = Vec::new();
        let address = loop {
            let Some(line) = log.next() else {
                let _ = child.wait();
                bail!("the server does not listen: {heard:?}")
            };
            let line = line?;
            if let Some((_, address)) = line.split_once("listening on ") {
                break address.trim().parse()?;
            }
            heard.push(line);
        };
        let started_in = begin.elapsed();
        // Nobody shall wait for a log that is not read; what is said there is worth reading.
        std::thread::spawn(move || {
            for line in log.map_while(Result::ok).filter(|line| line.contains("WARN") || line.contains("ERROR")) {
                eprintln!("  server: {line}");
            }
        });
        Ok(Self { child, address, started_in })
    }

    /// Processor time until now.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(&self.child)
    }

    /// Memory of its own in bytes (RssAnon).
    ///
    /// # Errors
    /// When the process is gone.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of a child until now.
pub(crate) fn cpu_of(child: &Child) -> anyhow::Result<Duration> {
    // clock_gettime(3) on another process's clock: nanoseconds, where /proc has hundredths.
    let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(i32::try_from(child.id())?))?;
    Ok(clock.now()?.into())
}

/// The child is killed when this process ends, however that happens.
pub(crate) fn end_with_us(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: prctl(2) is async-signal-safe and touches no memory of ours.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?)) }
}
