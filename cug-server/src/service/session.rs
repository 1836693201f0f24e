//! A session after its login: attach, endpoints, clear, and what a terminal must be sent.

use super::Service;
use crate::{
    clock,
    hub::{Subscription, peers_messages},
    store::{By, Ending, GroupKey, GroupView, Place, Result, SessionState, StoreError},
};
use cug_proto::{
    id::{GroupId, UserId},
    message::{
        Attach, ClearReason, EndReason, Endpoints, KeyAck, Known, MAX_ADDRESSES, MAX_GROUPS, ServerMessage, SessionId,
        Unavailable,
    },
    session::ChannelKeys,
};
use std::{collections::HashMap, net::IpAddr};

/// A session channel that stands.
pub struct Attached {
    /// The session.
    pub session: SessionId,
    /// Whose.
    pub user: UserId,
    /// The connection's keys.
    pub keys: ChannelKeys,
    /// What the hub has to say.
    pub subscription: Subscription,
}

impl Service {
    /// Checks an `Attach` and subscribes the terminal.
    ///
    /// # Errors
    /// What to tell the terminal. Without the proof nobody learns more than that there is no such session. A fault of this server is no
    /// end of the session: the terminal keeps its tunnel and tries again.
    pub async fn attach(&self, attach: &Attach, exporter: &[u8; 32]) -> std::result::Result<Attached, ServerMessage> {
        let session = attach.session;
        let live = match self.store(move |s| s.session(&session)).await.map_err(fault)? {
            SessionState::Live(live) => live,
            SessionState::Ended(reason) => return Err(ServerMessage::End(reason)),
            SessionState::Unknown => return Err(ServerMessage::End(EndReason::Unknown)),
        };
        let secret = self.keys.storage().unwrap_session_secret(&session, &live.wrapped_secret).map_err(fault)?;
        let keys = ChannelKeys::new(session, &secret, exporter);
        keys.verify_terminal(&attach.proof).map_err(|_| ServerMessage::End(EndReason::Unknown))?;
        match self.hub.subscribe(session).await {
            Ok(Some(subscription)) => Ok(Attached { session, user: live.user, keys, subscription }),
            Ok(None) => match self.store(move |s| s.session(&session)).await.map_err(fault)? {
                SessionState::Ended(reason) => Err(ServerMessage::End(reason)),
                _ => Err(ServerMessage::End(EndReason::Unknown)),
            },
            Err(error) => Err(fault(error)),
        }
    }

