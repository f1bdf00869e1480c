//! The request state machine of a connection: reads, and what ends a request.
//!
//! ```text
//! IDLE --head--> OPEN --write--> RESPONDING --write--> RESPONDING
//!  ^              | ^ read: body   |
//!  |              +-+              | head, close, ...: END
//!  +-------------------------------+          shutdown: END, HALF_CLOSED until close;
//!                                             with the socket hooks forgotten like a close
//! ```
//!
//! A head read while the request before it is still unanswered never opens another one: it is a
//! body that looks like a head, or pipelining, which is counted. A client that closes its side may
//! still wait for the answer or the rest of it (a half-closed connection): end of file ends no request
//! while something can be sent.

use profiler_common::{
    Conn, ConnKey, EndReason, KernelCounter, Line, RequestEventKind, cancel, conn_flag, conn_state,
    setting_flag,
};

use crate::count::count_all;
use crate::globals::setting;
use crate::head::{line_status, read_line, status};
use crate::partial::{join_piece, keep_piece};
use crate::rule::{NO_SLOT, match_rules};
use crate::scratch::scratch_program;
use crate::socket::{names_socket, same_socket, server_socket};
use crate::start::start_request;
use crate::{emit, maps, read, socket, tag};

/// [`Conn::sk`] of a record that a hook is filling in or taking away. Nobody else touches such a record: threads of a
/// process close and open the same descriptor at the same time.
pub(crate) const BUSY: u64 = 0;

/// Flags that outlive a request on the connection.
const LASTING_FLAGS: u32 = conn_flag::UPGRADED | conn_flag::PARTIAL;

/// A connection's key as one integer, for functions that take only those.
#[inline(always)]
pub(crate) fn pack(tgid: u32, fd: i32) -> u64 {
    u64::from(tgid) << 32 | u64::from(fd.cast_unsigned())
}

/// The reverse of [`pack`].
#[inline(always)]
pub(crate) fn unpack(key: u64) -> ConnKey {
    ConnKey {
        tgid: (key >> 32) as u32,
        fd: (key as u32).cast_signed(),
    }
}

/// The record of a descriptor, unless it is of a process or a program that is gone: then that is removed. Nobody
/// goes through all records when a process ends.
#[inline(always)]
pub(crate) fn living(key: ConnKey) -> Option<&'static mut Conn> {
    let conn = maps::conn(key)?;
    if conn.program == scratch_program() || conn.sk == BUSY {
        return Some(conn);
    }
    maps::remove_conn(key);
    None
}

/// A read brought bytes; the scratch says where they are.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_read(key: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let (task_mask, tid) = unsafe { ((*scratch).task_mask, (*scratch).tid as u32) };
    let fd = u64::from(key as u32);
    let mut known = living(unpack(key));
    if known
        .as_ref()
        .is_some_and(|conn| socket::is_another(key, conn))
    {
        if forget_replaced(key) == 0 {
            return 0;
        }
        known = None;
    }
    if let Some(conn) = &known
        && conn.flags & conn_flag::PARTIAL != 0
    {
        return join_piece(key, conn.sk);
    }
    let line = read_line();
    let begins = line_status(line);
    if Line(line).skip() == 0 {
        if begins != status::SKIP {
            count_all(task_mask, KernelCounter::HeadUnreadable);
        }
        return 0;
    }
    if begins != status::NO {
        tag::on_other_head(key, begins);
    }
    let mut sk;
    if let Some(conn) = known {
        if conn.state == conn_state::OPEN && conn.reader_tid != tid {
            conn.flags |= conn_flag::HANDED_OFF;
        }
        let closing = conn.state == conn_state::OPEN || conn.state == conn_state::HALF_CLOSED;
        if begins == status::NO || closing && begins < status::TARGET {
            return 0;
        }
        if conn.state != conn_state::HALF_CLOSED && socket::is_shut_down() {
            // Of a Unix socket that is not seen when it happens.
            on_close(key, EndReason::Shutdown as u64, conn.sk);
            count_all(task_mask, KernelCounter::HeadAfterShutdown);
            return 0;
        }
        if begins == status::WHOLE && !closing {
            // Its previous request has been answered. Most are of no task: those get their record without a
            // look at the socket.
            let slot = match_rules(task_mask.into(), line);
            if slot != NO_SLOT {
                return on_wanted_head(key, slot, task_mask.into());
            }
            if conn.flags & conn_flag::TRACKED != 0 {
                end_request(key, EndReason::NextHead as u64, conn.request_id);
            }
            conn.state = conn_state::OPEN;
            conn.flags = 0;
            conn.reader_tid = tid;
            return 0;
        }
        sk = same_socket(fd, conn.sk, conn.inode);
        if sk != conn.sk {
            sk = replace_socket(key, conn.sk);
        } else if conn.state == conn_state::OPEN {
            conn.flags |= conn_flag::PIPELINED;
            count_all(task_mask, KernelCounter::PipelinedHeads);
            return 0;
        } else if conn.state == conn_state::HALF_CLOSED {
            if conn.flags & conn_flag::UPGRADED == 0 {
                count_all(task_mask, KernelCounter::HeadAfterShutdown);
            }
            return 0;
        }
    } else if begins == status::NO {
        return 0;
    } else {
        sk = server_socket(fd);
    }
    if sk == 0 {
        if begins >= status::TARGET {
            count_all(task_mask, KernelCounter::NotServerSocket);
        }
        return 0;
    }
    if socket::is_shut_down() {
        count_all(task_mask, KernelCounter::HeadAfterShutdown);
        return 0;
    }
    if begins == status::WHOLE {
        start_request(key, sk, match_rules(task_mask.into(), line), 0)
    } else {
        keep_piece(key, sk, line)
    }
}

