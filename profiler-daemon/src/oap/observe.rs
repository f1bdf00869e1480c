//! The state of the client, for metrics. Reading it never waits for the OAP or a disk.
//!
//! In:  what [`super::link`] sees; the counts of [`super::queue`]
//! Out: [`DeliveryObservation`]

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::OapHandle;
use crate::model::DeliveryObservation;

/// How far the connection is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Contact {
    /// None was made yet.
    #[default]
    Waiting,
    /// A port is open; no call was made that an OAP could have answered.
    Open,
    /// An OAP has answered.
    Answered,
    /// There is none, for this reason.
    Lost(String),
}

/// The connection, as its keeper and its callers see it.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    contact: Mutex<Contact>,
    connections: AtomicU64,
    /// Calls that an OAP has answered.
    answers: AtomicU64,
    /// 0 before the first.
    last_answer_unix_ms: AtomicI64,
}

impl LinkState {
    /// A connection was made; an open port is no OAP yet.
    pub(super) fn on_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        *self.contact() = Contact::Open;
    }

    /// An OAP has answered on the present connection.
    pub(super) fn set_connected(&self) {
        *self.contact() = Contact::Answered;
    }

    /// There is no connection.
    pub(super) fn set_disconnected(&self, reason: &str) {
        *self.contact() = Contact::Lost(reason.to_owned());
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call was answered.
    pub(super) fn on_answer(&self, unix_ms: i64) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.last_answer_unix_ms.store(unix_ms, Ordering::Relaxed);
    }

    /// Calls that were answered so far.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

impl OapHandle {
    /// How far the connection to an OAP is.
    #[must_use]
    pub fn contact(&self) -> Contact {
        self.state.contact().clone()
    }

    /// The state of the client.
    #[must_use]
    pub fn observe(&self) -> DeliveryObservation {
        let (total, used) = self.queue.observe();
        let (spool_files, spool_bytes) = self.queue.spooled();
        let last_answer_unix_ms = self.state.last_answer_unix_ms.load(Ordering::Relaxed);
        DeliveryObservation {
            is_connected: self.contact() == Contact::Answered,
            connections: self.state.connections.load(Ordering::Relaxed),
            last_answer_unix_ms: (last_answer_unix_ms != 0).then_some(last_answer_unix_ms),
            clock_skew_ms: self.skew.difference_ms().unwrap_or(0),
            snapshots_sent: total.snapshots_sent,
            snapshots_lost: total.snapshots_lost,
            requests_incomplete: total.requests_incomplete,
            segments_sent: total.segments_sent,
            segments_lost: total.segments_lost,
            ends_reported: total.finished,
            queued_snapshots: used.snapshots as u64,
            queued_bytes: used.bytes as u64,
            spool_bytes,
            spool_files: spool_files as u64,
        }
    }
}
