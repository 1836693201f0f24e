//! Keeps each interface to its owner (P6), and the members of closed groups inside them (P7).
//!
//! Two layers, either of which stops other users by itself:
//!
//! * **programs** in the kernel at the root of the cgroup tree ([`program`], loaded by [`bpf`]): they know whose socket sends or is
//!   about to receive a packet, whatever its state, and so hold for listeners too;
//! * **rules** of the packet filter ([`rules`], set by [`nft`]): they stop what has no socket of its own, which is forwarded packets,
//!   and what does not pass the interface, which is packets to the overlay address from inside the machine.
//!
//! Where the kernel refuses programs, rules alone must do ([`Layers::Rules`]). Rules are never left out: without nft no group is opened.
//!
//! [`Guard::raise`] comes before the interface exists and [`Guard::lower`] after it is gone, so that it is never there without.
//! All interfaces of this terminal stand in one plan, and every change replaces all of it: rules in one transaction, programs in one
//! step each.

pub mod bpf;
pub mod nft;
pub mod plan;
pub mod program;
pub mod rules;

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::Mutex, task::spawn_blocking};

use crate::tunnel::InterfaceName;
use bpf::{BpfError, Link, Program};
use plan::{Exception, Fence, Plan};
use program::Direction;
use rules::Beside;

/// Where programs are pinned that must outlive this process. A directory of its own, because systemd's sandbox makes the one above read-only
/// and lets nothing but a deeper one be written to; the unit makes it.
const PINS: &str = "/sys/fs/bpf/cug";

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardChoice {
    /// Programs and rules; rules alone where the kernel refuses programs.
    Auto,
    /// Programs and rules or nothing.
    Bpf,
    /// Rules alone.
    Nft,
}

/// What keeps the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// Programs and rules.
    Both,
    /// Rules alone.
    Rules,
}

impl Layers {
    /// As `cugctl status` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Both => "bpf+nft",
            Self::Rules => "nft",
        }
    }
}

/// What happens to the programs when this process ends without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// They end with it, as the interfaces of the embedded engine do.
    Process,
    /// They stay, as interfaces of the kernel do, until the next start removes both.
    Pinned,
}

/// The guard cannot be set up as it must be; nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// There is no nft program.
    #[error("the nft program is missing; install the package \"nftables\"")]
    NoNft,
    /// nft refused.
    #[error("the packet filter refused the rules that keep other users out of the tunnel: {0}")]
    Nft(String),
    /// nft does not come to an end.
    #[error("the packet filter did not answer in time")]
    Slow,
    /// nft could not be run.
    #[error("the nft program could not be run")]
    Run {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Rules alone need the user's cgroup.
    #[error(
        "other users cannot be kept out: the kernel allows no BPF program, and {0} is not there; \
         let pam_systemd.so come before pam_cug.so in the session stack"
    )]
    NoSlice(PathBuf),
    /// The kernel refused a program.
    #[error("the kernel refused the program that keeps other users out of the tunnel")]
    Bpf(#[from] BpfError),
}

/// The guard of this terminal. Clones are the same one.
#[derive(Clone)]
pub struct Guard {
    layers: Layers,
    state: Arc<Mutex<State>>,
}

struct State {
    plan: Plan,
    programs: Option<Programs>,
    standby: Option<nft::Standby>,
}

/// What is needed for programs, and the two that are attached while there is an interface.
struct Programs {
    cgroup: File,
    namespace: Option<u64>,
    lifetime: Lifetime,
    attached: Option<[Link; 2]>,
}

impl Guard {
    /// Finds out what this kernel allows, by doing it once.
    ///
    /// # Errors
    /// When programs were asked for by name and are refused. A missing nft is told when an interface is to be guarded: a terminal on
    /// which nobody can open a group still lets local users in.
    pub fn select(choice: GuardChoice, lifetime: Lifetime) -> Result<Self, GuardError> {
        let programs = match choice {
            GuardChoice::Nft => None,
            GuardChoice::Bpf => Some(Programs::probe(lifetime)?),
            GuardChoice::Auto => Programs::probe(lifetime)
                .inspect_err(|error| {
                    tracing::warn!(error = %causes(error), "no BPF programs here, packet filter rules alone guard the tunnels");
                })
                .ok(),
        };
        let layers = if programs.is_some() { Layers::Both } else { Layers::Rules };
        Ok(Self { layers, state: Arc::new(Mutex::new(State { plan: Plan::default(), programs, standby: None })) })
    }

    /// What keeps the interfaces.
    pub fn layers(&self) -> Layers {
        self.layers
    }

