//! The tests' hand in a virtual machine: programs are run there on request, over a virtio port; no network and no login session is involved.
//!
//! A frame is a length (u32, big-endian) and JSON. Requests run side by side and are answered as they end.

use crate::process::{self, Finished};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Largest frame, in bytes.
const FRAME_LIMIT: usize = 16 << 20;

/// What the harness waits for longer than the machine itself does.
const MARGIN: Duration = Duration::from_secs(30);

/// A program to be run by root.
#[derive(Serialize, Deserialize)]
struct Request {
    id: u64,
    program: String,
    args: Vec<String>,
    input: String,
    limit_ms: u64,
}

/// How it ended.
#[derive(Serialize, Deserialize)]
struct Reply {
    id: u64,
    /// As wait(2) gives it; absent when the program could not be run to its end.
    status: Option<i32>,
    out: String,
    err: String,
}

/// The harness's end.
pub struct Hand {
    port: Mutex<(UnixStream, u64)>,
    waiting: Arc<Mutex<HashMap<u64, Sender<Reply>>>>,
}

impl Hand {
    /// Uses the harness's end of the port. The machine need not have booted yet.
    ///
    /// # Errors
    /// When the stream cannot be used twice.
    pub fn new(port: UnixStream) -> anyhow::Result<Self> {
        let waiting: Arc<Mutex<HashMap<u64, Sender<Reply>>>> = Arc::default();
        let (mut replies, answered) = (port.try_clone()?, Arc::clone(&waiting));
        std::thread::spawn(move || {
            while let Ok(reply) = receive::<Reply>(&mut replies) {
                let asked = answered.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.id);
                let _gave_up = asked.map(|asked| asked.send(reply));
            }
            // The machine is gone: who waits is told so by the end of the channel.
            answered.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        Ok(Self { port: Mutex::new((port, 0)), waiting })
    }

    /// Runs a program in the machine, as root and outside of every login session, for `limit` at most.
    ///
    /// # Errors
    /// When it cannot be started or takes too long, or the machine does not answer.
    pub fn run(&self, program: &str, args: &[&str], input: &str, limit: Duration) -> anyhow::Result<Finished> {
        let (tell, told) = channel();
        {
            let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
            port.1 += 1;
            let request = Request {
                id: port.1,
                program: program.to_owned(),
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                input: input.to_owned(),
                limit_ms: u64::try_from(limit.as_millis())?,
            };
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(request.id, tell);
            send(&mut port.0, &request).context("the machine is gone")?;
        }
        let reply = told.recv_timeout(limit + MARGIN).with_context(|| format!("no answer: {program} {args:?}"))?;
        match reply.status {
            Some(status) => Ok(Finished { out: reply.out, err: reply.err, status: ExitStatus::from_raw(status) }),
            None => bail!("{program} {args:?}: {}", reply.err),
        }
    }
}

/// The machine's end: serves the virtio port `path` for as long as the machine runs.
///
/// # Errors
/// When there is no such port, or the harness has let go of it.
pub fn serve(path: &str) -> anyhow::Result<u8> {
    let mut port = File::options().read(true).write(true).open(path).with_context(|| path.to_owned())?;
    let answers = Arc::new(Mutex::new(port.try_clone()?));
    loop {
        let request: Request = receive(&mut port)?;
        let answers = Arc::clone(&answers);
        std::thread::spawn(move || {
            let reply = carry_out(request);
            let mut port = answers.lock().unwrap_or_else(PoisonError::into_inner);
            let _harness_gone = send(&mut *port, &reply);
        });
    }
}

fn carry_out(request: Request) -> Reply {
    let mut command = Command::new(&request.program);
    command.args(&request.args).env("LC_ALL", "C").env("HOME", "/root").current_dir("/");
    match process::run(command, request.input.as_bytes(), Duration::from_millis(request.limit_ms)) {
        Ok(done) => Reply { id: request.id, status: Some(done.status.into_raw()), out: done.out, err: done.err },
        Err(error) => Reply { id: request.id, status: None, out: String::new(), err: format!("{error:#}") },
    }
}

fn send(port: &mut impl Write, message: &impl Serialize) -> anyhow::Result<()> {
    let body = serde_json::to_vec(message)?;
    let mut frame = u32::try_from(body.len())?.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    Ok(port.write_all(&frame)?)
}

fn receive<T: for<'a> Deserialize<'a>>(port: &mut impl Read) -> anyhow::Result<T> {
    let mut length = [0; 4];
    port.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_LIMIT {
        bail!("a frame of {length} bytes");
    }
    let mut body = vec![0; length];
    port.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
