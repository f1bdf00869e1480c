//! Turns records of the `REQUESTS` ring into [`RequestEvent`]s.
//!
//! In:  record bytes, written by `profiler-ebpf/src/emit.rs`
//! Out: [`RequestEvent`]
//! Lost: nothing here; a record that does not fit is a [`BadRecord`] for the caller to count
//!
//! # Layout
//!
//! | `RequestEventHeader` 72 B | `data_len` bytes of request or response head |

use profiler_common::{EndReason, MAX_TASKS, RequestEventHeader, RequestEventKind, event_flag};

use super::bad_record::{BadRecord, Reader};
use crate::model::{Pid, RequestEvent, RequestId, TaskSlot, Tid};

const HEADER: usize = size_of::<RequestEventHeader>();

/// Decodes one record.
///
/// # Errors
///
/// The bytes are not what the programs write.
pub fn decode_request(bytes: &[u8]) -> Result<RequestEvent, BadRecord> {
    let mut reader = Reader::new(bytes);
    let header = read_header(&mut reader).ok_or(BadRecord::Short {
        len: bytes.len(),
        header: HEADER,
    })?;
    let data = reader.rest();
    if data.len() != header.data_len as usize {
        return Err(BadRecord::Length {
            len: bytes.len(),
            announced: HEADER.saturating_add(header.data_len as usize),
        });
    }
    let kind = RequestEventKind::from_u32(header.kind).ok_or(BadRecord::Kind(header.kind))?;
    if header.slot >= MAX_TASKS {
        return Err(BadRecord::Slot(header.slot));
    }
    let id = RequestId(header.request_id);
    let (pid, tid) = (Pid(header.tgid), Tid(header.tid));
    Ok(match kind {
        RequestEventKind::Start => RequestEvent::Start {
            id,
            slot: TaskSlot(header.slot),
            pid,
            tid,
            fd: header.fd,
            start_ktime_ns: header.start_ktime_ns,
            flags: header.flags,
            head: data.to_vec(),
        },
        RequestEventKind::FirstWrite => RequestEvent::FirstWrite {
            id,
            tid,
            ktime_ns: header.ktime_ns,
            written_bytes: header.written_bytes,
            flags: header.flags,
            head: data.to_vec(),
            wait_fd: (header.flags & event_flag::WAITED != 0).then(|| header.detail.cast_signed()),
        },
        RequestEventKind::MoreResponse => RequestEvent::MoreResponse {
            id,
            ktime_ns: header.ktime_ns,
            written_bytes: header.written_bytes,
            flags: header.flags,
            bytes: data.to_vec(),
        },
        RequestEventKind::Outbound => RequestEvent::Outbound {
            id,
            head: data.to_vec(),
        },
        RequestEventKind::End => RequestEvent::End {
            id,
            ktime_ns: header.ktime_ns,
            last_write_ktime_ns: header.last_write_ktime_ns,
            written_bytes: header.written_bytes,
            flags: header.flags,
            reason: EndReason::from_u32(header.detail).ok_or(BadRecord::Reason(header.detail))?,
        },
        RequestEventKind::Fork => RequestEvent::Fork {
            parent: pid,
            tid,
            child: Pid(header.detail),
            ktime_ns: header.ktime_ns,
        },
        RequestEventKind::Exec => RequestEvent::Exec {
            pid,
            ktime_ns: header.ktime_ns,
        },
        RequestEventKind::Exit => RequestEvent::Exit {
            pid,
            ktime_ns: header.ktime_ns,
        },
        RequestEventKind::CloseRange => RequestEvent::CloseRange {
            pid,
            first: header.fd.cast_unsigned(),
            last: header.detail,
            ktime_ns: header.ktime_ns,
        },
    })
}

