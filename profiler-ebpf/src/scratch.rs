//! Work space too large for the 512-byte BPF stack, one per CPU and kind of program.
//!
//! Safe to share between the functions of one program run, because one run at a time uses a space:
//!
//! | space | users | why one at a time |
//! |---|---|---|
//! | [`SampleScratch`] | `sample_on_cpu`, `sched_switch` | the interrupt of the CPU's clock, and with interrupts off |
//! | [`RequestScratch`] | `sys_exit` | runs with preemption off, also on Linux 7.0 and later |
//! | [`RequestScratch`] | `sock_recv`, `sock_send`, `sock_state` | take it for themselves: [`RequestScratch::take`] |
//!
//! From Linux 7.0 on a tracepoint does not switch preemption off: a thread can be preempted in the middle of a
//! hook, and the next one may run other hooks on the same CPU. Process hooks use no space, `sched_switch` runs
//! with interrupts off. A second run of the *same* program on a CPU is left out by the kernel, which counts it as
//! `recursion_misses` of the program.

use profiler_common::{
    HEAD_MAX_BYTES, KERNEL_FRAMES_MAX, PARTIAL_HEAD_MAX_BYTES, PYTHON_FRAMES_MAX, PartialHead,
    PythonFrameRecord, PythonProcess, RequestEventHeader, STACK_COPY_MAX_BYTES, SampleHeader,
    Target, ThreadState,
};

use crate::{atomic, maps, read};

/// Room for head bytes: a partial line and a full read behind it.
const DATA_BYTES: usize = HEAD_MAX_BYTES + PARTIAL_HEAD_MAX_BYTES;

/// Work space of request detection.
#[repr(C)]
pub(crate) struct RequestScratch {
    /// Where the system call's bytes lie: a buffer, or an array of `struct iovec`.
    pub(crate) base: u64,
    /// Elements at `base`; 0: `base` is a plain buffer.
    pub(crate) iovec_count: u64,
    /// Bytes of them that are left out: what stands before a request line.
    pub(crate) skip: u64,
    /// Bytes the system call moved, without those.
    pub(crate) len: u64,
    /// `Target::task_mask` of the current process.
    pub(crate) task_mask: u32,
    /// `Target::flags` of the current process.
    pub(crate) target_flags: u32,
    /// `Target::program` of the current process.
    pub(crate) program: u32,
    /// Unused.
    pad: u32,
    /// 1 while a socket hook uses the space.
    is_taken: u64,
    /// The current thread, host pid namespace.
    pub(crate) tid: u64,
    /// The `struct sock` that a socket hook was given.
    pub(crate) sk: u64,
    /// The latest range of descriptors that was closed on this CPU: key, last descriptor, thread. Outlives a run.
    pub(crate) closed_range: [u64; 3],
    /// `CLOCK_MONOTONIC` of that.
    pub(crate) closed_ktime_ns: u64,
    /// Room to build a `PARTIAL_HEADS` value.
    pub(crate) partial: PartialHead,
    /// Room to build a `THREAD_STATES` value, of a thread that runs: what is never set is zero.
    pub(crate) running: ThreadState,
    /// Header of the next event.
    pub(crate) header: RequestEventHeader,
    /// Data of the next event; must follow the header.
    pub(crate) data: [u8; DATA_BYTES],
}

/// `Target::program` of the current process.
#[inline(always)]
pub(crate) fn scratch_program() -> u32 {
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    maps::request_scratch().map_or(0, |scratch| unsafe { (*scratch).program })
}

impl RequestScratch {
    /// Notes whose call the hook is in.
    #[inline(always)]
    pub(crate) fn begin(&mut self, tid: u32, target: &Target) {
        self.tid = u64::from(tid);
        self.task_mask = target.task_mask;
        self.target_flags = target.flags;
        self.program = target.program;
    }

    /// Leaves out the next bytes of the system call; there are more.
    #[inline(always)]
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.skip += bytes;
        self.len -= bytes;
    }

    /// Takes the space, if nothing else uses it, until [`Self::leave`]. One instruction asks and takes: from Linux
    /// 7.0 on another hook of this CPU may run between two.
    ///
    /// Minimum kernel: 5.12; the socket hooks need a later one.
    #[inline(always)]
    pub(crate) fn take(scratch: *mut Self) -> Option<&'static mut Self> {
        // SAFETY: the pointer is to this CPU's element, whose word only this function and `leave` touch.
        if unsafe { atomic::swap(&raw mut (*scratch).is_taken, 1) } != 0 {
            return None;
        }
        // SAFETY: the element lives as long as the program, and is ours now.
        Some(unsafe { &mut *scratch })
    }

    /// Gives the space back.
    #[inline(always)]
    pub(crate) fn leave(&mut self) {
        // SAFETY: a reference is valid for writes. Volatile, so that it is the last one.
        unsafe { core::ptr::write_volatile(&raw mut self.is_taken, 0) }
    }
}

