//! Samples of the threads that a tick finds blocked, and the read ahead of it.

use std::collections::HashMap;
use std::sync::Arc;

use profiler_common::ThreadState;

use super::Capture;
use super::clock::now_ktime_ns;
use crate::kernel::Kernel;
use crate::model::{ActiveRequest, Coverage, ProcessKey, PythonChain, RawSample, TaskSlot, Tid};
use crate::process::ProcessMemory;
use crate::process::python::PythonRuntime;
use crate::request::Action;
use crate::sampler::{ChainWalker, Sampler, Sources, ThreadStates, Tick, Watched};
use crate::unwind::python::PythonWalker;

impl ThreadStates for Kernel {
    fn thread_state(&self, tid: Tid) -> Option<ThreadState> {
        Self::thread_state(self, tid).ok().flatten()
    }
}

/// Python frames of blocked threads.
struct Walker<'a> {
    walker: &'a mut PythonWalker,
    runtimes: &'a HashMap<ProcessKey, Arc<PythonRuntime>>,
}

impl ChainWalker for Walker<'_> {
    fn walk(&mut self, process: ProcessKey, tid: Tid, thread_pointer: u64) -> Option<PythonChain> {
        let runtime = self.runtimes.get(&process)?;
        let memory = ProcessMemory::new(process.pid);
        Some(
            self.walker
                .walk_thread(&memory, runtime, tid, thread_pointer),
        )
    }
}

fn watch(request: &ActiveRequest) -> (TaskSlot, Watched) {
    let watched = Watched {
        request: request.id,
        start_ktime_ns: request.start_ktime_ns,
        process: request.process,
        tid: request.tid,
    };
    (request.slot, watched)
}

impl Capture {
    /// What the threads of requests did at a tick, those that were not running: of open requests, and of those
    /// that `actions` are about to finish and that were open at it.
    pub(super) fn sample_blocked(&mut self, tick: Tick, actions: &[Action]) -> Vec<RawSample> {
        let mut watched = self.watched();
        watched.extend(actions.iter().filter_map(|action| match action {
            Action::Finish(over) if over.end_ktime_ns > tick.last_ktime_ns => {
                Some(watch(&over.request))
            }
            _ => None,
        }));
        let mut found = Vec::new();
        self.each(watched, |sampler, watched, sources, losses| {
            sampler.sample(watched, tick, sources, losses, &mut found);
        });
        found
    }

    /// Reads what the next tick may find over. Yields the ends of blocks, as far as they are known by now.
    pub(super) fn look_ahead(&mut self) -> Vec<RawSample> {
        let begin_ktime_ns = now_ktime_ns();
        let mut found = Vec::new();
        self.each(self.watched(), |sampler, watched, sources, _| {
            sampler.look_ahead(watched, sources, &mut found);
        });
        let look_ns = now_ktime_ns().saturating_sub(begin_ktime_ns);
        self.ahead.on_look(look_ns);
        found
    }

    /// Threads of open requests.
    fn watched(&self) -> Vec<(TaskSlot, Watched)> {
        self.tracker.open().map(watch).collect()
    }

    /// Samples each thread, with the sources that there are.
    fn each(
        &mut self,
        watched: Vec<(TaskSlot, Watched)>,
        mut look: impl FnMut(
            &mut Sampler,
            Watched,
            &mut Sources<'_, Kernel, ProcessMemory, Walker<'_>>,
            &mut Coverage,
        ),
    ) {
        let Some(kernel) = &self.kernel else {
            return;
        };
        let mut walker = Walker {
            walker: &mut self.walker,
            runtimes: &self.runtimes,
        };
        for (slot, watched) in watched {
            let Some(losses) = self.tracker.coverage_mut(slot) else {
                continue;
            };
            let mut sources = Sources {
                states: kernel,
                memory: &ProcessMemory::new(watched.process.pid),
                walker: &mut walker,
                now_ktime_ns,
            };
            look(&mut self.sampler, watched, &mut sources, losses);
        }
    }
}
