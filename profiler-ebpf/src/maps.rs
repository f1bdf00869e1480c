//! The maps; docs/bpf.md says who writes and who reads each.
//!
//! References handed out here live as long as the program run. Other CPUs may write the same
//! entry meanwhile: all fields are integers, so the worst is a count or time of either writer. A
//! reference must not be kept over a call that looks up the same entry to change it.

use aya_ebpf::bindings::{
    BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use profiler_common::{
    Conn, ConnKey, FILTER_LEN, KERNEL_COUNTERS, MAX_TASKS, PartialHead, PythonProcess,
    PythonThread, RequestEventHeader, Rule, Target, ThreadState, ThreadTag, Ticks, cancel,
};

use crate::globals::sample_wakeup_bytes;
use crate::scratch::{RequestScratch, SampleScratch};

/// Processes of the live tasks, by tgid.
#[map]
static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(16 * 1024, 0);

/// Filter of `TARGETS` for every event of the rest of the machine. Never reset.
#[map]
static TARGET_TGIDS: Array<u32> = Array::with_max_entries(FILTER_LEN, 0);

/// Prefilter of each task, by slot.
#[map]
static RULES: Array<Rule> = Array::with_max_entries(MAX_TASKS, 0);

/// Connections that carried a request. LRU: a lost entry costs one request's end.
#[map]
static CONNS: LruHashMap<ConnKey, Conn> = LruHashMap::with_max_entries(64 * 1024, 0);

/// Beginnings of request lines.
#[map]
static PARTIAL_HEADS: LruHashMap<ConnKey, PartialHead> = LruHashMap::with_max_entries(4096, 0);

/// Requests the daemon lets go, and how: `profiler_common::cancel`. LRU: entries are consumed by the
/// request's next write or its end.
#[map]
static CANCELS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(4096, 0);

/// Threads that serve a request, by tid. Not LRU: a tag must not vanish silently.
#[map]
static THREAD_TAGS: HashMap<u32, ThreadTag> = HashMap::with_max_entries(4096, 0);

/// Registers of tagged threads at their last switch-out, by tid.
#[map]
static THREAD_STATES: HashMap<u32, ThreadState> = HashMap::with_max_entries(4096, 0);

/// Filter of `THREAD_STATES` for each of the two threads of every switch of the machine. Never reset
/// by the programs.
#[map]
static TAGGED_TIDS: Array<u32> = Array::with_max_entries(FILTER_LEN, 0);

/// CPython processes, by tgid.
#[map]
static PYTHON_PROCS: HashMap<u32, PythonProcess> = HashMap::with_max_entries(4096, 0);

/// Thread states of CPython threads, by tid. LRU: a lost entry is looked up again.
#[map]
static PYTHON_THREADS: LruHashMap<u32, PythonThread> = LruHashMap::with_max_entries(16 * 1024, 0);

/// `slot * KERNEL_COUNTERS + counter`.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_TASKS * KERNEL_COUNTERS, 0);

#[map]
static REQUEST_SCRATCH: PerCpuArray<RequestScratch> = PerCpuArray::with_max_entries(1, 0);

#[map]
static SAMPLE_SCRATCH: PerCpuArray<SampleScratch> = PerCpuArray::with_max_entries(1, 0);

/// Request events.
#[map]
static REQUESTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Unread bytes in `REQUESTS` that wake the daemon; 0: each event does that finds it asleep.
#[map]
static REQUEST_WAKEUP: Array<u32> = Array::with_max_entries(1, 0);

/// On-CPU samples, and switch-outs ahead of ticks.
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// When the CPUs tick.
#[map]
static TICKS: Array<Ticks> = Array::with_max_entries(1, 0);

/// Makes a lookup function of a hash map.
macro_rules! lookup {
    ($name:ident, $map:ident, $key:ty, $value:ty) => {
        #[inline(always)]
        pub(crate) fn $name(key: $key) -> Option<&'static mut $value> {
            // SAFETY: a value stays readable and writable until the program ends; see the module.
            $map.get_ptr_mut(&key).map(|value| unsafe { &mut *value })
        }
    };
}

