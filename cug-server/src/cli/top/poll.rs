//! Asks the server once a second, in a thread of its own: a server that hesitates does not stop the keys.

use crate::{
    admin::{self, Reply, Request, Snapshot},
    config::Config,
};
use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

const EVERY: Duration = Duration::from_secs(1);

/// A snapshot, or a sentence why there is none.
pub(super) type News = Result<Box<Snapshot>, String>;

/// The thread; it ends soon after this is dropped.
pub(super) struct Poll {
    news: Receiver<News>,
    _stop: Sender<()>,
}

impl Poll {
    pub(super) fn start(config: Config) -> Self {
        let (tell, news) = channel();
        let (stop, stopped) = channel::<()>();
        std::thread::spawn(move || {
            while tell.send(ask(&config)).is_ok() {
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { news, _stop: stop }
    }

    /// The newest, if something came since the last call.
    pub(super) fn latest(&self) -> Option<News> {
        self.news.try_iter().last()
    }
}

fn ask(config: &Config) -> News {
    match admin::ask_server(config, &Request::Snapshot) {
        Ok(Reply::Snapshot(snapshot)) => Ok(snapshot),
        Ok(Reply::Refused(sentence)) => Err(sentence),
        Ok(_) => Err("the server is of another version".into()),
        Err(error) => Err(format!("{error:#}")),
    }
}
