//! A request begins.

use profiler_common::{
    Conn, ConnKey, HEAD_MAX_BYTES, KernelCounter, RequestEventKind, conn_flag, conn_state,
    event_flag, setting_flag,
};

use crate::conn::{BUSY, unpack};
use crate::count::{count, count_all};
use crate::globals::setting;
use crate::head::LINE_MAX;
use crate::rule::NO_SLOT;
use crate::scratch::{fetch, scratch_program};
use crate::tag::{self, set_result, set_tag};
use crate::{emit, maps, read, socket};

/// Opens a request on a connection whose previous one has ended.
///
/// `slot` is the task that wants it, or `NO_SLOT`. The line is in the scratch's data; `joined` bytes
/// of it came in earlier reads. A request that no task wants gets a record all the same: what follows
/// on the connection is then known to be its body, and not mistaken for a head.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn start_request(key: u64, sk: u64, slot: u64, joined: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let task_mask = unsafe { (*scratch).task_mask };
    let conn_key = unpack(key);
    if sk == BUSY || maps::conn(conn_key).is_some_and(|conn| conn.sk == BUSY) {
        // Another thread is taking away the record of the descriptor's previous connection.
        count_all(task_mask, KernelCounter::HookBusy);
        return 0;
    }
    let mut slot = slot;
    let mut request_id = 0;
    let mut flags = 0;
    if slot != NO_SLOT {
        request_id = next_request_id();
        match set_tag(request_id, slot, u64::from(conn_key.fd.cast_unsigned())) {
            set_result::FULL => {
                count(slot as u32, KernelCounter::TagsFull);
                slot = NO_SLOT;
                request_id = 0;
            }
            set_result::INTERLEAVED => flags = conn_flag::TRACKED | conn_flag::INTERLEAVED,
            _ => flags = conn_flag::TRACKED,
        }
    }
    if !open(conn_key, sk, request_id, slot as u32, flags) {
        count_all(task_mask, KernelCounter::MapUpdateFailed);
        if slot != NO_SLOT {
            tag::clear(read::current_ids().1, request_id);
        }
        return 0;
    }
    if slot != NO_SLOT {
        send_start(conn_key, joined);
    }
    0
}

/// What a connection's record is before it is filled in. In read-only memory, since the stack has no room for it.
#[unsafe(no_mangle)]
static NEW: Conn = Conn {
    sk: BUSY,
    inode: 0,
    request_id: 0,
    start_ktime_ns: 0,
    last_write_ktime_ns: 0,
    written_bytes: 0,
    tail: 0,
    reader_tid: 0,
    state: conn_state::IDLE,
    flags: 0,
    slot: 0,
    wait_fd: -1,
    program: 0,
};

/// Writes the connection's record.
#[inline(always)]
fn open(key: ConnKey, sk: u64, request_id: u64, slot: u32, flags: u32) -> bool {
    let program = scratch_program();
    let start_ktime_ns = if request_id == 0 { 0 } else { read::ktime_ns() };
    let reader_tid = read::current_ids().1;
    let inode = socket::inode_number(sk);
    if maps::conn(key).is_none() && !maps::insert_conn(key, &NEW) {
        return false;
    }
    let Some(conn) = maps::conn(key) else {
        return false;
    };
    conn.inode = inode;
    conn.request_id = request_id;
    conn.start_ktime_ns = start_ktime_ns;
    conn.last_write_ktime_ns = 0;
    conn.written_bytes = 0;
    conn.tail = 0;
    conn.reader_tid = reader_tid;
    conn.state = conn_state::OPEN;
    conn.flags = flags;
    conn.slot = slot;
    conn.wait_fd = -1;
    conn.program = program;
    // The last: nobody touches the record before.
    // SAFETY: a reference is valid for writes.
    unsafe { core::ptr::write_volatile(&raw mut conn.sk, sk) };
    true
}

/// Ships the head.
#[inline(always)]
fn send_start(key: ConnKey, joined: u64) {
    let (Some(scratch), Some(conn)) = (maps::request_scratch(), maps::conn(key)) else {
        return;
    };
    if joined > LINE_MAX {
        return;
    }
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let len = unsafe { (*scratch).len };
    let mut copied = fetch(joined, HEAD_MAX_BYTES as u64 - joined);
    if copied == 0 {
        // The line was readable a moment ago and is still in the scratch.
        count(conn.slot, KernelCounter::HeadUnreadable);
        copied = if len < LINE_MAX - joined {
            len
        } else {
            LINE_MAX - joined
        };
    }
    let mut flags = 0;
    if len > copied {
        flags |= event_flag::HEAD_CUT;
    }
    if joined != 0 {
        flags |= event_flag::JOINED;
    }
    if !setting(setting_flag::SOCKET_CHECK) {
        flags |= event_flag::SOCKET_UNCHECKED;
    }
    emit::set_header(RequestEventKind::Start, conn, key.fd, flags);
    emit::send(joined + copied);
}

/// A number no other request has while the programs stay loaded, made of the thread that begins it and the time,
/// since no count can be raised and read in one step before Linux 5.12. A thread takes longer than the unit of
/// time to begin two requests; the 42 bits of time last for 13 days, and only the same thread could meet one of
/// its old numbers then.
#[inline(always)]
fn next_request_id() -> u64 {
    /// The other 22 hold any thread's number: `PID_MAX_LIMIT`.
    const TIME_BITS: u32 = 42;
    /// 256 ns.
    const UNIT_BITS: u32 = 8;
    let tid = u64::from(read::current_ids().1);
    tid << TIME_BITS | read::ktime_ns() >> UNIT_BITS & ((1 << TIME_BITS) - 1)
}
