//! Writes to a connection: the response of its open request. Others may be calls of a request.

use profiler_common::{
    Conn, EndReason, RESPONSE_HEAD_MAX_BYTES, RequestEventKind, cancel, conn_flag, conn_state,
    event_flag,
};

use crate::conn::{end_request, forget_replaced, living, unpack};
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
/// An interim response (`100 Continue`, `103 Early Hints`) is not yet the response, which may follow it in the
/// same write.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_write(key: u64, len: u64, seen: u64) -> u64 {
    let conn_key = unpack(key);
    let mut len = len;
    let mut known = living(conn_key);
    if known
        .as_ref()
        .is_some_and(|conn| socket::is_another(key, conn))
    {
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
        if is_interim(code) {
            code = status_behind_interim();
            if is_interim(code) {
                return 0;
            }
            len = bytes_left();
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
            on_tracked_write(conn, key, len, seen);
        }
    }
    if code == SWITCHING_PROTOCOLS {
        end_request(key, EndReason::Upgraded as u64, conn.request_id);
        if let Some(conn) = maps::conn(conn_key) {
            conn.state = conn_state::HALF_CLOSED;
            conn.flags |= conn_flag::UPGRADED;
        }
    }
    0
}

/// Times, threads, the first bytes and the last bytes of a response the daemon wants to know about.
#[inline(always)]
fn on_tracked_write(conn: &mut Conn, key: u64, len: u64, seen: u64) {
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

/// Interim responses in front of a response in one write.
const INTERIM_HEADS_MAX: u32 = 4;

/// Whether a status code is of a response that another one follows.
#[inline(always)]
fn is_interim(code: u64) -> bool {
    code / 100 == 1 && code != SWITCHING_PROTOCOLS
}

/// The write in the scratch begins with an interim response. Leaves that and those that follow it out of the scratch;
/// the status code of what is behind, 0 if that is not known, an interim one if nothing is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn status_behind_interim() -> u64 {
    /// `100 Continue`.
    const INTERIM: u64 = 100;
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let mut heads = 0;
    while heads < INTERIM_HEADS_MAX {
        let end = head_end();
        if end == 0 {
            // Its rest comes later, or the head is too long to be looked through.
            let is_whole = scratch.len <= RESPONSE_HEAD_MAX_BYTES as u64;
            return if is_whole { INTERIM } else { 0 };
        }
        if end >= scratch.len {
            return INTERIM;
        }
        scratch.advance(end);
        let code = status_code();
        if !is_interim(code) {
            return code;
        }
        heads += 1;
    }
    0
}

/// Bytes of the system call that are left in the scratch.
#[inline(always)]
fn bytes_left() -> u64 {
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    maps::request_scratch().map_or(0, |scratch| unsafe { (*scratch).len })
}

/// Bytes up to the end of the first empty line; 0 if none ends in the first [`RESPONSE_HEAD_MAX_BYTES`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn head_end() -> u64 {
    let copied = fetch(0, RESPONSE_HEAD_MAX_BYTES as u64);
    let mut at = 0;
    while at < RESPONSE_HEAD_MAX_BYTES as u64 {
        if at >= copied {
            return 0;
        }
        let end = empty_line_end(at);
        if end != 0 {
            // Behind what was copied lie bytes of another call.
            return if end <= copied { end } else { 0 };
        }
        at += 8;
    }
    0
}

/// End of an empty line that begins in the eight bytes at a multiple of eight; 0 if none does.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn empty_line_end(at: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    let at = read::opaque(at & (RESPONSE_HEAD_MAX_BYTES as u64 - 8));
    // SAFETY: the pointer is to this CPU's element, whose data is longer by more than a word and aligned to one.
    let [now, next] = unsafe {
        let words = (*scratch).data.as_ptr().add(at as usize).cast::<u64>();
        [*words, *words.add(1)]
    };
    let mut bytes = now;
    let mut index = 0;
    while index < 8 {
        if bytes & 0xffff_ffff == EMPTY_LINE {
            return at + index + 4;
        }
        bytes = bytes >> 8 | (next >> (8 * index) & 0xff) << 56;
        index += 1;
    }
    0
}

/// The status code in `HTTP/1.x NNN`, the beginning of a response; 0 if the bytes are none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn status_code() -> u64 {
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
