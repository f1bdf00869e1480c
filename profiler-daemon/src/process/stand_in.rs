//! By which thread a process is read whose main thread has ended.
//!
//! In:  `/proc/PID/stat` of the main thread, `/proc/PID/task`
//! Out: [`door`]: the id under which the kernel shows memory and files of a process
//! Lost: until a scan has noticed that the main thread left, or that its stand-in did, the process cannot be read
//!
//! A main thread that ends by `pthread_exit` stays as a zombie until the last other thread ends. The process
//! serves on, but the kernel shows its memory, mappings, descriptors and links through a task that has
//! them, and the main thread has given up its own: `/proc/PID/maps` is empty, `process_vm_readv` of
//! the process's id fails. `/proc/TID` of any living thread shows them, though it is not listed there.
//!
//! All readers of /proc, on all threads of the daemon, have to know; hence one table for the program. It is
//! empty as a rule, and then costs the load of a flag.
//!
//! Ids are used again. So a thread stands in only while `/proc/PID/task` has it: then it is a thread of the process that has
//! the id now, whichever that is, and shows that process's memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, PoisonError, RwLock};

use super::procfs::Procfs;
use crate::model::Pid;

/// Most threads that are tried to find a living one.
const THREADS_MAX: usize = 4096;

static HAS_STAND_INS: AtomicBool = AtomicBool::new(false);
static STAND_INS: LazyLock<RwLock<HashMap<Pid, Pid>>> = LazyLock::new(RwLock::default);

/// The id under which a process can be read: its own, or that of the thread that stands in for its main
/// thread.
#[must_use]
pub(crate) fn door(pid: Pid) -> Pid {
    if !HAS_STAND_INS.load(Ordering::Relaxed) {
        return pid;
    }
    let known = STAND_INS.read().unwrap_or_else(PoisonError::into_inner);
    let thread = known.get(&pid).copied();
    drop(known);
    let is_of_process = |thread: &Pid| Path::new(&format!("/proc/{pid}/task/{thread}")).exists();
    thread.filter(is_of_process).unwrap_or(pid)
}

/// Whether a process whose main thread is dead lives on; if so, it is read through another thread from
/// now on.
pub(crate) fn lives_on(procfs: &Procfs, pid: Pid) -> bool {
    let living = living_thread(procfs, pid);
    let mut known = STAND_INS.write().unwrap_or_else(PoisonError::into_inner);
    match living {
        Some(thread) => known.insert(pid, thread),
        None => known.remove(&pid),
    };
    HAS_STAND_INS.store(!known.is_empty(), Ordering::Relaxed);
    living.is_some()
}

/// Looks whether the threads that stand in still live, and finds others where they do not.
pub(crate) fn refresh(procfs: &Procfs) {
    if HAS_STAND_INS.load(Ordering::Relaxed) {
        let known = STAND_INS.read().unwrap_or_else(PoisonError::into_inner);
        let pids: Vec<Pid> = known.keys().copied().collect();
        drop(known);
        for pid in pids {
            lives_on(procfs, pid);
        }
    }
}

/// A thread of a process that is not dead, if its main thread is.
fn living_thread(procfs: &Procfs, pid: Pid) -> Option<Pid> {
    if !procfs.stat(pid).ok()?.is_dead {
        return None;
    }
    let mut threads: Vec<Pid> = std::fs::read_dir(procfs.own_path(pid, "task"))
        .ok()?
        .take(THREADS_MAX)
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid))
        .filter(|&thread| thread != pid)
        .collect();
    threads.sort_unstable();
    threads
        .into_iter()
        .find(|&thread| procfs.stat(thread).is_ok_and(|stat| !stat.is_dead))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a process with its main thread is its own door, and that one that is gone has none.
    #[test]
    fn a_whole_process_is_its_own_door() {
        let procfs = Procfs::default();
        let own = Pid(std::process::id());
        assert!(!lives_on(&procfs, own));
        assert_eq!(door(own), own);
        assert!(!lives_on(&procfs, Pid(u32::MAX)));
        assert_eq!(door(Pid(u32::MAX)), Pid(u32::MAX));
    }

    /// Check that a thread which is not of the process, because an id was used again, does not stand in for it.
    #[test]
    fn a_thread_of_another_process_does_not_stand_in() {
        let own = Pid(std::process::id());
        let thread = Pid(nix::unistd::gettid().as_raw().cast_unsigned());
        for (stand_in, expected) in [(Pid(1), own), (thread, thread)] {
            let mut known = STAND_INS.write().unwrap();
            known.insert(own, stand_in);
            HAS_STAND_INS.store(true, Ordering::Relaxed);
            drop(known);
            assert_eq!(door(own), expected);
        }
        STAND_INS.write().unwrap().remove(&own);
    }
}
