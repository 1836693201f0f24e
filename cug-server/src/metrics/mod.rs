//! What is counted and measured, in the text format of OpenMetrics (RFC-to-be; Prometheus reads it).
//!
//! [`Metrics`] is a small handle that is cheap to clone. Counters are kept as things happen; what the store knows is read when somebody
//! asks ([`Figures`]). The number of series is bounded: outcomes are a fixed list, and at most `max-groups` groups have their own.

mod figures;
mod http;

pub use figures::Figures;
pub use http::{Source, serve};

use crate::clock;
use cug_proto::message::{DenyReason, Outcome};
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Every outcome of a login, so that each is there from the start with 0.
const OUTCOMES: [&str; 15] = [
    "granted",
    "verified",
    "rejected",
    "unavailable",
    "wrong-password",
    "disabled",
    "card-revoked",
    "no-group",
    "too-many-attempts",
    "must-change-password",
    "expired",
    "outside-hours",
    "bad-request",
    "password-changed",
    "new-password-refused",
];

/// Seconds, for logins: from a fast hash to the deadline of a terminal.
const LOGIN_BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Seconds, for the store: from a cached read to a disk in trouble.
const STORE_BUCKETS: [f64; 10] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

type ByOutcome = Family<[(&'static str, &'static str); 1], Counter>;
type ByGroup = Family<[(&'static str, String); 1], Gauge>;

/// The handle.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    logins: ByOutcome,
    login_seconds: Histogram,
    store_seconds: Histogram,
    store_faults: Counter,
    argon2_pending: Gauge,
    attached: Gauge,
    lease_expiries: Counter,
    key_timeouts: Counter,
    rotations: Counter,
    sessions: Gauge,
    groups: Gauge,
    groups_omitted: Gauge,
    members: ByGroup,
    group_sessions: ByGroup,
    epochs: ByGroup,
    certificate_end: Gauge,
    /// One answer at a time: what is read from the store is put in its place in several steps.
    telling: Mutex<()>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let mut inner = Inner {
            registry: Registry::with_prefix("cug"),
            logins: Family::default(),
            login_seconds: Histogram::new(LOGIN_BUCKETS),
            store_seconds: Histogram::new(STORE_BUCKETS),
            store_faults: Counter::default(),
            argon2_pending: Gauge::default(),
            attached: Gauge::default(),
            lease_expiries: Counter::default(),
            key_timeouts: Counter::default(),
            rotations: Counter::default(),
            sessions: Gauge::default(),
            groups: Gauge::default(),
            groups_omitted: Gauge::default(),
            members: Family::default(),
            group_sessions: Family::default(),
            epochs: Family::default(),
            certificate_end: Gauge::default(),
            telling: Mutex::new(()),
        };
        inner.register();
        for outcome in OUTCOMES {
            drop(inner.logins.get_or_create(&[("outcome", outcome)]));
        }
        Self(Arc::new(inner))
    }

    /// A login begins: its answer is due from now on.
    pub fn login(&self) -> LoginInProgress {
        LoginInProgress { metrics: self.clone(), began: clock::monotonic(), outcome: "unavailable" }
    }

    /// A password waits for its check, or is being checked, until the answer is dropped.
    pub fn password_check(&self) -> PasswordCheck {
        self.0.argon2_pending.inc();
        PasswordCheck(self.0.argon2_pending.clone())
    }

    /// Measures an operation of the store.
    pub async fn store<T>(&self, operation: impl Future<Output = crate::store::Result<T>>) -> crate::store::Result<T> {
        let began = clock::monotonic();
        let result = operation.await;
        self.0.store_seconds.observe(clock::monotonic().duration_since(began).as_secs_f64());
        if let Err(crate::store::StoreError::Fault(_)) = &result {
            self.0.store_faults.inc();
        }
        result
    }

    /// So many terminals are attached now.
    pub(crate) fn set_attached(&self, terminals: usize) {
        self.0.attached.set(i64::try_from(terminals).unwrap_or(i64::MAX));
    }

    /// How many terminals are attached.
    pub(crate) fn attached(&self) -> usize {
        usize::try_from(self.0.attached.get()).unwrap_or(0)
    }

    /// A session ended because nobody heard of its terminal.
    pub(crate) fn lease_expired(&self) {
        self.0.lease_expiries.inc();
    }

    /// A session ended because its terminal did not take a key.
    pub(crate) fn key_not_taken(&self) {
        self.0.key_timeouts.inc();
    }

    /// A group uses a new key.
    pub(crate) fn rotated(&self) {
        self.0.rotations.inc();
    }

    /// Everything as text, with these figures.
    pub fn tell(&self, figures: &Figures, max_groups: usize) -> String {
        let _one_at_a_time = self.0.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.take(figures, max_groups);
        let mut out = String::new();
        // Writing into a string does not fail.
        let _written = text::encode(&mut out, &self.0.registry);
        out
    }
}

