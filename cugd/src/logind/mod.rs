//! systemd-logind: the one place that turns its signals into events of the core, and the core's wishes into calls
//! (org.freedesktop.login1(5)).
//!
//! * *Sleep and shutdown*: a delay inhibitor is held, so that logind waits (for `InhibitDelayMaxSec=`, 5 s by default) until the tunnels are down and the keys are
//!   gone; it is let go then, and taken anew when the machine is awake again.
//! * *OS sessions*: which one a process belongs to and of what class it is; when one is over; locking and ending them.
//!
//! Whoever is on the bus can send a signal that looks like logind's, to all or to this process alone. Only signals of the unique name that owned
//! `org.freedesktop.login1` when this connection began count: the bus vouches for the sender, and lets nobody but root own the name. When the name goes
//! to another owner, or the bus goes, everything begins anew, with a pause that doubles up to a minute.
//!
//! Without the bus or without logind everything else works: tunnels end with their processes and cards. Nothing can be locked or logged out then,
//! which is an error in the log; the class of an OS session is not known, and a login with the card counts.

mod proxy;

use std::{
    future::{Future, pending},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use zbus::{Connection, OwnedFd, fdo::DBusProxy, names::OwnedUniqueName, proxy::CacheProperties};

use crate::core::{Deed, Event, LogindEvent, OsDesk, OsSession};
use proxy::{ManagerProxy, SessionProxy};

const NAME: &str = "org.freedesktop.login1";
/// Limit of one call, and of making a connection.
const LIMIT: Duration = Duration::from_secs(3);
/// First pause before another try, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// logind does not serve.
#[derive(Debug, thiserror::Error)]
enum LogindError {
    /// There is no bus, or nobody has logind's name on it.
    #[error("logind does not run, or there is no system bus")]
    NotRunning,
    /// The connection is over, or the name went to somebody else.
    #[error("logind or the system bus has gone")]
    Gone,
    /// Not in time.
    #[error("logind did not answer in time")]
    Late,
    /// It said no.
    #[error("logind or the system bus refused")]
    Refused(#[from] zbus::Error),
}

/// logind, as far as it can be reached. Clones are the same.
#[derive(Clone)]
pub struct Logind {
    manager: watch::Receiver<Option<ManagerProxy<'static>>>,
    let_go: mpsc::Sender<()>,
}

impl Logind {
    /// Nobody. For what runs without a bus.
    pub fn off() -> Self {
        Self { manager: watch::channel(None).1, let_go: mpsc::channel(1).0 }
    }

    /// Begins to listen; events go to `events` until nobody takes them.
    pub fn start(events: mpsc::Sender<Event>) -> Self {
        let (shared, manager) = watch::channel(None);
        let (let_go, released) = mpsc::channel(1);
        tokio::spawn(listen(events, shared, released));
        Self { manager, let_go }
    }

    /// The machine may sleep or go down as far as this daemon is concerned.
    pub fn let_go(&self) {
        // A full queue has the same word in it.
        let _said_already = self.let_go.try_send(());
    }

    /// Locks or ends OS sessions, beside the loop.
    pub fn act(&self, deed: Deed, sessions: Vec<String>) {
        let manager = self.manager();
        tokio::spawn(async move {
            for session in sessions {
                let done = within(async {
                    let manager = manager.as_ref().ok_or(LogindError::NotRunning)?;
                    match deed {
                        Deed::Lock => manager.lock_session(&session).await?,
                        Deed::Logout => manager.terminate_session(&session).await?,
                    }
                    Ok(())
                });
                if let Err(error) = done.await {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(session, error, "an OS session could not be locked or ended ({deed:?})");
                }
            }
        });
    }

    /// The OS session that a process belongs to.
    pub async fn session_of(&self, pid: u32) -> OsSession {
        let Some(manager) = self.manager() else { return OsSession::Unknown };
        match within(session_of(&manager, pid)).await {
            Ok(Some(desk)) => OsSession::Known(desk),
            Ok(None) => OsSession::None,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(pid, error, "the OS session of a process is not known");
                OsSession::Unknown
            }
        }
    }

    fn manager(&self) -> Option<ManagerProxy<'static>> {
        self.manager.borrow().clone()
    }
}

