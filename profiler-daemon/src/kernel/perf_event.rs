//! Opens one perf event of the kind that sampling needs, to find out whether this process may.
//!
//! Whether it may depends on capabilities, `kernel.perf_event_paranoid`, what distributions have added
//! to it, security modules and seccomp. Opening is the only test that knows all of them.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `PERF_ATTR_SIZE_VER0`, the first published size of `struct perf_event_attr`,
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/perf_event.h#L389>.
const ATTR_BYTES: usize = 64;
/// `PERF_TYPE_SOFTWARE`; its event 0 is `PERF_COUNT_SW_CPU_CLOCK`.
const TYPE_SOFTWARE: u32 = 1;
/// `PERF_FLAG_FD_CLOEXEC`.
const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// Nothing is read from the event before it is closed again.
const PERIOD_NS: u64 = 1_000_000_000;
/// CPU 0 cannot be taken offline on most machines; if it is, the error says so.
const CPU: libc::c_int = 0;

/// Opens a cpu-clock event for all processes on one CPU and closes it.
///
/// # Errors
///
/// The kernel's refusal.
pub fn try_perf_event() -> io::Result<()> {
    // type u32 | size u32 | config u64 | sample_period u64 | zeros
    let mut attr = [0_u8; ATTR_BYTES];
    attr[0..4].copy_from_slice(&TYPE_SOFTWARE.to_ne_bytes());
    attr[4..8].copy_from_slice(&(ATTR_BYTES as u32).to_ne_bytes());
    attr[16..24].copy_from_slice(&PERIOD_NS.to_ne_bytes());
    // SAFETY: the kernel reads `size` bytes of `attr`, which it has, and writes back at most its own
    // size into the second field.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attr.as_mut_ptr(),
            -1,
            CPU,
            -1,
            FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    drop(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
    Ok(())
}
