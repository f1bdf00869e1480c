//! Hands out what the programs wrote to their rings.

use std::os::fd::{AsFd, BorrowedFd};

use profiler_common::{ConnKey, EndReason, conn_flag};

use super::{BadRecord, Kernel, RequestRecord, decode_request, decode_sample};
use crate::model::{Pid, RawSample, RequestEvent, RequestId};

/// Most records one call of a drain function hands out, so that a flood cannot hold its caller.
const DRAIN_MAX: usize = 4096;
/// What a ring has in front of each record, `BPF_RINGBUF_HDR_SZ`.
const RECORD_HEADER_BYTES: usize = 8;

/// Bytes that the latest call of each drain function found. What came during the call counts as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// In the ring of request events.
    pub request_bytes: usize,
    /// In the ring of on-CPU samples.
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
        let mut closed_range = None;
        while drained < DRAIN_MAX {
            let Some(record) = self.requests.next() else {
                break;
            };
            drained += 1;
            self.drained.request_bytes += ring_bytes(&record);
            let decoded = decode_request(&record);
            drop(record);
            match decoded {
                Ok(RequestRecord::Event(event)) => {
                    closed_range = None;
                    each(Ok(event));
                }
                Ok(RequestRecord::CloseRange {
                    pid,
                    first,
                    last,
                    ktime_ns,
                }) => {
                    // The socket hooks tell of a range once for each socket in it.
                    let range = Some((pid, first, last));
                    if closed_range != range {
                        self.close_range(pid, first, last, ktime_ns, &mut each);
                    }
                    closed_range = range;
                }
                Err(bad) => each(Err(bad)),
            }
        }
        if let Some(log) = &mut self.log {
            log.flush();
        }
        drained
    }

    /// Ends the requests on a closed range of descriptors, as the programs do for a single one.
    fn close_range(
        &mut self,
        pid: Pid,
        first: u32,
        last: u32,
        ktime_ns: u64,
        each: &mut impl FnMut(Result<RequestEvent, BadRecord>),
    ) {
        let closed =
            |key: &ConnKey| key.tgid == pid.0 && (first..=last).contains(&key.fd.cast_unsigned());
        for (key, conn) in self.maps.conns.entries() {
            if !closed(&key) {
                continue;
            }
            let id = RequestId(conn.request_id);
            let removed = self.cancel(id).and_then(|()| self.maps.conns.remove(&key));
            if let Err(error) = removed {
                tracing::warn!(%error, tgid = pid.0, "a closed connection was not forgotten");
            }
            if conn.flags & conn_flag::TRACKED != 0 {
                each(Ok(RequestEvent::End {
                    id,
                    ktime_ns,
                    last_write_ktime_ns: conn.last_write_ktime_ns,
                    written_bytes: conn.written_bytes,
                    flags: 0,
                    reason: EndReason::Closed,
                }));
            }
        }
    }

    /// Hands out the samples that have arrived, at most 4096, and returns their number.
    pub fn drain_samples(&mut self, mut each: impl FnMut(Result<RawSample, BadRecord>)) -> usize {
        let mut drained = 0;
        self.drained.sample_bytes = 0;
        while drained < DRAIN_MAX {
            let Some(record) = self.samples.next() else {
                break;
            };
            drained += 1;
            self.drained.sample_bytes += ring_bytes(&record);
            each(decode_sample(&record));
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
