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
//!
//! The socket hooks are given the `struct sock` and need no walk, except to find out once per
//! connection that the system call's descriptor is its: io_uring does its work at the end of any call.

use profiler_common::{Conn, conn_flag, setting_flag};

use crate::globals::{offset, setting};
use crate::maps;
use crate::read::{self, kernel};

/// Address taken for the socket of a descriptor that cannot be checked.
pub(crate) const UNCHECKED: u64 = 1;

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `SEND_SHUTDOWN` in `sock.sk_shutdown`.
const SEND_SHUTDOWN: u8 = 2;

/// The `struct sock` that the socket hook was given.
#[inline(always)]
pub(crate) fn given() -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // Volatile: read back from the map it is a number, which may be passed to functions; as the hook's
    // argument it is a pointer.
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    unsafe { core::ptr::read_volatile(&raw const (*scratch).sk) }
}

/// Whether the record of a descriptor is of another socket than the one that a call has used: the close was not
/// seen, or has yet to be told.
///
/// Sockets get the addresses of closed ones. Where a mistake would mix up two requests, the inode is
/// asked too. At `sys_exit`, where no socket is given, only those records are asked about.
#[inline(always)]
pub(crate) fn is_another(key: u64, conn: &Conn) -> bool {
    const ASKED: u32 = conn_flag::TRACKED | conn_flag::PARTIAL;
    let is_asked = conn.flags & ASKED != 0;
    if !setting(setting_flag::SOCKET_CHECK) {
        return false;
    }
    if !setting(setting_flag::SOCKET_HOOKS) {
        return is_asked && names_socket(key & 0xffff_ffff, conn.sk, conn.inode) == 0;
    }
    let sk = given();
    sk != conn.sk || is_asked && inode_number(sk) != conn.inode
}

/// Whether nothing can be sent on the given socket any more. Never at `sys_exit`.
#[inline(always)]
pub(crate) fn is_shut_down() -> bool {
    setting(setting_flag::SOCKET_HOOKS)
        && kernel::<u8>(given() + offset!(sock_shutdown))
            .is_some_and(|shutdown| shutdown & SEND_SHUTDOWN != 0)
}

/// Number of a socket's inode; 0 if the kernel's offsets are not known.
#[inline(always)]
pub(crate) fn inode_number(sk: u64) -> u64 {
    if !setting(setting_flag::SOCKET_CHECK) {
        return 0;
    }
    kernel(sk + offset!(sock_socket))
        .and_then(|socket: u64| kernel(socket + offset!(socket_inode)))
        .unwrap_or(0)
}

/// 1 if a descriptor of the current process is the socket of a record, else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn names_socket(fd: u64, sk: u64, inode: u64) -> u64 {
    let is_named = file(fd).and_then(sock) == Some(sk) && inode_number(sk) == inode;
    u64::from(is_named)
}

/// Address of the `struct sock` behind a descriptor of the current process if it is the server side
/// of a connection, else 0; [`UNCHECKED`] if the kernel's offsets are not known.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn server_socket(fd: u64) -> u64 {
    if !setting(setting_flag::SOCKET_CHECK) {
        return UNCHECKED;
    }
    if setting(setting_flag::SOCKET_HOOKS) {
        let sk = given();
        let is_server = is_server(sk) == Some(true) && file(fd).and_then(sock) == Some(sk);
        return if is_server { sk } else { 0 };
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
    is_server(sk)?.then_some(sk)
}

#[inline(always)]
fn is_server(sk: u64) -> Option<bool> {
    Some(match kernel::<u16>(sk + offset!(sock_family))? {
        AF_INET | AF_INET6 => kernel::<u32>(sk + offset!(sock_max_ack_backlog))? != 0,
        AF_UNIX => kernel::<u64>(sk + offset!(unix_addr))? != 0,
        _ => false,
    })
}

/// `known` if the descriptor still is the socket that [`server_socket`] gave for it, else 0. `inode` is
/// [`inode_number`] of that socket.
///
/// Cheaper: what the socket is has been found out before, and a descriptor of another kind of file
/// gives another address here.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn same_socket(fd: u64, known: u64, inode: u64) -> u64 {
    if !setting(setting_flag::SOCKET_CHECK) {
        return UNCHECKED;
    }
    if setting(setting_flag::SOCKET_HOOKS) {
        let is_same = given() == known && inode_number(known) == inode;
        return if is_same { known } else { 0 };
    }
    if names_socket(fd, known, inode) != 0 {
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
