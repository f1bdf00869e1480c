//! HTTP for the query side: who may ask, how much, and for how long.
//!
//! In:  `POST /graphql` with `{"query", "variables", "operationName"}`; `GET` and `HEAD /healthcheck`
//! Out: GraphQL's answers with status 200, also when they are errors; other statuses for what is no query
//!
//! A web page that somebody opens on this host can send requests here as well. It cannot send
//! `application/json` to another origin without asking first, which is never allowed, so other types are refused.
//! That this is not its origin either is checked before ([`crate::http`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_graphql::ServerError;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::super::door::Door;
use super::super::store::Store;
use super::threads::{NoAnswer, Threads};
use super::{QuerySchema, bound, budget, schema};
use crate::http::server::{allowing, content, empty};
use crate::http::{Answer, HttpServer};

/// Largest query; usual ones have some hundred bytes.
const BODY_MAX_BYTES: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The client of `profilerd task --graphql` waits as long.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Time before a refusal: a client that asks for nonsense, or tries tokens, can do so ten times a second on a connection.
const REFUSAL_PAUSE: Duration = Duration::from_millis(100);

/// Starts. Queries are answered when this returns.
///
/// # Errors
///
/// If the address cannot be listened on; the text says what to do.
pub(in super::super) async fn start(
    listen: SocketAddr,
    host_names: &[String],
    store: Arc<Store>,
    door: Door,
) -> Result<HttpServer> {
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!(
            "failed to listen on {listen} for GraphQL; is another OAP or profilerd running there? \
             Choose another address with --http-listen, or none with --http-listen off"
        )
    })?;
    let asked = Asked {
        schema: schema(store),
        door,
        threads: Threads::new(ANSWER_TIMEOUT),
    };
    HttpServer::start(listener, host_names, asked).context("failed to read the listening address")
}

/// What is answered to something that is no query.
type Refusal = Box<Response<Full<Bytes>>>;

/// State that all connections share.
struct Asked {
    schema: QuerySchema,
    door: Door,
    threads: Threads,
}

impl Answer for Asked {
    const PURPOSE: &'static str = "GraphQL";

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthcheck") => empty(StatusCode::OK),
            (&Method::POST, "/graphql") => match self.graphql(request).await {
                Ok(answer) => answer,
                Err(refusal) => {
                    sleep(REFUSAL_PAUSE).await;
                    *refusal
                }
            },
            (_, "/graphql") => allowing("POST"),
            (_, "/healthcheck") => allowing("GET, HEAD"),
            _ => *refused(
                StatusCode::NOT_FOUND,
                "there are POST /graphql and GET /healthcheck",
            ),
        }
    }
}

impl Asked {
    /// The answer to a query, or why it is none.
    async fn graphql(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
        let (head, body) = request.into_parts();
        if let Err(text) = self.door.check_headers(&head.headers) {
            return Err(refused(StatusCode::UNAUTHORIZED, text));
        }
        if !head.headers.get(CONTENT_TYPE).is_some_and(is_json) {
            return Err(refused(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the Content-Type must be application/json",
            ));
        }
        let body = Limited::new(body, BODY_MAX_BYTES).collect();
        let body = match timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => {
                let text = format!("at most {BODY_MAX_BYTES} bytes are read: {error}");
                return Err(refused(StatusCode::PAYLOAD_TOO_LARGE, &text));
            }
            Err(_) => {
                let text = "the query did not arrive";
                return Err(refused(StatusCode::REQUEST_TIMEOUT, text));
            }
        };
        let (schema, runtime) = (self.schema.clone(), Handle::current());
        let work = move || answer(&schema, &body, &runtime);
        self.threads.run(work).await.unwrap_or_else(|why| {
            let text = match why {
                NoAnswer::Late => budget::too_slow(ANSWER_TIMEOUT),
                NoAnswer::Failed => "the query could not be run, see the log".to_owned(),
            };
            Err(Box::new(json(StatusCode::OK, &errors(text))))
        })
    }
}

/// Answers the body of a request, or says why it is no query. Parsing, validation and writing the answer compute without a
/// pause, so this is not for a thread of the runtime; what waits for the store waits on it.
fn answer(
    schema: &QuerySchema,
    body: &[u8],
    runtime: &Handle,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let mut query: async_graphql::Request = serde_json::from_slice(body).map_err(|error| {
        let text = format!("the body is not a GraphQL query in JSON: {error}");
        refused(StatusCode::BAD_REQUEST, &text)
    })?;
    bound::parse(&mut query).map_err(|error| {
        let errors = async_graphql::Response::from_errors(vec![error]);
        Box::new(json(StatusCode::OK, &errors))
    })?;
    let answer = runtime.block_on(schema.execute(query));
    Ok(json(StatusCode::OK, &answer))
}

/// Answers any body as a query about a store of its own.
#[cfg(feature = "fuzzing")]
pub(crate) fn answer_anything(body: &[u8]) {
    use std::sync::LazyLock;

    use super::super::store::StoreLimits;

    static ASKED: LazyLock<(QuerySchema, tokio::runtime::Runtime)> = LazyLock::new(|| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).build();
        let schema = schema(Arc::new(Store::new(StoreLimits::default())));
        (schema, runtime.expect("a thread for the runtime"))
    });
    let (schema, runtime) = &*ASKED;
    let _answer = answer(schema, body, runtime.handle());
}

fn is_json(value: &HeaderValue) -> bool {
    let kind = value.as_bytes().split(|byte| *byte == b';').next();
    kind.is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}

fn errors(text: String) -> async_graphql::Response {
    async_graphql::Response::from_errors(vec![ServerError::new(text, None)])
}

fn refused(status: StatusCode, text: &str) -> Refusal {
    Box::new(json(status, &errors(text.to_owned())))
}

fn json(status: StatusCode, answer: &async_graphql::Response) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(answer).unwrap_or_default();
    content(status, "application/json", body)
}
