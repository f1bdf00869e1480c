//! HTTP for the query side: who may ask, how much, and for how long.
//!
//! In:  `POST /graphql` with `{"query", "variables", "operationName"}`; `GET` and `HEAD /healthcheck`
//! Out: GraphQL's answers with status 200, also when they are errors; other statuses for what is no query
//!
//! A web page that somebody opens on this host can send requests here as well. It cannot send
//! `application/json` without asking first, which is never allowed, so other types are refused.

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
use tokio::time::timeout;

use super::super::door::Door;
use super::super::store::Store;
use super::{QuerySchema, schema};
use crate::http::server::{allowing, content, empty};
use crate::http::{Answer, HttpServer};

/// Largest query; usual ones have some hundred bytes.
const BODY_MAX_BYTES: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The client of `profilerd task --graphql` waits as long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts. Queries are answered when this returns.
///
/// # Errors
///
/// If the address cannot be listened on; the text says what to do.
pub(in super::super) async fn start(
    listen: SocketAddr,
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
    };
    HttpServer::start(listener, asked).context("failed to read the listening address")
}

/// State that all connections share.
struct Asked {
    schema: QuerySchema,
    door: Door,
}

impl Answer for Asked {
    const PURPOSE: &'static str = "GraphQL";

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthcheck") => empty(StatusCode::OK),
            (&Method::POST, "/graphql") => self.graphql(request).await,
            (_, "/graphql") => allowing("POST"),
            (_, "/healthcheck") => allowing("GET, HEAD"),
            _ => refused(
                StatusCode::NOT_FOUND,
                "there are POST /graphql and GET /healthcheck",
            ),
        }
    }
}

impl Asked {
    async fn graphql(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        if let Err(text) = self.door.check_headers(&head.headers) {
            return refused(StatusCode::UNAUTHORIZED, text);
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
                let text = format!("the body is not a GraphQL query in JSON: {error}");
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
    content(status, "application/json", body)
}
