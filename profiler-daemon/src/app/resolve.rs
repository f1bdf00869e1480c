//! The thread that turns samples into stacks with names, and finished requests into segments.
//!
//! In:  [`Work`] from [`super::capture`], in order
//! Out: [`PipelineEvent`]s to [`super::control`]
//! Lost: sample of a process that is gone -> [`Counter::SamplesOrphaned`]; of one whose stacks take too much time
//!       ([`Budgets`], [`STACK_TIME_MAX`]) -> [`Counter::SamplesTooDear`]

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tokio::sync::mpsc;

use super::budget::Budgets;
use super::capture::{Command, Commands, NewTarget, WaitingBytes, Work, now_ktime_ns};
use super::open_request::OpenRequests;
use crate::frames::{FrameSet, activity};
use crate::kernel;
use crate::model::{
    Captured, Counter, Coverage, FinishedRequest, Frame, FrameKind, ProcessKey, ProfiledSegment,
    RawSample, RequestId, SampleKind, Service, Stack, TAG_CUT, TaskId, TaskSlot, TimedStack,
};
use crate::process::Process;
use crate::process::procfs::Procfs;
use crate::process::python::{CodeSignature, PythonRuntime};
use crate::snapshot;
use crate::symbolize::Symbolizer;
use crate::timeline;
use crate::unwind::Unwinder;
use crate::usage::release_free_memory;

/// Tag of a request of which fewer snapshots were taken than its task asked for: the longest period.
const TAG_DUMP_PERIOD: &str = "profilerd.dump_period_ms";

/// Longest time for one stack. A usual one takes 50 µs, the first of a large program as long as its debug information.
const STACK_TIME_MAX: Duration = Duration::from_secs(1);
/// Longest time for what the first stacks of a process need.
const PREPARE_TIME_MAX: Duration = Duration::from_secs(5);

/// An event for the owner of the pipeline.
#[derive(Debug)]
pub(super) enum PipelineEvent {
    /// Programs are attached for this task.
    Armed(TaskId),
    /// A profiled request.
    Segment(Box<ProfiledSegment>),
    /// A finished request left no stack: its place is free again.
    NoStack(TaskSlot, Service),
    /// Coverage so far.
    Coverage(TaskId, Coverage),
    /// Time in all runs of the programs while the kernel counted them, and an instant (`CLOCK_MONOTONIC`).
    ProgramTime(u64, u64),
    /// The task is over.
    TaskDone(TaskId, Coverage),
    /// The task could not be armed.
    TaskFailed(TaskId, anyhow::Error),
    /// A process executed another program: inspect it again.
    ProcessChanged(ProcessKey),
}

/// State of the thread.
pub(super) struct Resolve {
    pub(super) work: Receiver<Work>,
    waiting: Arc<WaitingBytes>,
    commands: Commands,
    pub(super) events: mpsc::Sender<PipelineEvent>,
    unwinder: Unwinder,
    symbolizer: Symbolizer,
    frames: FrameSet,
    processes: HashMap<ProcessKey, Process>,
    runtimes: HashMap<ProcessKey, Arc<PythonRuntime>>,
    requests: OpenRequests,
    budgets: Budgets,
    coverage: HashMap<TaskId, Coverage>,
}

impl Resolve {
    pub(super) fn new(
        work: Receiver<Work>,
        waiting: Arc<WaitingBytes>,
        commands: Commands,
        events: mpsc::Sender<PipelineEvent>,
        code_signature: CodeSignature,
        frames: FrameSet,
    ) -> Self {
        Self {
            work,
            waiting,
            commands,
            events,
            unwinder: Unwinder::default(),
            symbolizer: Symbolizer::new(code_signature).showing(frames),
            frames,
            processes: HashMap::new(),
            runtimes: HashMap::new(),
            requests: OpenRequests::default(),
            budgets: Budgets::default(),
            coverage: HashMap::new(),
        }
    }