/// A head that a task wants, on a connection whose previous request has been answered.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_wanted_head(key: u64, slot: u64, task_mask: u64) -> u64 {
    let fd = u64::from(key as u32);
    let sk = match maps::conn(unpack(key)) {
        Some(conn) => {
            let known = conn.sk;
            if same_socket(fd, known, conn.inode) == known {
                end_if_tracked(key);
                return start_request(key, known, slot, 0);
            }
            replace_socket(key, known)
        }
        // The thread that has closed the previous connection has taken away its record since the caller's look.
        None => server_socket(fd),
    };
    if sk == 0 {
        count_all(task_mask as u32, KernelCounter::NotServerSocket);
        return 0;
    }
    start_request(key, sk, slot, 0)
}

/// Forgets a connection whose close was not seen (io_uring, close on exec): the descriptor is another
/// one now. Its socket if that is a server's, else 0.
#[inline(always)]
fn replace_socket(key: u64, sk: u64) -> u64 {
    on_close(key, EndReason::SocketReplaced as u64, sk);
    server_socket(u64::from(key as u32))
}

/// The record of a descriptor is of another socket than a socket hook was given. Ends its request
/// and forgets it, unless the descriptor still names the record's socket: then the bytes are of
/// another call, which io_uring finishes at the end of this one. 0 if so.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn forget_replaced(key: u64) -> u64 {
    let Some(conn) = maps::conn(unpack(key)) else {
        return 1;
    };
    let sk = conn.sk;
    if names_socket(u64::from(key as u32), sk, conn.inode) != 0 {
        return 0;
    }
    on_close(key, EndReason::SocketReplaced as u64, sk);
    1
}

/// Ends the request before the one whose head was just read. One that is not tracked needs no end:
/// the next one overwrites it.
#[inline(always)]
pub(crate) fn end_if_tracked(key: u64) {
    if let Some(conn) = maps::conn(unpack(key))
        && conn.flags & conn_flag::TRACKED != 0
    {
        end_request(key, EndReason::NextHead as u64, conn.request_id);
    }
}

/// A read returned 0: the client sends no more. It may still wait for the rest of its answer, unless nothing can be
/// sent any more either: it has closed its Unix socket, or reset the connection.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_end_of_file(key: u64) -> u64 {
    let Some(conn) = living(unpack(key)) else {
        return 0;
    };
    if socket::is_another(key, conn) {
        forget_replaced(key);
    } else if conn.state == conn_state::RESPONDING && socket::is_shut_down() {
        end_request(key, EndReason::PeerClosed as u64, conn.request_id);
    }
    0
}

