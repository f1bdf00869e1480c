//! Keeps the listening sockets of every network namespace, reading each only when it may have changed.
//!
//! In:  `sock_diag` for the daemon's own namespace; `/proc/PID/net` for the others
//! Out: [`Listeners`] per namespace, and which of them have changed
//! Lost: a socket that opens in the same scan in which another one closes is seen late, within
//!       [`STRIDE`] scans, if no process of the namespace is young
//!
//! # Why counts
//!
//! A netlink socket belongs to the namespace of its maker, and to make one elsewhere needs
//! `CAP_SYS_ADMIN`, which the daemon gives up. `/proc/PID/net/tcp` needs nothing, but the kernel goes
//! through its table of all connections for it, milliseconds on a large machine. `/proc/PID/net/sockstat`
//! has the number of TCP sockets of the namespace for 25 us: as long as it stays the same nothing has
//! begun to listen. With 50 quiet namespaces a scan takes 3 ms of CPU, where reading them all takes 200. A busy server changes it all the time, so at most [`READS_MAX`]
//! namespaces are read in a scan, those first that were not read for longest.

use std::collections::HashMap;

use super::listen::{self, Listeners};
use super::procfs::Procfs;
use super::sock_diag;
use crate::model::Pid;

/// Most namespaces other than our own that are read in one scan. Each takes up to 4 ms.
const READS_MAX: usize = 8;
/// As many are read in the first scan, which for some commands is the only one.
const FIRST_READS_MAX: usize = 512;
/// A namespace is read after so many scans whatever its counts say.
const STRIDE: u32 = 60;
/// Both files have less.
const SOCKSTAT_MAX_BYTES: u64 = 4 << 10;

/// TCP sockets in a namespace, of both families; time-wait is not counted by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    v4: u64,
    v6: u64,
}

/// The processes of a namespace.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// One of them has been found only lately.
    pub(super) has_young: bool,
    /// Their ids.
    pub(super) pids: Vec<Pid>,
}

#[derive(Debug, Default)]
struct Namespace {
    listeners: Listeners,
    counts: Counts,
    /// Scan in which it was read, 0 for never.
    read_at: u32,
    is_due: bool,
}

/// Listening sockets by namespace.
#[derive(Debug)]
pub(super) struct Namespaces {
    own: u64,
    known: HashMap<u64, Namespace>,
    scans: u32,
}

impl Namespaces {
    /// `own` is the daemon's.
    pub(super) fn new(own: u64) -> Self {
        Self {
            own,
            known: HashMap::new(),
            scans: 0,
        }
    }

    /// Listening sockets of a namespace as of the last reading.
    pub(super) fn listeners(&self, namespace: u64) -> Option<&Listeners> {
        self.known.get(&namespace).map(|known| &known.listeners)
    }

    /// Reads what may have changed; returns the namespaces that have.
    pub(super) fn scan(&mut self, procfs: &Procfs, members: &HashMap<u64, Members>) -> Vec<u64> {
        self.scans = self.scans.saturating_add(1);
        self.known
            .retain(|namespace, _| members.contains_key(namespace));
        let mut due = Vec::new();
        for (&namespace, members) in members {
            let known = self.known.entry(namespace).or_default();
            if namespace == self.own {
                due.push((0, namespace, None));
                continue;
            }
            let counts = members.pids.first().and_then(|&pid| counts(procfs, pid));
            known.is_due |= members.has_young
                || counts.is_none_or(|counts| counts != known.counts)
                || self.scans.saturating_sub(known.read_at) >= STRIDE;
            if known.is_due {
                due.push((known.read_at, namespace, counts));
            }
        }
        due.sort_unstable_by_key(|&(read_at, namespace, _)| {
            (namespace != self.own, read_at, namespace)
        });
        let others = usize::from(due.first().is_some_and(|due| due.1 == self.own));
        let most = if self.scans == 1 {
            FIRST_READS_MAX
        } else {
            READS_MAX
        };
        due.truncate(most + others);
        let mut changed = Vec::new();
        for (_, namespace, counts) in due {
            let pids = members
                .get(&namespace)
                .map_or(&[][..], |members| &members.pids);
            let Some(listeners) = self.read(procfs, namespace, pids, counts) else {
                continue; // its processes have just ended
            };
            let known = self.known.entry(namespace).or_default();
            (known.read_at, known.is_due) = (self.scans, false);
            known.counts = counts.unwrap_or_default();
            if known.listeners != listeners {
                known.listeners = listeners;
                changed.push(namespace);
            }
        }
        changed
    }

    fn read(
        &self,
        procfs: &Procfs,
        namespace: u64,
        pids: &[Pid],
        counts: Option<Counts>,
    ) -> Option<Listeners> {
        if namespace == self.own
            && let Ok(listeners) = sock_diag::listeners()
        {
            return Some(listeners);
        }
        let mut tables = Vec::new();
        if counts.is_none_or(|counts| counts.v4 > 0) {
            tables.push("net/tcp");
        }
        if counts.is_none_or(|counts| counts.v6 > 0) {
            tables.push("net/tcp6");
        }
        listen::listeners(procfs, *pids.first()?, &tables)
    }
}

/// Sockets of the namespace that a process is in, `None` if it is gone.
fn counts(procfs: &Procfs, pid: Pid) -> Option<Counts> {
    let read = |file: &str| procfs.text(pid, file, SOCKSTAT_MAX_BYTES).ok();
    Some(Counts {
        v4: in_use(&read("net/sockstat")?, "TCP:")?,
        // Not there without IPv6.
        v6: read("net/sockstat6")
            .and_then(|text| in_use(&text, "TCP6:"))
            .unwrap_or(0),
    })
}

/// `TCP: inuse 5 orphan 0 tw 0 alloc 7 mem 0`
pub(crate) fn in_use(sockstat: &str, family: &str) -> Option<u64> {
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix(family))?;
    let mut words = line.split_ascii_whitespace();
    words.find(|&word| word == "inuse")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the line that counts, and what is none.
    #[test]
    fn counts_are_read() {
        let text =
            "sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 7 mem 0\nUDP: inuse 1 mem 0\n";
        assert_eq!(in_use(text, "TCP:"), Some(5));
        assert_eq!(in_use("TCP6: inuse 2\n", "TCP6:"), Some(2));
        for bad in ["", "TCP:", "TCP: inuse", "TCP: inuse x", "TCP6: inuse 3"] {
            assert_eq!(in_use(bad, "TCP:"), None, "{bad:?}");
        }
    }

    /// Check that our own socket is counted, which is what tells that one is new.
    #[test]
    fn a_new_listener_changes_the_count() {
        let (procfs, own) = (Procfs::default(), Pid(std::process::id()));
        let sockets: Vec<_> = (0..200)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        // Other tests open and close sockets too, but not hundreds.
        assert!(counts(&procfs, own).unwrap().v4 >= 200);
        drop(sockets);
        assert_eq!(counts(&procfs, Pid(u32::MAX)), None);
    }
}