    /// An interface may have to be guarded soon: gets ready what that will take, once.
    pub async fn expect(&self) {
        let mut state = self.state.lock().await;
        if state.standby.is_none() {
            // On another thread, because a start keeps the one that asks for it until the program is loaded, and the login goes on meanwhile.
            // What is wrong is said when an interface is to be guarded.
            state.standby = spawn_blocking(nft::Standby::start).await.ok().and_then(Result::ok);
        }
    }

    /// Nothing is expected any more.
    pub async fn relax(&self) {
        self.state.lock().await.standby = None;
    }

    /// Guards interfaces that are about to be made. What is guarded so already costs nothing.
    ///
    /// # Errors
    /// [`GuardError`]; all is as it was before.
    pub async fn raise(&self, fences: impl IntoIterator<Item = Fence>) -> Result<(), GuardError> {
        self.change(|plan| plan.fences.extend(fences.into_iter().map(|fence| (fence.name.clone(), fence)))).await
    }

    /// Changes what the members of the interface's group may reach besides, at once and for connections that stand as well.
    ///
    /// # Errors
    /// [`GuardError`]; the old policy holds.
    pub async fn confine(&self, name: &InterfaceName, closed: Option<Vec<Exception>>) -> Result<(), GuardError> {
        self.change(|plan| {
            if let Some(fence) = plan.fences.get_mut(name) {
                fence.closed = closed;
            }
        })
        .await
    }

    /// Says where the management servers are.
    ///
    /// # Errors
    /// [`GuardError`]; the old ones stay within reach.
    pub async fn servers(&self, servers: Vec<std::net::SocketAddr>) -> Result<(), GuardError> {
        self.change(|plan| plan.servers = servers).await
    }

    /// Forgets interfaces that are gone. After an error it may be called again.
    ///
    /// # Errors
    /// [`GuardError`]: something of the guard is left over; it names nobody that exists.
    pub async fn lower(&self, names: &[InterfaceName]) -> Result<(), GuardError> {
        let mut state = self.state.lock().await;
        let State { plan, programs, .. } = &mut *state;
        plan.fences.retain(|name, _| !names.contains(name));
        // Both are tried, whatever becomes of the one.
        let detached = programs.as_mut().map_or(Ok(()), |programs| programs.apply(plan));
        let ruled = nft::apply(plan, self.beside(), false, None).await;
        detached?;
        ruled
    }

    async fn change(&self, change: impl FnOnce(&mut Plan)) -> Result<(), GuardError> {
        let mut state = self.state.lock().await;
        let mut plan = state.plan.clone();
        change(&mut plan);
        if plan == state.plan {
            return Ok(());
        }
        if !plan.is_empty() {
            let standby = state.standby.take();
            nft::apply(&plan, self.beside(), state.plan.is_empty(), standby).await?;
        }
        if let Some(programs) = &mut state.programs
            && let Err(error) = programs.apply(&plan)
        {
            // Back to what held before; what stood stays guarded by the programs all the time.
            let former = state.plan.clone();
            if let Err(error) = nft::apply(&former, self.beside(), false, None).await {
                tracing::error!(error = %causes(&error), "the former packet filter rules could not be restored");
            }
            return Err(error.into());
        }
        state.plan = plan;
        Ok(())
    }

    fn beside(&self) -> Beside {
        match self.layers {
            Layers::Both => Beside::Programs,
            Layers::Rules => Beside::Nothing,
        }
    }

    /// What bears our mark and guards nothing that is planned.
    ///
    /// # Errors
    /// When nft or the kernel does not tell.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>, GuardError> {
        let state = self.state.lock().await;
        let mut found = Vec::new();
        for table in nft::tables().await? {
            if state.plan.is_empty() || table != format!("inet {}", rules::TABLE) {
                found.push(Leftover::Table(table));
            }
        }
        for path in pins() {
            if state.plan.is_empty() && path.exists() {
                found.push(Leftover::Pin(path));
            }
        }
        Ok(found)
    }

    /// Numbers of the two programs, as the kernel lists them; none while there is no interface.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn program_ids(&self) -> Result<Vec<u32>, GuardError> {
        let state = self.state.lock().await;
        let links = state.programs.iter().flat_map(|programs| programs.attached.iter().flatten());
        links.map(|link| link.program_id().map_err(GuardError::from)).collect()
    }

    /// Which of the programs with these numbers are still attached, and not by us.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn still_attached(&self, ids: &[u32]) -> Result<Vec<u32>, GuardError> {
        let own = self.program_ids().await?;
        let state = self.state.lock().await;
        let Some(programs) = &state.programs else { return Ok(Vec::new()) };
        let mut there = bpf::attached(&programs.cgroup, Direction::Ingress)?;
        there.extend(bpf::attached(&programs.cgroup, Direction::Egress)?);
        there.retain(|id| ids.contains(id) && !own.contains(id));
        Ok(there)
    }
}

