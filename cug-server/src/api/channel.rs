//! The session channel.

use super::{Reader, Result, Writer, frames::send_frame, send};
use crate::{
    clock,
    hub::Push,
    service::{Attached, Service, acceptable},
};
use cug_proto::{
    ProtocolError, frame,
    id::{Epoch, GroupId},
    message::{Attach, ClientMessage, KeyAck, Known, MAX_GROUPS, ServerMessage},
};
use std::{collections::HashMap, net::IpAddr, time::Duration};
use tokio::time::Instant;

/// Announcements that may come at once; one more each second.
const ANNOUNCEMENTS: u32 = 30;

/// A proven attach, and what the terminal said that it knows.
pub(super) struct Opened {
    attached: Attached,
    known: Vec<Known>,
}

/// Answers an `Attach`; `None` when it was refused.
pub(super) async fn open(
    service: &Service,
    writer: &mut Writer,
    attach: Attach,
    exporter: &[u8; 32],
    source: IpAddr,
) -> Result<Option<Opened>> {
    if attach.known.len() > MAX_GROUPS {
        return Err(ProtocolError::Malformed.into());
    }
    let attached = match service.attach(&attach, exporter).await {
        Ok(attached) => attached,
        Err(refusal) => {
            send(writer, &refusal, frame::MAX_SESSION).await?;
            return Ok(None);
        }
    };
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let config = service.config();
    let (lease, heartbeat) = (seconds(config.lease), seconds(config.heartbeat));
    let proof = attached.keys.server_proof();
    let seen_at = Some(source);
    let answer = ServerMessage::Attached(cug_proto::message::Attached { proof, lease, heartbeat, seen_at });
    if let Err(error) = send(writer, &answer, frame::MAX_SESSION).await {
        service.hub().detach(attached.session, &attached.subscription);
        return Err(error);
    }
    Ok(Some(Opened { attached, known: attach.known }))
}

/// Runs a session channel until either side ends it. The session itself lives on unless it was cleared or ended.
pub(super) async fn run(
    service: &Service,
    mut reader: Reader,
    writer: Writer,
    opened: Opened,
    source: IpAddr,
) -> Result<()> {
    reader.set_max(frame::MAX_SESSION);
    let Opened { attached, known } = opened;
    let budget = Budget { left: ANNOUNCEMENTS, refilled: clock::monotonic() };
    let mut channel =
        Channel { service, writer, attached, source, revisions: HashMap::new(), epochs: HashMap::new(), budget };
    let result = channel.serve(&mut reader, known).await;
    service.hub().detach(channel.attached.session, &channel.attached.subscription);
    result
}

struct Channel<'a> {
    service: &'a Service,
    writer: Writer,
    attached: Attached,
    source: IpAddr,
    /// Revision of each group's snapshot.
    revisions: HashMap<GroupId, u64>,
    /// Newest epoch that was sent for each group.
    epochs: HashMap<GroupId, Epoch>,
    budget: Budget,
}

/// Whether the channel goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

