//! Samples of the threads that a tick finds blocked, and the read ahead of it.
//!
//! In:  a tick, or the moment before one; threads of open requests
//! Out: [`Seen`]
//! Lost: everything of a [`Look`] that does not return -> [`Counter::SamplesHeldUp`](crate::model::Counter::SamplesHeldUp)
//!
//! A look reads memory of the profiled processes, and may never return. So it owns all that it needs, and the capture thread lends
//! its state meanwhile ([`super::super::relay`]).

use std::collections::HashMap;
use std::sync::Arc;

use profiler_common::ThreadState;

use super::super::relay::Reading;
use super::Capture;
use super::clock::now_ktime_ns;
use crate::kernel::ThreadStateReader;
use crate::model::{ActiveRequest, Coverage, ProcessKey, PythonChain, RawSample, TaskSlot, Tid};
use crate::process::ProcessMemory;
use crate::process::python::PythonRuntime;
use crate::request::Action;
use crate::sampler::{ChainWalker, Sampler, Sources, ThreadStates, Tick, Watched};
use crate::unwind::python::PythonWalker;

impl ThreadStates for ThreadStateReader {
    fn thread_state(&self, tid: Tid) -> Option<ThreadState> {
        self.get(tid).ok().flatten()
    }
}

/// Python frames of blocked threads.
struct Walker<'a> {
    walker: &'a mut PythonWalker,
    runtime: Option<&'a PythonRuntime>,
}

impl ChainWalker for Walker<'_> {
    fn walk(&mut self, process: ProcessKey, tid: Tid, thread_pointer: u64) -> Option<PythonChain> {
        let memory = ProcessMemory::new(process.pid);
        let walk = |runtime| {
            self.walker
                .walk_thread(&memory, runtime, tid, thread_pointer)
        };
        self.runtime.map(walk)
    }
}

/// What is remembered of threads from one look to the next.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) sampler: Sampler,
    pub(super) walker: PythonWalker,
}

/// When threads are looked at.
pub(super) enum Occasion {
    /// A moment before a tick.
    Ahead,
    /// After these ticks, the oldest first.
    Ticks(Vec<Tick>),
}

/// A thread of a request.
struct Thread {
    slot: TaskSlot,
    watched: Watched,
    /// When the request ended, if it has.
    end_ktime_ns: Option<u64>,
    runtime: Option<Arc<PythonRuntime>>,
}

/// What a thread is looked at with.
type ThreadSources<'a, 'w> = Sources<'a, ThreadStateReader, ProcessMemory, Walker<'w>>;
type LookAt<'a> = dyn FnMut(&Thread, &mut Sampler, &mut ThreadSources<'_, '_>) + 'a;

impl Thread {
    fn look(&self, states: &ThreadStateReader, memory: &mut Memory, look: &mut LookAt<'_>) {
        let mut walker = Walker {
            walker: &mut memory.walker,
            runtime: self.runtime.as_deref(),
        };
        let mut sources = Sources {
            states,
            memory: &ProcessMemory::new(self.watched.process.pid),
            walker: &mut walker,
            now_ktime_ns,
        };
        look(self, &mut memory.sampler, &mut sources);
    }
}

/// A look at threads that is about to be done.
pub(super) struct Look {
    occasion: Occasion,
    threads: Vec<Thread>,
    states: Arc<ThreadStateReader>,
    memory: Memory,
}

/// What a look has found.
pub(super) struct Seen {
    pub(super) memory: Memory,
    pub(super) found: Vec<RawSample>,
    pub(super) losses: HashMap<TaskSlot, Coverage>,
    /// How long it took.
    pub(super) took_ns: u64,
}

impl Look {
    /// Samples of each task that are lost if it does not return.
    pub(super) fn samples(&self) -> HashMap<TaskSlot, u64> {
        let ticks = match &self.occasion {
            Occasion::Ahead => 0, // the tick may still be in time
            Occasion::Ticks(ticks) => ticks.len() as u64,
        };
        let mut samples = HashMap::new();
        for thread in &self.threads {
            *samples.entry(thread.slot).or_default() += ticks;
        }
        samples
    }

    /// Reads the threads' stacks.
    pub(super) fn run(self, reading: &Reading) -> Seen {
        let begin_ktime_ns = now_ktime_ns();
        let Self {
            occasion,
            threads,
            states,
            mut memory,
        } = self;
        let (mut found, mut losses) = (Vec::new(), HashMap::<_, Coverage>::new());
        let mut each = |look: &mut LookAt<'_>| {
            for thread in &threads {
                reading.begin(thread.watched.process.pid);
                thread.look(&states, &mut memory, look);
            }
        };
        match occasion {
            Occasion::Ahead => each(&mut |thread, sampler, sources| {
                sampler.look_ahead(thread.watched, sources, &mut found);
            }),
            Occasion::Ticks(ticks) => {
                for &tick in &ticks {
                    each(&mut |thread, sampler, sources| {
                        let was_open = |end| end > tick.last_ktime_ns;
                        if thread.end_ktime_ns.is_none_or(was_open) {
                            let losses = losses.entry(thread.slot).or_default();
                            sampler.sample(thread.watched, tick, sources, losses, &mut found);
                        }
                    });
                }
                if let Some(last) = ticks.last() {
                    memory.sampler.end_ticks(last.last_ktime_ns);
                }
            }
        }
        Seen {
            memory,
            found,
            losses,
            took_ns: now_ktime_ns().saturating_sub(begin_ktime_ns),
        }
    }
}

impl Capture {
    /// A look at the threads of open requests, and of those that `actions` are about to finish; none if there are none.
    pub(super) fn look_at_threads(
        &mut self,
        occasion: Occasion,
        actions: &[Action],
    ) -> Option<Look> {
        let states = self.kernel.as_ref()?.thread_states();
        let open = self.tracker.open().map(|request| (request, None));
        let finished = actions.iter().filter_map(|action| match action {
            Action::Finish(over) => Some((&over.request, Some(over.end_ktime_ns))),
            _ => None,
        });
        let threads: Vec<Thread> = open
            .chain(finished)
            .map(|(request, end_ktime_ns)| self.thread(request, end_ktime_ns))
            .collect();
        (!threads.is_empty()).then(|| Look {
            occasion,
            threads,
            states,
            memory: std::mem::take(&mut self.memory),
        })
    }

    fn thread(&self, request: &ActiveRequest, end_ktime_ns: Option<u64>) -> Thread {
        Thread {
            slot: request.slot,
            watched: Watched {
                request: request.id,
                start_ktime_ns: request.start_ktime_ns,
                process: request.process,
                tid: request.tid,
            },
            end_ktime_ns,
            runtime: self.runtimes.get(&request.process).cloned(),
        }
    }
}