fn read_header(reader: &mut Reader<'_>) -> Option<RequestEventHeader> {
    Some(RequestEventHeader {
        kind: reader.u32()?,
        flags: reader.u32()?,
        request_id: reader.u64()?,
        ktime_ns: reader.u64()?,
        tgid: reader.u32()?,
        tid: reader.u32()?,
        fd: reader.u32()?.cast_signed(),
        slot: reader.u32()?,
        detail: reader.u32()?,
        data_len: reader.u32()?,
        start_ktime_ns: reader.u64()?,
        last_write_ktime_ns: reader.u64()?,
        written_bytes: reader.u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with recognizable numbers; `kind` and `detail` as given.
    fn record(kind: u32, detail: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(5_u32.to_ne_bytes());
        bytes.extend(0x0001_0000_0000_0007_u64.to_ne_bytes());
        bytes.extend(1_000_000_u64.to_ne_bytes());
        for word in [100, 101, 9, 3, detail, data.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [900_000_u64, 990_000, 42] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(data);
        bytes
    }

    /// Check that a start record keeps ids, times and head.
    #[test]
    fn a_start_record_keeps_everything() {
        let bytes = record(1, 0, b"GET / HTTP/1.1\r\n");
        assert_eq!(
            decode_request(&bytes),
            Ok(RequestEvent::Start {
                id: RequestId(0x0001_0000_0000_0007),
                slot: TaskSlot(3),
                pid: Pid(100),
                tid: Tid(101),
                fd: 9,
                start_ktime_ns: 900_000,
                flags: 5,
                head: b"GET / HTTP/1.1\r\n".to_vec(),
            })
        );
    }

    /// Check that a response's first bytes come with the set that the thread had slept on, if it had.
    #[test]
    fn a_response_tells_what_was_waited_for() {
        for (flags, expected) in [(0_u32, None), (event_flag::WAITED, Some(11))] {
            let mut bytes = record(2, 11, b"HTTP/1.1 200 OK");
            bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
            let Ok(RequestEvent::FirstWrite { wait_fd, .. }) = decode_request(&bytes) else {
                panic!("no first write");
            };
            assert_eq!(wait_fd, expected);
        }
    }

    /// Check that an end record keeps its reason and that an unknown reason is refused.
    #[test]
    fn an_end_record_keeps_its_reason() {
        let Ok(RequestEvent::End {
            reason,
            last_write_ktime_ns,
            ..
        }) = decode_request(&record(3, 2, b""))
        else {
            panic!("not an end event");
        };
        assert_eq!(reason, EndReason::PeerClosed);
        assert_eq!(last_write_ktime_ns, 990_000);
        assert_eq!(
            decode_request(&record(3, 99, b"")),
            Err(BadRecord::Reason(99))
        );
    }

    /// Check that a call keeps the request that it was made for, and its head.
    #[test]
    fn an_outbound_record_keeps_its_head() {
        assert_eq!(
            decode_request(&record(8, 0, b"GET / HTTP/1.1\r\n")),
            Ok(RequestEvent::Outbound {
                id: RequestId(0x0001_0000_0000_0007),
                head: b"GET / HTTP/1.1\r\n".to_vec(),
            })
        );
    }

    /// Check that process events name the right process.
    #[test]
    fn process_events_name_the_process() {
        assert_eq!(
            decode_request(&record(4, 55, b"")),
            Ok(RequestEvent::Fork {
                parent: Pid(100),
                tid: Tid(101),
                child: Pid(55),
                ktime_ns: 1_000_000,
            })
        );
        assert_eq!(
            decode_request(&record(7, u32::MAX, b"")),
            Ok(RequestEvent::CloseRange {
                pid: Pid(100),
                first: 9,
                last: u32::MAX,
                ktime_ns: 1_000_000,
            })
        );
    }

    /// Check that cut records, wrong lengths and unknown kinds are errors, not panics.
    #[test]
    fn damaged_records_are_errors() {
        let bytes = record(2, 0, b"HTTP/1.1 200 OK");
        for len in 0..bytes.len() {
            assert!(decode_request(&bytes[..len]).is_err(), "cut at {len}");
        }
        assert_eq!(
            decode_request(&record(10, 0, b"")),
            Err(BadRecord::Kind(10))
        );
        let mut slot = record(1, 0, b"");
        slot[36..40].copy_from_slice(&16_u32.to_ne_bytes());
        assert_eq!(decode_request(&slot), Err(BadRecord::Slot(16)));
        let mut long = record(1, 0, b"");
        long[44..48].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(matches!(
            decode_request(&long),
            Err(BadRecord::Length { .. })
        ));
    }
}