lookup!(conn, CONNS, ConnKey, Conn);
lookup!(partial_head, PARTIAL_HEADS, ConnKey, PartialHead);
lookup!(thread_tag, THREAD_TAGS, u32, ThreadTag);
lookup!(thread_state, THREAD_STATES, u32, ThreadState);
lookup!(python_process, PYTHON_PROCS, u32, PythonProcess);
lookup!(python_thread, PYTHON_THREADS, u32, PythonThread);

/// Makes the insert and remove functions of a hash map.
macro_rules! change {
    ($insert:ident, $remove:ident, $map:ident, $key:ty, $value:ty) => {
        #[inline(always)]
        pub(crate) fn $insert(key: $key, value: &$value) -> bool {
            $map.insert(&key, value, 0).is_ok()
        }

        #[inline(always)]
        pub(crate) fn $remove(key: $key) {
            // Absent is as good as removed.
            let _ = $map.remove(&key);
        }
    };
}

change!(insert_conn, remove_conn, CONNS, ConnKey, Conn);
change!(
    insert_partial_head,
    remove_partial_head,
    PARTIAL_HEADS,
    ConnKey,
    PartialHead
);
change!(
    insert_thread_tag,
    remove_thread_tag,
    THREAD_TAGS,
    u32,
    ThreadTag
);
change!(
    insert_python_process,
    remove_python_process,
    PYTHON_PROCS,
    u32,
    PythonProcess
);
change!(
    insert_python_thread,
    remove_python_thread,
    PYTHON_THREADS,
    u32,
    PythonThread
);
change!(
    insert_thread_state,
    remove_thread_state,
    THREAD_STATES,
    u32,
    ThreadState
);
change!(insert_target_entry, remove_target, TARGETS, u32, Target);

/// Tells a filter that an id may be in its map.
#[inline(always)]
fn note(filter: &Array<u32>, id: u32) {
    if let Some(noted) = filter.get_ptr_mut(id % FILTER_LEN) {
        // SAFETY: an array's elements stay; every writer writes the same.
        unsafe { *noted = 1 }
    }
}

/// Whether an id may be in the filter's map.
#[inline(always)]
fn is_noted(filter: &Array<u32>, id: u32) -> bool {
    filter.get(id % FILTER_LEN).is_some_and(|noted| *noted != 0)
}

/// The tasks a process belongs to, if any.
#[inline(always)]
pub(crate) fn target(tgid: u32) -> Option<&'static Target> {
    if !is_noted(&TARGET_TGIDS, tgid) {
        return None;
    }
    // SAFETY: a value stays readable until the program ends; see the module.
    unsafe { TARGETS.get(&tgid) }
}

/// The process executes another program: no record of the one before is its.
#[inline(always)]
pub(crate) fn begin_program(tgid: u32) {
    if let Some(target) = TARGETS.get_ptr_mut(&tgid) {
        // SAFETY: a value stays writable until the program ends; see the module.
        unsafe { (*target).program = (*target).program.wrapping_add(1) }
    }
}

/// Makes a process a target.
#[inline(always)]
pub(crate) fn insert_target(tgid: u32, target: &Target) -> bool {
    note(&TARGET_TGIDS, tgid);
    insert_target_entry(tgid, target)
}

/// Notes that a thread has a state.
#[inline(always)]
pub(crate) fn note_tagged(tid: u32) {
    note(&TAGGED_TIDS, tid);
}

/// Whether a thread may have a state.
#[inline(always)]
pub(crate) fn may_be_tagged(tid: u32) -> bool {
    is_noted(&TAGGED_TIDS, tid)
}

/// Whether and how the daemon lets a request go.
#[inline(always)]
pub(crate) fn cancelled(request_id: u64) -> u32 {
    // SAFETY: a value stays readable until the program ends; see the module.
    unsafe { CANCELS.get(&request_id) }.map_or(cancel::NO, |how| *how)
}

/// The same, and takes the request off the list.
#[inline(always)]
pub(crate) fn take_cancel(request_id: u64) -> u32 {
    let how = cancelled(request_id);
    if how != cancel::NO {
        // Absent is as good as removed.
        let _ = CANCELS.remove(&request_id);
    }
    how
}

