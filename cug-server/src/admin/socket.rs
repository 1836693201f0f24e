//! The administrator's socket: a UNIX stream socket, mode 0600, or 0660 with a configured group. The kernel says who asks, see [`super::peer`].
//! One request and one reply for each connection, both JSON after a u32 length; before the reply, signs of life if it takes long.

use super::{AdminService, Reply, Request, peer};
use anyhow::{Context, Result, bail};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream as Client},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};
use zeroize::Zeroizing;

/// Largest request, in bytes: an import of some 500,000 users. Only who may administer the server gets so far that it is looked at.
const MAX_REQUEST: usize = 64 * 1024 * 1024;

/// Largest reply, in bytes: a list of some 100,000 users.
const MAX_REPLY: usize = 256 * 1024 * 1024;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a request may take altogether: an import, or a check of the whole audit.
const LONGEST: Duration = Duration::from_secs(600);

/// How often the administrator hears that a long request is not over yet.
const PROGRESS: Duration = Duration::from_secs(1);

/// Listens; with `group` its members may connect too. A socket that an earlier server left is replaced; the state lock says that none runs.
///
/// # Errors
/// A sentence.
pub fn listen(path: &Path, group: Option<&str>) -> Result<UnixListener> {
    let what = || format!("cannot listen on {}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(what)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(what),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(what)?;
    let mode = match group {
        Some(name) => {
            let gid = peer::group_id(name)?;
            std::os::unix::fs::chown(path, None, Some(gid)).with_context(|| {
                format!("cannot give {} to the group {name}: the server's user must be in it", path.display())
            })?;
            0o660
        }
        None => 0o600,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).with_context(what)?;
    Ok(listener)
}

/// Serves administrators until the server stops.
pub async fn serve(listener: UnixListener, service: Arc<AdminService>, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    if let Err(error) = one(stream, service).await {
                        tracing::warn!(%error, "an administrator's request failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an administrator cannot connect");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn one(mut stream: UnixStream, service: Arc<AdminService>) -> Result<()> {
    let credentials = stream.peer_cred()?;
    let uid = credentials.uid();
    let asked = service.clone();
    let lookup = tokio::task::spawn_blocking(move || {
        peer::permitted(uid, credentials.gid(), asked.config.admin_group.as_deref())
    });
    let permitted = tokio::time::timeout(PATIENCE, lookup).await.context("the account cannot be looked up")??;
    let exchange = async {
        let len = usize::try_from(stream.read_u32().await?)?;
        if len > MAX_REQUEST {
            bail!("the request is too large");
        }
        let mut body = Zeroizing::new(vec![0; len]);
        stream.read_exact(&mut body).await?;
        Ok(if permitted {
            let request = serde_json::from_slice::<Request>(&body);
            request.map_err(|_| "the request was not understood; is the server of the same version?")
        } else {
            tracing::warn!(uid, "a user who may not administer the server asked");
            Err("you may not administer the server")
        })
    };
    let request = match tokio::time::timeout(PATIENCE, exchange).await.context("the time is up")?? {
        Ok(request) => request,
        Err(why) => {
            send(&mut stream, &Reply::Refused(why.into())).await?;
            return Ok(stream.shutdown().await?);
        }
    };
    let (tell, progress) = watch::channel((0, 0));
    let work = tokio::task::spawn_blocking(move || {
        // Nobody who listens any more does not stop what was begun.
        service.carry_out_telling(&request, uid, &mut |done, total| {
            tell.send_replace((done, total));
        })
    });
    let reply = tokio::time::timeout(LONGEST, with_progress(&mut stream, work, progress)).await;
    send(&mut stream, &reply.context("the time is up")??).await?;
    Ok(stream.shutdown().await?)
}

/// The reply, once it is there. A sign of life every second until then.
async fn with_progress(
    stream: &mut UnixStream,
    mut work: JoinHandle<Reply>,
    progress: watch::Receiver<(u64, u64)>,
) -> Result<Reply> {
    loop {
        if let Ok(reply) = tokio::time::timeout(PROGRESS, &mut work).await {
            return Ok(reply?);
        }
        let (done, total) = *progress.borrow();
        send(stream, &Reply::Progress { done, total }).await?;
    }
}

async fn send(stream: &mut UnixStream, reply: &Reply) -> Result<()> {
    let reply = serde_json::to_vec(reply)?;
    let write = async {
        stream.write_u32(u32::try_from(reply.len())?).await?;
        Ok(stream.write_all(&reply).await?)
    };
    tokio::time::timeout(PATIENCE, write).await.context("the time is up")?
}

/// Asks the running server; `None` when none runs.
pub(super) fn ask(path: &Path, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<Reply>> {
    let mut stream = match Client::connect(path) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            bail!("only root may administer the server, or the members of its admin-group")
        }
        Err(e) => return Err(e).with_context(|| format!("cannot reach the server on {}", path.display())),
    };
    let mut exchange = || -> Result<Reply> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let body = Zeroizing::new(serde_json::to_vec(request)?);
        stream.write_all(&u32::try_from(body.len())?.to_be_bytes())?;
        stream.write_all(&body)?;
        loop {
            let mut len = [0; 4];
            stream.read_exact(&mut len)?;
            let len = usize::try_from(u32::from_be_bytes(len))?;
            if len > MAX_REPLY {
                bail!("the reply is too large");
            }
            let mut reply = vec![0; len];
            stream.read_exact(&mut reply)?;
            match serde_json::from_slice(&reply)? {
                Reply::Progress { done, total } => progress(done, total),
                reply => return Ok(reply),
            }
        }
    };
    exchange().map(Some).context("the server did not answer; see its log")
}
