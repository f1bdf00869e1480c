//! Hands out what the programs wrote to their rings.

use std::os::fd::{AsFd, BorrowedFd};

use super::{BadRecord, Kernel, decode_request, decode_sample};
use crate::model::{RequestEvent, SampleRecord};

/// Most records one call of a drain function hands out, so that a flood cannot hold its caller.
const DRAIN_MAX: usize = 4096;
/// What a ring has in front of each record, `BPF_RINGBUF_HDR_SZ`.
const RECORD_HEADER_BYTES: usize = 8;

/// Bytes that the latest call of each drain function found. What came during the call counts as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// In the ring of request events.
    pub request_bytes: usize,
    /// In the ring of samples.
    pub sample_bytes: usize,
}

/// What a record takes of its ring.
fn ring_bytes(record: &[u8]) -> usize {
    (RECORD_HEADER_BYTES + record.len()).next_multiple_of(RECORD_HEADER_BYTES)
}

impl Kernel {
    /// Hands out the request events that have arrived, at most 4096, and returns their number.
    pub fn drain_requests(
        &mut self,
        mut each: impl FnMut(Result<RequestEvent, BadRecord>),
    ) -> usize {
        let mut drained = 0;
        self.drained.request_bytes = 0;
        while drained < DRAIN_MAX {
            let Some(record) = self.requests.next() else {
                break;
            };
            drained += 1;
            self.drained.request_bytes += ring_bytes(&record);
            let decoded = decode_request(&record);
            drop(record);
            each(decoded);
        }
        if let Some(log) = &mut self.log {
            log.flush();
        }
        drained
    }

    /// Hands out the samples that have arrived, at most 4096, and returns their number. Kernel frames of switch-outs begin
    /// with the scheduler.
    pub fn drain_samples(
        &mut self,
        mut each: impl FnMut(Result<SampleRecord, BadRecord>),
    ) -> usize {
        let mut drained = 0;
        self.drained.sample_bytes = 0;
        while drained < DRAIN_MAX {
            let Some(record) = self.samples.next() else {
                break;
            };
            drained += 1;
            self.drained.sample_bytes += ring_bytes(&record);
            let mut decoded = decode_sample(&record);
            if let Ok(SampleRecord::SwitchOut(out)) = &mut decoded {
                self.states.trim(out);
            }
            drop(record);
            each(decoded);
        }
        drained
    }

    /// How much the latest calls of the drain functions found.
    #[must_use]
    pub fn drained(&self) -> Drained {
        self.drained
    }

    /// Readable when a request event waits.
    #[must_use]
    pub fn request_fd(&self) -> BorrowedFd<'_> {
        self.requests.as_fd()
    }

    /// Readable when [`super::LoadOptions::sample_wakeup_bytes`] of samples wait; drain at every dump
    /// period besides.
    #[must_use]
    pub fn sample_fd(&self) -> BorrowedFd<'_> {
        self.samples.as_fd()
    }
}