/// A call has closed the descriptor, or duplicated another one over it, and is about to return. Another thread may
/// have been given the descriptor meanwhile, and have read a head from it: the record is of that socket then.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_closed(key: u64, reason: u64) -> u64 {
    let Some(conn) = living(unpack(key)) else {
        return 0;
    };
    let sk = conn.sk;
    if names_socket(u64::from(key as u32), sk, conn.inode) == 0 {
        on_close(key, reason, sk);
    }
    0
}

/// A socket is closed, which had the descriptor. Ends its request and forgets it, unless the descriptor's record is of
/// another one: the caller has looked at it a while ago, and another thread may have been given the descriptor and have
/// read a head from it since.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_close(key: u64, reason: u64, sk: u64) -> u64 {
    let conn_key = unpack(key);
    let Some(conn) = living(conn_key) else {
        return 0;
    };
    // Without a call in between. An exchange in one step would be better, but Linux 5.10 has none.
    if sk == BUSY || conn.sk != sk {
        return 0;
    }
    conn.sk = BUSY;
    if conn.flags & conn_flag::PARTIAL != 0 {
        maps::remove_partial_head(conn_key);
    }
    end_request(key, reason, conn.request_id);
    maps::remove_conn(conn_key);
    0
}

/// Descriptors of a closed range that are looked at here; the daemon looks at the rest, later.
const CLOSE_RANGE_MAX: u64 = 64;

/// The descriptors from the key's up to `last` were closed by one call. The socket hooks see it once for each socket
/// in the range, of which the first one stands for all.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_close_range(key: u64, last: u64) -> u64 {
    if setting(setting_flag::SOCKET_HOOKS) && is_same_range(key, last) {
        return 0;
    }
    let first = key & 0xffff_ffff;
    let mut index = 0;
    while index < CLOSE_RANGE_MAX {
        if first + index > last {
            return 0;
        }
        on_closed(key + index, EndReason::Closed as u64);
        index += 1;
    }
    let rest = first + CLOSE_RANGE_MAX;
    if rest <= last {
        let task_mask = maps::target((key >> 32) as u32).map_or(0, |target| target.task_mask);
        emit::process_event(
            RequestEventKind::CloseRange,
            task_mask,
            (key >> 32) as u32,
            (rest as u32).cast_signed(),
            last as u32,
        );
    }
    0
}

/// Whether this CPU's latest closed range was the same, of the same thread, a moment ago: then it is the same call.
/// A call that goes on on another CPU is told once more.
#[inline(always)]
fn is_same_range(key: u64, last: u64) -> bool {
    /// Longest time between the closes of two sockets by one call.
    const MOMENT_NS: u64 = 10_000_000;
    let Some(scratch) = maps::request_scratch() else {
        return false;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let now = read::ktime_ns();
    let [known_key, known_last, known_tid] = scratch.closed_range;
    let is_recent = now - scratch.closed_ktime_ns < MOMENT_NS;
    scratch.closed_range = [key, last, scratch.tid];
    scratch.closed_ktime_ns = now;
    is_recent && known_key == key && known_last == last && known_tid == scratch.tid
}

/// The response direction was shut down.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_shutdown(key: u64) -> u64 {
    if let Some(conn) = living(unpack(key)) {
        end_request(key, EndReason::Shutdown as u64, conn.request_id);
    }
    if let Some(conn) = maps::conn(unpack(key)) {
        conn.state = conn_state::HALF_CLOSED;
    }
    0
}

/// Ends the request of a connection, if one is open, and leaves the connection idle. Reports it if
/// it was tracked and the daemon has not cancelled it. Does nothing if `request_id` is not the open one: another
/// thread has ended it meanwhile.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn end_request(key: u64, reason: u64, request_id: u64) -> u64 {
    let conn_key = unpack(key);
    let Some(conn) = maps::conn(conn_key) else {
        return 0;
    };
    if conn.request_id != request_id {
        return 0;
    }
    if conn.flags & conn_flag::TRACKED != 0 {
        // At once: whoever else ends it now reports nothing.
        conn.flags &= !conn_flag::TRACKED;
        tag::clear(conn.reader_tid, conn.request_id);
        if maps::take_cancel(conn.request_id) != cancel::REQUEST {
            emit::end_event(conn, conn_key.fd, reason as u32);
        }
    }
    conn.flags &= LASTING_FLAGS;
    conn.request_id = 0;
    conn.state = conn_state::IDLE;
    0
}