async fn session_of(manager: &ManagerProxy<'static>, pid: u32) -> Result<Option<OsDesk>, LogindError> {
    let path = match manager.get_session_by_pid(pid).await {
        Ok(path) => path,
        Err(zbus::Error::MethodError(name, ..)) if name.ends_with(".NoSessionForPID") => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let session = SessionProxy::builder(manager.inner().connection())
        .destination(manager.inner().destination().to_owned())
        .path(path)
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    let (id, class, user) = (session.id().await?, session.class().await?, session.user().await?);
    Ok(Some(OsDesk { id, class, uid: user.0 }))
}

async fn listen(
    events: mpsc::Sender<Event>,
    shared: watch::Sender<Option<ManagerProxy<'static>>>,
    mut released: mpsc::Receiver<()>,
) {
    let (mut pause, mut told) = (PAUSE.0, false);
    loop {
        let served = match connect().await {
            Ok(station) => {
                tracing::info!(owner = %station.owner, "listening to logind");
                (pause, told) = (PAUSE.0, false);
                shared.send_replace(Some(station.manager.clone()));
                let end = serve(station, &events, &mut released).await;
                shared.send_replace(None);
                end
            }
            Err(error) => Err(error),
        };
        let Err(error) = served else { return };
        if !told {
            told = true;
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error, "sleep, locking and logging out are not looked after until logind is there");
        }
        if events.send(Event::Logind(LogindEvent::Lost)).await.is_err() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// A connection, and logind on it.
struct Station {
    bus: Connection,
    owner: OwnedUniqueName,
    manager: ManagerProxy<'static>,
}

async fn connect() -> Result<Station, LogindError> {
    let bus = timeout(LIMIT, Connection::system()).await.map_err(|_| LogindError::Late)?;
    let bus = bus.map_err(|_| LogindError::NotRunning)?;
    within(async {
        let names = DBusProxy::new(&bus).await?;
        let name = NAME.try_into().map_err(|_| LogindError::NotRunning)?;
        let owner = names.get_name_owner(name).await.map_err(|_| LogindError::NotRunning)?;
        let manager = ManagerProxy::builder(&bus)
            .destination(owner.clone())
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        Ok(Station { bus: bus.clone(), owner, manager })
    })
    .await
}

/// Passes signals on until logind goes (an error) or nobody listens here any more.
async fn serve(
    station: Station,
    events: &mpsc::Sender<Event>,
    released: &mut mpsc::Receiver<()>,
) -> Result<(), LogindError> {
    let Station { bus, owner, manager } = station;
    let names = DBusProxy::new(&bus).await?;
    let mut owners = within(async { Ok(names.receive_name_owner_changed_with_args(&[(0, NAME)]).await?) }).await?;
    let mut sleeps = within(async { Ok(manager.receive_prepare_for_sleep().await?) }).await?;
    let mut shutdowns = within(async { Ok(manager.receive_prepare_for_shutdown().await?) }).await?;
    let mut removals = within(async { Ok(manager.receive_session_removed().await?) }).await?;
    let mut inhibitor = Some(inhibit(&manager).await?);
    // What was said before this connection listened.
    let missed = [
        within(async { Ok(manager.preparing_for_sleep().await?) }).await?.then_some(LogindEvent::Sleep(true)),
        within(async { Ok(manager.preparing_for_shutdown().await?) }).await?.then_some(LogindEvent::Shutdown(true)),
    ];
    // Whoever owns the name now was asked before the change of its owner could be heard.
    let name = NAME.try_into().map_err(|_| LogindError::Gone)?;
    if within(async { names.get_name_owner(name).await.map_err(|_| LogindError::Gone) }).await? != owner {
        return Err(LogindError::Gone);
    }
    // A word from before this connection is not about this inhibitor.
    while released.try_recv().is_ok() {}
    for event in missed.into_iter().flatten() {
        if events.send(Event::Logind(event)).await.is_err() {
            return Ok(());
        }
    }
    loop {
        let event = tokio::select! {
            // A change of the owner comes before what the new one says.
            biased;
            _ = owners.next() => return Err(LogindError::Gone),
            () = or_never(released.recv()) => {
                inhibitor = None;
                continue;
            }
            signal = sleeps.next() => LogindEvent::Sleep(signal.ok_or(LogindError::Gone)?.args()?.start),
            signal = shutdowns.next() => LogindEvent::Shutdown(signal.ok_or(LogindError::Gone)?.args()?.start),
            signal = removals.next() => {
                LogindEvent::SessionRemoved(signal.ok_or(LogindError::Gone)?.args()?.session_id.to_string())
            }
        };
        if matches!(event, LogindEvent::Sleep(false) | LogindEvent::Shutdown(false)) && inhibitor.is_none() {
            inhibitor = Some(inhibit(&manager).await?);
        }
        if events.send(Event::Logind(event)).await.is_err() {
            return Ok(());
        }
    }
}

async fn inhibit(manager: &ManagerProxy<'static>) -> Result<OwnedFd, LogindError> {
    let why = "The closed groups are closed and their keys wiped first";
    within(async { Ok(manager.inhibit("sleep:shutdown", "cugd", why, "delay").await?) }).await
}

async fn within<T>(work: impl Future<Output = Result<T, LogindError>>) -> Result<T, LogindError> {
    timeout(LIMIT, work).await.unwrap_or(Err(LogindError::Late))
}

/// A channel without senders never says anything.
async fn or_never(word: impl Future<Output = Option<()>>) {
    if word.await.is_none() {
        pending::<()>().await;
    }
}