/// Size of the largest sample.
pub(crate) const SAMPLE_BYTES: usize = size_of::<SampleHeader>()
    + 8 * KERNEL_FRAMES_MAX
    + size_of::<PythonFrameRecord>() * PYTHON_FRAMES_MAX
    + STACK_COPY_MAX_BYTES;

/// Room for one `_PyInterpreterFrame`: its fixed part is 80 bytes (3.11) to 88 bytes (3.14).
pub(crate) const PYTHON_FRAME_BYTES: usize = 128;

/// Work space of the sampler.
#[repr(C)]
pub(crate) struct SampleScratch {
    /// The process's interpreter; `runtime` is 0 if it is not a Python process.
    pub(crate) python: PythonProcess,
    /// Bytes to read of each Python frame.
    pub(crate) python_span: u64,
    /// Interpreter the search for the thread stands at.
    pub(crate) interp: u64,
    /// Thread state the search stands at.
    pub(crate) tstate: u64,
    /// The best thread state the search has found, 0 if none.
    pub(crate) best_tstate: u64,
    /// How well it suits the thread.
    pub(crate) best_rank: u64,
    /// The current thread's thread pointer, 0 if unknown.
    pub(crate) thread_pointer: u64,
    /// The current thread's id in the process's own pid namespace.
    pub(crate) wanted_tid: u32,
    /// Unused.
    pub(crate) pad: u32,
    /// Result of the Python walk: the first frame not copied, 0 if none.
    pub(crate) python_next: u64,
    /// Result of the Python walk: records written.
    pub(crate) python_frames: u32,
    /// Result of the Python walk: `sample_flag` bits.
    pub(crate) python_flags: u32,
    /// Result of the stack copy: bytes from `sp` on that could not be read.
    pub(crate) stack_skipped_bytes: u64,
    /// The Python frame being read.
    pub(crate) python_frame: [u64; PYTHON_FRAME_BYTES / 8],
    /// The record: header, kernel frames, Python frames, stack bytes, without gaps.
    pub(crate) bytes: [u8; SAMPLE_BYTES],
}

// The kernel refuses larger elements of per-CPU arrays (PCPU_MIN_UNIT_SIZE).
const _: () = assert!(size_of::<SampleScratch>() <= 32 * 1024);
const _: () = assert!(size_of::<RequestScratch>() <= 32 * 1024);

/// Copies the system call's bytes to `data[at..]`, at most `limit`; returns how many were copied.
///
/// Fewer than asked for if an `iovec` beyond the fourth would be needed, 0 if nothing is readable.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn fetch(at: u64, limit: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let mut wanted = scratch.len;
    if wanted > limit {
        wanted = limit;
    }
    if wanted > HEAD_MAX_BYTES as u64 {
        wanted = HEAD_MAX_BYTES as u64;
    }
    if wanted == 0 {
        return 0;
    }
    if scratch.iovec_count == 0 {
        return copy_to_data(scratch, at, wanted, scratch.base + scratch.skip);
    }
    let mut skip = scratch.skip;
    let mut copied = 0;
    let mut index = 0;
    while index < 4 {
        if index >= scratch.iovec_count || copied >= wanted {
            break;
        }
        let Some([base, len]) = read::user::<[u64; 2]>(scratch.base + 16 * index) else {
            break;
        };
        let skipped = if skip > len { len } else { skip };
        skip -= skipped;
        let left = len - skipped;
        let mut chunk = wanted - copied;
        if chunk > left {
            chunk = left;
        }
        if chunk != 0 {
            let done = copy_to_data(scratch, at + copied, chunk, base + skipped);
            if done == 0 {
                break;
            }
            copied += done;
        }
        index += 1;
    }
    copied
}

/// Copies user memory to `data[at..]`; returns `len`, or 0 if it is not readable or does not begin
/// within the first [`PARTIAL_HEAD_MAX_BYTES`], where the request line is.
#[inline(always)]
fn copy_to_data(scratch: &mut RequestScratch, at: u64, len: u64, address: u64) -> u64 {
    let at = read::opaque(at);
    if at > PARTIAL_HEAD_MAX_BYTES as u64 {
        return 0;
    }
    let len = read::opaque(len);
    if len > HEAD_MAX_BYTES as u64 {
        return 0;
    }
    // SAFETY: at + len <= PARTIAL_HEAD_MAX_BYTES + HEAD_MAX_BYTES = DATA_BYTES.
    let copied = unsafe {
        let to = scratch.data.as_mut_ptr().add(at as usize);
        read::copy_user(to, len, address)
    };
    if copied { len } else { 0 }
}
