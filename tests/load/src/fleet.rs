//! Thousands of terminals that sit there, and what they hear.

use crate::terminal::{Member, Organisation, Speaker, Terminal};
use anyhow::Context;
use cug_proto::id::UserId;
use cug_proto::message::ServerMessage;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Logins at a time: few enough that none waits longer than a terminal would.
const AT_ONCE: usize = 16;

/// Something that a terminal heard.
pub struct Heard {
    /// When.
    pub at: Instant,
    /// Bytes of the message.
    pub bytes: usize,
    /// Members who are there now.
    pub present: Vec<UserId>,
    /// Members who are gone.
    pub gone: Vec<UserId>,
}

#[derive(Default)]
struct Shared {
    /// Whether news are noted at all: while everybody sits down there are millions.
    listening: AtomicBool,
    /// Messages about members, noted or not.
    news: AtomicU64,
    /// Members in them that are there.
    present: AtomicU64,
    lost: AtomicU64,
}

/// Attached terminals.
pub struct Fleet {
    /// How each of them speaks, in the order of the members.
    pub speakers: Vec<Speaker>,
    heard: mpsc::UnboundedReceiver<Heard>,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Everybody logs in and attaches. Nobody is announced. Heartbeats come every `heartbeat` from each.
    ///
    /// # Errors
    /// When one cannot.
    pub async fn sit_down(to: &Arc<Organisation>, members: &[Member], heartbeat: Duration) -> anyhow::Result<Self> {
        let gate = Arc::new(Semaphore::new(AT_ONCE));
        let mut coming = JoinSet::new();
        for (index, member) in members.iter().enumerate() {
            let (gate, to, member) = (gate.clone(), to.clone(), member.clone());
            coming.spawn(async move {
                let _permit = gate.acquire().await?;
                Ok::<_, anyhow::Error>((index, member.sit_down(&to).await?))
            });
        }
        let mut terminals: Vec<(usize, Terminal)> = Vec::with_capacity(members.len());
        let mut tick = tokio::time::interval(heartbeat);
        // Who came first is not to lose its lease while the others come, or wait for its turn after that.
        loop {
            let last = tokio::select! {
                seated = coming.join_next() => match seated {
                    Some(seated) => {
                        terminals.push(seated??);
                        continue;
                    }
                    None => true,
                },
                _ = tick.tick() => false,
            };
            for (_, terminal) in &terminals {
                terminal.speaker.heartbeat(0).await?;
            }
            if last {
                break;
            }
        }
        terminals.sort_by_key(|(index, _)| *index);
        let (sender, heard) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let mut fleet = Self { speakers: Vec::with_capacity(members.len()), heard, shared, tasks: JoinSet::new() };
        for (_, terminal) in terminals {
            fleet.speakers.push(terminal.speaker.clone());
            fleet.tasks.spawn(listen(terminal, sender.clone(), fleet.shared.clone()));
        }
        fleet.tasks.spawn(beat(fleet.speakers.clone(), heartbeat));
        Ok(fleet)
    }

    /// Everybody announces, and each has heard of its `others` and nothing more for a second.
    ///
    /// # Errors
    /// When they do not hear of it, or the news do not end.
    pub async fn announce_all(&self, others: usize, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        let wanted = self.shared.present.load(Ordering::Relaxed) + u64::try_from(self.speakers.len() * others)?;
        for chunk in self.speakers.chunks(500) {
            for speaker in chunk {
                speaker.announce(51_820).await?;
            }
            // As a crowd would come: not faster than it can be told.
            self.quiet(Duration::from_millis(50), limit).await?;
        }
        // A pause alone may be the server's, with most of the work still before it.
        while self.shared.present.load(Ordering::Relaxed) < wanted {
            anyhow::ensure!(Instant::now() < end, "not everybody heard of everybody");
            self.quiet(Duration::from_millis(50), limit).await?;
        }
        self.quiet(Duration::from_secs(1), limit).await
    }

    /// Waits until no news came for `pause`.
    ///
    /// # Errors
    /// When they go on for longer than `limit`.
    pub async fn quiet(&self, pause: Duration, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let before = self.shared.news.load(Ordering::Relaxed);
            tokio::time::sleep(pause).await;
            if self.shared.news.load(Ordering::Relaxed) == before {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < end, "the news do not end");
        }
    }

    /// From now on everything that is heard is noted.
    pub fn listen(&mut self) {
        while self.heard.try_recv().is_ok() {}
        self.shared.listening.store(true, Ordering::Relaxed);
    }

    /// What `count` terminals heard that `wanted` accepts; the rest is thrown away.
    ///
    /// # Errors
    /// When it is not that many within `limit`.
    pub async fn hear(
        &mut self,
        count: usize,
        limit: Duration,
        wanted: impl Fn(&Heard) -> bool,
    ) -> anyhow::Result<Vec<Heard>> {
        let mut all = Vec::with_capacity(count);
        let listening = async {
            while all.len() < count {
                let heard = self.heard.recv().await.context("all terminals are gone")?;
                if wanted(&heard) {
                    all.push(heard);
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        match tokio::time::timeout(limit, listening).await {
            Ok(result) => result?,
            Err(_) => anyhow::bail!("{} of {count} terminals heard of it", all.len()),
        }
        Ok(all)
    }

    /// Terminals whose connection broke.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

async fn listen(mut terminal: Terminal, sender: mpsc::UnboundedSender<Heard>, shared: Arc<Shared>) {
    while let Ok((message, bytes)) = terminal.next().await {
        let ServerMessage::Peers(peers) = message else { continue };
        shared.news.fetch_add(1, Ordering::Relaxed);
        shared.present.fetch_add(u64::try_from(peers.present.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if shared.listening.load(Ordering::Relaxed) {
            let present = peers.present.into_iter().map(|peer| peer.user).collect();
            // Nobody may be left to hear of it.
            let _ = sender.send(Heard { at: Instant::now(), bytes, present, gone: peers.gone });
        }
    }
    shared.lost.fetch_add(1, Ordering::Relaxed);
}

/// Heartbeats, spread evenly over the interval.
async fn beat(speakers: Vec<Speaker>, heartbeat: Duration) {
    const STEPS: usize = 100;
    let portion = speakers.len().div_ceil(STEPS).max(1);
    let mut tick = tokio::time::interval(heartbeat / u32::try_from(STEPS).unwrap_or(u32::MAX));
    // A terminal that was held up does not make up for it: it speaks once, and then at its time.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0.. {
        for some in speakers.chunks(portion) {
            tick.tick().await;
            for speaker in some {
                // One that is gone is counted by its listener.
                let _ = speaker.heartbeat(number).await;
            }
        }
    }
}
