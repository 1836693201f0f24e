//! Members by name: `user-b.vpn1.cug` leads to the member's overlay address, and back, on this terminal, while both are logged in.
//!
//! What the names are is decided in [`zone`]. Who knows them here is decided for each interface when it is raised:
//!
//! * systemd-resolved, where the C library asks it: told of a [`responder`] for this interface and these domains ([`resolved`]). It forgets
//!   with the interface.
//! * else `/etc/hosts`: lines of ours ([`hosts`], [`replace`]), gone with the session; [`sweep`] removes what a crash left.
//! * else nobody; why is in the log and in `cugctl status`. A session never waits for names, and never ends for want of them.
//!
//! In both ways every local user can look a name up. None but the session's own user can reach the address.

pub mod answer;
pub mod hosts;
pub mod replace;
pub mod resolved;
pub mod responder;
pub mod zone;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cug_proto::id::GroupId;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::core::{Event, Number, TunnelEvent};
use replace::ReplaceError;
use responder::Responder;
use zone::Zone;

/// Where names go when nobody else takes them.
pub const HOSTS: &str = "/etc/hosts";

/// Limit of writing the file.
const WRITE: Duration = Duration::from_secs(5);
/// Limit of what is held back until the names of a session are gone.
const GONE: Duration = Duration::from_secs(6);

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamesChoice {
    /// systemd-resolved where it is asked, else the file.
    Auto,
    /// systemd-resolved or nobody.
    Resolved,
    /// The file.
    Hosts,
}

/// Who knows the names of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// systemd-resolved.
    Resolved,
    /// `/etc/hosts`.
    Hosts,
    /// Nobody; why, in a sentence.
    Nobody(String),
}

/// One group of one session.
pub type Key = (Number, GroupId);
type Zones = BTreeMap<Key, Arc<Zone>>;

/// The names at this terminal. Calls return at once; a task does the work and reports by [`Event::Names`].
pub struct Names {
    wanted: watch::Sender<(u64, Zones)>,
    done: watch::Receiver<u64>,
    /// Tunnels whose end was held back once.
    held: BTreeSet<Number>,
    events: Option<mpsc::Sender<Event>>,
}

impl Names {
    /// No names.
    pub fn off() -> Self {
        Self {
            wanted: watch::channel((0, Zones::new())).0,
            done: watch::channel(0).1,
            held: BTreeSet::new(),
            events: None,
        }
    }

    /// Starts the task, which ends when this is dropped.
    pub fn start(choice: NamesChoice, events: mpsc::Sender<Event>) -> Self {
        let (wanted, orders) = watch::channel((0, Zones::new()));
        let (done, seen) = watch::channel(0);
        let worker = Worker {
            choice,
            path: PathBuf::from(HOSTS),
            events: events.clone(),
            placed: BTreeMap::new(),
            written: false,
            table: Vec::new(),
            stuck: None,
        };
        tokio::spawn(worker.run(orders, done));
        Self { wanted, done: seen, held: BTreeSet::new(), events: Some(events) }
    }

    /// These are the names of a group's members from now on; `None`: there are none any more.
    pub fn set(&mut self, key: Key, zone: Option<Arc<Zone>>) {
        self.wanted.send_modify(|(generation, zones)| {
            *generation += 1;
            match zone {
                Some(zone) => drop(zones.insert(key, zone)),
                None => drop(zones.remove(&key)),
            }
        });
    }

    /// Gives `event` back. The end of a tunnel comes later when work is under way: when all that was ordered so far is done, or after [`GONE`]; so
    /// a session is down when its names are gone too.
    pub fn hold(&mut self, event: Event) -> Option<Event> {
        let Event::Tunnel { number, event: TunnelEvent::Down { .. } } = event else { return Some(event) };
        if self.held.remove(&number) {
            return Some(event);
        }
        let generation = self.wanted.borrow().0;
        let Some(events) = self.events.clone().filter(|_| *self.done.borrow() < generation) else { return Some(event) };
        self.held.insert(number);
        let mut done = self.done.clone();
        tokio::spawn(async move {
            if timeout(GONE, done.wait_for(|done| *done >= generation)).await.is_err() {
                tracing::error!("the names of a session could not be removed in time");
            }
            let _daemon_stops = events.send(event).await;
        });
        None
    }
}

