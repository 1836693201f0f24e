//! Sessions whose time is over: the account has expired, or the permitted hours have ended.
//!
//! Each session of a user with such an end has a time in the store at which it must be looked at ([`Store::watched`]): at once when it begins and when an
//! administrator sets something, then when its end has come. So nothing is done about the others, however many there are.

use super::HubHandle;
use crate::{
    clock::{self, UnixTime},
    config::Config,
    policy::hours::Standing,
    service::blocking,
    store::{Found, Result, Store, Watched},
    zone,
};
use cug_proto::message::Lapse;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How often the store is asked at least: another server's sessions are among them, and the wall clock may be set.
const LOOK: UnixTime = 60;

/// After an error.
const RETRY: Duration = Duration::from_secs(1);

/// What one look has done.
#[derive(Debug, PartialEq, Eq)]
pub struct Looked {
    /// Sessions that ended.
    pub ended: usize,
    /// When to look again.
    pub next: Option<UnixTime>,
}

/// Looks at the sessions that must be looked at now, and ends those whose time is over. Blocks.
///
/// # Errors
/// [`crate::store::StoreError`]
pub fn look(store: &dyn Store, config: &Config, now: UnixTime) -> Result<Looked> {
    let (watched, next) = store.watched(now)?;
    if watched.is_empty() {
        return Ok(Looked { ended: 0, next });
    }
    let judged = |session: Watched| {
        let found = judge(&session, config, now);
        (session, found)
    };
    let found: Vec<_> = watched.into_iter().map(judged).collect();
    let ended = store.found(&found, now)?;
    // There may be more, and those that were looked at have new times.
    Ok(Looked { ended, next: Some(now) })
}

fn judge(session: &Watched, config: &Config, now: UnixTime) -> Found {
    if session.expires.is_some_and(|expires| now >= expires) {
        return Found::Over(Lapse::Expired, "account expired");
    }
    let text = session.hours.as_deref().filter(|_| config.hours_end_sessions);
    let standing = text.map(|text| text.parse().map_or(Standing::Unknown, |rule| zone::standing(&rule, config, now)));
    match standing {
        None => Found::Again(session.expires),
        Some(Standing::Open(until)) => Found::Again([until, session.expires].into_iter().flatten().min()),
        Some(Standing::Closed(_)) => Found::Over(Lapse::OutsideHours, "outside of hours"),
        Some(Standing::Unknown) => Found::Over(Lapse::OutsideHours, "time zone of the hours cannot be used"),
    }
}

/// Ends sessions in time, until the server stops.
pub async fn run(store: Arc<dyn Store>, config: Arc<Config>, hub: HubHandle, mut stop: watch::Receiver<bool>) {
    let mut begun = false;
    loop {
        let (config, now) = (config.clone(), clock::unix_now());
        let looked = blocking(store.clone(), move |s| {
            if !begun {
                s.watch_again()?;
            }
            look(s, &config, now)
        });
        let pause = match looked.await {
            Ok(looked) => {
                begun = true;
                if looked.ended > 0 {
                    tracing::info!(sessions = looked.ended, "sessions ended: account expired, or outside of hours");
                    hub.poke();
                }
                pause(looked.next, now)
            }
            Err(error) => {
                tracing::error!(%error, "sessions whose time is over cannot be ended now");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = hub.look_wanted() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

fn pause(next: Option<UnixTime>, now: UnixTime) -> Duration {
    let seconds = next.map_or(LOOK, |next| next.saturating_sub(now).clamp(0, LOOK));
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
