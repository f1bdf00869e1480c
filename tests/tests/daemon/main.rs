//! The daemon's binary against real servers: what it reports, what it leaves behind, what it survives.
//!
//! Needs root and `python3`. Refusals of the command line are tested without servers, in
//! `profiler-daemon/tests/cli.rs`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attached;
mod daemon;
mod endpoints;
mod faults;
mod graphql;
mod guard;
mod loops;
mod metrics;
mod names;
mod record;
mod recording;
mod reload;
mod requests;
mod reuse;
mod server;
mod skywalking;
mod spine;
mod standalone;
mod storage;
mod streams;
mod stuck;
mod text;
mod workers;

use std::time::Duration;

/// Longest wait for anything but the end of a task.
const DEADLINE: Duration = Duration::from_secs(20);
/// A task of one minute, and what ends after it.
const TASK_DEADLINE: Duration = Duration::from_secs(90);