impl Inner {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("build", "This program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register("logins", "Logins by outcome", self.logins.clone());
        r.register("login_duration_seconds", "From a terminal's Login to the answer", self.login_seconds.clone());
        r.register("store_duration_seconds", "Operations of the store", self.store_seconds.clone());
        r.register("store_faults", "Operations of the store that failed", self.store_faults.clone());
        r.register("argon2_pending", "Passwords that wait for their check or are checked", self.argon2_pending.clone());
        r.register("terminals_attached", "Terminals whose session channel stands", self.attached.clone());
        r.register("lease_expiries", "Sessions ended for want of a heartbeat", self.lease_expiries.clone());
        r.register("key_timeouts", "Sessions ended because a new group key was not taken", self.key_timeouts.clone());
        r.register("group_rotations", "New group keys taken into use", self.rotations.clone());
        r.register("sessions", "Registered sessions", self.sessions.clone());
        r.register("groups", "Closed groups", self.groups.clone());
        r.register("groups_omitted", "Groups without figures of their own", self.groups_omitted.clone());
        r.register("group_members", "Members of a group", self.members.clone());
        r.register("group_sessions", "Members of a group who are logged in", self.group_sessions.clone());
        r.register("group_epoch", "Epoch of a group's key", self.epochs.clone());
        r.register("tls_certificate_end_timestamp_seconds", "End of the TLS certificate", self.certificate_end.clone());
    }

    fn take(&self, figures: &Figures, max_groups: usize) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.sessions.set(number(figures.sessions));
        self.groups.set(number(figures.groups.len()));
        self.groups_omitted.set(number(figures.groups.len().saturating_sub(max_groups)));
        self.certificate_end.set(figures.certificate_end);
        [&self.members, &self.group_sessions, &self.epochs].iter().for_each(|family| family.clear());
        // The oldest groups keep their series when there are too many.
        let mut groups: Vec<_> = figures.groups.iter().collect();
        groups.sort_unstable_by_key(|g| g.id);
        for group in groups.into_iter().take(max_groups) {
            let label = [("group", group.group.to_string())];
            self.members.get_or_create(&label).set(group.members.into());
            self.group_sessions.get_or_create(&label).set(group.sessions.into());
            self.epochs.get_or_create(&label).set(group.epoch.into());
        }
    }
}

/// A login that is not answered yet. Counted when it is dropped; unless something else was said, its outcome is `unavailable`.
pub struct LoginInProgress {
    metrics: Metrics,
    began: Instant,
    outcome: &'static str,
}

impl LoginInProgress {
    /// The card's proof was wrong.
    pub fn rejected(&mut self) {
        self.outcome = "rejected";
    }

    /// The server decided.
    pub fn decided(&mut self, outcome: &Outcome) {
        self.outcome = match outcome {
            Outcome::Grant(_) => "granted",
            Outcome::Verified => "verified",
            Outcome::PasswordChanged => "password-changed",
            Outcome::Denied(reason) => denied(*reason),
        };
    }
}

impl Drop for LoginInProgress {
    fn drop(&mut self) {
        let took: Duration = clock::monotonic().duration_since(self.began);
        self.metrics.0.logins.get_or_create(&[("outcome", self.outcome)]).inc();
        self.metrics.0.login_seconds.observe(took.as_secs_f64());
    }
}

/// See [`Metrics::password_check`].
pub struct PasswordCheck(Gauge);

impl Drop for PasswordCheck {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn denied(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::WrongPassword => "wrong-password",
        DenyReason::Disabled => "disabled",
        DenyReason::CardRevoked => "card-revoked",
        DenyReason::NoGroup => "no-group",
        DenyReason::TooManyAttempts(_) => "too-many-attempts",
        DenyReason::MustChangePassword => "must-change-password",
        DenyReason::Expired => "expired",
        DenyReason::OutsideHours(_) => "outside-hours",
        DenyReason::BadRequest => "bad-request",
        DenyReason::NewPassword(_) => "new-password-refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{GroupInfo, PolicyKind};

    fn figures(groups: u32) -> Figures {
        let group = |id| GroupInfo {
            group: format!("G{id}").parse().unwrap(),
            id,
            prefix4: "10.0.0.0/20".parse().unwrap(),
            prefix6: "fd00::/64".parse().unwrap(),
            epoch: id + 1,
            next_epoch: None,
            members: 5,
            sessions: 2,
            policy: PolicyKind::Open,
            allow: vec![],
        };
        Figures { groups: (1..=groups).rev().map(group).collect(), sessions: 7, certificate_end: 1234 }
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = Metrics::new();
        let text = metrics.tell(&figures(500), 3);
        for line in ["cug_groups 500", "cug_groups_omitted 497", "cug_group_epoch{group=\"G1\"} 2", "cug_sessions 7"] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.contains("group=\"G3\"") && !text.contains("group=\"G4\""), "the oldest stay");
        assert!(!metrics.tell(&figures(0), 3).contains("group=\""), "groups that are gone have no series");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn logins_are_counted_by_outcome_whatever_happens() {
        let metrics = Metrics::new();
        let mut granted = metrics.login();
        granted.decided(&Outcome::Denied(DenyReason::TooManyAttempts(3)));
        drop(granted);
        drop(metrics.login());
        metrics.login().rejected();
        let check = metrics.password_check();
        let text = metrics.tell(&figures(1), 9);
        for line in [
            "cug_logins_total{outcome=\"too-many-attempts\"} 1",
            "cug_logins_total{outcome=\"unavailable\"} 1",
            "cug_logins_total{outcome=\"rejected\"} 1",
            "cug_logins_total{outcome=\"granted\"} 0",
            "cug_login_duration_seconds_count 3",
            "cug_argon2_pending 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        drop(check);
        assert!(metrics.tell(&figures(1), 9).contains("cug_argon2_pending 0"));
    }
}