    /// Runs until the capture thread is gone.
    pub(super) fn run(mut self) {
        while let Ok(work) = self.work.recv() {
            self.take(work);
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Target(target) => self.on_target(target),
            Work::Forked(child, python) => {
                if let Some(python) = python {
                    self.runtimes.insert(child, python);
                }
            }
            Work::Begin(request, grids) => self.requests.begin(*request, grids),
            Work::Regrid(id, since_ktime_ns, grid) => {
                if let Some(open) = self.requests.get_mut(id) {
                    open.grids.change(since_ktime_ns, grid);
                }
            }
            Work::Sample(sample) => {
                self.waiting.remove(&sample);
                self.on_sample(sample);
            }
            Work::Drop(id) => {
                self.requests.close(id);
            }
            Work::Finish(finished) => self.on_finish(*finished),
            Work::Publish(task_id, coverage) => {
                let coverage = self.with_own(&task_id, coverage);
                self.tell(PipelineEvent::Coverage(task_id, coverage));
            }
            Work::ProgramTime(run_time_ns, ktime_ns) => {
                self.tell(PipelineEvent::ProgramTime(run_time_ns, ktime_ns));
            }
            Work::TaskDone(task_id, coverage) => {
                let coverage = self.with_own(&task_id, coverage);
                self.coverage.remove(&task_id);
                self.tell(PipelineEvent::TaskDone(task_id, coverage));
            }
            Work::TaskFailed(task_id, error) => {
                self.tell(PipelineEvent::TaskFailed(task_id, error));
            }
            Work::Armed(task_id) => self.tell(PipelineEvent::Armed(task_id)),
            Work::ForgetProcess(key, lives) => {
                self.forget(key);
                if lives {
                    self.tell(PipelineEvent::ProcessChanged(key));
                }
            }
            Work::Idle => {
                self.processes.clear();
                self.runtimes.clear();
                self.requests.clear();
                self.budgets = Budgets::default();
                self.symbolizer.release();
                self.unwinder = Unwinder::default();
                // Symbols take tens of megabytes, and the next task may be days away.
                release_free_memory();
            }
        }
    }

    /// Reads what stacks of a process need, before there are any.
    fn on_target(&mut self, mut target: NewTarget) {
        let key = target.process;
        self.forget(key);
        if let Some(python) = &target.python {
            self.runtimes.insert(key, Arc::clone(python));
            target.python_threads = python.thread_states();
        }
        let start = Instant::now();
        if let Err(error) = self.open_process(key) {
            tracing::debug!(pid = %key, %error, "process cannot be opened");
        }
        if let Some(process) = self.processes.get(&key) {
            self.symbolizer.stop_at(start + PREPARE_TIME_MAX);
            self.unwinder.prepare(process);
            self.symbolizer.prepare(process);
            // Most of what a request's stacks will have below its handler.
            let mut unwanted = Coverage::default();
            for stack in self.unwinder.python_stacks(process) {
                self.symbolizer.symbolize(process, &stack, &mut unwanted);
            }
        }
        tracing::debug!(pid = %key, elapsed = ?start.elapsed(), "process prepared");
        match Procfs::default().stat(key.pid) {
            Ok(now) if now.key(key.pid) == key && !now.is_same_program(&target.program) => {
                self.forget(key);
                self.tell(PipelineEvent::ProcessChanged(key));
            }
            // Whether it has ended is checked when it is watched.
            _ => self.commands.send(Command::Watch(target)),
        }
    }

    fn open_process(&mut self, key: ProcessKey) -> io::Result<()> {
        if !self.processes.contains_key(&key) {
            let mut process = Process::open_same(key)?;
            process.python = self.runtimes.get(&key).map(|python| (**python).clone());
            self.processes.insert(key, process);
        }
        Ok(())
    }

    fn on_sample(&mut self, sample: RawSample) {
        let RawSample {
            request,
            ktime_ns,
            kind,
            ..
        } = sample;
        let Some(open) = self.requests.get(request) else {
            // Requests that were dropped leave samples behind in the rings.
            return;
        };
        let process = open.request.process;
        let bytes_before = open.samples.memory_bytes();
        let (since_ktime_ns, stack) = match kind {
            SampleKind::Ended => {
                // Its stack while it was blocked held until then.
                if let Some(open) = self.requests.get_mut(request)
                    && let Ok(blocked) = &open.blocked
                {
                    open.samples.end_block(blocked, ktime_ns);
                }
                return;
            }
            SampleKind::Unchanged => (ktime_ns, open.blocked.clone()),
            SampleKind::OnCpu(captured) => {
                let stack = self.resolve(request, process, captured, (ktime_ns, false));
                (ktime_ns, stack)
            }
            SampleKind::OffCpu {
                since_ktime_ns,
                captured,
            } => {
                let stack = self.resolve(request, process, captured, (ktime_ns, true));
                if let Some(open) = self.requests.get_mut(request) {
                    open.blocked.clone_from(&stack);
                }
                (since_ktime_ns.min(ktime_ns), stack)
            }
        };
        let stack = match stack {
            Ok(stack) => Some(TimedStack {
                since_ktime_ns,
                ..TimedStack::at(ktime_ns, stack)
            }),
            Err(lost) => {
                if let Some(open) = self.requests.get_mut(request) {
                    open.losses.bump(lost);
                }
                None
            }
        };
        self.requests.push(request, bytes_before, stack);
    }

