//! What `cugctl` shows.

use cug_proto::{
    id::UserId,
    local::{PeerStatus, Servers, SessionStatus, Status},
    message::Peer,
};

use super::{
    GroupView, Session, Stage, State, Time, Viewer,
    follow::{leaders, ms},
    groups::Group,
    life::Life,
};

impl State {
    pub(super) fn status(&self, now: Time, viewer: &Viewer) -> Status {
        let offered =
            self.offers.values().filter(|offer| viewer.sees(&offer.user)).map(|offer| bare(&offer.user, "offered", 0));
        let sessions = self
            .sessions
            .iter()
            .filter(|(user, _)| viewer.sees(user))
            .map(|(user, session)| self.shown(now, user, session));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            backend: self.settings.backend.clone(),
            sessions: sessions.chain(offered).collect(),
            leftovers: self.leftovers,
            teardowns: self.teardowns,
            uptime_ms: self.uptime_ms(now),
            host_name: Some(self.settings.host_name.clone()),
        }
    }

    /// What the configuration says about the organisation; no secret.
    pub(super) fn servers(&self) -> Servers {
        let milliseconds = |time: std::time::Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Servers {
            servers: self.settings.servers.clone(),
            ca_pins: self.settings.ca_pins.iter().map(|pin| (*pin).into()).collect(),
            readers: self.settings.readers.clone(),
            media: self.settings.media.clone(),
            server_timeout_ms: milliseconds(self.settings.server_timeout),
            card_wait_ms: milliseconds(self.settings.card_wait),
            host_name: self.settings.host_name.clone(),
        }
    }

    pub(super) fn peers(&self, viewer: &Viewer) -> Vec<GroupView> {
        let seen = self.sessions.iter().filter(|(user, _)| viewer.sees(user));
        let lives = seen.filter_map(|(user, session)| session.stage.life().map(|life| (user, life)));
        lives.flat_map(|(user, life)| life.groups.values().map(|group| self.members(user, life, group))).collect()
    }

    fn shown(&self, now: Time, user: &UserId, session: &Session) -> SessionStatus {
        let os_sessions = session.leaders.values().sum();
        let leaders = Some(leaders(&session.leaders));
        let (state, life) = match &session.stage {
            Stage::Granted(life) => ("granted", life),
            Stage::Up(life) => ("up", life),
            Stage::Suspended => {
                let waiting = self.waiting_status(now, user);
                let state = if waiting.is_some() { "waiting" } else { "suspended" };
                return SessionStatus { leaders, waiting, ..bare(user, state, os_sessions) };
            }
            Stage::Barred { .. } => return bare(user, "ended", os_sessions),
        };
        let (channel_since_ms, channel_error) = self.channel_history(now, life);
        SessionStatus {
            server: life.channel.server.clone(),
            attached: life.channel.attached,
            server_heard_ms: life.channel.heard.map(|heard| ms(now.since(heard))),
            card: life.card_place(),
            groups: life.opened(&self.settings.guard),
            lease_left_ms: Some(ms(life.channel.lease_until.since(now))),
            channel_since_ms,
            channel_error,
            card_watched: Some(life.watched),
            leaders,
            names: Some(self.names_status(life)),
            open: Some(life.is_open() && !life.raising()),
            ..bare(user, state, os_sessions)
        }
    }

    fn members(&self, user: &UserId, life: &Life, group: &Group) -> GroupView {
        let unmeasured = |peer: &Peer| PeerStatus {
            user: peer.user.clone(),
            host_name: peer.host_name.clone(),
            endpoint: peer.endpoints.first().copied(),
            address4: peer.address4,
            address6: peer.address6,
            handshake_ms: None,
            received: 0,
            sent: 0,
            name: self.name_of(life.number, group.grant.id, peer),
        };
        GroupView {
            number: life.number,
            group: group.grant.id,
            name: group.grant.name.clone(),
            user: user.clone(),
            peers: group.peers.values().map(|peer| (peer.wg_public_key, unmeasured(peer))).collect(),
        }
    }
}

fn bare(user: &UserId, state: &str, os_sessions: u32) -> SessionStatus {
    SessionStatus {
        user: user.clone(),
        state: state.to_owned(),
        server: String::new(),
        attached: false,
        server_heard_ms: None,
        os_sessions,
        card: String::new(),
        groups: Vec::new(),
        lease_left_ms: None,
        channel_since_ms: None,
        channel_error: None,
        card_watched: None,
        leaders: None,
        names: None,
        open: None,
        waiting: None,
    }
}
