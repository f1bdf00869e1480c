//! Calls that a request makes itself: in a process with a SkyWalking agent their `sw8` header names the
//! segment the agent has for the request.

use profiler_common::{
    HEAD_MAX_BYTES, RequestEventKind, conn_flag, conn_state, event_flag, target_flag,
};

use crate::conn::unpack;
use crate::head::{self, LINE_MAX, line_status, status};
use crate::scratch::fetch;
use crate::tag::open_conn;
use crate::{emit, maps, read};

/// A write to something that is no server's connection; the scratch says where the bytes are. Ships the
/// head if it is one and the thread serves a request that it has not begun to answer.
///
/// What is called afterwards may be work of its own, in a segment of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_outbound(key: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let (target_flags, len) = unsafe { ((*scratch).target_flags, (*scratch).len) };
    if target_flags & target_flag::AGENT == 0 {
        return 0;
    }
    let (_, tid) = read::current_ids();
    if !maps::may_be_tagged(tid) {
        return 0;
    }
    let Some(conn) = maps::thread_tag(tid).and_then(|tag| open_conn(tag)) else {
        return 0;
    };
    let is_counted_out = conn.flags & conn_flag::OUTBOUND == conn_flag::OUTBOUND;
    if conn.state != conn_state::OPEN || is_counted_out {
        return 0;
    }
    let copied = fetch(0, LINE_MAX);
    if copied == 0 || line_status(head::line(copied)) != status::WHOLE {
        return 0;
    }
    conn.flags += conn_flag::OUTBOUND_ONE;
    let copied = fetch(0, HEAD_MAX_BYTES as u64);
    let flags = if len > copied {
        event_flag::HEAD_CUT
    } else {
        0
    };
    emit::set_header(RequestEventKind::Outbound, conn, unpack(key).fd, flags);
    emit::send(copied)
}