impl Channel<'_> {
    async fn serve(&mut self, reader: &mut Reader, known: Vec<Known>) -> Result<()> {
        for Known { group, epoch, .. } in known.iter().copied() {
            self.epochs.insert(group, epoch);
            // It may have been acknowledged to an earlier run of the server, which told nobody.
            self.service.hub().key_ack(self.attached.session, KeyAck { group, epoch });
        }
        self.send_view(known, None).await?;
        self.say(&ServerMessage::Synced).await?;
        loop {
            // A silent terminal's lease is the hub's, which tells when it is over.
            let next = tokio::select! {
                frame = reader.next() => self.on_message(frame::decode(&frame?)?).await?,
                push = self.attached.subscription.pushes.recv() => match push {
                    Some(push) => self.on_push(push).await?,
                    // Too slow, or replaced by a newer connection.
                    None => Next::Stop,
                },
            };
            if next == Next::Stop {
                return Ok(());
            }
        }
    }

    /// One message of the terminal. What may not come here ends the session: a terminal that misbehaves cannot be trusted with it.
    async fn on_message(&mut self, message: ClientMessage) -> Result<Next> {
        let session = self.attached.session;
        match message {
            ClientMessage::Heartbeat(number) => {
                self.attached.subscription.heard.note(clock::monotonic());
                self.say(&ServerMessage::Alive(number)).await?;
            }
            ClientMessage::Endpoints(endpoints) => {
                if !acceptable(&endpoints) || !self.budget.take(clock::monotonic()) {
                    return self.refuse().await;
                }
                if !self.service.announce(session, self.source, endpoints).await? {
                    return Ok(Next::Go); // the end is on its way
                }
            }
            ClientMessage::KeyAck(ack) => self.service.hub().key_ack(session, ack),
            ClientMessage::Clear(reason) => {
                self.service.clear(&self.attached, reason).await?;
                self.say(&ServerMessage::Cleared).await?;
                return Ok(Next::Stop);
            }
            ClientMessage::Hello(_) | ClientMessage::Login(_) | ClientMessage::Ack(_) | ClientMessage::Attach(_) => {
                return self.refuse().await;
            }
            ClientMessage::EnrolHello(_)
            | ClientMessage::EnrolClaim(_)
            | ClientMessage::EnrolKey(_)
            | ClientMessage::EnrolCommit(_) => return self.refuse().await,
        }
        Ok(Next::Go)
    }

    /// Ends the connection. The lease decides about the session: the terminal may attach again and behave.
    async fn refuse(&mut self) -> Result<Next> {
        tracing::warn!(user = %self.attached.user, source = %self.source, "a terminal does not keep to the protocol");
        Err(ProtocolError::OutOfOrder.into())
    }

    async fn on_push(&mut self, push: Push) -> Result<Next> {
        match push {
            Push::Members { group, revision, frame } => {
                // What the snapshot held already.
                if self.revisions.get(&group).is_some_and(|snapshot| revision <= *snapshot) {
                    return Ok(Next::Go);
                }
                send_frame(&mut self.writer, &frame).await?;
            }
            Push::Joined(group) => self.send_view(Vec::new(), Some(group)).await?,
            Push::Left(group) => {
                self.revisions.remove(&group);
                self.epochs.remove(&group);
                self.say(&ServerMessage::Left(group)).await?;
            }
            Push::Keys(group) => {
                let has = self.epochs.get(&group).copied().unwrap_or(0);
                let messages = self.service.group_keys(&self.attached, group, has).await?;
                self.say_all(&messages).await?;
            }
            Push::Policy(group) => {
                let messages = self.service.group_policy(&self.attached, group).await?;
                self.say_all(&messages).await?;
            }
            Push::Activate(ack) => self.say(&ServerMessage::Activate(ack)).await?,
            Push::End(reason) => {
                self.say(&ServerMessage::End(reason)).await?;
                return Ok(Next::Stop);
            }
        }
        Ok(Next::Go)
    }

    async fn send_view(&mut self, known: Vec<Known>, only: Option<GroupId>) -> Result<()> {
        let (messages, revisions) = self.service.view(&self.attached, known, only).await?;
        self.revisions.extend(revisions);
        self.say_all(&messages).await
    }

    async fn say_all(&mut self, messages: &[ServerMessage]) -> Result<()> {
        for message in messages {
            if let ServerMessage::Group(group) = message {
                self.epochs.insert(group.group, group.epoch);
            }
            self.say(message).await?;
        }
        Ok(())
    }

    async fn say(&mut self, message: &ServerMessage) -> Result<()> {
        send(&mut self.writer, message, frame::MAX_SESSION).await
    }
}

/// How often a terminal may announce itself: every announcement is a write, and news for the whole group.
struct Budget {
    left: u32,
    refilled: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let seconds = u32::try_from(now.duration_since(self.refilled).as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.left = self.left.saturating_add(seconds).min(ANNOUNCEMENTS);
            self.refilled = now;
        }
        let granted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_limited() {
        let start = clock::monotonic();
        let mut budget = Budget { left: ANNOUNCEMENTS, refilled: start };
        assert_eq!((0..100).filter(|_| budget.take(start)).count(), 30);
        assert!(budget.take(start + Duration::from_secs(1)));
        assert!(!budget.take(start + Duration::from_secs(1)));
    }
}
