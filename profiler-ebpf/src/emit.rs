//! Records of the `REQUESTS` ring.

use profiler_common::{
    Conn, HEAD_MAX_BYTES, KernelCounter, RequestEventHeader, RequestEventKind, conn_flag,
    ends_chunks, event_flag,
};

use crate::count::{count, count_all};
use crate::{maps, read};

/// Bits of an event's flags that a connection's flags stand for.
#[inline(always)]
pub(crate) fn flags_of(conn: &Conn) -> u32 {
    let mut flags = 0;
    if conn.flags & conn_flag::HANDED_OFF != 0 {
        flags |= event_flag::OTHER_THREAD;
    }
    if conn.flags & conn_flag::INTERLEAVED != 0 {
        flags |= event_flag::INTERLEAVED;
    }
    if conn.flags & conn_flag::PIPELINED != 0 {
        flags |= event_flag::PIPELINED;
    }
    if conn.flags & conn_flag::WAITED != 0 {
        flags |= event_flag::WAITED;
    }
    if ends_chunks(conn.tail) {
        flags |= event_flag::LAST_CHUNK;
    }
    flags
}

/// Writes the header of an event about the request that is open on `conn` into the scratch.
#[inline(always)]
pub(crate) fn set_header(kind: RequestEventKind, conn: &Conn, fd: i32, flags: u32) {
    let Some(scratch) = maps::request_scratch() else {
        return;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    unsafe { (*scratch).header = header(kind, conn, fd, flags, conn.wait_fd.cast_unsigned()) };
}

/// Sends the end of the request that is open on `conn`.
#[inline(always)]
pub(crate) fn end_event(conn: &Conn, fd: i32, reason: u32) {
    if !send_alone(header(RequestEventKind::End, conn, fd, 0, reason)) {
        count(conn.slot, KernelCounter::RequestRingFull);
    }
}

#[inline(always)]
fn header(
    kind: RequestEventKind,
    conn: &Conn,
    fd: i32,
    flags: u32,
    detail: u32,
) -> RequestEventHeader {
    let (tgid, tid) = read::current_ids();
    RequestEventHeader {
        kind: kind as u32,
        flags: flags | flags_of(conn),
        request_id: conn.request_id,
        ktime_ns: read::ktime_ns(),
        tgid,
        tid,
        fd,
        slot: conn.slot,
        detail,
        data_len: 0,
        start_ktime_ns: conn.start_ktime_ns,
        last_write_ktime_ns: conn.last_write_ktime_ns,
        written_bytes: conn.written_bytes,
    }
}

/// Sends an event about a process that belongs to the tasks in `task_mask`; `fd` and `detail` as the kind has
/// them.
#[inline(always)]
pub(crate) fn process_event(
    kind: RequestEventKind,
    task_mask: u32,
    tgid: u32,
    fd: i32,
    detail: u32,
) {
    let (_, tid) = read::current_ids();
    let is_sent = send_alone(RequestEventHeader {
        kind: kind as u32,
        flags: 0,
        request_id: 0,
        ktime_ns: read::ktime_ns(),
        tgid,
        tid,
        fd,
        slot: 0,
        detail,
        data_len: 0,
        start_ktime_ns: 0,
        last_write_ktime_ns: 0,
        written_bytes: 0,
    });
    if !is_sent {
        count_all(task_mask, KernelCounter::RequestRingFull);
    }
}

/// Sends a header without data; false if the ring is full.
///
/// It is written straight into the ring: process hooks send too, and may do so in the middle of another hook of
/// the same CPU, which would then find its own record overwritten in work space of the CPU.
#[inline(always)]
fn send_alone(header: RequestEventHeader) -> bool {
    let Some(mut record) = maps::reserve_request() else {
        return false;
    };
    record.write(header);
    maps::submit_request(record);
    true
}

/// Sends the header in the scratch and `data_len` bytes behind it; a full ring is counted.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn send(data_len: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    if data_len > HEAD_MAX_BYTES as u64 {
        return 0;
    }
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let header = unsafe { &mut (*scratch).header };
    header.data_len = data_len as u32;
    let slot = header.slot;
    let len = size_of::<RequestEventHeader>() + data_len as usize;
    // SAFETY: `data` follows `header` without a gap, and both together are longer than `len`.
    let record = unsafe {
        core::slice::from_raw_parts(
            scratch.cast::<u8>().add(core::mem::offset_of!(
                crate::scratch::RequestScratch,
                header
            )),
            len,
        )
    };
    if !maps::output_request(record) {
        count(slot, KernelCounter::RequestRingFull);
    }
    0
}
