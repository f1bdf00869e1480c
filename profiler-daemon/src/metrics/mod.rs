//! The daemon's own figures for others: as Prometheus' text for monitoring, as JSON for `profilerd status`.
//!
//! In:  `GET /metrics`, `/status.json`, `/healthz` and `/readyz` over HTTP/1.1
//! Out: an [`crate::model::Observation`] of that moment, asked of [`crate::app`] by [`Questions`]
//! Lost: nothing; while the daemon stops or is too busy to answer, the status is 503
//!
//! ```text
//! Prometheus        --/metrics------>  server.rs --Question-->  app
//! profilerd status  --/status.json-->      |     <-Observation-
//!   (client.rs)                        text.rs, or JSON
//! ```
//!
//! Nothing is computed or stored for metrics until they are asked for. docs/metrics.md has every metric; a test
//! compares it with [`text`].

mod client;
mod server;
mod text;

pub use client::ask;
pub use server::{MetricsServer, Question, Questions, listen};
pub use text::text;

/// The [`crate::model::Observation`] as JSON.
const STATUS_PATH: &str = "/status.json";
