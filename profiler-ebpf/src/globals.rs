//! Read-only globals, set by the daemon before it loads the object.

use aya_ebpf::Global;
use profiler_common::{KernelOffsets, Settings};

#[unsafe(no_mangle)]
static OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets {
    task_pid: 0,
    task_tgid: 0,
    task_stack: 0,
    task_state: 0,
    task_thread_pid: 0,
    task_thread_pointer: 0,
    task_signal: 0,
    task_files: 0,
    signal_live: 0,
    pid_level: 0,
    pid_numbers: 0,
    upid_size: 0,
    stack_pt_regs: 0,
    files_fdt: 0,
    fdt_max_fds: 0,
    fdt_fd: 0,
    file_inode: 0,
    file_private_data: 0,
    inode_mode: 0,
    socket_sk: 0,
    sock_family: 0,
    sock_max_ack_backlog: 0,
    unix_addr: 0,
    sock_socket: 0,
    socket_inode: 0,
    sock_shutdown: 0,
});

#[unsafe(no_mangle)]
static SETTINGS: Global<Settings> = Global::new(Settings {
    flags: 0,
    sample_wakeup_bytes: 0,
});

/// One offset, as a number the verifier knows.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: the global is initialized and never written while programs run.
        u64::from(unsafe {
            core::ptr::read_volatile(&raw const (*$crate::globals::offsets()).$field)
        })
    };
}
pub(crate) use offset;

/// Where the offsets lie; read them with [`offset!`].
#[inline(always)]
pub(crate) fn offsets() -> *const KernelOffsets {
    (&raw const OFFSETS).cast()
}

/// Whether a bit of `Settings::flags` is set.
#[inline(always)]
pub(crate) fn setting(flag: u32) -> bool {
    let settings: *const Settings = (&raw const SETTINGS).cast();
    // SAFETY: the global is initialized and never written while programs run.
    unsafe { core::ptr::read_volatile(&raw const (*settings).flags) & flag != 0 }
}

/// `Settings::sample_wakeup_bytes`.
#[inline(always)]
pub(crate) fn sample_wakeup_bytes() -> u64 {
    let settings: *const Settings = (&raw const SETTINGS).cast();
    // SAFETY: the global is initialized and never written while programs run.
    u64::from(unsafe { core::ptr::read_volatile(&raw const (*settings).sample_wakeup_bytes) })
}
