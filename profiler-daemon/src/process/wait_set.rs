//! What a thread waits for in `epoll_wait`, `poll` or `select`: its own request's descriptors, or those of others as
//! well.
//!
//! In:  `/proc/PID/task/TID/fdinfo/FD` of an epoll descriptor, `/proc/PID/task/TID/fd/FD` of others, see proc(5);
//!      `/proc/PID/net/{tcp,tcp6,unix}`
//! Out: [`Waits`]
//! Lost: entries of a set beyond a bound; what cannot be read is taken as the request's own

use super::descriptor;
use super::listen::{self, Listeners};
use super::procfs::Procfs;
use crate::model::{Pid, Tid};

/// Bytes read of a set: some 4,000 descriptors.
const SET_MAX_BYTES: u64 = 256 << 10;
/// Bytes read of a table of sockets.
const TABLE_MAX_BYTES: u64 = 1 << 20;
/// `__SO_ACCEPTCON` in the flags of a Unix socket: it listens.
const ACCEPTS: u32 = 1 << 16;
/// Kinds of TCP sockets.
const TABLES: [&str; 2] = ["net/tcp", "net/tcp6"];

/// Descriptors that a thread waits for at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WaitSet {
    /// Those in the set behind an epoll descriptor.
    Epoll(i32),
    /// Those given to `poll` or `select`.
    Descriptors(Vec<i32>),
}

/// Whose descriptors a thread waits for while it owes an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// The request's own: its connection, calls to other servers, timers.
    ForItself,
    /// New connections, or other clients: an event loop, which may work for any client.
    ForOthers,
    /// The same, and for a server socket of its own program: it forwards what it reads.
    ForWorkers,
}

/// A descriptor in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    fd: i32,
    inode: u64,
}

/// Whose descriptors are in the set of a thread that serves the connection `own_fd`.
/// `is_client` says whether a descriptor with this inode is the connection of another client.
#[must_use]
pub fn waits(
    procfs: &Procfs,
    pid: Pid,
    tid: Tid,
    set: &WaitSet,
    own_fd: i32,
    is_client: impl Fn(i32, u64) -> bool,
) -> Waits {
    let mut entries = match set {
        WaitSet::Epoll(set_fd) => entries(procfs, pid, tid, *set_fd),
        WaitSet::Descriptors(fds) => {
            let others = fds.iter().filter(|&&fd| fd != own_fd);
            let entry = |&fd| {
                let inode = descriptor::inode(procfs, pid, tid, fd)?;
                Some(Entry { fd, inode })
            };
            others.filter_map(entry).collect()
        }
    };
    entries.retain(|entry| entry.fd != own_fd);
    if entries.is_empty() {
        return Waits::ForItself;
    }
    let listeners = listen::listeners(procfs, pid, &TABLES).unwrap_or_default();
    let has_client = entries.iter().any(|it| is_client(it.fd, it.inode));
    let has_tcp = entries.iter().any(|it| listeners.contains_key(&it.inode));
    if !has_client && !has_tcp && !has_unix_listener(procfs, pid, &entries) {
        Waits::ForItself
    } else if calls_own_port(procfs, pid, &entries, &listeners) {
        Waits::ForWorkers
    } else {
        Waits::ForOthers
    }
}

fn entries(procfs: &Procfs, pid: Pid, tid: Tid, set_fd: i32) -> Vec<Entry> {
    let file = format!("task/{tid}/fdinfo/{set_fd}");
    let text = procfs.read_patiently(pid, &file, SET_MAX_BYTES);
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    text.lines().filter_map(parse_entry).collect()
}

/// `tfd:        5 events:       19 data:                5  pos:0 ino:1f2 sdev:8`
fn parse_entry(line: &str) -> Option<Entry> {
    let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
    let fd = words.next()?.parse().ok()?;
    let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
    let inode = u64::from_str_radix(inode, 16).ok()?;
    Some(Entry { fd, inode })
}

/// `ffff...: 00000002 00000000 00010000 0001 01 4711 /run/app.sock`
fn has_unix_listener(procfs: &Procfs, pid: Pid, entries: &[Entry]) -> bool {
    let text = procfs.text(pid, "net/unix", TABLE_MAX_BYTES);
    text.unwrap_or_default().lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let flags = words.nth(3).map(|flags| u32::from_str_radix(flags, 16));
        let inode = words.nth(2).and_then(|inode| inode.parse::<u64>().ok());
        matches!(flags, Some(Ok(flags)) if flags & ACCEPTS != 0)
            && inode.is_some_and(|inode| entries.iter().any(|entry| entry.inode == inode))
    })
}