    /// Unwinds and names the stack of a thread that was on or off the CPU at a time; or says as what its sample counts.
    fn resolve(
        &mut self,
        request: RequestId,
        key: ProcessKey,
        mut captured: Box<Captured>,
        (ktime_ns, is_off_cpu): (u64, bool),
    ) -> Result<Arc<Stack<Frame>>, Counter> {
        let start = Instant::now();
        let open = self.requests.get(request);
        let service = open.map(|open| open.request.service.clone());
        let service = service.ok_or(Counter::SamplesOrphaned)?;
        let age = Duration::from_nanos(now_ktime_ns().saturating_sub(ktime_ns));
        if self.budgets.is_refused(key, &service, age, start) {
            return Err(self.too_dear(request, key));
        }
        let stack = self.name_frames(request, key, &mut captured, start + STACK_TIME_MAX);
        self.budgets.charge(key, &service, start, Instant::now());
        let mut stack = stack?;
        if self.symbolizer.is_late() {
            return Err(self.too_dear(request, key));
        }
        if !stack.frames.is_empty()
            && let Some(activity) = activity_of(&stack, &captured, is_off_cpu)
        {
            stack.frames.insert(0, activity);
        }
        tracing::trace!(pid = %key, elapsed = ?start.elapsed(), "stack resolved");
        let open = self.requests.get_mut(request);
        let open = open.ok_or(Counter::SamplesOrphaned)?;
        Ok(open.samples.share(stack))
    }

    fn name_frames(
        &mut self,
        request: RequestId,
        key: ProcessKey,
        captured: &mut Captured,
        deadline: Instant,
    ) -> Result<Stack<Frame>, Counter> {
        self.symbolizer.stop_at(deadline);
        self.open_process(key).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Counter::SamplesNoStack,
            _ => Counter::SamplesOrphaned,
        })?;
        let (process, open) = (self.processes.get_mut(&key), self.requests.get_mut(request));
        let (Some(process), Some(open)) = (process, open) else {
            return Err(Counter::SamplesOrphaned);
        };
        let stack = self.unwinder.unwind(process, captured, &mut open.losses);
        Ok(self.symbolizer.symbolize(process, &stack, &mut open.losses))
    }

    /// As what a sample counts whose process takes too much time, which is noted.
    fn too_dear(&mut self, request: RequestId, key: ProcessKey) -> Counter {
        if let Some(open) = self.requests.get_mut(request) {
            open.losses.note(format!(
                "process {key} has lost samples: to unwind and name its stacks takes so much time that others would lose \
                 theirs"
            ));
        }
        Counter::SamplesTooDear
    }

    fn on_finish(&mut self, mut finished: FinishedRequest) {
        let Some(open) = self.requests.close(finished.request.id) else {
            return;
        };
        finished.losses.merge(&open.losses);
        let step = open.samples.step();
        let samples = open.samples.finish(&open.grids, &mut finished.losses);
        let timeline = timeline::build(
            samples,
            &open.grids,
            finished.request.start_ktime_ns,
            finished.end_ktime_ns,
            &mut finished.losses,
        );
        let stretched_ns = open.grids.stretched_period_ns(finished.end_ktime_ns, step);
        let task_id = finished.request.task_id.clone();
        let (slot, service) = (finished.request.slot, finished.request.service.clone());
        match snapshot::build(finished, &timeline, self.frames) {
            Ok(mut segment) => {
                if let Some(period_ns) = stretched_ns {
                    let period_ms = (period_ns / 1_000_000).to_string();
                    segment.tags.push((TAG_DUMP_PERIOD.to_owned(), period_ms));
                }
                if let Some(why) = segment.request.cut {
                    segment.tags.push((TAG_CUT.to_owned(), why.to_string()));
                }
                self.coverage
                    .entry(task_id)
                    .or_default()
                    .merge(&segment.request.losses);
                self.tell(PipelineEvent::Segment(Box::new(segment)));
            }
            Err(finished) => {
                self.coverage
                    .entry(task_id)
                    .or_default()
                    .merge(&finished.losses);
                self.tell(PipelineEvent::NoStack(slot, service));
            }
        }
    }

    fn with_own(&self, task_id: &TaskId, mut coverage: Coverage) -> Coverage {
        if let Some(own) = self.coverage.get(task_id) {
            coverage.merge(own);
        }
        coverage
    }

    fn forget(&mut self, key: ProcessKey) {
        self.processes.remove(&key);
        self.runtimes.remove(&key);
        self.unwinder.forget(key);
        self.symbolizer.forget(key);
        self.budgets.forget(key);
    }

    fn tell(&self, event: PipelineEvent) {
        // Fails only when the owner is gone, and then the daemon is leaving.
        let _gone = self.events.blocking_send(event);
    }
}

/// What the thread is in inside the kernel, as the innermost frame.
fn activity_of(stack: &Stack<Frame>, captured: &Captured, is_off_cpu: bool) -> Option<Frame> {
    let kernel = stack.frames.iter().filter(|f| f.kind == FrameKind::Kernel);
    let names: Vec<&str> = kernel.map(|f| &*f.signature).collect();
    let call = kernel::system_call(&captured.regs);
    let activity = activity::of_thread(&names, call, is_off_cpu)?;
    Some(Frame::new(activity.to_string(), FrameKind::Activity))
}