/// Removes the lines that an earlier run left in `/etc/hosts`. Blocks on the disk.
///
/// # Errors
/// [`ReplaceError`] when lines of ours are there and stay.
pub fn sweep() -> Result<bool, ReplaceError> {
    let path = Path::new(HOSTS);
    replace::sweep(path);
    // A file that we may not even look into was not written by us.
    match std::fs::read(path) {
        Ok(content) if !hosts::interfaces(&content).is_empty() => write(path, &[]),
        Ok(_) | Err(_) => Ok(false),
    }
}

/// Names of sessions that are over: lines of ours in `/etc/hosts` for interfaces that are no more. What systemd-resolved was told goes with the
/// interface, and the responder with its task.
pub fn leftovers() -> Vec<String> {
    let content = std::fs::read(HOSTS).unwrap_or_default();
    let gone = hosts::interfaces(&content)
        .into_iter()
        .filter(|interface| nix::net::if_::if_nametoindex(interface.as_str()).is_err());
    gone.map(|interface| format!("names of {} in {HOSTS}", interface.as_str())).collect()
}

fn write(path: &Path, zones: &[Arc<Zone>]) -> Result<bool, ReplaceError> {
    let (table, ambiguous) = zone::merged(zones.iter().map(Arc::as_ref));
    for name in ambiguous {
        tracing::warn!(name, "two groups at this terminal have different members of one name; it leads to neither");
    }
    replace::replace(path, |content| hosts::with(content, &table))
}

struct Placed {
    zone: Arc<Zone>,
    place: Place,
    responder: Option<Responder>,
}

struct Worker {
    choice: NamesChoice,
    path: PathBuf,
    events: mpsc::Sender<Event>,
    placed: BTreeMap<Key, Placed>,
    /// Lines of ours may be in the file.
    written: bool,
    /// What is in the file, if writing it succeeded.
    table: Vec<Arc<Zone>>,
    /// A write that did not come back in time. The next one waits for it.
    stuck: Option<JoinHandle<Result<bool, ReplaceError>>>,
}

impl Worker {
    async fn run(mut self, mut orders: watch::Receiver<(u64, Zones)>, done: watch::Sender<u64>) {
        while orders.changed().await.is_ok() {
            let (generation, wanted) = orders.borrow_and_update().clone();
            // Who is gone goes first: who comes may keep us waiting.
            self.placed.retain(|key, _| wanted.contains_key(key));
            for (key, zone) in &wanted {
                if let Some(placed) = self.placed.get_mut(key) {
                    placed.follow(zone);
                }
            }
            self.write_hosts().await;
            for (key, zone) in wanted {
                if !self.placed.contains_key(&key) {
                    let placed = self.place(zone).await;
                    self.tell(key, &placed.place).await;
                    self.placed.insert(key, placed);
                }
            }
            self.write_hosts().await;
            done.send_replace(generation);
        }
    }