/// Whether one of the set's sockets is connected to a port of the process's own program: a router inherits the
/// listening socket of its workers, or has closed it (uWSGI) and their common parent has it.
fn calls_own_port(procfs: &Procfs, pid: Pid, entries: &[Entry], listeners: &Listeners) -> bool {
    let mut ports = listen::ports_of(procfs, pid, listeners);
    if let Some(parent) = parent_of_same_program(procfs, pid) {
        ports.extend(listen::ports_of(procfs, parent, listeners));
    }
    let is_call = |line: &str| {
        let peer = peer(line);
        peer.is_some_and(|(inode, port)| {
            ports.contains(&port) && entries.iter().any(|entry| entry.inode == inode)
        })
    };
    !ports.is_empty()
        && TABLES.iter().any(|table| {
            let text = procfs.text(pid, table, TABLE_MAX_BYTES);
            text.unwrap_or_default().lines().any(is_call)
        })
}

fn parent_of_same_program(procfs: &Procfs, pid: Pid) -> Option<Pid> {
    let parent = procfs.parent(pid).ok()?;
    let exe = procfs.exe(pid).ok()?;
    procfs
        .exe(parent)
        .is_ok_and(|its| its == exe)
        .then_some(parent)
}

/// Inode of a TCP socket and the port it is connected to.
fn peer(line: &str) -> Option<(u64, u16)> {
    let mut words = line.split_ascii_whitespace();
    let remote = words.nth(2)?;
    let inode = words.nth(6)?.parse().ok()?;
    let port = u16::from_str_radix(remote.rsplit_once(':')?.1, 16).ok()?;
    Some((inode, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd as _, OwnedFd};
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

    use super::*;

    /// What a thread of ours waits for in a set of these sockets, of which the last one is its connection.
    fn waits_in(sockets: &[&OwnedFd], clients: &[&OwnedFd]) -> Waits {
        let set = Epoll::new(EpollCreateFlags::empty()).unwrap();
        for socket in sockets {
            set.add(*socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .unwrap();
        }
        let pid = Pid(std::process::id());
        let tid = Tid(nix::unistd::gettid().as_raw().cast_unsigned());
        let own = sockets.last().map_or(-1, |socket| socket.as_raw_fd());
        let is_client = |fd, _| clients.iter().any(|client| client.as_raw_fd() == fd);
        let waits = |set: WaitSet| waits(&Procfs::default(), pid, tid, &set, own, is_client);
        let fds = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
        let by_epoll = waits(WaitSet::Epoll(set.0.as_raw_fd()));
        assert_eq!(waits(WaitSet::Descriptors(fds)), by_epoll);
        by_epoll
    }

    /// Check that waiting for one's own connection, for other servers and for pipes is one's own business, and
    /// that a listening socket or another client's connection in the set makes it an event loop.
    #[test]
    fn a_set_with_others_in_it_is_a_loop() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || OwnedFd::from(TcpStream::connect(address).unwrap());
        let accept = || OwnedFd::from(listener.accept().unwrap().0);
        let (upstream, _other) = (connect(), connect());
        let (own, other) = (accept(), accept());
        let (pipe, wake) = UnixStream::pair().unwrap();
        let (pipe, _wake) = (OwnedFd::from(pipe), wake);
        let folder = tempfile::tempdir().unwrap();
        let unix = OwnedFd::from(UnixListener::bind(folder.path().join("socket")).unwrap());

        assert_eq!(waits_in(&[&own], &[]), Waits::ForItself);
        assert_eq!(waits_in(&[&pipe, &own], &[]), Waits::ForItself);
        assert_eq!(waits_in(&[&other, &own], &[&other]), Waits::ForOthers);
        assert_eq!(waits_in(&[&unix, &own], &[]), Waits::ForOthers);
        // This process holds the listening socket that it is connected to.
        assert_eq!(waits_in(&[&upstream, &own], &[]), Waits::ForItself);
        let tcp = OwnedFd::from(listener.try_clone().unwrap());
        assert_eq!(waits_in(&[&tcp, &own], &[]), Waits::ForOthers);
        assert_eq!(waits_in(&[&tcp, &upstream, &own], &[]), Waits::ForWorkers);
    }

    /// Check that a descriptor that is no set, and a thread that is gone, tell nothing.
    #[test]
    fn what_is_no_set_tells_nothing() {
        let pid = Pid(std::process::id());
        let waits = |tid, fd| {
            let set = WaitSet::Epoll(fd);
            waits(&Procfs::default(), pid, Tid(tid), &set, 1, |_, _| true)
        };
        assert_eq!(waits(std::process::id(), 0), Waits::ForItself);
        assert_eq!(waits(u32::MAX, 0), Waits::ForItself);
    }

    /// Check the lines of a set and of the table of connections.
    #[test]
    fn lines_are_read() {
        let line = "tfd:        5 events:       19 data:                5  pos:0 ino:1f2 sdev:8";
        let entry = Entry {
            fd: 5,
            inode: 0x1f2,
        };
        assert_eq!(parse_entry(line), Some(entry));
        for bad in [
            "pos:\t0",
            "tfd: 5",
            "tfd: x ino:1",
            "tfd: 5 ino:xyz",
            "tfd:",
        ] {
            assert_eq!(parse_entry(bad), None, "{bad}");
        }
        let line = "   0: 0100007F:1F90 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0";
        assert_eq!(peer(line), Some((4711, 80)));
        assert_eq!(peer("  0: x"), None);
    }
}
