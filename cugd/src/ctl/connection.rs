//! One connection to the daemon.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use cug_proto::{
    frame::{self, HEADER_LEN, MAX_LOGIN, MAX_MEMBERS},
    local::{Reply, Request},
};

use super::CtlError;

/// How long the daemon may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Requests and replies in turn.
pub(crate) struct Connection(UnixStream);

impl Connection {
    pub fn open(socket: &Path) -> Result<Self, CtlError> {
        let stream = UnixStream::connect(socket).map_err(|_| CtlError::NotRunning(socket.to_owned()))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(CtlError::NoAnswer)?;
        stream.set_write_timeout(Some(LIMIT)).map_err(CtlError::NoAnswer)?;
        Ok(Self(stream))
    }

    /// Asks, and takes a refusal as an error.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, CtlError> {
        let frame = frame::encode(request, MAX_LOGIN).map_err(|_| CtlError::Strange)?;
        self.0.write_all(&frame).map_err(CtlError::NoAnswer)?;
        match self.receive().map_err(CtlError::NoAnswer)? {
            Some(Reply::Refused(refusal)) => Err(CtlError::Refused(refusal)),
            Some(reply) => Ok(reply),
            None => Err(CtlError::Strange),
        }
    }

    /// The next one that comes unasked; waits for as long as it takes.
    pub fn next(&mut self) -> Result<Reply, CtlError> {
        self.0.set_read_timeout(None).map_err(CtlError::NoAnswer)?;
        self.receive().map_err(|_| CtlError::CutOff)?.ok_or(CtlError::Strange)
    }

    /// `None`: not what this version understands.
    fn receive(&mut self) -> io::Result<Option<Reply>> {
        let mut header = [0; HEADER_LEN];
        self.0.read_exact(&mut header)?;
        let mut body = vec![0; frame::body_len(header, MAX_MEMBERS).map_err(io::Error::other)?];
        self.0.read_exact(&mut body)?;
        Ok(frame::decode(&body).ok())
    }
}