    /// What the terminal must be sent to know all its groups, or one of them: keys, then members. `known` is what it knows already.
    /// Also the revision of each group.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn view(
        &self,
        attached: &Attached,
        known: Vec<Known>,
        only: Option<GroupId>,
    ) -> Result<(Vec<ServerMessage>, HashMap<GroupId, u64>)> {
        let session = attached.session;
        let Some(view) = self.store(move |s| s.session_view(&session, &known, only)).await? else {
            return Ok((vec![ServerMessage::End(EndReason::Unknown)], HashMap::new()));
        };
        let (mut messages, mut revisions) = (Vec::new(), HashMap::new());
        for group in view.groups {
            messages.extend(self.keys_for(attached, &group, group.policy_changed)?);
            revisions.insert(group.active.id, view.revision);
            messages.extend(peers_messages(group.active.id, view.revision, group.full, group.present, group.gone));
        }
        Ok((messages, revisions))
    }

    /// The keys of a group that the terminal does not have.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn group_keys(&self, attached: &Attached, group: GroupId, has_epoch: u32) -> Result<Vec<ServerMessage>> {
        let session = attached.session;
        let view = self.store(move |s| s.session_view(&session, &[], Some(group))).await?;
        let Some(mut view) = view.and_then(|mut v| v.groups.pop()) else { return Ok(Vec::new()) };
        view.has_epoch = view.has_epoch.max(has_epoch);
        self.keys_for(attached, &view, false)
    }

    /// The group once more, as its policy is now: the active epoch, and the one that is being distributed.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn group_policy(&self, attached: &Attached, group: GroupId) -> Result<Vec<ServerMessage>> {
        let session = attached.session;
        let view = self.store(move |s| s.session_view(&session, &[], Some(group))).await?;
        let Some(view) = view.and_then(|mut v| v.groups.pop()) else { return Ok(Vec::new()) };
        std::iter::once(&view.active).chain(&view.pending).map(|key| self.seal(attached, key)).collect()
    }

    fn seal(&self, attached: &Attached, group: &GroupKey) -> Result<ServerMessage> {
        let sealed = attached.keys.seal_group(&self.unwrap(group)?, clock::random());
        sealed.map(ServerMessage::Group).map_err(|e| StoreError::Fault(e.into()))
    }

    /// The active epoch if it is missing (or has to be sent `again`), and word that it is active; then the one that is being distributed.
    fn keys_for(&self, attached: &Attached, view: &GroupView, again: bool) -> Result<Vec<ServerMessage>> {
        let mut messages = Vec::new();
        let active = KeyAck { group: view.active.id, epoch: view.active.epoch };
        let stale = view.has_epoch < active.epoch;
        if stale || again {
            messages.push(self.seal(attached, &view.active)?);
        }
        // Also when it was said before: the terminal may have missed it, and for a known epoch it changes nothing.
        if stale || view.known {
            messages.push(ServerMessage::Activate(active));
        }
        if let Some(pending) = view.pending.as_ref().filter(|p| again || p.epoch > view.has_epoch) {
            messages.push(self.seal(attached, pending)?);
        }
        Ok(messages)
    }

    /// The terminal says where it can be reached; the members are told. `false` when the session is over.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn announce(&self, session: SessionId, source: IpAddr, endpoints: Endpoints) -> Result<bool> {
        let announced = self
            .store(move |s| {
                let place = Place { source, addresses: &usable(&endpoints.addresses), ports: &endpoints.ports };
                s.announce(&session, &place, clock::unix_now())
            })
            .await?;
        self.hub.poke();
        Ok(announced)
    }

    /// The terminal cleared its session (patent, steps S31, S32).
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn clear(&self, attached: &Attached, reason: ClearReason) -> Result<()> {
        let (session, user) = (attached.session, attached.user.clone());
        self.store(move |s| {
            let by = By { actor: user.as_str(), now: clock::unix_now() };
            s.end_session(&session, &Ending { event: "session-clear", by, reason: clear_text(reason), tell: None })
        })
        .await?;
        self.hub.poke();
        Ok(())
    }
}

fn fault(error: impl std::fmt::Display) -> ServerMessage {
    tracing::error!(%error, "a terminal cannot attach now");
    ServerMessage::Unavailable(Unavailable::Fault)
}

/// Whether a terminal may announce this.
pub fn acceptable(endpoints: &Endpoints) -> bool {
    endpoints.addresses.len() <= MAX_ADDRESSES
        && endpoints.ports.len() <= MAX_GROUPS
        && endpoints.ports.iter().all(|p| p.port != 0)
}

/// Addresses at which another terminal could be reached.
pub(super) fn usable(addresses: &[IpAddr]) -> Vec<IpAddr> {
    // A link-local address means nothing to others: it does not say on which link.
    let local = |a: &IpAddr| match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let usable = |a: &IpAddr| !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || local(a));
    addresses.iter().map(IpAddr::to_canonical).filter(usable).take(MAX_ADDRESSES).collect()
}

fn clear_text(reason: ClearReason) -> &'static str {
    match reason {
        ClearReason::LoggedOut => "logged out",
        ClearReason::CardRemoved => "card removed",
        ClearReason::NotOpened => "never opened",
        ClearReason::TerminalStopped => "terminal stopped",
        ClearReason::TunnelFailed => "tunnel failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_can_use_are_passed_on() {
        let announced: Vec<IpAddr> =
            ["fe80::1", "169.254.0.1", "127.0.0.1", "::", "ff02::1", "::ffff:10.0.0.1", "fd00::1"]
                .map(|a| a.parse().unwrap())
                .to_vec();
        assert_eq!(usable(&announced), ["10.0.0.1", "fd00::1"].map(|a| a.parse::<IpAddr>().unwrap()));
        assert_eq!(usable(&vec!["10.0.0.1".parse().unwrap(); 99]).len(), MAX_ADDRESSES);
    }
}
