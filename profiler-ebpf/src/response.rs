//! Writes to a connection: the response of its open request. Others may be calls of a request.

use profiler_common::{
    EndReason, RESPONSE_HEAD_MAX_BYTES, RequestEventKind, cancel, conn_flag, conn_state, event_flag,
};

use crate::conn::{end_request, forget_replaced, unpack};
use crate::outbound::on_outbound;
use crate::scratch::fetch;
use crate::tag::{self, open_conn};
use crate::tail::{EMPTY_LINE, tail};
use crate::{emit, head, maps, read, socket};

/// Status code of `101 Switching Protocols`.
const SWITCHING_PROTOCOLS: u64 = 101;

/// Interim responses are shorter. The first write of a response that nobody tracks is not looked at
/// if it is longer; what could be missed is `101`, after which no read looks like a head.
const INTERIM_MAX_BYTES: u64 = 64;

/// A write took `len` bytes. `seen` is 0 if they are not in the caller's memory (`sendfile`).
///
/// An interim response (`100 Continue`, `103 Early Hints`) is not yet the response.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_write(key: u64, len: u64, seen: u64) -> u64 {
    let conn_key = unpack(key);
    let mut known = maps::conn(conn_key);
    if known.as_ref().is_some_and(|conn| socket::is_another(conn)) {
        if forget_replaced(key) == 0 {
            return 0;
        }
        known = None;
    }
    let Some(conn) = known else {
        return if seen == 0 { 0 } else { on_outbound(key) };
    };
    let mut code = 0;
    if conn.state == conn_state::OPEN {
        let is_looked_at = conn.flags & conn_flag::TRACKED != 0 || len <= INTERIM_MAX_BYTES;
        if is_looked_at && seen != 0 {
            code = status_code();
        }
        if code / 100 == 1 && code != SWITCHING_PROTOCOLS {
            return 0;
        }
        conn.state = conn_state::RESPONDING;
    } else if conn.state != conn_state::RESPONDING {
        return 0;
    }
    if conn.flags & conn_flag::TRACKED != 0 {
        if maps::take_cancel(conn.request_id) == cancel::REQUEST {
            tag::clear(conn.reader_tid, conn.request_id);
            conn.flags &= !conn_flag::TRACKED;
        } else {
            on_tracked_write(key, len, seen);
        }
    }
    if code == SWITCHING_PROTOCOLS {
        end_request(key, EndReason::Upgraded as u64);
        if let Some(conn) = maps::conn(conn_key) {
            conn.state = conn_state::HALF_CLOSED;
            conn.flags |= conn_flag::UPGRADED;
        }
    }
    0
}

/// Times, threads, the first bytes and the last bytes of a response the daemon wants to know about.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_tracked_write(key: u64, len: u64, seen: u64) -> u64 {
    let conn_key = unpack(key);
    let Some(conn) = maps::conn(conn_key) else {
        return 0;
    };
    let is_first = conn.last_write_ktime_ns == 0;
    let before = conn.written_bytes;
    conn.last_write_ktime_ns = read::ktime_ns();
    conn.written_bytes = before + len;
    conn.tail = if seen == 0 { 0 } else { tail(conn.tail) };
    if conn.flags & conn_flag::WAITS != 0 {
        conn.flags |= conn_flag::WAITED;
    }
    let tid = read::current_ids().1;
    if tid != conn.reader_tid {
        conn.flags |= conn_flag::HANDED_OFF;
    } else if let Some(tag) = maps::thread_tag(tid)
        && tag.request_id != conn.request_id
    {
        // The thread began another request before it finished this one: an event loop.
        conn.flags |= conn_flag::INTERLEAVED;
        if let Some(other) = open_conn(tag) {
            other.flags |= conn_flag::INTERLEAVED;
        }
    }
    if is_first {
        ship(key, RequestEventKind::FirstWrite as u64, seen);
    } else if conn.flags & conn_flag::RESPONSE_SHIPPED == 0 {
        if before < RESPONSE_HEAD_MAX_BYTES as u64 {
            ship(key, RequestEventKind::MoreResponse as u64, seen);
        } else {
            conn.flags |= conn_flag::RESPONSE_SHIPPED;
        }
    }
    0
}

/// Ships the bytes of a write that may belong to the response's head. Whether the head is whole is for the
/// daemon to find out; a write that ends with an empty line is taken for its end.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn ship(key: u64, kind: u64, seen: u64) -> u64 {
    let (Some(scratch), Some(conn)) = (maps::request_scratch(), maps::conn(unpack(key))) else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let len = unsafe { (*scratch).len };
    let copied = if seen == 0 {
        0
    } else {
        fetch(0, RESPONSE_HEAD_MAX_BYTES as u64)
    };
    let is_cut = seen == 0 || copied < len;
    let pieces = conn.flags & conn_flag::PIECES;
    if is_cut || pieces == conn_flag::PIECES || conn.tail >> 32 == EMPTY_LINE {
        conn.flags |= conn_flag::RESPONSE_SHIPPED;
    } else {
        conn.flags += conn_flag::PIECES_ONE;
    }
    let kind = if kind == RequestEventKind::FirstWrite as u64 {
        RequestEventKind::FirstWrite
    } else {
        RequestEventKind::MoreResponse
    };
    let flags = if is_cut { event_flag::HEAD_CUT } else { 0 };
    emit::set_header(kind, conn, unpack(key).fd, flags);
    emit::send(copied)
}

/// The status code in `HTTP/1.x NNN`, the beginning of a response; 0 if the bytes are none.
#[inline(always)]
fn status_code() -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    if fetch(0, 16) < 12 {
        return 0;
    }
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &*scratch };
    // SAFETY: `data` is longer than a word and the struct aligns it.
    let first = unsafe { *scratch.data.as_ptr().cast::<u64>() };
    if first & 0x00ff_ffff_ffff_ffff != u64::from_le_bytes(*b"HTTP/1.\0") {
        return 0;
    }
    let digit = |index| u64::from(head::byte(scratch, index).wrapping_sub(b'0')) % 10;
    100 * digit(9) + 10 * digit(10) + digit(11)
}
