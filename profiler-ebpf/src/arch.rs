//! What differs between processor architectures: words of `struct pt_regs`, system call numbers.

/// What a system call means for a connection. Values of [`CALLS`].
pub(crate) mod call {
    /// Not looked at.
    pub(crate) const NONE: u8 = 0;
    /// `(fd, buffer, count, flags)`: bytes of a request.
    pub(crate) const READ: u8 = 1;
    /// `(fd, iovec, count)`: bytes of a request.
    pub(crate) const READ_IOVEC: u8 = 2;
    /// `(fd, msghdr, flags)`: bytes of a request.
    pub(crate) const READ_MESSAGE: u8 = 3;
    /// `(fd, buffer)`: bytes of a response.
    pub(crate) const WRITE: u8 = 4;
    /// `(fd, iovec, count)`: bytes of a response.
    pub(crate) const WRITE_IOVEC: u8 = 5;
    /// `(fd, msghdr)`: bytes of a response.
    pub(crate) const WRITE_MESSAGE: u8 = 6;
    /// `(fd)`: bytes of a response that do not lie in the caller's memory.
    pub(crate) const WRITE_UNSEEN: u8 = 7;
    /// `(_, _, fd)`: the same.
    pub(crate) const SPLICE: u8 = 8;
    /// `(fd, mmsghdr)`: messages of a response; the result is their number.
    pub(crate) const WRITE_MESSAGES: u8 = 9;
    /// `(fd)`.
    pub(crate) const CLOSE: u8 = 10;
    /// `(first, last, flags)`.
    pub(crate) const CLOSE_RANGE: u8 = 11;
    /// `(fd, how)`.
    pub(crate) const SHUTDOWN: u8 = 12;
    /// `(old, new)`; the result is `new`.
    pub(crate) const DUP: u8 = 13;
    /// `(fd, buffer, count, flags)` with `flags` in the place `recvfrom` has them.
    pub(crate) const RECEIVE: u8 = 14;

    /// A meaning as an element of a set.
    pub(crate) const fn bit(meaning: u8) -> u32 {
        1 << (meaning & 31)
    }

    /// Calls that read bytes.
    pub(crate) const RECEIVES: u32 = bit(READ) | bit(READ_IOVEC) | bit(READ_MESSAGE) | bit(RECEIVE);
    /// Calls that write bytes.
    pub(crate) const SENDS: u32 = bit(WRITE)
        | bit(WRITE_IOVEC)
        | bit(WRITE_MESSAGE)
        | bit(WRITE_UNSEEN)
        | bit(SPLICE)
        | bit(WRITE_MESSAGES);
    /// Calls that close or shut down.
    pub(crate) const ENDS: u32 = bit(CLOSE) | bit(CLOSE_RANGE) | bit(SHUTDOWN) | bit(DUP);
}

/// Size of [`CALLS`]; later numbers (469 in Linux 6.18) are none of ours.
pub(crate) const CALLS_LEN: usize = 512;

#[cfg(bpf_target_arch = "x86_64")]
mod layout {
    use super::call;

    /// Words of `struct pt_regs`.
    /// <https://github.com/torvalds/linux/blob/v5.10/arch/x86/include/asm/ptrace.h#L56>
    pub(crate) const REGS_WORDS: usize = 21;
    /// Stack pointer.
    pub(crate) const SP: usize = 19;
    /// Of a thread inside a system call: its number and first argument.
    pub(crate) const CALL: [usize; 2] = [15, 14];

    /// `epoll_wait`, `epoll_pwait`, `epoll_pwait2`.
    #[inline(always)]
    pub(crate) fn is_epoll_wait(number: u64) -> bool {
        matches!(number, 232 | 281 | 441)
    }
    /// First four system call arguments: `rdi`, `rsi`, `rdx`, `r10`.
    pub(crate) const ARGS: [usize; 4] = [14, 13, 12, 7];
    /// System call number: the low half of `orig_rax`.
    pub(crate) const NUMBER: usize = 15;
    /// See `profiler_common::is_thread_id`.
    pub(crate) const THREAD_ID_SPAN: u64 = profiler_common::thread_id_span::X86_64;
    /// Word that tells 32-bit callers, which have other call numbers and structures: `cs`.
    pub(crate) const MODE: usize = 17;

