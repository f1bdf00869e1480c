//! What the daemon asks the programs' maps: threads, connections, tags, counts.

use std::ops::Range;
use std::sync::Arc;

use profiler_common::{Conn, ConnKey, KernelCounter, Target, ThreadState, ThreadTag};

use super::control::check_slot;
use super::maps::Table;
use super::{Kernel, KernelError, scheduler};
use crate::model::{Pid, SwitchOut, TaskSlot, Tid};

/// Reads what the programs store of threads, also on a thread that does not have the [`Kernel`].
pub struct ThreadStateReader {
    states: Table<u32, ThreadState>,
    /// Where kernel stacks of switched-out threads begin.
    schedule: Option<Range<u64>>,
}

impl ThreadStateReader {
    pub(super) fn new(states: Table<u32, ThreadState>, schedule: Option<Range<u64>>) -> Self {
        Self { states, schedule }
    }

    /// Last registers of a tagged thread. A reader compares `seq` before and after reading memory.
    /// Kernel frames begin with the scheduler.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn get(&self, tid: Tid) -> Result<Option<ThreadState>, KernelError> {
        let mut state = self.states.get(&tid.0)?;
        if let (Some(state), Some(schedule)) = (&mut state, &self.schedule) {
            scheduler::trim(state, schedule);
        }
        Ok(state)
    }

    /// Has the kernel frames of a switch-out begin with the scheduler.
    pub(super) fn trim(&self, out: &mut SwitchOut) {
        if let Some(schedule) = &self.schedule {
            scheduler::trim_frames(&mut out.captured.kernel_frames, schedule);
        }
    }
}

impl Kernel {
    /// As [`ThreadStateReader::get`].
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn thread_state(&self, tid: Tid) -> Result<Option<ThreadState>, KernelError> {
        self.states.get(tid)
    }

    /// A reader of thread states for another thread. It holds the map when the kernel side is dropped, and reads nothing then.
    #[must_use]
    pub fn thread_states(&self) -> Arc<ThreadStateReader> {
        Arc::clone(&self.states)
    }

    /// The tag of a thread, also one that is cancelled and that the thread has yet to remove.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn thread_tag(&self, tid: Tid) -> Result<Option<ThreadTag>, KernelError> {
        self.maps.tags.get(&tid.0)
    }

    /// A connection that carried a request.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn conn(&self, pid: Pid, fd: i32) -> Result<Option<Conn>, KernelError> {
        self.maps.conns.get(&ConnKey { tgid: pid.0, fd })
    }

    /// All threads that are sampled: tagged, and their request has not been let go.
    #[must_use]
    pub fn tags(&self) -> Vec<(Tid, ThreadTag)> {
        let is_cancelled =
            |tag: &ThreadTag| matches!(self.maps.cancels.get(&tag.request_id), Ok(Some(_)));
        let entries = self.maps.tags.entries();
        entries
            .into_iter()
            .filter(|(_, tag)| !is_cancelled(tag))
            .map(|(tid, tag)| (Tid(tid), tag))
            .collect()
    }

    /// Counts of a slot since its rule was set, over all CPUs.
    ///
    /// # Errors
    ///
    /// The slot does not exist or the map refuses.
    pub fn counters(&self, slot: TaskSlot) -> Result<Vec<(KernelCounter, u64)>, KernelError> {
        check_slot(slot)?;
        let count = |counter| Ok((counter, self.maps.counter(slot.0, counter)?));
        KernelCounter::ALL.into_iter().map(count).collect()
    }

    /// Processes in the target set, forked children included.
    #[must_use]
    pub fn targets(&self) -> Vec<(Pid, Target)> {
        let entries = self.maps.targets.entries();
        entries
            .into_iter()
            .map(|(tgid, target)| (Pid(tgid), target))
            .collect()
    }

    /// Number of connections known to the kernel side.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.maps.conns.entries().len()
    }
}
