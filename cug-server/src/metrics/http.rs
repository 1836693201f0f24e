//! `/metrics`, `/healthz` and `/readyz` over HTTP/1.1. Nothing else, and nothing that changes anything.
//!
//! Few connections at a time, one request each, and a deadline for the whole of it.

use super::{Figures, Metrics};
use crate::{health::Health, keys::Keys, service::blocking, store::Store};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

/// Connections at a time; more are closed at once.
const CONNECTIONS: usize = 16;

/// For a whole connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// For the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// Largest head of a request, in bytes: hyper's smallest.
const MAX_HEAD: usize = 8192;

/// When the listener rests because the system has no more file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What an answer needs.
pub struct Source {
    /// What was counted.
    pub metrics: Metrics,
    /// What is there now.
    pub store: Arc<dyn Store>,
    /// For the certificate's end.
    pub keys: Arc<Keys>,
    /// Is it well?
    pub health: Arc<Health>,
    /// Most groups with figures of their own.
    pub max_groups: usize,
}

/// Answers until the server stops.
pub async fn serve(listener: TcpListener, source: Source, mut stop: watch::Receiver<bool>) {
    let (source, places) = (Arc::new(source), Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Ok(place) = places.clone().try_acquire_owned() {
                    tokio::spawn(one(stream, source.clone(), place, stop.clone()));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics cannot be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn one(stream: TcpStream, source: Arc<Source>, _place: OwnedSemaphorePermit, mut stop: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = tokio::time::timeout(PATIENCE, connection) => ended,
        _ = stop.wait_for(|stop| *stop) => return,
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics ended"),
        Err(_) => tracing::debug!("a connection for metrics took too long"),
    }
}

async fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => metrics(source).await,
        "/healthz" => verdict(source.health.alive().await.then_some("ok").ok_or("the hub does not answer")),
        "/readyz" => verdict(source.health.ready().await.map(|()| "ok")),
        _ => text(StatusCode::NOT_FOUND, PLAIN, "there are /metrics, /healthz and /readyz\n".into()),
    }
}

async fn metrics(source: &Source) -> Response<Full<Bytes>> {
    let end = source.keys.tls_info().map_or(0, |tls| tls.until_unix);
    let figures = source.metrics.store(blocking(source.store.clone(), move |s| Figures::read(s, end))).await;
    match figures {
        Ok(figures) => text(StatusCode::OK, OPENMETRICS, source.metrics.tell(&figures, source.max_groups)),
        Err(error) => {
            tracing::warn!(%error, "metrics cannot be told now");
            text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "the database cannot be read; see the log\n".into())
        }
    }
}

fn verdict(verdict: Result<&str, &str>) -> Response<Full<Bytes>> {
    match verdict {
        Ok(well) => text(StatusCode::OK, PLAIN, format!("{well}\n")),
        Err(problem) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{problem}\n")),
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}
