//! Finds the TCP ports that a process listens on: who listens can serve requests.
//!
//! In:  `/proc/PID/net/{tcp,tcp6}` of a network namespace, `/proc/PID/fd` of its processes
//! Out: ports per process
//! Lost: sockets beyond a bound; Unix domain sockets are not looked at
//!
//! For namespaces that `sock_diag` does not serve. The kernel lists listening sockets before all
//! others, so reading stops at the first that is not one: a server with 100,000 connections costs no
//! more than an idle one.
//! <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_ipv4.c#L2611> (`tcp_get_idx`)

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use super::descriptor::socket_inode;
use super::procfs::Procfs;
use crate::model::Pid;

const IPV6_TABLE: &str = "net/tcp6";
/// `TCP_LISTEN`, as the `st` column has it.
const LISTEN: &str = "0A";
/// Bytes read of one table: 6,000 listening sockets.
const TABLE_MAX_BYTES: usize = 1 << 20;
/// Bytes read at once: the kernel fills what is asked for, and the first lines are enough.
const CHUNK_BYTES: usize = 4096;
/// More than a line.
const LINE_BYTES: usize = 256;
/// Most descriptors read per process.
const DESCRIPTORS_MAX: usize = 65_536;

/// Listening sockets of a network namespace: inode to port.
pub(super) type Listeners = HashMap<u64, u16>;

/// Listening sockets of the network namespace that a process is in, from these `tables` of it; `None`
/// if the process is gone.
pub(super) fn listeners(procfs: &Procfs, pid: Pid, tables: &[&str]) -> Option<Listeners> {
    let mut found = Listeners::new();
    for table in tables {
        match File::open(procfs.path(pid, table)) {
            Ok(file) => read_table(file, |row| {
                found.insert(row.inode, row.port);
            }),
            Err(_) if *table == IPV6_TABLE => {} // the kernel may be without
            Err(_) => return None,
        }
    }
    Some(found)
}

/// User ids of those who listen on a port in our own network namespace; empty if nobody does.
#[must_use]
pub fn owners_of(port: u16) -> Vec<u32> {
    let mut owners = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        // The kernel may be without the second.
        if let Ok(file) = File::open(table) {
            read_table(file, |row| {
                if row.port == port {
                    owners.push(row.owner);
                }
            });
        }
    }
    owners
}

/// A listening socket.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    inode: u64,
    port: u16,
    owner: u32,
}

fn read_table(mut file: File, mut visit: impl FnMut(Row)) {
    let mut text = Vec::new();
    let mut chunk = [0; CHUNK_BYTES];
    let mut is_heading = true;
    for _ in 0..TABLE_MAX_BYTES / CHUNK_BYTES {
        let Ok(len) = file.read(&mut chunk) else {
            return;
        };
        text.extend_from_slice(chunk.get(..len).unwrap_or_default());
        let whole = text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
        let rest = text.split_off(whole);
        for line in String::from_utf8_lossy(&text).lines() {
            if std::mem::take(&mut is_heading) || line.is_empty() {
                continue;
            }
            match parse_line(line) {
                Some(row) => visit(row),
                None => return,
            }
        }
        // With room for another line the table is at its end; to be told so takes a second walk
        // through all connections.
        if len + LINE_BYTES < CHUNK_BYTES {
            return;
        }
        text = rest;
    }
}

fn parse_line(line: &str) -> Option<Row> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let owner = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    (state == LISTEN).then_some(Row { inode, port, owner })
}

/// Ports of those listening sockets that a process holds, sorted.
pub(super) fn ports_of(procfs: &Procfs, pid: Pid, listeners: &Listeners) -> Vec<u16> {
    if listeners.is_empty() {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(procfs.path(pid, "fd")) else {
        return Vec::new(); // gone, or not ours to look at
    };
    let mut ports: Vec<u16> = entries
        .take(DESCRIPTORS_MAX)
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.ok()?.path()).ok()?;
            listeners.get(&socket_inode(&target)?).copied()
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Check lines of both tables, and that other states end the list.
    #[test]
    fn lines_are_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0";
        let row = |inode, port, owner| Some(Row { inode, port, owner });
        assert_eq!(parse_line(line), row(4711, 8080, 1000));
        let v6 = "   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1";
        assert_eq!(parse_line(v6), row(12, 80, 0));
        assert_eq!(parse_line(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse_line("  0: x"), None);
    }

    /// Check that our own listening port is found, beside an established connection to it.
    #[test]
    fn our_own_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let pid = Pid(std::process::id());
        let procfs = Procfs::default();
        let tables = ["net/tcp", IPV6_TABLE];
        let listeners = listeners(&procfs, pid, &tables).unwrap();
        assert!(ports_of(&procfs, pid, &listeners).contains(&port));
        assert_eq!(owners_of(port), [nix::unistd::geteuid().as_raw()]);
        assert_eq!(ports_of(&procfs, Pid(u32::MAX), &listeners), [0; 0]);
    }
}
