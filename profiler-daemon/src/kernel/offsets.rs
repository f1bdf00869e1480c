//! Finds the [`KernelOffsets`] of the running kernel.

use nix::unistd::{SysconfVar, sysconf};
use profiler_common::{KernelOffsets, setting_flag};

use super::btf::{BtfError, KernelTypes};

/// `THREAD_SIZE` of x86_64, and of aarch64 where pages are not larger, without KASAN. It is not in BTF;
/// only kernels before 5.15 need it, later ones have a helper.
/// <https://github.com/torvalds/linux/blob/v5.10/arch/x86/include/asm/page_64_types.h#L15>
const THREAD_SIZE: u32 = 16 * 1024;

/// `THREAD_SIZE` of this kernel: its stacks are mapped, so they have at least a page, 64 KiB on some
/// aarch64 kernels.
/// <https://github.com/torvalds/linux/blob/v5.10/arch/arm64/include/asm/memory.h#L105>
fn thread_size(page_bytes: u32) -> u32 {
    THREAD_SIZE.max(page_bytes)
}

fn page_bytes() -> u32 {
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(0)
}

/// Offsets of a kernel and the `setting_flag`s that depend on it.
///
/// # Errors
///
/// A structure that nothing works without is missing. The members that the socket check and the socket
/// hooks need may be missing: then their flags are not set.
pub(super) fn kernel_offsets(types: &KernelTypes<'_>) -> Result<(KernelOffsets, u32), BtfError> {
    let task = |member| types.offset_of("task_struct", member);
    let mut offsets = KernelOffsets {
        task_pid: task("pid")?,
        task_tgid: task("tgid")?,
        task_stack: task("stack")?,
        // Renamed in 5.14.
        task_state: task("__state").or_else(|_| task("state"))?,
        task_thread_pid: task("thread_pid")?,
        task_thread_pointer: thread_pointer(types)
            .inspect_err(|error| tracing::debug!(%error, "thread pointers are unknown"))
            .unwrap_or(0),
        task_signal: task("signal")?,
        signal_live: types.offset_of("signal_struct", "live")?,
        pid_level: types.offset_of("pid", "level")?,
        pid_numbers: types.offset_of("pid", "numbers")?,
        upid_size: types.size_of("upid")?,
        stack_pt_regs: thread_size(page_bytes()).saturating_sub(types.size_of("pt_regs")?),
        ..KernelOffsets::default()
    };
    let mut flags = 0;
    if types.has_enumerator("BPF_FUNC_task_pt_regs") {
        flags |= setting_flag::TASK_PT_REGS;
    }
    match add_socket_offsets(types, &mut offsets) {
        Ok(()) => {
            flags |= setting_flag::SOCKET_CHECK;
            if has_socket_hooks(types)
                && let Ok(shutdown) = types.offset_of("sock", "sk_shutdown")
            {
                offsets.sock_shutdown = shutdown;
                flags |= setting_flag::SOCKET_HOOKS;
            }
        }
        Err(error) => {
            tracing::warn!(%error, "sockets cannot be checked, so requests are recognized by their first bytes only");
        }
    }
    Ok((offsets, flags))
}

/// Where a thread's thread pointer is kept. It is the first member of aarch64's `uw`.
/// <https://github.com/torvalds/linux/blob/v5.10/arch/arm64/include/asm/processor.h#L134>
fn thread_pointer(types: &KernelTypes<'_>) -> Result<u32, BtfError> {
    let member = if cfg!(target_arch = "aarch64") {
        "uw"
    } else {
        "fsbase"
    };
    Ok(types.offset_of("task_struct", "thread")? + types.offset_of("thread_struct", member)?)
}

fn add_socket_offsets(
    types: &KernelTypes<'_>,
    offsets: &mut KernelOffsets,
) -> Result<(), BtfError> {
    offsets.task_files = types.offset_of("task_struct", "files")?;
    offsets.files_fdt = types.offset_of("files_struct", "fdt")?;
    offsets.fdt_max_fds = types.offset_of("fdtable", "max_fds")?;
    offsets.fdt_fd = types.offset_of("fdtable", "fd")?;
    offsets.file_inode = types.offset_of("file", "f_inode")?;
    offsets.file_private_data = types.offset_of("file", "private_data")?;
    offsets.inode_mode = types.offset_of("inode", "i_mode")?;
    offsets.socket_sk = types.offset_of("socket", "sk")?;
    offsets.sock_family =
        types.offset_of("sock", "__sk_common")? + types.offset_of("sock_common", "skc_family")?;
    offsets.sock_max_ack_backlog = types.offset_of("sock", "sk_max_ack_backlog")?;
    offsets.unix_addr = types.offset_of("unix_sock", "addr")?;
    offsets.sock_socket = types.offset_of("sock", "sk_socket")?;
    let socket = types.offset_of("socket_alloc", "socket")?;
    let inode = types.offset_of("socket_alloc", "vfs_inode")?;
    offsets.socket_inode = inode.saturating_sub(socket) + types.offset_of("inode", "i_ino")?;
    Ok(())
}

/// Whether the kernel has the tracepoints of the socket hooks (Linux 6.4).
fn has_socket_hooks(types: &KernelTypes<'_>) -> bool {
    let tracepoints = [
        "sock_recv_length",
        "sock_send_length",
        "inet_sock_set_state",
    ];
    tracepoints
        .iter()
        .all(|tracepoint| types.has_typedef(&format!("btf_trace_{tracepoint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a kernel stack has 16 KiB, and a page where pages are larger.
    #[test]
    fn a_kernel_stack_has_at_least_a_page() {
        assert_eq!(thread_size(4 << 10), 16 << 10);
        assert_eq!(thread_size(16 << 10), 16 << 10);
        assert_eq!(thread_size(64 << 10), 64 << 10);
        assert!(page_bytes().is_power_of_two());
    }

    /// Check that the running kernel yields every offset.
    #[test]
    fn the_running_kernel_yields_every_offset() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").expect("profilerd needs BTF");
        let types = KernelTypes::parse(&bytes).unwrap();
        let (offsets, flags) = kernel_offsets(&types).unwrap();
        assert_ne!(offsets.task_pid, 0);
        assert_ne!(offsets.task_thread_pointer, 0);
        assert_eq!(offsets.upid_size, 16);
        assert_ne!(flags & setting_flag::SOCKET_CHECK, 0);
    }
}
