//! Requests as they are counted and measured, and the endpoints that services have shown.

use std::sync::Arc;

use serde::Serialize;

use super::{ProcessKey, Service};

/// A process whose requests are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The process.
    pub process: ProcessKey,
    /// The instance it reports as.
    pub service: Arc<Service>,
}

/// A request that was seen to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRequest {
    /// The instance that it was for.
    pub service: Arc<Service>,
    /// Name of its endpoint; none for what no endpoint can name.
    pub endpoint: Option<String>,
    /// HTTP status, if a status line was seen.
    pub status: Option<u16>,
    /// From the head read to the last write; none without a response.
    pub duration_ns: Option<u64>,
}

/// Counts of requests that were not seen, or not to their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// Requests that were still open when the look ended.
    pub still_open: u64,
    /// Requests beyond the number that can be followed at once.
    pub over_limit: u64,
    /// Heads behind another one in the same read: the client pipelines.
    pub pipelined: u64,
    /// Heads that could not be parsed.
    pub malformed: u64,
    /// Events lost to a full ring buffer, and records that could not be decoded.
    pub events_lost: u64,
}

impl Unseen {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self {
            still_open,
            over_limit,
            pipelined,
            malformed,
            events_lost,
        } = *self;
        still_open + over_limit + pipelined + malformed + events_lost
    }
}

/// Figures of an endpoint over a look.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EndpointFigures {
    /// Service.
    pub service: String,
    /// Name of the endpoint, as a task takes it; `other endpoints` for the rest.
    pub endpoint: String,
    /// Whether a task can be created for it: the rest has no name.
    pub has_name: bool,
    /// Requests seen to their end.
    pub requests: u64,
    /// Of them, those with a status from 400 to 499.
    pub client_errors: u64,
    /// Of them, those with a status from 500.
    pub server_errors: u64,
    /// Of them, those that ended without a response.
    pub unanswered: u64,
    /// Half of the responses took at most this long, milliseconds; two digits count.
    pub p50_ms: f64,
    /// 95 % of them.
    pub p95_ms: f64,
    /// 99 % of them.
    pub p99_ms: f64,
    /// The longest.
    pub longest_ms: f64,
}

impl EndpointFigures {
    /// Errors of the server and requests without a response, as a part of all requests.
    #[must_use]
    pub fn error_share(&self) -> f64 {
        (self.server_errors + self.unanswered) as f64 / self.requests.max(1) as f64
    }
}
