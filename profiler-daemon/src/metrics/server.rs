//! Answers scrapes. Everybody who reaches the port may ask, so no figure is about a single service.
//!
//! In:  `GET` and `HEAD` of `/metrics`, `/status.json`, `/healthz`, `/readyz`
//! Out: [`Question`]s to the daemon; its answers as text or JSON
//! Lost: nothing

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{STATUS_PATH, text};
use crate::http::server::{PLAIN, allowing, content};
use crate::http::{Answer, HttpServer};
use crate::model::Observation;

/// Questions that may wait for the daemon; more wait for their place.
const QUESTIONS_MAX: usize = 16;
/// How long the daemon may take. It may be reading `/proc` or writing to a disk; Prometheus waits 10 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request for the state of the daemon.
#[derive(Debug)]
pub struct Question(oneshot::Sender<Observation>);

impl Question {
    /// Answers it.
    pub fn answer(self, observation: Observation) {
        // The client may have gone.
        let _ = self.0.send(observation);
    }
}

/// The questions, for the daemon.
#[derive(Debug, Default)]
pub struct Questions(Option<mpsc::Receiver<Question>>);

impl Questions {
    /// The next one. If nobody can ask, it never comes.
    pub async fn next(&mut self) -> Question {
        if let Some(questions) = &mut self.0
            && let Some(question) = questions.recv().await
        {
            return question;
        }
        std::future::pending().await
    }
}

/// Takes an address, before privileges are given up and before anything is started.
///
/// # Errors
///
/// It cannot be listened on; the text names it and the flag.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!(
            "failed to listen on {address} for metrics; is another profilerd running there? Choose another \
             address with --metrics, or none with --metrics off"
        )
    })?;
    listener
        .set_nonblocking(true)
        .context("failed to set up the metrics' socket")?;
    Ok(listener)
}

/// The running server; ends, with its connections, when dropped.
#[derive(Debug)]
pub struct MetricsServer(HttpServer);

impl MetricsServer {
    /// Starts on the current tokio runtime; `host_names` are names by which it may be asked, beside its address
    /// and the names of this host.
    ///
    /// # Errors
    ///
    /// The socket cannot be waited for.
    pub fn start(listener: TcpListener, host_names: &[String]) -> Result<(Self, Questions)> {
        let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
        let server = tokio::net::TcpListener::from_std(listener)
            .and_then(|listener| HttpServer::start(listener, host_names, Metrics { ask }))
            .context("failed to serve metrics")?;
        Ok((Self(server), Questions(Some(questions))))
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }
}

struct Metrics {
    ask: mpsc::Sender<Question>,
}

impl Answer for Metrics {
    const PURPOSE: &'static str = "metrics";

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !["/metrics", STATUS_PATH, "/healthz", "/readyz"].contains(&path) {
            let text = "there are /metrics, /status.json, /healthz and /readyz\n";
            return content(StatusCode::NOT_FOUND, PLAIN, text);
        }
        if !matches!(request.method(), &Method::GET | &Method::HEAD) {
            return allowing("GET, HEAD");
        }
        let Some(observation) = self.observation().await else {
            let text = "profilerd is stopping, or too busy to answer\n";
            return content(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text);
        };
        match path {
            "/metrics" => content(StatusCode::OK, CONTENT_TYPE, text(&observation)),
            STATUS_PATH => {
                let body = serde_json::to_vec(&observation).unwrap_or_default();
                content(StatusCode::OK, "application/json", body)
            }
            "/readyz" => match observation.obstacles.as_slice() {
                [] => content(StatusCode::OK, PLAIN, "ready\n"),
                obstacles => {
                    let text = obstacles.join("\n") + "\n";
                    content(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
                }
            },
            _ => content(StatusCode::OK, PLAIN, "ok\n"),
        }
    }
}

impl Metrics {
    async fn observation(&self) -> Option<Observation> {
        let asked = async {
            let (answer, answered) = oneshot::channel();
            self.ask.send(Question(answer)).await.ok()?;
            answered.await.ok()
        };
        timeout(ANSWER_TIMEOUT, asked).await.ok().flatten()
    }
}
