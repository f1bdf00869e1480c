//! Has the kernel count the runs of BPF programs for a moment, by a process that can do nothing else.
//!
//! ```text
//!  profilerd ──fork──> profilerd-stats (CAP_SYS_ADMIN only)      before the daemon gives up its privileges
//!      │ one byte           │ opens BPF_ENABLE_STATS, waits, closes it
//!      │ <──────────────────┘ for how long it was open
//!      └── end of file ────> exits
//! ```
//!
//! # Why
//! The kernel asks for `CAP_SYS_ADMIN`, the one privilege that the daemon must not keep, and counting all the
//! time would make every BPF program of the host slower. So a process is kept that reads single bytes from
//! us, whatever they are, and answers with a duration.
//! <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/syscall.c#L5520>

use std::ffi::CStr;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use caps::Capability;
use nix::sys::prctl::set_name;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::privilege;
use crate::kernel::count_runs;

/// As `ps` shows it.
const NAME: &CStr = c"profilerd-stats";
/// How long the kernel counts: long enough for thousands of runs on a host that is worth measuring.
const MOMENT: Duration = Duration::from_millis(200);

/// A way to have runs of BPF programs counted.
#[derive(Debug)]
pub(super) struct StatisticsKeeper {
    socket: UnixStream,
    keeper: Pid,
}

impl StatisticsKeeper {
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

    /// Asks for a moment of counting.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub(super) fn ask(&mut self) -> io::Result<()> {
        self.socket.write_all(&[0])
    }

    /// For how many nanoseconds the kernel has counted, if it has since it was asked for.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub(super) fn answer(&mut self) -> io::Result<Option<u64>> {
        let mut answer = [0; 8];
        match self.socket.read_exact(&mut answer) {
            Ok(()) => Ok(Some(u64::from_ne_bytes(answer))),
            // Eight bytes written at once to a local socket arrive at once.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for StatisticsKeeper {
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
    let mut byte = [0];
    while matches!(socket.read(&mut byte), Ok(1..)) {
        let begin = Instant::now();
        let counting = count_runs();
        if counting.is_ok() {
            sleep(MOMENT);
        }
        drop(counting);
        let counted_ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if socket.write_all(&counted_ns.to_ne_bytes()).is_err() {
            break;
        }
    }
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
