//! `cugctl notify`: follows what happens, and shows some of it on the desktop of the user who runs it.

use std::{collections::HashMap, path::Path, process::ExitCode, thread, time::Duration};

use cug_proto::{
    local::{Reply, Request},
    notice::Notice,
};
use tokio::{
    runtime,
    sync::mpsc,
    time::{sleep, timeout},
};
use zbus::{Connection as Bus, Variant};

use super::{Connection, CtlError};
use crate::{clock, notify};

/// How long the notification service may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Pause before the daemon is asked again when it is not there.
const AGAIN: Duration = Duration::from_secs(5);
/// Notices that may wait for the desktop; with more, the daemon cuts this program off, and it begins anew.
const QUEUE: usize = 16;

#[zbus::proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications"
)]
trait Notifications {
    #[expect(clippy::too_many_arguments, reason = "the specification's signature")]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: Vec<&str>,
        hints: HashMap<&str, Variant<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;
}

/// Until the desktop's bus is gone; at once when the user has no session here to be told of.
pub(super) fn run(socket: &Path) -> Result<ExitCode, CtlError> {
    let mut daemon = Connection::open(socket)?;
    if begin(&mut daemon)? == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let desktop = |error: &dyn std::error::Error| CtlError::NoDesktop(error.to_string());
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(|error| desktop(&error))?;
    runtime.block_on(async {
        let bus =
            timeout(LIMIT, Bus::session()).await.map_err(|error| desktop(&error))?.map_err(|error| desktop(&error))?;
        let notifications = NotificationsProxy::new(&bus).await.map_err(|error| desktop(&error))?;
        let mut daemon = Some(daemon);
        let mut pace = notify::Pace::new(clock::uptime());
        loop {
            if let Some(daemon) = daemon.take().or_else(|| again(socket)) {
                follow(daemon, &bus, &notifications, &mut pace).await?;
            }
            sleep(AGAIN).await;
        }
    })
}

/// Starts to watch; the number of sessions there are.
fn begin(daemon: &mut Connection) -> Result<usize, CtlError> {
    match daemon.ask(&Request::Watch)? {
        Reply::WatchStarted(status) => Ok(status.sessions.len()),
        _ => Err(CtlError::Strange),
    }
}

fn again(socket: &Path) -> Option<Connection> {
    let mut daemon = Connection::open(socket).ok()?;
    begin(&mut daemon).ok()?;
    Some(daemon)
}

/// Until the daemon ends the connection (`Ok`), or the desktop is gone.
async fn follow(
    daemon: Connection,
    bus: &Bus,
    notifications: &NotificationsProxy<'_>,
    pace: &mut notify::Pace,
) -> Result<(), CtlError> {
    let (sender, mut notices) = mpsc::channel::<Notice>(QUEUE);
    thread::spawn(move || receive(daemon, &sender));
    loop {
        let notice = tokio::select! {
            notice = notices.recv() => notice,
            () = bus.closed() => return Err(CtlError::NoDesktop("its message bus has ended".to_owned())),
        };
        let Some(notice) = notice else { return Ok(()) };
        let Some(note) = notify::note(&notice).and_then(|note| pace.pass(clock::uptime(), note)) else { continue };
        let hints = HashMap::from([
            ("urgency", Variant::U8(if note.urgent { 2 } else { 0 })),
            ("category", Variant::from(if note.urgent { "network.disconnected" } else { "presence" })),
        ]);
        // A desktop without such a service, or a slow one, misses one.
        let shown = notifications.notify("cugctl", 0, "network-vpn", &note.summary, &note.body, Vec::new(), hints, -1);
        let _shown = timeout(LIMIT, shown).await;
    }
}

/// Blocks: a thread of its own, which ends with the connection or with the program.
fn receive(mut daemon: Connection, to: &mpsc::Sender<Notice>) {
    while let Ok(Reply::Event(notice)) = daemon.next() {
        if to.blocking_send(notice).is_err() {
            return;
        }
    }
}
