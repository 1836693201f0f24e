//! Between the login module and the daemon: a socket that passes requests and replies on, and makes one side look like another version.

use crate::space::Space;
use anyhow::Context;
use cug_proto::frame;
use cug_proto::local::{Offer, Reply, Request};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is doctored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doctored {
    /// Nothing: to show that the rest works.
    Nothing,
    /// The module says a later version.
    LaterModule,
    /// The daemon says a later version, and answers all the same.
    LaterDaemon,
    /// The daemon's offer is one that this module cannot read.
    StrangeDaemon,
    /// The daemon cannot read the module's request.
    StrangeModule,
}

/// The relay. Dropping it ends it.
pub struct Doctor {
    how: Arc<Mutex<Doctored>>,
    stop: Arc<AtomicBool>,
    at: PathBuf,
}

impl Doctor {
    /// Listens at `at` on the host, and passes on to the daemon's `socket` there.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(host: &Space, at: &str, socket: &str) -> anyhow::Result<Self> {
        Self::at(&host.path(at), &host.path(socket))
    }

    /// The same with paths as this process reaches them.
    ///
    /// # Errors
    /// As [`Doctor::start`].
    pub fn at(at: &Path, socket: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(at).with_context(|| at.display().to_string())?;
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o666))?;
        let (how, stop) = (Arc::new(Mutex::new(Doctored::Nothing)), Arc::new(AtomicBool::new(false)));
        let (told, stopped, socket) = (how.clone(), stop.clone(), socket.to_owned());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let how = *told.lock().unwrap_or_else(PoisonError::into_inner);
                let socket = socket.clone();
                std::thread::spawn(move || pass_on(near, &socket, how));
            }
        });
        Ok(Self { how, stop, at: at.to_owned() })
    }

    /// From now on.
    pub fn set(&self, how: Doctored) {
        *self.how.lock().unwrap_or_else(PoisonError::into_inner) = how;
    }
}

impl Drop for Doctor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _wake = UnixStream::connect(&self.at);
        let _ = std::fs::remove_file(&self.at);
    }
}

fn pass_on(mut near: UnixStream, socket: &Path, how: Doctored) -> Option<()> {
    let mut far = UnixStream::connect(socket).ok()?;
    loop {
        let request = doctored_request(receive(&mut near)?, how);
        far.write_all(&request).ok()?;
        let reply = doctored_reply(receive(&mut far)?, how);
        near.write_all(&reply).ok()?;
    }
}

/// A whole frame.
fn receive(from: &mut UnixStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; frame::HEADER_LEN];
    from.read_exact(&mut bytes).ok()?;
    let length = frame::body_len(bytes.clone().try_into().ok()?, frame::MAX_SESSION).ok()?;
    bytes.resize(frame::HEADER_LEN + length, 0);
    from.read_exact(bytes.get_mut(frame::HEADER_LEN..)?).ok()?;
    Some(bytes)
}

fn body(bytes: &[u8]) -> &[u8] {
    bytes.get(frame::HEADER_LEN..).unwrap_or_default()
}

fn doctored_request(bytes: Vec<u8>, how: Doctored) -> Vec<u8> {
    match frame::decode(body(&bytes)) {
        Ok(Request::Prepare(mut prepare)) if how == Doctored::LaterModule => {
            prepare.version += 1;
            frame::encode(&Request::Prepare(prepare), frame::MAX_LOGIN).map_or(bytes, |frame| frame.to_vec())
        }
        // A variant that does not exist yet.
        Ok(Request::Prepare(_)) if how == Doctored::StrangeModule => vec![0, 0, 0, 5, 0x82, 0x18, 0xfe, 0x81, 0],
        _ => bytes,
    }
}

fn doctored_reply(bytes: Vec<u8>, how: Doctored) -> Vec<u8> {
    let later = |mut offer: Offer| {
        offer.version += 1;
        frame::encode(&Reply::Offer(offer), frame::MAX_SESSION).map(|frame| frame.to_vec())
    };
    match (frame::decode(body(&bytes)), how) {
        (Ok(Reply::Offer(offer)), Doctored::LaterDaemon) => later(offer).unwrap_or_default(),
        (Ok(Reply::Offer(_)), Doctored::StrangeDaemon) => vec![0, 0, 0, 5, 0x82, 0x18, 0xfd, 0x81, 0],
        _ => bytes,
    }
}
