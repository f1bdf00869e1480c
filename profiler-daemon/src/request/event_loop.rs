//! Threads that turn out to be event loops. Between a request and its response they may work for any client.
//!
//! ```text
//!  one thread a request   head ──work──poll(upstream)──work── answer        the time is the request's
//!  event loop             head ──work──epoll_wait(listener, clients, ..)──?── answer   it may be anybody's
//!                                      poll, select: the same
//! ```
//!
//! A loop whose handlers run from head to answer without waiting serves one request at a time: its threads never
//! come here. One that waits with a timeout of 0 only does not sleep, and is not seen. The kernel side tells every sleep
//! in `epoll_wait`; those in `poll` and `select` are seen where a tick falls into them.

use std::collections::{HashMap, HashSet};

use crate::model::{ProcessKey, Tid};
use crate::process::wait_set::{WaitSet, Waits};

/// How long a set that was the request's own is taken for it: who else is in it costs milliseconds to find out.
const OWN_NS: u64 = 1_000_000_000;
/// Sets that are remembered.
const SETS_MAX: usize = 1024;

/// What is known of threads that sleep on sets of descriptors.
#[derive(Debug, Default)]
pub(super) struct Loops {
    threads: HashSet<(ProcessKey, Tid)>,
    processes: HashMap<ProcessKey, Waits>,
    /// Until when a set is taken for its request's own.
    own: HashMap<(ProcessKey, WaitSet), u64>,
}

impl Loops {
    /// Whose descriptors a thread waits for, asked for by `waits` if it is not known.
    pub(super) fn judge(
        &mut self,
        process: ProcessKey,
        tid: Tid,
        set: &WaitSet,
        now_ktime_ns: u64,
        waits: impl FnOnce() -> Waits,
    ) -> Waits {
        let key = (process, set.clone());
        let own_until = self.own.get(&key);
        if own_until.is_some_and(|&until| now_ktime_ns < until) {
            return Waits::ForItself;
        }
        let waits = waits();
        if waits == Waits::ForItself {
            if self.own.len() >= SETS_MAX {
                self.own.clear();
            }
            self.own.insert(key, now_ktime_ns + OWN_NS);
        } else {
            self.threads.insert((process, tid));
            self.processes.insert(process, waits);
        }
        waits
    }

    /// Whether a thread is an event loop.
    pub(super) fn has(&self, process: ProcessKey, tid: Tid) -> bool {
        self.threads.contains(&(process, tid))
    }

    /// A process is gone.
    pub(super) fn forget(&mut self, process: ProcessKey) {
        self.threads.retain(|(of, _)| *of != process);
        self.processes.remove(&process);
        self.own.retain(|(of, _), _| *of != process);
    }

    /// Why nothing of a process's loops is reported.
    pub(super) fn text(&self, process: ProcessKey) -> String {
        match self.processes.get(&process) {
            Some(Waits::ForWorkers) => format!(
                "process {process} forwards requests to other processes of its program, like uWSGI's http router, and \
                 runs no handler: its requests are left out. Have the processes that serve them read HTTP themselves \
                 (uWSGI: `http-socket` instead of `http`)"
            ),
            _ => format!(
                "process {process} serves requests on an event loop: between a request and its response the thread \
                 waits for other clients as well, so a sample may belong to any of them. Its requests are left out; this \
                 version profiles servers in which one thread serves one request at a time"
            ),
        }
    }
}
