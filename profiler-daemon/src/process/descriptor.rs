//! What the descriptors of another process are.
//!
//! In:  links in `/proc/PID/task/TID/fd`, see proc(5)
//! Out: the inode of a socket
//! Lost: nothing; what cannot be read is taken as unchanged

use std::io::ErrorKind;
use std::path::Path;

use super::procfs::Procfs;
use crate::model::{Pid, Tid};

/// Whether a descriptor is the socket with this inode; true if that cannot be found out.
///
/// A thread is asked: the descriptors of a process whose first thread has exited are not to be seen under
/// its own number.
#[must_use]
pub fn is_socket(procfs: &Procfs, pid: Pid, tid: Tid, fd: i32, inode: u64) -> bool {
    let directory = procfs.path(pid, &format!("task/{tid}/fd"));
    match std::fs::read_link(directory.join(fd.to_string())) {
        Ok(link) => socket_inode(&link) == Some(inode),
        Err(error) => error.kind() != ErrorKind::NotFound || !directory.exists(),
    }
}

/// The inode of the socket that a thread's descriptor names; `None` if it names something else, or cannot be read.
#[must_use]
pub(super) fn inode(procfs: &Procfs, pid: Pid, tid: Tid, fd: i32) -> Option<u64> {
    let link = std::fs::read_link(procfs.path(pid, &format!("task/{tid}/fd/{fd}")));
    socket_inode(&link.ok()?)
}

/// The inode in the text of a socket's link.
pub(super) fn socket_inode(link: &Path) -> Option<u64> {
    let text = link.to_str()?;
    let inode = text.strip_prefix("socket:[")?.strip_suffix(']')?;
    inode.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Check that a descriptor is its socket until it is closed or another socket, and that a thread that
    /// is gone tells nothing.
    #[test]
    fn a_descriptor_is_its_socket_until_closed() {
        let pid = Pid(std::process::id());
        let tid = Tid(nix::unistd::gettid().as_raw().cast_unsigned());
        let is_socket = |tid, fd, inode| is_socket(&Procfs::default(), pid, tid, fd, inode);
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = socket.as_raw_fd();
        let path = format!("/proc/self/fd/{fd}");
        let inode = std::fs::metadata(path).unwrap().ino();
        assert!(is_socket(tid, fd, inode));
        assert!(!is_socket(tid, fd, inode + 1));
        // A number that nothing opens.
        assert!(!is_socket(tid, i32::MAX, inode));
        assert!(is_socket(Tid(u32::MAX), fd, inode));
    }
}
