//! What names a process and a thread.

use std::fmt;

/// A process (thread group) id in the host's pid namespace. It is used again after the process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(pub u32);

/// A thread id in the host's pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a process is watched no more, with a sentence for the coverage of its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// Reading it does not end.
    Unreadable(String),
    /// It must not be profiled.
    Denied(String),
}

/// One process and no other that has its id before or after. An exec changes neither part.
///
/// Whatever is remembered of a process is remembered by its key. A bare [`Pid`] is for asking the kernel, which
/// knows the process that has the id now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey {
    /// Its id while it lives.
    pub pid: Pid,
    /// Field 22 of `/proc/PID/stat`: the start in clock ticks after boot, as a rule 100 a second.
    pub start_ticks: u64,
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.fmt(f)
    }
}
