//! Thread tags: a thread has one while it serves a tracked request, and only then is it sampled.

use profiler_common::{
    Conn, ConnKey, EndReason, ThreadTag, cancel, conn_flag, conn_state, setting_flag,
    thread_state_flag,
};

use crate::conn::{end_request, pack, unpack};
use crate::globals::setting;
use crate::head::status;
use crate::socket::{names_socket, server_socket};
use crate::{atomic, maps, read};

/// Results of [`set`].
pub(crate) mod set_result {
    /// No room in the maps.
    pub(crate) const FULL: u64 = 0;
    /// The thread carries the tag, or nobody wants tags.
    pub(crate) const SET: u64 = 1;
    /// It does, and carried that of another request that nobody has answered yet.
    pub(crate) const INTERLEAVED: u64 = 2;
}

/// Tags the current thread with a request of its process; see [`set_result`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn set_tag(request_id: u64, slot: u64, fd: u64) -> u64 {
    let mut result = set_result::SET;
    if setting(setting_flag::NO_TAGS) {
        return result;
    }
    let (tgid, tid) = read::current_ids();
    if let Some(old) = maps::thread_tag(tid)
        && old.request_id != request_id
        && let Some(other) = open_conn(old)
        && other.state == conn_state::OPEN
    {
        other.flags |= conn_flag::INTERLEAVED;
        result = set_result::INTERLEAVED;
    }
    let tag = ThreadTag {
        request_id,
        slot: slot as u32,
        tgid,
        fd: fd as i32,
        pad: 0,
    };
    // The tag first: from then on `sched_switch`, which may come in between, finds no cancelled request and leaves
    // the state alone.
    if !maps::insert_thread_tag(tid, &tag) {
        maps::remove_thread_state(tid);
        return set_result::FULL;
    }
    if !begin_state(tgid, tid) {
        maps::remove_thread_tag(tid);
        return set_result::FULL;
    }
    result
}

/// Makes the current thread's state be of a thread that runs, under a number that none of its states had before;
/// false if there is no room.
///
/// From Linux 7.0 on the thread may be preempted at any place in here, and `sched_switch` writes the state then.
/// So the number is moved on by one instruction, and the rest has one value all the time: times stay 0 until the
/// first switch.
#[inline(always)]
fn begin_state(tgid: u32, tid: u32) -> bool {
    let thread_pointer = read::thread_pointer();
    if let Some(state) = maps::thread_state(tid) {
        // SAFETY: the first number of a map's value.
        unsafe { atomic::add(&raw mut state.seq, 2) };
        state.flags = thread_state_flag::ON_CPU;
        state.tgid = tgid;
        state.thread_pointer = thread_pointer;
    } else {
        let Some(scratch) = maps::request_scratch() else {
            return false;
        };
        // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
        let running = unsafe { &mut (*scratch).running };
        // A state that was removed meanwhile had fewer switches than nanoseconds have passed. Set before anybody sees
        // it: a reader would find a number that the thread had long ago.
        running.seq = read::ktime_ns() & !1;
        running.flags = thread_state_flag::ON_CPU;
        running.tgid = tgid;
        running.thread_pointer = thread_pointer;
        if !maps::insert_thread_state(tid, running) {
            return false;
        }
    }
    maps::note_tagged(tid);
    true
}

/// The current thread, which has a tag, has read a head or the beginning of one ([`status`]) from the descriptor
/// of `key`. Ends the request of its tag if
/// that is another one's:
///
/// * one whose answer it has begun: whatever the protocol still lets expect, the thread is done with it;
/// * one without an answer whose descriptor is not the connection's any more: the socket hooks do not see every
///   close.
///
/// Called from there, and not from [`set_tag`], which lies too deep for the BPF stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn on_other_head(key: u64, begins: u64) -> u64 {
    let (_, tid) = read::current_ids();
    // Asked here and not by the caller, whose stack is full.
    if !maps::may_be_tagged(tid) {
        return 0;
    }
    let Some(tag) = maps::thread_tag(tid) else {
        return 0;
    };
    let tagged = pack(tag.tgid, tag.fd);
    let Some(conn) = open_conn(tag) else {
        return 0;
    };
    let fd = u64::from(tag.fd.cast_unsigned());
    if conn.state == conn_state::RESPONDING {
        // Bytes that a request reads as a client may look like a head.
        let is_other = tagged != key && begins == status::WHOLE;
        if is_other && (maps::conn(unpack(key)).is_some() || server_socket(key & 0xffff_ffff) != 0)
        {
            end_request(tagged, EndReason::NextHead as u64, tag.request_id);
        }
    } else if conn.state == conn_state::OPEN
        && setting(setting_flag::SOCKET_HOOKS)
        && names_socket(fd, conn.sk, conn.inode) == 0
    {
        end_request(tagged, EndReason::Closed as u64, tag.request_id);
    }
    0
}

/// The current thread falls asleep in `epoll_wait` on a set. Notes it for the request that the thread serves: the
/// daemon finds out who else is in the set.
#[inline(always)]
pub(crate) fn note_wait(set: u64) {
    let (_, tid) = read::current_ids();
    let Some(conn) = maps::thread_tag(tid).and_then(|tag| open_conn(tag)) else {
        return;
    };
    conn.wait_fd = set as i32;
    if conn.state == conn_state::OPEN {
        conn.flags |= conn_flag::WAITED;
    } else if conn.state == conn_state::RESPONDING {
        conn.flags |= conn_flag::WAITS;
    }
}

/// The connection of a tag, if its request is still the one that is open there.
#[inline(always)]
pub(crate) fn open_conn(tag: &ThreadTag) -> Option<&'static mut Conn> {
    let conn = maps::conn(ConnKey {
        tgid: tag.tgid,
        fd: tag.fd,
    })?;
    (conn.request_id == tag.request_id).then_some(conn)
}

/// Removes the tag and state of a thread.
#[inline(always)]
pub(crate) fn remove(tid: u32) {
    maps::remove_thread_tag(tid);
    maps::remove_thread_state(tid);
}

/// The same if they are still that request's.
#[inline(always)]
pub(crate) fn clear(tid: u32, request_id: u64) {
    if maps::thread_tag(tid).is_some_and(|tag| tag.request_id == request_id) {
        remove(tid);
    }
}

/// Removes the tag and state of the current thread if the daemon has let its request go; true if so.
///
/// Only the thread itself sets its tag, so here no other request's tag can be hit.
#[inline(always)]
pub(crate) fn drop_if_cancelled(tid: u32) -> bool {
    let Some(tag) = maps::thread_tag(tid) else {
        return false;
    };
    if maps::cancelled(tag.request_id) == cancel::NO {
        return false;
    }
    remove(tid);
    true
}
