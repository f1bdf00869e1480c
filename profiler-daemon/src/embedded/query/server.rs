//! HTTP for the query side: who may ask, how much, and for how long.
//!
//! In:  `POST /graphql` with `{"query", "variables", "operationName"}`; `GET` and `HEAD /healthcheck`
//! Out: GraphQL's answers with status 200, also when they are errors; other statuses for what is no query
//!
//! A web page that somebody opens on this host can send requests here as well. It cannot send
//! `application/json` without asking first, which is never allowed, so other types are refused.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_graphql::ServerError;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::super::store::Store;
use super::super::{AUTHENTICATION, is_token};
use super::{QuerySchema, schema};

/// Connections open at a time; others wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// Largest query; usual ones have some hundred bytes.
const BODY_MAX_BYTES: usize = 1 << 20;
/// How long a connection may be without the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The client of `profilerd task --graphql` waits as long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a connection could not be accepted: without file descriptors it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running server; ends, with its connections, when dropped.
#[derive(Debug)]
pub(in super::super) struct QueryServer {
    local_addr: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for QueryServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl QueryServer {
    /// Starts. Queries are answered when this returns.
    ///
    /// # Errors
    ///
    /// If the address cannot be listened on; the text says what to do.
    pub(in super::super) async fn start(
        listen: SocketAddr,
        store: Arc<Store>,
        token: Option<String>,
    ) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!(
                "failed to listen on {listen} for GraphQL; is another OAP or profilerd running there? \
                 Choose another address with --http-listen, or none with --http-listen off"
            )
        })?;
        let local_addr = listener
            .local_addr()
            .context("failed to read the listening address")?;
        let asked = Arc::new(Asked {
            schema: schema(store),
            token,
        });
        Ok(Self {
            local_addr,
            server: tokio::spawn(accept(listener, asked)),
        })
    }

    pub(in super::super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

/// What every connection needs.
struct Asked {
    schema: QuerySchema,
    token: Option<String>,
}

async fn accept(listener: TcpListener, asked: Arc<Asked>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // never: nobody closes it
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, Arc::clone(&asked), place));
            }
            Err(error) => {
                warn!(%error, "a connection for GraphQL was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, asked: Arc<Asked>, _place: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let asked = Arc::clone(&asked);
        async move { Ok::<_, Infallible>(asked.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection for GraphQL broke off");
    }
}

impl Asked {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthcheck") => empty(StatusCode::OK),
            (&Method::POST, "/graphql") => self.graphql(request).await,
            (_, "/graphql") => allowing(HeaderValue::from_static("POST")),
            (_, "/healthcheck") => allowing(HeaderValue::from_static("GET, HEAD")),
            _ => refused(
                StatusCode::NOT_FOUND,
                "there are POST /graphql and GET /healthcheck",
            ),
        }
    }

    async fn graphql(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let sent = head.headers.get(AUTHENTICATION);
        if !is_token(self.token.as_deref(), sent.map(HeaderValue::as_bytes)) {
            return refused(
                StatusCode::UNAUTHORIZED,
                "the authentication header is missing or wrong",
            );
        }
        if !head.headers.get(CONTENT_TYPE).is_some_and(is_json) {
            return refused(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the Content-Type must be application/json",
            );
        }
        let body = Limited::new(body, BODY_MAX_BYTES).collect();
        let body = match timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => {
                let text = format!("at most {BODY_MAX_BYTES} bytes are read: {error}");
                return refused(StatusCode::PAYLOAD_TOO_LARGE, &text);
            }
            Err(_) => return refused(StatusCode::REQUEST_TIMEOUT, "the query did not arrive"),
        };
        let query: async_graphql::Request = match serde_json::from_slice(&body) {
            Ok(query) => query,
            Err(error) => {
                let text = format!("the body is no JSON of a query: {error}");
                return refused(StatusCode::BAD_REQUEST, &text);
            }
        };
        let answer = timeout(ANSWER_TIMEOUT, self.schema.execute(query)).await;
        let answer = answer.unwrap_or_else(|_| {
            let text = format!("the query took longer than {ANSWER_TIMEOUT:?}");
            errors(text)
        });
        json(StatusCode::OK, &answer)
    }
}

fn is_json(value: &HeaderValue) -> bool {
    let kind = value.as_bytes().split(|byte| *byte == b';').next();
    kind.is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}

fn errors(text: String) -> async_graphql::Response {
    async_graphql::Response::from_errors(vec![ServerError::new(text, None)])
}

fn refused(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    json(status, &errors(text.to_owned()))
}

fn json(status: StatusCode, answer: &async_graphql::Response) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(answer).unwrap_or_default();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn allowing(methods: HeaderValue) -> Response<Full<Bytes>> {
    let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(ALLOW, methods);
    response
}
