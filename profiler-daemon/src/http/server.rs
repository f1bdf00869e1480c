//! A server that lets in so many connections, waits so long for their clients, and leaves the answers to others.
//!
//! In:  connections on a listening socket
//! Out: requests to an [`Answer`], its responses
//! Lost: connections over the limits, that stay silent, or that do not read, told in the log; requests that name
//!       another server, see [`super::host`]

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::host::HostNames;
use crate::connection::{Accepted, Acceptor, Limits, Patience, Watched};

/// Connections open at a time; more are closed at once. One peer leaves half of them to others.
const LIMITS: Limits = Limits {
    total: 64,
    per_peer: 30,
    reserved: 4,
};
/// How long a connection may be without the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that reads nothing for so long has gone, or wants the place. The head has a limit of its own.
const PATIENCE: Patience = Patience {
    greeting: (0, Duration::ZERO),
    write: Duration::from_secs(30),
};
/// A connection is closed between two requests after so long, and in any case a little later: whoever reads a byte now
/// and then does not keep a place for ever.
const AGE_MAX: Duration = Duration::from_mins(10);
const AGE_GRACE: Duration = Duration::from_mins(1);
/// The content type of texts for people.
pub(crate) const PLAIN: &str = "text/plain; charset=utf-8";

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

/// What all connections share.
struct Shared<A> {
    answers: A,
    names: HostNames,
}

impl HttpServer {
    /// Starts on the current tokio runtime. `host_names` are names by which it may be asked, beside those of
    /// [`super::host`].
    ///
    /// # Errors
    ///
    /// The socket has no address.
    pub(crate) fn start<A: Answer>(
        listener: TcpListener,
        host_names: &[String],
        answers: A,
    ) -> io::Result<Self> {
        let local_addr = listener.local_addr()?;
        let acceptor = Acceptor::new(listener, LIMITS, A::PURPOSE);
        let shared = Shared {
            answers,
            names: HostNames::new(host_names),
        };
        Ok(Self {
            local_addr,
            server: tokio::spawn(accept(acceptor, Arc::new(shared))),
        })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

async fn accept<A: Answer>(mut acceptor: Acceptor, shared: Arc<Shared<A>>) {
    let mut connections = JoinSet::new();
    loop {
        let Accepted { stream, place } = acceptor.next().await;
        connections.spawn(serve(stream, place, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

/// Serves a connection, with its place, to its end.
async fn serve<A: Answer>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    place: impl Send + Unpin,
    shared: Arc<Shared<A>>,
) {
    let stream = Watched::new(stream, PATIENCE, place);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move {
            let answer = match shared.names.check(&request) {
                Ok(()) => shared.answers.answer(request).await,
                Err(foreign) => content(foreign.status, PLAIN, foreign.text + "\n"),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = sleep(AGE_MAX) => {
            connection.as_mut().graceful_shutdown();
            timeout(AGE_GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    struct Large;

    impl Answer for Large {
        const PURPOSE: &'static str = "a test";

        async fn answer(&self, _: Request<Incoming>) -> Response<Full<Bytes>> {
            content(StatusCode::OK, PLAIN, vec![b'x'; 4096])
        }
    }

    fn shared() -> Arc<Shared<Large>> {
        Arc::new(Shared {
            answers: Large,
            names: HostNames::new(&[]),
        })
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    /// Check that a client that pipelines and does not read loses its place, as does one that never ends its head.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_dropped() {
        for (sent, limit) in [
            (REQUEST.repeat(100), PATIENCE.write),
            (REQUEST[..20].to_vec(), HEAD_TIMEOUT),
        ] {
            let (mut client, server) = duplex(8192);
            let (mut given_back, place) = tokio::sync::oneshot::channel::<()>();
            let start = Instant::now();
            let served = tokio::spawn(serve(server, place, shared()));
            // What it cannot write because nobody reads is written when the server has gone.
            let writing = tokio::spawn(async move {
                let _broken = client.write_all(&sent).await;
                client
            });
            served.await.unwrap();
            assert_eq!(start.elapsed().as_secs(), limit.as_secs());
            given_back.closed().await;
            drop(writing);
        }
    }

    /// Check that a client that reads now and then, or rests between requests, does not stay for ever.
    #[tokio::test(start_paused = true)]
    async fn no_client_stays_for_ever() {
        let (mut client, server) = duplex(8192);
        let start = Instant::now();
        let served = tokio::spawn(serve(server, (), shared()));
        let crawling = tokio::spawn(async move {
            let _broken = client.write_all(&REQUEST.repeat(2)).await;
            let mut byte = [0];
            while tokio::io::AsyncReadExt::read(&mut client, &mut byte)
                .await
                .is_ok_and(|count| count > 0)
            {
                sleep(Duration::from_secs(20)).await;
            }
        });
        served.await.unwrap();
        assert!(start.elapsed() <= AGE_MAX + AGE_GRACE);
        assert!(start.elapsed() >= AGE_MAX);
        drop(crawling);
    }
}