    /// Whether that word is of a 32-bit caller: not `__USER_CS`.
    #[inline(always)]
    pub(crate) fn is_compat(mode: u64) -> bool {
        mode != 0x33
    }

    /// `(number, meaning)`.
    /// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/entry/syscalls/syscall_64.tbl>
    pub(crate) const TABLE: &[(usize, u8)] = &[
        (0, call::READ),
        (19, call::READ_IOVEC),
        (327, call::READ_IOVEC),
        (45, call::RECEIVE),
        (47, call::READ_MESSAGE),
        (1, call::WRITE),
        (20, call::WRITE_IOVEC),
        (328, call::WRITE_IOVEC),
        (44, call::WRITE),
        (46, call::WRITE_MESSAGE),
        (307, call::WRITE_MESSAGES),
        (40, call::WRITE_UNSEEN),
        (275, call::SPLICE),
        (3, call::CLOSE),
        (436, call::CLOSE_RANGE),
        (48, call::SHUTDOWN),
        (33, call::DUP),
        (292, call::DUP),
    ];
}

#[cfg(bpf_target_arch = "aarch64")]
mod layout {
    use super::call;

    /// Words of `struct user_pt_regs`, the beginning of `struct pt_regs`.
    /// <https://github.com/torvalds/linux/blob/v5.10/arch/arm64/include/asm/ptrace.h#L179>
    pub(crate) const REGS_WORDS: usize = 34;
    /// Stack pointer.
    pub(crate) const SP: usize = 31;
    /// Of a thread inside a system call: its number (`x8`) and first argument.
    pub(crate) const CALL: [usize; 2] = [8, 0];

    /// `epoll_pwait`, `epoll_pwait2`; there is no `epoll_wait`.
    #[inline(always)]
    pub(crate) fn is_epoll_wait(number: u64) -> bool {
        matches!(number, 22 | 441)
    }

    /// First four system call arguments: `orig_x0` (x0 holds the result), `x1` to `x3`.
    pub(crate) const ARGS: [usize; 4] = [34, 1, 2, 3];
    /// System call number: `syscallno`, half a word.
    pub(crate) const NUMBER: usize = 35;
    /// See `profiler_common::is_thread_id`.
    pub(crate) const THREAD_ID_SPAN: u64 = profiler_common::thread_id_span::AARCH64;
    /// Word that tells 32-bit callers, which have other call numbers and structures: `pstate`.
    pub(crate) const MODE: usize = 33;

    /// Whether that word is of a 32-bit caller: `PSTATE.nRW` is set.
    #[inline(always)]
    pub(crate) fn is_compat(mode: u64) -> bool {
        mode & 0x10 != 0
    }

    /// `(number, meaning)`.
    /// <https://github.com/torvalds/linux/blob/v6.12/scripts/syscall.tbl>
    pub(crate) const TABLE: &[(usize, u8)] = &[
        (63, call::READ),
        (65, call::READ_IOVEC),
        (286, call::READ_IOVEC),
        (207, call::RECEIVE),
        (212, call::READ_MESSAGE),
        (64, call::WRITE),
        (66, call::WRITE_IOVEC),
        (287, call::WRITE_IOVEC),
        (206, call::WRITE),
        (211, call::WRITE_MESSAGE),
        (269, call::WRITE_MESSAGES),
        (71, call::WRITE_UNSEEN),
        (76, call::SPLICE),
        (57, call::CLOSE),
        (436, call::CLOSE_RANGE),
        (210, call::SHUTDOWN),
        (24, call::DUP),
    ];
}

pub(crate) use layout::*;

/// Meaning of a system call by its number: one load decides about all calls of all processes.
#[unsafe(no_mangle)]
static CALLS: [u8; CALLS_LEN] = {
    let mut calls = [call::NONE; CALLS_LEN];
    let mut index = 0;
    while index < TABLE.len() {
        calls[TABLE[index].0] = TABLE[index].1;
        index += 1;
    }
    calls
};

/// Meaning of a system call number, one of [`call`].
#[inline(always)]
pub(crate) fn meaning(number: u64) -> u8 {
    if number >= CALLS_LEN as u64 {
        return call::NONE;
    }
    // SAFETY: the index was just checked. Volatile, so that the table is not turned into branches.
    unsafe { core::ptr::read_volatile((&raw const CALLS).cast::<u8>().add(number as usize)) }
}
