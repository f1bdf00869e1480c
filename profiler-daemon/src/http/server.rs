//! A server that lets in so many connections, waits so long for heads, and leaves the answers to others.
//!
//! In:  connections on a listening socket
//! Out: requests to an [`Answer`], its responses
//! Lost: connections that stay silent or break off, told in the log

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tracing::{debug, warn};

/// Connections open at a time; others wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may be without the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a connection could not be accepted: without file descriptors it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests. How long it takes for that is its own to bound.
pub(crate) trait Answer: Send + Sync + 'static {
    /// What the server is for, in the log.
    const PURPOSE: &'static str;

    /// The answer to one request, whatever it asks.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// A running server; ends, with its connections, when dropped.
#[derive(Debug)]
pub(crate) struct HttpServer {
    local_addr: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl HttpServer {
    /// Starts on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// The socket has no address.
    pub(crate) fn start(listener: TcpListener, answers: impl Answer) -> io::Result<Self> {
        Ok(Self {
            local_addr: listener.local_addr()?,
            server: tokio::spawn(accept(listener, Arc::new(answers))),
        })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

async fn accept<A: Answer>(listener: TcpListener, answers: Arc<A>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // never: nobody closes it
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, Arc::clone(&answers), place));
            }
            Err(error) => {
                warn!(%error, "a connection for {} was not accepted", A::PURPOSE);
                sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<A: Answer>(stream: TcpStream, answers: Arc<A>, _place: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answers.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection for {} broke off", A::PURPOSE);
    }
}

/// A response with a body of this content type.
pub(crate) fn content(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A response without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// The refusal of a method where others are allowed.
pub(crate) fn allowing(methods: &'static str) -> Response<Full<Bytes>> {
    let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
    let methods = HeaderValue::from_static(methods);
    response.headers_mut().insert(ALLOW, methods);
    response
}
