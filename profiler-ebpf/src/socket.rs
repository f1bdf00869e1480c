//! Is a descriptor the server side of a stream socket?
//!
//! ```text
//! task -> files -> fdt -> fd[n] -> inode  S_IFSOCK?
//!                               -> private_data: socket -> sk -> family
//!                                                             -> sk_max_ack_backlog   (TCP)
//!                                                             -> unix_sock.addr       (AF_UNIX)
//! ```
//!
//! An accepted TCP socket inherits `sk_max_ack_backlog` from its listener; a client's is 0. An
//! accepted AF_UNIX socket has the listener's address, a client's usually none. Known limit: a
//! listener made by `listen(fd, 0)` gives 0 as well, and its requests count as `NotServerSocket`.

use profiler_common::setting_flag;

use crate::globals::{offset, setting};
use crate::read::{self, kernel};

/// Address taken for the socket of a descriptor that cannot be checked.
pub(crate) const UNCHECKED: u64 = 1;

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Address of the `struct sock` behind a descriptor of the current process if it is the server side
/// of a connection, else 0; [`UNCHECKED`] if the kernel's offsets are not known.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn server_socket(fd: u64) -> u64 {
    if !setting(setting_flag::SOCKET_CHECK) {
        return UNCHECKED;
    }
    try_server_socket(fd).unwrap_or(0)
}

#[inline(always)]
fn try_server_socket(fd: u64) -> Option<u64> {
    let file = file(fd)?;
    let inode: u64 = kernel(file + offset!(file_inode))?;
    let mode: u16 = kernel(inode + offset!(inode_mode))?;
    if mode & S_IFMT != S_IFSOCK {
        return None;
    }
    let sk = sock(file)?;
    let is_server = match kernel::<u16>(sk + offset!(sock_family))? {
        AF_INET | AF_INET6 => kernel::<u32>(sk + offset!(sock_max_ack_backlog))? != 0,
        AF_UNIX => kernel::<u64>(sk + offset!(unix_addr))? != 0,
        _ => false,
    };
    is_server.then_some(sk)
}

/// `known` if the descriptor still is the socket that [`server_socket`] gave for it, else 0.
/// Cheaper: what the socket is has been found out before, and a descriptor of another kind of file
/// gives another address here.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn same_socket(fd: u64, known: u64) -> u64 {
    if !setting(setting_flag::SOCKET_CHECK) {
        return UNCHECKED;
    }
    if file(fd).and_then(sock) == Some(known) {
        known
    } else {
        0
    }
}

/// The `struct file` of a descriptor.
#[inline(always)]
fn file(fd: u64) -> Option<u64> {
    let files: u64 = kernel(read::current_task() + offset!(task_files))?;
    let fdt: u64 = kernel(files + offset!(files_fdt))?;
    let max_fds: u32 = kernel(fdt + offset!(fdt_max_fds))?;
    if fd >= u64::from(max_fds) {
        return None;
    }
    let descriptors: u64 = kernel(fdt + offset!(fdt_fd))?;
    kernel(descriptors + 8 * fd)
}

/// The `struct sock` of a file that is a socket.
#[inline(always)]
fn sock(file: u64) -> Option<u64> {
    let socket: u64 = kernel(file + offset!(file_private_data))?;
    kernel(socket + offset!(socket_sk))
}
