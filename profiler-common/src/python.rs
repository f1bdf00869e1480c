//! What the kernel side needs to walk CPython frames: `PYTHON_PROCS`, `PYTHON_THREADS`.
//!
//! The numbers come from the daemon (`process::python`), which knows the interpreter's version;
//! the programs only follow them.

/// Most Python frames copied with an on-CPU sample.
pub const PYTHON_FRAMES_MAX: usize = 192;

/// Offsets in bytes inside CPython's structures, for one interpreter version.
///
/// How they are used (`p` is an address, `*` a read):
///
/// ```text
/// interp  = *(runtime + interpreters_head)          next: *(interp + interp_next)
/// tstate  = *(interp + interp_threads_head)         next: *(tstate + tstate_next)
/// match   : *(tstate + tstate_native_thread_id) as u32 == tid in the process's pid namespace,
///           else is_thread_id(*(tstate + tstate_native_thread_id - 8), thread pointer)
/// frame   = *(tstate + tstate_frame)                if cframe_indirect: frame = *(frame + cframe_current_frame)
/// code    = *(frame + frame_executable) & !3        previous: *(frame + frame_previous)
/// instr   = *(frame + frame_instr)                  owner:    *(frame + frame_owner) as u8
/// identity: *(code + code_identity) as u32          if code_name: ^ *(*(code + code_name) + str_hash) as u32
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PythonOffsets {
    /// `_PyRuntime.interpreters.head`.
    pub interpreters_head: u32,
    /// `PyInterpreterState.next`.
    pub interp_next: u32,
    /// `PyInterpreterState.threads.head`.
    pub interp_threads_head: u32,
    /// `PyThreadState.next`.
    pub tstate_next: u32,
    /// `PyThreadState.native_thread_id` (3.11 and later), a `unsigned long`.
    pub tstate_native_thread_id: u32,
    /// `PyThreadState.current_frame`, or `cframe` where `cframe_indirect` is 1.
    pub tstate_frame: u32,
    /// 1 on 3.11 and 3.12: `tstate_frame` holds a `_PyCFrame *`.
    pub cframe_indirect: u32,
    /// `_PyCFrame.current_frame`.
    pub cframe_current_frame: u32,
    /// `_PyInterpreterFrame.previous`.
    pub frame_previous: u32,
    /// `_PyInterpreterFrame.f_code` / `f_executable`.
    pub frame_executable: u32,
    /// `_PyInterpreterFrame.prev_instr` / `instr_ptr`.
    pub frame_instr: u32,
    /// `_PyInterpreterFrame.is_entry` (3.11) or `owner` (3.12 and later), one byte.
    pub frame_owner: u32,
    /// Four bytes of a code object that distinguish it from one that takes its place, 0 if there are none:
    /// `co_firstlineno` on 3.11, `co_version` from 3.12 on.
    pub code_identity: u32,
    /// `PyCodeObject.co_name`, where the hash of that string belongs to the identity (3.11), else 0.
    pub code_name: u32,
    /// `PyASCIIObject.hash`.
    pub str_hash: u32,
    /// Zero.
    pub pad: u32,
}

/// Offsets in bytes inside `PyThreadState` that are the same in all supported versions: it begins with
/// `prev`, `next` and `interp`.
pub mod tstate_offset {
    /// `prev`, the thread state before in the list of its interpreter; 0 in the first one.
    pub const PREV: u64 = 0;
    /// `interp`, its `PyInterpreterState`.
    pub const INTERP: u64 = 16;
    /// Distance from `thread_id` to `native_thread_id`, which follows it.
    pub const THREAD_ID_TO_NATIVE: u64 = 8;
}

/// How far below a thread's thread pointer its `pthread_t` may be, which is its
/// `PyThreadState.thread_id`: in glibc and musl `struct pthread` begins at the thread pointer on x86_64, and
/// ends there on aarch64, where it has some 2 KiB.
pub mod thread_id_span {
    /// On x86_64.
    pub const X86_64: u64 = 0;
    /// On aarch64.
    pub const AARCH64: u64 = 4095;
}

/// Whether a thread state's `thread_id` is that of the thread with this thread pointer; 0 is nobody's.
#[inline(always)]
#[must_use]
pub const fn is_thread_id(thread_id: u64, thread_pointer: u64, span: u64) -> bool {
    thread_id != 0 && thread_pointer.wrapping_sub(thread_id) <= span
}

/// A CPython process: value of `PYTHON_PROCS`, key tgid (host).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PythonProcess {
    /// Address of `_PyRuntime` in the process.
    pub runtime: u64,
    /// See [`PythonOffsets`].
    pub offsets: PythonOffsets,
}

/// Cached thread state: value of `PYTHON_THREADS`, key tid (host). Checked again on every use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PythonThread {
    /// Address of the thread's `PyThreadState`.
    pub tstate: u64,
}

/// Bits of [`PythonFrameRecord::flags`].
pub mod python_flag {
    /// The frame could not be read; `code` is 0.
    pub const UNREADABLE: u16 = 1;
}

/// One frame of a Python call chain, innermost first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PythonFrameRecord {
    /// `f_code` / `f_executable` with the tag bits removed. May be `None` in a shim frame (3.13+).
    pub code: u64,
    /// `prev_instr` / `instr_ptr`.
    pub instr: u64,
    /// The raw byte at `frame_owner`: `is_entry` on 3.11, `owner` from 3.12 on.
    pub owner: u16,
    /// [`python_flag`] bits.
    pub flags: u16,
    /// The code object's identity when the frame was read, 0 if unknown.
    pub identity: u32,
}

const _: () = assert!(size_of::<PythonOffsets>() == 64);
const _: () = assert!(size_of::<PythonProcess>() == 72);
const _: () = assert!(size_of::<PythonFrameRecord>() == 24);
