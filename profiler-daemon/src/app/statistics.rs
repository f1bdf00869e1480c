//! Switches the kernel's statistics of BPF programs on and off, by a process that can do nothing else.
//!
//! ```text
//!  profilerd ──fork──> profilerd (CAP_SYS_ADMIN only)      before the daemon gives up its privileges
//!      │ 1, 0, 1, 0 ...      │ opens, closes BPF_ENABLE_STATS
//!      └── end of file ────> exits; the kernel stops counting
//! ```
//!
//! # Why
//! The kernel asks for `CAP_SYS_ADMIN`, the one privilege that the daemon must not keep, and counting all the
//! time would make every BPF program of the host slower. So a process is kept that reads single bytes from
//! us and knows two of them.
//! <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/syscall.c#L5520>

use std::ffi::CStr;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use caps::Capability;
use nix::sys::prctl::set_name;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::privilege;
use crate::kernel::count_runs;

/// As `ps` shows it.
const NAME: &CStr = c"profilerd-stats";
const ON: u8 = 1;
const OFF: u8 = 0;

/// A way to have runs of BPF programs counted.
#[derive(Debug)]
pub(super) struct StatisticsSwitch {
    socket: UnixStream,
    keeper: Pid,
}

impl StatisticsSwitch {
    /// Starts the process. Call it while there is one thread and the privileges are still there.
    ///
    /// # Errors
    ///
    /// The kernel does not count for us, or the host has no process or descriptor left.
    pub(super) fn start() -> Result<Self> {
        // Now rather than when a task is live.
        drop(count_runs().context("the kernel does not count runs of BPF programs for us")?);
        let (socket, theirs) = UnixStream::pair().context("failed to create a socket")?;
        socket.set_nonblocking(true)?;
        // SAFETY: there is one thread, so no lock is held by another one in the child.
        match unsafe { fork() }.context("failed to fork")? {
            ForkResult::Parent { child } => Ok(Self {
                socket,
                keeper: child,
            }),
            ForkResult::Child => {
                drop(socket);
                keep(theirs)
            }
        }
    }

    /// Switches, within milliseconds.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub(super) fn set(&mut self, on: bool) -> io::Result<()> {
        self.socket.write_all(&[if on { ON } else { OFF }])
    }
}

impl Drop for StatisticsSwitch {
    fn drop(&mut self) {
        let _gone = self.socket.shutdown(std::net::Shutdown::Both);
        // It may not have read that yet; who starts no other process needs no patience.
        let _state = waitpid(self.keeper, Some(WaitPidFlag::WNOHANG));
    }
}

/// The life of the other process.
fn keep(mut socket: UnixStream) -> ! {
    // Files, sockets and the log are the daemon's.
    close_all_but(socket.as_raw_fd());
    let _cosmetic = set_name(NAME);
    privilege::keep_only(&[Capability::CAP_SYS_ADMIN]);
    let mut counting = None;
    let mut byte = [OFF];
    while matches!(socket.read(&mut byte), Ok(1..)) {
        counting = match byte[0] {
            ON => counting.or_else(|| count_runs().ok()),
            _ => None,
        };
    }
    drop(counting);
    // Nothing to flush, and what the daemon wants done at its exit is not ours.
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// Closes what a fork has copied: every descriptor that /proc lists, standard ones included.
fn close_all_but(kept: i32) {
    let ranges = [(0, kept - 1), (kept + 1, i32::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: nothing of this process uses them any more; it ends by `exit` or by a signal.
        let _old_kernel = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}