    async fn place(&self, zone: Arc<Zone>) -> Placed {
        let ask = match self.choice {
            NamesChoice::Auto => resolved::is_asked(),
            NamesChoice::Resolved => true,
            NamesChoice::Hosts => false,
        };
        if !ask {
            return Placed { zone, place: Place::Hosts, responder: None };
        }
        match by_resolved(&zone).await {
            Ok(responder) => {
                tracing::info!(domain = %zone.domain, interface = %zone.interface, "systemd-resolved knows the group's names");
                Placed { zone, place: Place::Resolved, responder: Some(responder) }
            }
            Err(error) if self.choice == NamesChoice::Auto => {
                tracing::warn!(error = %format!("{error:#}"), "names go to {HOSTS} instead");
                Placed { zone, place: Place::Hosts, responder: None }
            }
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "the group's members have no names");
                Placed { zone, place: Place::Nobody(error.to_string()), responder: None }
            }
        }
    }

    /// Makes the file agree with the zones that are placed there.
    async fn write_hosts(&mut self) {
        let zones: Vec<Arc<Zone>> = self
            .placed
            .values()
            .filter(|placed| placed.responder.is_none() && placed.place != Place::Resolved)
            .map(|placed| Arc::clone(&placed.zone))
            .collect();
        let zones = if self.choice == NamesChoice::Resolved { Vec::new() } else { zones };
        if zones == self.table || (zones.is_empty() && !self.written) {
            return;
        }
        let problem = self.write_bounded(zones.clone()).await.err();
        match &problem {
            None => {
                self.written = !zones.is_empty();
                self.table = zones;
            }
            Some(problem) if zones.is_empty() => {
                tracing::error!(problem, "names of a session that is over could not be removed from {HOSTS}");
            }
            Some(_) => {}
        }
        let place = problem.map_or(Place::Hosts, Place::Nobody);
        let mut changed = Vec::new();
        for (key, placed) in self.placed.iter_mut().filter(|(_, placed)| placed.responder.is_none()) {
            if placed.place != place {
                if let Place::Nobody(problem) = &place {
                    tracing::warn!(domain = %placed.zone.domain, "the group's members have no names: {problem}");
                }
                placed.place = place.clone();
                changed.push(*key);
            }
        }
        for key in changed {
            self.tell(key, &place).await;
        }
    }

    async fn write_bounded(&mut self, zones: Vec<Arc<Zone>>) -> Result<(), String> {
        let late = || format!("{HOSTS} could not be written in time");
        if let Some(stuck) = &mut self.stuck {
            timeout(WRITE, stuck)
                .await
                .map_err(|_| late())?
                .map_err(|error| error.to_string())?
                .map_err(with_causes)?;
            self.stuck = None;
        }
        self.written |= !zones.is_empty();
        let path = self.path.clone();
        let mut work = spawn_blocking(move || write(&path, &zones));
        match timeout(WRITE, &mut work).await {
            Ok(result) => result.map_err(|error| error.to_string())?.map(drop).map_err(with_causes),
            Err(_) => {
                self.stuck = Some(work);
                Err(late())
            }
        }
    }

    async fn tell(&self, (number, group): Key, place: &Place) {
        let _daemon_stops = self.events.send(Event::Names { number, group, place: place.clone() }).await;
    }
}

impl Placed {
    fn follow(&mut self, zone: &Arc<Zone>) {
        if let Some(responder) = &self.responder {
            responder.set(Arc::clone(zone));
        }
        self.zone = Arc::clone(zone);
    }
}

async fn by_resolved(zone: &Arc<Zone>) -> anyhow::Result<Responder> {
    let responder = Responder::start(Arc::clone(zone)).await?;
    resolved::tell(zone, responder.port()).await?;
    Ok(responder)
}

fn with_causes(error: ReplaceError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(number: u64) -> Event {
        Event::Tunnel { number: Number(number), event: TunnelEvent::Down { leftovers: Vec::new() } }
    }

    /// Names whose task is this test: what was ordered, and where it says what is done.
    fn by_hand() -> (Names, watch::Sender<u64>, mpsc::Receiver<Event>) {
        let (events, told) = mpsc::channel(9);
        let (done, seen) = watch::channel(0);
        let wanted = watch::channel((0, Zones::new())).0;
        (Names { wanted, done: seen, held: BTreeSet::new(), events: Some(events) }, done, told)
    }

    #[tokio::test]
    async fn a_session_is_down_when_its_names_are_gone_and_not_before() {
        let (mut names, done, mut told) = by_hand();
        assert!(names.hold(down(1)).is_some(), "there was nothing to do");
        names.set((Number(1), 7), None);
        assert!(names.hold(down(1)).is_none(), "its names may still be there");
        assert!(names.hold(Event::Tick).is_some(), "everything else goes on");
        tokio::task::yield_now().await;
        assert!(told.try_recv().is_err());
        // Ordered later, for another session: the first one does not wait for it.
        names.set((Number(2), 7), None);
        done.send_replace(1);
        let event = timeout(GONE, told.recv()).await.unwrap().unwrap();
        assert!(matches!(&event, Event::Tunnel { number: Number(1), event: TunnelEvent::Down { .. } }));
        assert!(names.hold(event).is_some(), "held once");
        assert!(names.hold(down(2)).is_none());
        done.send_replace(2);
        assert!(timeout(GONE, told.recv()).await.unwrap().is_some());
    }
}
