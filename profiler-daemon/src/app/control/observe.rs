//! Collects the state of the daemon for a request for metrics.
//!
//! In:  the states of control, of the capture thread, of the OAP client and of the process
//! Out: [`Observation`]
//! Lost: a reading of the process that fails; the previous one is used

use std::collections::HashSet;

use super::Control;
use crate::model::clock::unix_ms_now;
use crate::model::{Counter, Observation, ProcessObservation, TaskObservation, Totals};
use crate::process::patience;
use crate::usage::Usage;

/// What control counts for others alone.
#[derive(Debug)]
pub(in crate::app) struct Observed {
    /// Of all tasks.
    pub(super) totals: Totals,
    /// Tasks started.
    pub(super) started: u64,
    /// Tasks refused, for each instance.
    pub(super) refused: u64,
    /// Tasks that could not be armed.
    pub(super) failed: u64,
    start_unix_ms: i64,
    usage: Usage,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            totals: Totals::default(),
            started: 0,
            refused: 0,
            failed: 0,
            start_unix_ms: unix_ms_now(),
            usage: Usage::default(),
        }
    }
}

impl Observed {
    pub(in crate::app) fn process(&mut self) -> ProcessObservation {
        match Usage::now() {
            Ok(usage) => self.usage = usage,
            Err(error) => tracing::debug!(%error, "the process cannot be inspected"),
        }
        ProcessObservation {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_unix_ms: self.start_unix_ms,
            cpu_seconds: self.usage.cpu.as_secs_f64(),
            resident_bytes: self.usage.rss_bytes,
            open_fds: self.usage.open_fds,
        }
    }
}

impl Control {
    /// The state of the daemon. No other thread is woken for it.
    pub(super) fn observe(&mut self) -> Observation {
        let delivery = self.oap.observe();
        let count = |counter: Counter| {
            let count = match counter {
                // Known by the client alone.
                Counter::SnapshotsSent => delivery.snapshots_sent,
                Counter::SnapshotsLost => delivery.snapshots_lost,
                Counter::RequestsIncomplete => delivery.requests_incomplete,
                _ => self.observed.totals.get(counter),
            };
            (counter.name().to_owned(), count)
        };
        Observation {
            counters: Counter::all().map(count).collect(),
            process: self.observed.process(),
            obstacles: self.obstacles(),
            tasks: self.tasks(),
            capture: self.pipeline.observe(),
            discovery: self.discovery.observe(),
            delivery,
        }
    }

    fn tasks(&self) -> TaskObservation {
        let services: Vec<&str> = self
            .processes
            .instances()
            .map(|identity| identity.service.name.as_str())
            .collect();
        TaskObservation {
            live: self.live.len() as u64,
            waiting: self.waiting.len() as u64,
            started: self.observed.started,
            refused: self.observed.refused,
            failed: self.observed.failed,
            period_factor: self.overhead.stretch().into(),
            processes: self.processes.iter().count() as u64,
            processes_left_out: patience::left_out() as u64,
            processes_refused: self
                .processes
                .iter()
                .filter(|process| process.denial.is_some())
                .count() as u64,
            instances: services.len() as u64,
            services: services.iter().collect::<HashSet<_>>().len() as u64,
            requests_unbound: self.bindings.waiting() as u64,
        }
    }
}