/// Something with our mark that should not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A table of the packet filter, `family name`.
    Table(String),
    /// A pinned program.
    Pin(PathBuf),
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Table(table) => write!(f, "packet filter table {table}"),
            Self::Pin(path) => write!(f, "BPF program {}", path.display()),
        }
    }
}

impl Leftover {
    /// Removes it.
    ///
    /// # Errors
    /// [`GuardError`]
    pub async fn remove(&self) -> Result<(), GuardError> {
        match self {
            Self::Table(table) => nft::remove(table).await,
            Self::Pin(path) => Ok(bpf::remove_pinned(path).map(drop)?),
        }
    }
}

/// Removes what a crash left, and returns its names. For the start, after the interfaces are gone.
///
/// # Errors
/// A program that could not be removed. What nft refuses is logged; a machine without nft has no rules of ours.
pub async fn sweep() -> Result<Vec<String>, GuardError> {
    let mut swept = Vec::new();
    for path in pins() {
        if path.exists() && bpf::remove_pinned(&path)? {
            swept.push(Leftover::Pin(path).to_string());
        }
    }
    match nft::tables().await {
        Ok(tables) => {
            for table in tables {
                match nft::remove(&table).await {
                    Ok(()) => swept.push(Leftover::Table(table).to_string()),
                    // No reason to keep everybody out: a group that cannot be guarded is not opened.
                    Err(error) => {
                        tracing::error!(table, error = %causes(&error), "a packet filter table cannot be removed")
                    }
                }
            }
        }
        Err(GuardError::NoNft) => {}
        Err(error) => tracing::warn!(error = %causes(&error), "the packet filter cannot be asked for leftovers"),
    }
    Ok(swept)
}

fn pins() -> [PathBuf; 2] {
    ["cug_ingress", "cug_egress"].map(|name| Path::new(PINS).join(name))
}

impl Programs {
    /// Loads programs that do everything that programs may have to do, attaches some that let everything pass, and removes them.
    fn probe(lifetime: Lifetime) -> Result<Self, BpfError> {
        let cgroup = bpf::cgroup_root()?;
        let cookie = bpf::namespace_cookie();
        let attempt = |namespace| {
            let mut programs = Self {
                cgroup: cgroup.try_clone().map_err(|_| BpfError::NoCgroup)?,
                namespace,
                lifetime,
                attached: None,
            };
            // What a kernel does not know it refuses when a program is loaded, and that must be found out now, not at somebody's login.
            drop(programs.load(&Plan::specimen())?);
            let pass_all = programs.load(&Plan::default())?;
            programs.attach(pass_all)?;
            programs.detach()?;
            Ok(programs)
        };
        // Kernels before 6.15 cannot compare namespaces in these programs.
        match cookie {
            Some(_) => attempt(cookie).or_else(|_: BpfError| attempt(None)),
            None => attempt(None),
        }
    }

    /// Makes the attached programs those of `plan`: none for an empty one.
    fn apply(&mut self, plan: &Plan) -> Result<(), BpfError> {
        if plan.is_empty() {
            return self.detach();
        }
        let [ingress, egress] = self.load(plan)?;
        match &mut self.attached {
            Some([inward, outward]) => {
                inward.replace(ingress)?;
                outward.replace(egress)
            }
            None => self.attach([ingress, egress]),
        }
    }

    fn load(&self, plan: &Plan) -> Result<[Program; 2], BpfError> {
        let load = |direction| {
            let code = program::assemble(plan, direction, self.namespace).ok_or(BpfError::TooLong)?;
            Program::load(&code, direction)
        };
        Ok([load(Direction::Ingress)?, load(Direction::Egress)?])
    }

    fn attach(&mut self, [ingress, egress]: [Program; 2]) -> Result<(), BpfError> {
        let mut links = [Link::attach(&self.cgroup, ingress)?, Link::attach(&self.cgroup, egress)?];
        if self.lifetime == Lifetime::Pinned {
            // Without the unit nobody else makes it. When it cannot be made, pinning says why.
            let _there_already = DirBuilder::new().mode(0o700).create(PINS);
            for (link, path) in links.iter_mut().zip(pins()) {
                if let Err(error) = link.pin(&path) {
                    links.into_iter().try_for_each(Link::remove)?;
                    return Err(error);
                }
            }
        }
        self.attached = Some(links);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), BpfError> {
        match self.attached.take() {
            Some(links) => links.into_iter().try_for_each(Link::remove),
            None => Ok(()),
        }
    }
}

/// An error with all its causes, for the log.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
