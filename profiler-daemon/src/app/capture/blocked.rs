//! Samples of the threads that a tick finds blocked.

use std::collections::HashMap;
use std::sync::Arc;

use profiler_common::ThreadState;

use super::Capture;
use crate::kernel::Kernel;
use crate::model::{Pid, PythonChain, RawSample, TaskSlot, Tid};
use crate::process::ProcessMemory;
use crate::process::python::PythonRuntime;
use crate::sampler::{ChainWalker, ThreadStates, Tick, Watched};
use crate::unwind::python::PythonWalker;

impl ThreadStates for Kernel {
    fn thread_state(&self, tid: Tid) -> Option<ThreadState> {
        Self::thread_state(self, tid).ok().flatten()
    }
}

/// Python frames of blocked threads.
struct Walker<'a> {
    walker: &'a mut PythonWalker,
    runtimes: &'a HashMap<Pid, Arc<PythonRuntime>>,
}

impl ChainWalker for Walker<'_> {
    fn walk(&mut self, pid: Pid, tid: Tid) -> Option<PythonChain> {
        let runtime = self.runtimes.get(&pid)?;
        Some(
            self.walker
                .walk_thread(&ProcessMemory::new(pid), runtime, tid),
        )
    }
}

impl Capture {
    /// What the threads of open requests did at a tick, those that were not running.
    pub(super) fn sample_blocked(&mut self, tick: Tick) -> Vec<RawSample> {
        let watched: Vec<(TaskSlot, Watched)> = self
            .tracker
            .sampled()
            .map(|r| {
                (
                    r.slot,
                    Watched {
                        request: r.id,
                        start_ktime_ns: r.start_ktime_ns,
                        pid: r.pid,
                        tid: r.tid,
                    },
                )
            })
            .collect();
        let mut walker = Walker {
            walker: &mut self.walker,
            runtimes: &self.runtimes,
        };
        let mut found = Vec::new();
        let Some(kernel) = &self.kernel else {
            return found;
        };
        for (slot, watched) in watched {
            let Some(losses) = self.tracker.coverage_mut(slot) else {
                continue;
            };
            let memory = ProcessMemory::new(watched.pid);
            self.sampler.sample(
                watched,
                tick,
                kernel,
                &memory,
                &mut walker,
                losses,
                &mut found,
            );
        }
        found
    }
}
