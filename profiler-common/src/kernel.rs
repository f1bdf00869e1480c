//! Read-only globals of the BPF object, set once before it is loaded.
//!
//! Rust's BPF target has no relocations against the running kernel's types, so the daemon reads the
//! offsets from the kernel's BTF (`/sys/kernel/btf/vmlinux`) and passes them in. The verifier knows
//! read-only globals as constants: a branch on one costs nothing and a dead branch is removed,
//! which is how helpers that an old kernel lacks stay out of its sight.

/// Offsets in bytes inside the running kernel's structures: the global `OFFSETS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelOffsets {
    /// `task_struct.pid`, the thread's id.
    pub task_pid: u32,
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// `task_struct.stack`, the lowest address of the kernel stack.
    pub task_stack: u32,
    /// `task_struct.__state` (5.14 and later) or `task_struct.state`.
    pub task_state: u32,
    /// `task_struct.thread_pid`.
    pub task_thread_pid: u32,
    /// `task_struct.thread.fsbase` on x86_64, `task_struct.thread.uw.tp_value` on aarch64: the thread
    /// pointer of a thread in user space. 0 if unknown.
    pub task_thread_pointer: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// `task_struct.files`.
    pub task_files: u32,
    /// `signal_struct.live`, the number of threads that have not begun to exit.
    pub signal_live: u32,
    /// `pid.level`, the depth of the innermost pid namespace.
    pub pid_level: u32,
    /// `pid.numbers`, an array of `struct upid`.
    pub pid_numbers: u32,
    /// Size of `struct upid`, whose first member is the id in that namespace.
    pub upid_size: u32,
    /// Distance from the lowest address of a kernel stack to the user registers on it. Used where
    /// [`setting_flag::TASK_PT_REGS`] is not set.
    pub stack_pt_regs: u32,
    /// `files_struct.fdt`.
    pub files_fdt: u32,
    /// `fdtable.max_fds`.
    pub fdt_max_fds: u32,
    /// `fdtable.fd`, an array of `struct file *`.
    pub fdt_fd: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `file.private_data`, the `struct socket *` of a socket.
    pub file_private_data: u32,
    /// `inode.i_mode`.
    pub inode_mode: u32,
    /// `socket.sk`.
    pub socket_sk: u32,
    /// `sock.__sk_common.skc_family`.
    pub sock_family: u32,
    /// `sock.sk_max_ack_backlog`.
    pub sock_max_ack_backlog: u32,
    /// `unix_sock.addr`.
    pub unix_addr: u32,
    /// `sock.sk_socket`.
    pub sock_socket: u32,
    /// Distance from a `struct socket` to the number of its inode, which are allocated together.
    pub socket_inode: u32,
    /// `sock.sk_shutdown`.
    pub sock_shutdown: u32,
}

/// Bits of [`Settings::flags`].
pub mod setting_flag {
    /// The helper `bpf_task_pt_regs` exists (Linux 5.15).
    pub const TASK_PT_REGS: u32 = 1;
    /// The offsets from `task_files` to `socket_inode` are known: descriptors can be checked.
    pub const SOCKET_CHECK: u32 = 1 << 1;
    /// Requests are seen by the hooks on sockets, which give the socket, and not by `sys_exit`. Comes
    /// with `SOCKET_CHECK` and `sock_shutdown`.
    pub const SOCKET_HOOKS: u32 = 1 << 2;
    /// Requests are seen, and nobody samples: no thread is tagged.
    pub const NO_TAGS: u32 = 1 << 3;
}

/// How the programs behave: the global `SETTINGS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// [`setting_flag`] bits.
    pub flags: u32,
    /// Unread bytes in `SAMPLES` from which on a sample wakes the daemon; 0: every sample does.
    pub sample_wakeup_bytes: u32,
}

const _: () = assert!(size_of::<KernelOffsets>() == 26 * 4);
const _: () = assert!(size_of::<Settings>() == 8);