#[inline(always)]
pub(crate) fn rule(slot: u32) -> Option<&'static Rule> {
    RULES.get(slot)
}

/// This CPU's element of a counter. Other programs of the CPU may add to it meanwhile: use `atomic::add`.
#[inline(always)]
pub(crate) fn counter(index: u32) -> Option<*mut u64> {
    COUNTERS.get_ptr_mut(index)
}

/// This CPU's work space of the hooks that see requests.
#[inline(always)]
pub(crate) fn request_scratch() -> Option<*mut RequestScratch> {
    REQUEST_SCRATCH.get_ptr_mut(0)
}

/// This CPU's work space of `sample_on_cpu`.
#[inline(always)]
pub(crate) fn sample_scratch() -> Option<*mut SampleScratch> {
    SAMPLE_SCRATCH.get_ptr_mut(0)
}

/// Room in the ring for an event without data; `None` if the ring is full. What is reserved must be passed to
/// [`submit_request`].
#[inline(always)]
pub(crate) fn reserve_request() -> Option<RingBufEntry<RequestEventHeader>> {
    REQUESTS.reserve::<RequestEventHeader>(0)
}

/// Hands a written event to the daemon.
#[inline(always)]
pub(crate) fn submit_request(record: RingBufEntry<RequestEventHeader>) {
    // Reserved bytes count as unread already.
    record.submit(wakeup_flags(&REQUESTS, 0, request_wakeup_bytes()));
}

/// Writes a request event; false if the ring is full.
#[inline(always)]
pub(crate) fn output_request(bytes: &[u8]) -> bool {
    output(&REQUESTS, bytes, request_wakeup_bytes())
}

/// Unread bytes of request events that wake the daemon; 0: each event does that finds it asleep.
#[inline(always)]
fn request_wakeup_bytes() -> u64 {
    // SAFETY: the daemon writes the whole word.
    let bytes = REQUEST_WAKEUP
        .get_ptr(0)
        .map_or(0, |bytes| unsafe { core::ptr::read_volatile(bytes) });
    u64::from(bytes)
}

/// Writes a sample; false if the ring is full. The daemon is woken only when enough is unread: it drains the
/// ring at every dump period anyway, and a wake-up in the tick would be paid by the profiled thread.
#[inline(always)]
pub(crate) fn output_sample(bytes: &[u8]) -> bool {
    output(&SAMPLES, bytes, sample_wakeup_bytes())
}

/// Whether a switch-out may be recorded: most of the ring is left to ticks, whose samples nothing else can replace.
#[inline(always)]
pub(crate) fn has_room_for_switch_outs() -> bool {
    let size = SAMPLES.query(u64::from(BPF_RB_RING_SIZE));
    SAMPLES.query(u64::from(BPF_RB_AVAIL_DATA)) < size / 4
}

/// When the CPUs tick, as the daemon last said.
#[inline(always)]
pub(crate) fn ticks() -> Option<Ticks> {
    // SAFETY: the daemon writes while programs may read: a mixture of two grids is a wrong moment to record, no more.
    TICKS
        .get_ptr(0)
        .map(|ticks| unsafe { core::ptr::read_volatile(ticks) })
}

#[inline(always)]
fn output(ring: &RingBuf, bytes: &[u8], wakeup_bytes: u64) -> bool {
    let flags = wakeup_flags(ring, bytes.len() as u64, wakeup_bytes);
    ring.output::<[u8]>(bytes, flags).is_ok()
}

/// How a record is handed over: the daemon is woken if `wakeup_bytes` are unread once `more_bytes` are written;
/// 0: whenever it waits for one.
#[inline(always)]
fn wakeup_flags(ring: &RingBuf, more_bytes: u64, wakeup_bytes: u64) -> u64 {
    u64::from(if wakeup_bytes == 0 {
        0
    } else if ring.query(u64::from(BPF_RB_AVAIL_DATA)) + more_bytes >= wakeup_bytes {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    })
}
