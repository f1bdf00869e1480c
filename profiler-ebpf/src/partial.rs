//! Request lines that arrive in pieces, joined until the target's end has been read; and PROXY headers that do.

use profiler_common::{Conn, KernelCounter, Line, PARTIAL_HEAD_MAX_BYTES, conn_flag, conn_state};

use crate::conn::{BUSY, end_if_tracked, unpack};
use crate::count::count_all;
use crate::head::{self, LINE_MAX, line_status, read_line, status};
use crate::rule::match_rules;
use crate::scratch::{fetch, scratch_program};
use crate::start::start_request;
use crate::{maps, read, socket};

const _: () = assert!(LINE_MAX == PARTIAL_HEAD_MAX_BYTES as u64);

/// Keeps the first piece of a line, or how much of a PROXY header is yet to come; `line` is a result of
/// [`read_line`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn keep_piece(key: u64, sk: u64, line: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let key = unpack(key);
    let bytes = Line(line).skip() as u32;
    let is_header = line_status(line) == status::SKIP;
    scratch.partial.len = if is_header { 0 } else { bytes };
    scratch.partial.skip = if is_header { bytes } else { 0 };
    scratch.partial.ktime_ns = read::ktime_ns();
    let from = scratch.data.as_ptr() as u64;
    // SAFETY: both arrays are at least this long.
    unsafe {
        read::copy_kernel(
            scratch.partial.bytes.as_mut_ptr(),
            PARTIAL_HEAD_MAX_BYTES as u64,
            from,
        );
    }
    let kept = maps::insert_partial_head(key, &scratch.partial);
    let noted = kept && note(key, sk);
    if !noted {
        count_all(scratch.task_mask, KernelCounter::PartialHeadDropped);
    }
    0
}

/// Marks the connection, so that only its reads look for a piece.
#[inline(always)]
fn note(key: profiler_common::ConnKey, sk: u64) -> bool {
    if let Some(conn) = maps::conn(key) {
        conn.flags |= conn_flag::PARTIAL;
        return conn.sk != BUSY;
    }
    let conn = Conn {
        sk,
        inode: socket::inode_number(sk),
        request_id: 0,
        start_ktime_ns: 0,
        last_write_ktime_ns: 0,
        written_bytes: 0,
        tail: 0,
        reader_tid: 0,
        state: conn_state::IDLE,
        flags: conn_flag::PARTIAL,
        slot: 0,
        wait_fd: -1,
        program: scratch_program(),
    };
    maps::insert_conn(key, &conn)
}

/// Joins the read in the scratch to the pieces kept; opens the request if the line is whole now.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn join_piece(key: u64, sk: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let conn_key = unpack(key);
    let Some(partial) = maps::partial_head(conn_key) else {
        forget(conn_key);
        return 0;
    };
    if partial.skip != 0 {
        begin_anew(key, sk, skip_header(key, partial.skip.into()));
        return 0;
    }
    let joined = u64::from(partial.len);
    if joined == 0 || joined >= LINE_MAX {
        forget(conn_key);
        return 0;
    }
    let from = partial.bytes.as_ptr() as u64;
    // SAFETY: both arrays are at least this long.
    unsafe {
        read::copy_kernel(
            scratch.data.as_mut_ptr(),
            PARTIAL_HEAD_MAX_BYTES as u64,
            from,
        );
    }
    let copied = fetch(joined, LINE_MAX - joined);
    let line = head::line(joined + copied);
    match line_status(line) {
        status::WHOLE => {
            forget(conn_key);
            end_if_tracked(key);
            let slot = match_rules(scratch.task_mask.into(), line);
            start_request(key, sk, slot, joined);
        }
        // It ends in this read or a later one: when the piece was read, there was not enough of it to tell.
        status::SKIP => {
            let skip = Line(line).skip();
            let rest = if skip > joined { skip - joined } else { 0 };
            begin_anew(key, sk, skip_header(key, rest));
        }
        status::NO => {
            forget(conn_key);
            count_all(scratch.task_mask, KernelCounter::PartialHeadDropped);
        }
        _ => {
            let from = scratch.data.as_ptr() as u64;
            // SAFETY: both arrays are at least this long.
            unsafe {
                read::copy_kernel(
                    partial.bytes.as_mut_ptr(),
                    PARTIAL_HEAD_MAX_BYTES as u64,
                    from,
                );
            }
            partial.len = (joined + copied) as u32;
        }
    }
    0
}

/// The next `skip` bytes are the rest of a PROXY header. Returns what the call has read behind them, as [`read_line`]
/// does; nothing if they are all it has read.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn skip_header(key: u64, skip: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return status::NO;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let conn_key = unpack(key);
    if skip > scratch.len {
        if let Some(partial) = maps::partial_head(conn_key) {
            partial.len = 0;
            partial.skip = (skip - scratch.len) as u32;
        }
        return status::NO;
    }
    forget(conn_key);
    if skip == scratch.len {
        return status::NO;
    }
    scratch.advance(skip);
    read_line()
}

/// Looks at a line behind a PROXY header. Not in [`skip_header`], from where it would lie too deep for the BPF stack.
#[inline(always)]
fn begin_anew(key: u64, sk: u64, line: u64) {
    let Some(scratch) = maps::request_scratch() else {
        return;
    };
    if line_status(line) == status::WHOLE {
        end_if_tracked(key);
        // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
        let task_mask = unsafe { (*scratch).task_mask };
        let slot = match_rules(task_mask.into(), line);
        start_request(key, sk, slot, 0);
    } else if line_status(line) != status::NO && Line(line).skip() != 0 {
        keep_piece(key, sk, line);
    }
}

/// Drops the pieces of a connection.
#[inline(always)]
fn forget(key: profiler_common::ConnKey) {
    maps::remove_partial_head(key);
    if let Some(conn) = maps::conn(key) {
        conn.flags &= !conn_flag::PARTIAL;
    }
}
