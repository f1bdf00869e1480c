//! Names of system calls by their number on this architecture.
//!
//! The numbers are libc's. Calls in which a server spends time are here; others are shown by their number.

macro_rules! names {
    ($($name:ident => $number:ident),+ $(,)?) => {
        &[$((libc::$number, stringify!($name))),+]
    };
}

/// On all architectures.
const COMMON: &[(libc::c_long, &str)] = names! {
    accept => SYS_accept, accept4 => SYS_accept4, bind => SYS_bind, brk => SYS_brk, clone => SYS_clone,
    clone3 => SYS_clone3, clock_gettime => SYS_clock_gettime, clock_nanosleep => SYS_clock_nanosleep,
    close => SYS_close, connect => SYS_connect, copy_file_range => SYS_copy_file_range,
    epoll_ctl => SYS_epoll_ctl, epoll_pwait => SYS_epoll_pwait, epoll_pwait2 => SYS_epoll_pwait2,
    execve => SYS_execve, exit => SYS_exit, exit_group => SYS_exit_group, faccessat => SYS_faccessat,
    fallocate => SYS_fallocate, fcntl => SYS_fcntl, fdatasync => SYS_fdatasync, flock => SYS_flock,
    fstat => SYS_fstat, fsync => SYS_fsync, ftruncate => SYS_ftruncate, futex => SYS_futex,
    getdents64 => SYS_getdents64, getpid => SYS_getpid, getrandom => SYS_getrandom,
    getsockopt => SYS_getsockopt, gettid => SYS_gettid, io_getevents => SYS_io_getevents,
    io_submit => SYS_io_submit, io_uring_enter => SYS_io_uring_enter, ioctl => SYS_ioctl,
    kill => SYS_kill, listen => SYS_listen, lseek => SYS_lseek, madvise => SYS_madvise,
    mkdirat => SYS_mkdirat, mmap => SYS_mmap, mprotect => SYS_mprotect, mremap => SYS_mremap,
    msync => SYS_msync, munmap => SYS_munmap, nanosleep => SYS_nanosleep, newfstatat => SYS_newfstatat,
    openat => SYS_openat, ppoll => SYS_ppoll, pread64 => SYS_pread64, preadv => SYS_preadv,
    pselect6 => SYS_pselect6, pwrite64 => SYS_pwrite64, pwritev => SYS_pwritev, read => SYS_read,
    readlinkat => SYS_readlinkat, readv => SYS_readv, recvfrom => SYS_recvfrom, recvmmsg => SYS_recvmmsg,
    recvmsg => SYS_recvmsg, renameat2 => SYS_renameat2, restart_syscall => SYS_restart_syscall,
    rt_sigprocmask => SYS_rt_sigprocmask, rt_sigreturn => SYS_rt_sigreturn,
    rt_sigsuspend => SYS_rt_sigsuspend, rt_sigtimedwait => SYS_rt_sigtimedwait,
    sched_yield => SYS_sched_yield, semtimedop => SYS_semtimedop, sendfile => SYS_sendfile,
    sendmmsg => SYS_sendmmsg, sendmsg => SYS_sendmsg, sendto => SYS_sendto,
    setsockopt => SYS_setsockopt, shutdown => SYS_shutdown, socket => SYS_socket, splice => SYS_splice,
    statx => SYS_statx, sync => SYS_sync, sync_file_range => SYS_sync_file_range, tgkill => SYS_tgkill,
    unlinkat => SYS_unlinkat, wait4 => SYS_wait4, waitid => SYS_waitid, write => SYS_write,
    writev => SYS_writev,
};

/// Older calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[(libc::c_long, &str)] = names! {
    access => SYS_access, epoll_wait => SYS_epoll_wait, fork => SYS_fork, getdents => SYS_getdents,
    lstat => SYS_lstat, mkdir => SYS_mkdir, open => SYS_open, pause => SYS_pause, poll => SYS_poll,
    readlink => SYS_readlink, rename => SYS_rename, select => SYS_select, stat => SYS_stat,
    unlink => SYS_unlink, vfork => SYS_vfork,
};
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[(libc::c_long, &str)] = &[];

/// The name of a system call, if it is known here.
pub(super) fn name_of(number: u32) -> Option<&'static str> {
    let mut known = COMMON.iter().chain(OLDER);
    known
        .find(|&&(known, _)| known == libc::c_long::from(number))
        .map(|&(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that numbers have one name each, and that an unknown one has none.
    #[test]
    fn numbers_have_one_name() {
        let mut numbers: Vec<_> = COMMON.iter().chain(OLDER).map(|&(n, _)| n).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        assert_eq!(name_of(libc::SYS_futex as u32), Some("futex"));
        assert_eq!(name_of(u32::MAX), None);
    }
}
