//! Those who follow what happens (`Watch`). They are told and never waited for.

use cug_proto::notice::Notice;
use tokio::sync::mpsc;

use crate::core::Viewer;

/// Notices that may wait for one watcher; with more it is cut off.
pub const QUEUE: usize = 64;
/// Most watchers at a time.
const MAX: usize = 64;
/// Most of them who are not root.
const MAX_OTHERS: usize = 48;

/// All of them, with what each may see.
#[derive(Default)]
pub struct Watchers(Vec<(Viewer, mpsc::Sender<Notice>)>);

impl Watchers {
    /// One more; `false` when there are too many.
    pub fn add(&mut self, viewer: Viewer, sender: mpsc::Sender<Notice>) -> bool {
        self.0.retain(|(_, sender)| !sender.is_closed());
        let others = self.0.iter().filter(|(viewer, _)| *viewer != Viewer::All).count();
        let room = self.0.len() < MAX && (viewer == Viewer::All || others < MAX_OTHERS);
        if room {
            self.0.push((viewer, sender));
        }
        room
    }

    /// Tells those who may see the user's sessions. Whoever has not read what was said before is cut off.
    pub fn tell(&mut self, notice: &Notice) {
        self.0.retain(|(viewer, sender)| !viewer.sees(&notice.user) || sender.try_send(notice.clone()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cug_proto::{id::UserId, notice::Happening};

    fn user(name: &str) -> UserId {
        name.parse().unwrap()
    }

    fn notice(name: &str) -> Notice {
        Notice { user: user(name), what: Happening::SessionUp }
    }

    #[test]
    fn each_sees_their_own_and_the_slow_are_cut_off() {
        let mut watchers = Watchers::default();
        let (root, mut by_root) = mpsc::channel(QUEUE);
        let (own, mut by_own) = mpsc::channel(1);
        let (nobody, mut by_nobody) = mpsc::channel(1);
        assert!(watchers.add(Viewer::All, root));
        assert!(watchers.add(Viewer::User(user("USER-A")), own));
        assert!(watchers.add(Viewer::Nobody, nobody));
        for name in ["USER-B", "USER-A", "USER-B", "USER-A", "USER-A"] {
            watchers.tell(&notice(name));
        }
        assert_eq!(std::iter::from_fn(|| by_root.try_recv().ok()).count(), 5);
        assert_eq!(by_own.try_recv().unwrap().user, user("USER-A"));
        assert!(by_own.is_closed(), "one that did not read is not waited for");
        assert!(by_nobody.try_recv().is_err() && !by_nobody.is_closed());
    }

    #[test]
    fn root_finds_a_place_when_others_crowd() {
        let mut watchers = Watchers::default();
        let mut held = Vec::new();
        let mut crowd = |viewer: &Viewer, watchers: &mut Watchers| {
            let (sender, receiver) = mpsc::channel(1);
            held.push(receiver);
            watchers.add(viewer.clone(), sender)
        };
        let own = Viewer::User(user("USER-A"));
        assert_eq!((0..MAX).filter(|_| crowd(&own, &mut watchers)).count(), MAX_OTHERS);
        assert_eq!((0..MAX).filter(|_| crowd(&Viewer::All, &mut watchers)).count(), MAX - MAX_OTHERS);
        held.clear();
        let (sender, _receiver) = mpsc::channel(1);
        assert!(watchers.add(own, sender), "places come free");
    }
}
